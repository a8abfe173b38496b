//! Who a VM is: the identity token that Google's metadata server signs for it.
//!
//! In its full format the token names the project, the zone and the instance. Nobody can put those into a token but
//! the metadata server of that very instance: a service account's own tokens have no such claims.
//! <https://cloud.google.com/compute/docs/instances/verifying-instance-identity>

use jsonwebtoken::errors::ErrorKind;
use jsonwebtoken::{Algorithm, DecodingKey, Validation};
use serde::Deserialize;

use crate::clock::Timestamp;

/// How a token's issuer may be spelt.
const ISSUERS: [&str; 2] = ["https://accounts.google.com", "accounts.google.com"];

/// A token of the full format has about 1,500 bytes.
const LONGEST: usize = 8 * 1024;

/// Seconds by which Google's clock and ours may differ.
const LEEWAY: u64 = 60;

/// Which instance a token was made for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The project's id.
    pub project: String,
    /// Such as `asia-northeast1-a`.
    pub zone: String,
    /// The instance's name.
    pub instance: String,
}

/// Why a token is not believed. The texts repeat nothing of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Untrusted {
    /// No `Authorization: Bearer …`.
    #[error("it came without a token")]
    Missing,
    /// Not a JWT, or too long for one of Google's.
    #[error("its token is not an identity token")]
    Malformed,
    /// Signed by another algorithm than Google's, or by none.
    #[error("its token is not signed with RS256")]
    Algorithm,
    /// Signed with a key that Google does not publish.
    #[error("its token is signed with a key that is not Google's")]
    UnknownKey,
    /// Not signed by the key that it names.
    #[error("its token's signature is wrong")]
    Signature,
    /// Signed by Google for something else than an identity.
    #[error("its token is of another issuer")]
    Issuer,
    /// Made for another service.
    #[error("its token is meant for another service: ask for the audience CLOUD_RUN_SERVICE_URL")]
    Audience,
    /// Its time is over.
    #[error("its token has expired")]
    Expired,
    /// Its time has not come.
    #[error("its token is not valid yet: the VM's clock or ours is wrong")]
    NotYet,
    /// It does not say which instance it is for.
    #[error("its token names no instance: ask for format=full")]
    NoInstance,
}

/// The id of the key that the token says it is signed with.
///
/// # Errors
/// If it cannot be a token of Google's.
pub fn key_id(token: &str) -> Result<String, Untrusted> {
    if token.len() > LONGEST {
        return Err(Untrusted::Malformed);
    }
    // `none` is no algorithm that the library knows.
    let header = jsonwebtoken::decode_header(token).map_err(|error| match error.kind() {
        ErrorKind::Json(_) | ErrorKind::InvalidAlgorithmName => Untrusted::Algorithm,
        _ => Untrusted::Malformed,
    })?;
    if header.alg != Algorithm::RS256 {
        return Err(Untrusted::Algorithm);
    }
    header.kid.ok_or(Untrusted::UnknownKey)
}

/// Who the token was made for, if `key` signed it for this `audience`, and it is good at `now`.
///
/// # Errors
/// As [`Untrusted`] says.
pub fn verify(
    token: &str,
    key: &DecodingKey,
    audience: &str,
    now: Timestamp,
) -> Result<Identity, Untrusted> {
    let mut validation = Validation::new(Algorithm::RS256);
    validation.set_audience(&[audience]);
    validation.set_issuer(&ISSUERS);
    validation.set_required_spec_claims(&["aud", "iss", "exp"]);
    // By our own clock, below.
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
    if claims.exp.saturating_add(LEEWAY) <= now {
        return Err(Untrusted::Expired);
    }
    let begins = claims.iat.max(claims.nbf.unwrap_or(0));
    if begins > now + LEEWAY {
        return Err(Untrusted::NotYet);
    }
    let engine = claims.google.and_then(|google| google.compute_engine);
    let engine = engine.ok_or(Untrusted::NoInstance)?;
    Ok(Identity { project: engine.project_id, zone: engine.zone, instance: engine.instance_name })
}

#[derive(Deserialize)]
struct Claims {
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
