//! The identity token of a VM, which Google's metadata server signs.
//!
//! In its full format the token names the project, the zone and the instance. Only the metadata server of that instance
//! can issue such a token: tokens that a service account requests elsewhere do not have these claims.
//! <https://cloud.google.com/compute/docs/instances/verifying-instance-identity>

use base64::prelude::{BASE64_URL_SAFE_NO_PAD, Engine};
use jsonwebtoken::errors::ErrorKind;
use jsonwebtoken::{Algorithm, DecodingKey, Validation};
use serde::Deserialize;
use serde::de::IgnoredAny;

use crate::clock::Timestamp;

/// The two spellings of the issuer that Google documents.
const ISSUERS: [&str; 2] = ["https://accounts.google.com", "accounts.google.com"];

/// A token of the full format has about 1,500 bytes.
const MAX_TOKEN_BYTES: usize = 8 * 1024;

/// The allowed difference between Google's clock and the service's.
const LEEWAY_SECONDS: u64 = 60;

/// The instance that a token was issued to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    pub project: String,
    pub zone: String,
    pub instance: String,
}

/// The reason why a token is rejected. The messages do not repeat it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Untrusted {
    /// No `Authorization: Bearer …`.
    #[error("the request has no token")]
    Missing,
    /// Not a JWT, or too long for one of Google's.
    #[error("its token is not an identity token")]
    Malformed,
    #[error("its token is not signed with RS256")]
    Algorithm,
    /// RFC 7515, section 4.1.11: such a token is valid only for those who know the extension.
    #[error("its token has the header `crit`, which asks for an extension")]
    Critical,
    #[error("its token is signed with a key that Google does not publish")]
    UnknownKey,
    #[error("its token's signature is wrong")]
    Signature,
    #[error("its token was not issued by accounts.google.com")]
    Issuer,
    #[error("its token was issued for another service: ask for the audience CLOUD_RUN_SERVICE_URL")]
    Audience,
    #[error("its token has expired")]
    Expired,
    #[error("its token is not valid yet: the VM's clock or the service's is wrong")]
    NotYet,
    #[error("its token names no instance: ask for format=full")]
    NoInstance,
    #[error("its token is that of another account than CALLBACK_SERVICE_ACCOUNT")]
    Account,
}

/// The id of the key that the token names.
pub fn key_id(token: &str) -> Result<String, Untrusted> {
    if token.len() > MAX_TOKEN_BYTES {
        return Err(Untrusted::Malformed);
    }
    // The library does not know the algorithm `none`.
    let header = jsonwebtoken::decode_header(token).map_err(|error| match error.kind() {
        ErrorKind::Json(_) | ErrorKind::InvalidAlgorithmName => Untrusted::Algorithm,
        _ => Untrusted::Malformed,
    })?;
    if header.alg != Algorithm::RS256 {
        return Err(Untrusted::Algorithm);
    }
    if is_critical(token) {
        return Err(Untrusted::Critical);
    }
    header.kid.ok_or(Untrusted::UnknownKey)
}

/// The token has the header `crit`, which the library does not look at.
fn is_critical(token: &str) -> bool {
    #[derive(Deserialize)]
    struct Extensions {
        crit: Option<IgnoredAny>,
    }
    let header = token.split('.').next().unwrap_or_default();
    let header = BASE64_URL_SAFE_NO_PAD.decode(header).unwrap_or_default();
    serde_json::from_slice(&header).is_ok_and(|known: Extensions| known.crit.is_some())
}

/// Verifies that `key` signed the token for this `audience`, that it is valid at `now`, and that it is an instance's.
pub fn verify(
    token: &str,
    key: &DecodingKey,
    audience: &str,
    now: Timestamp,
) -> Result<Identity, Untrusted> {
    let engine = claims(token, key, audience, now)?.google.and_then(|google| google.compute_engine);
    let engine = engine.ok_or(Untrusted::NoInstance)?;
    Ok(Identity { project: engine.project_id, zone: engine.zone, instance: engine.instance_name })
}

/// Verifies that `key` signed the token for this audience and service account, and that it is valid at `now`.
/// <https://cloud.google.com/tasks/docs/creating-http-target-tasks#token>
pub fn verify_account(
    token: &str,
    key: &DecodingKey,
    (audience, account): (&str, &str),
    now: Timestamp,
) -> Result<(), Untrusted> {
    let Claims { email, email_verified, .. } = claims(token, key, audience, now)?;
    let is_account = email.is_some_and(|email| email.eq_ignore_ascii_case(account));
    if is_account && email_verified { Ok(()) } else { Err(Untrusted::Account) }
}

fn claims(
    token: &str,
    key: &DecodingKey,
    audience: &str,
    now: Timestamp,
) -> Result<Claims, Untrusted> {
    let mut validation = Validation::new(Algorithm::RS256);
    validation.set_audience(&[audience]);
    validation.set_issuer(&ISSUERS);
    validation.set_required_spec_claims(&["aud", "iss", "exp"]);
    // Checked below, by the service's clock.
    (validation.validate_exp, validation.validate_nbf) = (false, false);
    let claims: Claims = jsonwebtoken::decode(token, key, &validation)
        .map_err(|error| match error.kind() {
            ErrorKind::InvalidSignature | ErrorKind::Provider(_) => Untrusted::Signature,
            ErrorKind::InvalidAlgorithm => Untrusted::Algorithm,
            ErrorKind::InvalidAudience => Untrusted::Audience,
            ErrorKind::InvalidIssuer => Untrusted::Issuer,
            ErrorKind::MissingRequiredClaim(claim) if claim == "aud" => Untrusted::Audience,
            ErrorKind::MissingRequiredClaim(claim) if claim == "iss" => Untrusted::Issuer,
            _ => Untrusted::Malformed,
        })?
        .claims;
    let now = now.unix_seconds();
    if claims.exp.saturating_add(LEEWAY_SECONDS) <= now {
        return Err(Untrusted::Expired);
    }
    let begins = claims.iat.max(claims.nbf.unwrap_or(0));
    if begins > now + LEEWAY_SECONDS {
        return Err(Untrusted::NotYet);
    }
    Ok(claims)
}

#[derive(Deserialize)]
struct Claims {
    email: Option<String>,
    #[serde(default)]
    email_verified: bool,
    exp: u64,
    iat: u64,
    nbf: Option<u64>,
    google: Option<Google>,
}

#[derive(Deserialize)]
struct Google {
    compute_engine: Option<ComputeEngine>,
}

#[derive(Deserialize)]
struct ComputeEngine {
    project_id: String,
    zone: String,
    instance_name: String,
}
