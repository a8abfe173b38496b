//! The shared secret, which authenticates GitHub, operators and Cloud Tasks.
//!
//! GitHub signs a delivery's body with it (HMAC SHA-256); operators and Cloud Tasks send it in a header. During a
//! rotation the previous secret is accepted too, since tasks that carry it are still pending.
//! <https://docs.github.com/en/webhooks/using-webhooks/validating-webhook-deliveries>

use std::fmt;

use hmac::{Hmac, KeyInit, Mac};
use sha2::{Digest, Sha256};
use subtle::{Choice, ConstantTimeEq};

/// A secret text. `Debug` does not show it, and it cannot be compared with `==`, which would leak its length and prefix
/// through timing:
///
/// ```compile_fail,E0369
/// # use runner_manager::secret::Secret;
/// let equal = Secret::new("a") == Secret::new("b");
/// ```
#[derive(Clone)]
pub struct Secret(String);

impl Secret {
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The reason why this text is easy to guess, if it is.
    pub fn weakness(&self) -> Option<&'static str> {
        let text = self.0.to_ascii_lowercase();
        let placeholders = [
            "change-me",
            "changeme",
            "your-secret",
            "your_secret",
            "placeholder",
            "example",
            "password",
        ];
        if text.len() < 16 {
            Some("is short: make one that cannot be guessed with `openssl rand -hex 32`")
        } else if placeholders.iter().any(|placeholder| text.contains(placeholder)) {
            Some(
                "looks like a placeholder: make one that cannot be guessed with `openssl rand -hex 32`",
            )
        } else {
            None
        }
    }

    /// The text itself, for the code that sends it.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[redacted]")
    }
}

/// A failed authentication. The messages do not repeat the header.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    #[error(
        "the header X-Hub-Signature-256 is missing: set the webhook's secret to RUNNER_MANAGER_SECRET, or to GITHUB_WEBHOOK_SECRET if that is set"
    )]
    NoSignature,
    /// Another algorithm, not hexadecimal, or not 32 bytes.
    #[error("the header X-Hub-Signature-256 is not `sha256=` and 64 hexadecimal digits")]
    MalformedSignature,
    /// Signed with another secret, or modified in transit.
    #[error(
        "the signature does not match the body: set the webhook's secret to RUNNER_MANAGER_SECRET, or to GITHUB_WEBHOOK_SECRET if that is set"
    )]
    WrongSignature,
    #[error("the header X-Runner-Secret is missing")]
    NoSecret,
    #[error("the header X-Runner-Secret does not hold the shared secret")]
    WrongSecret,
}

/// The current secret and, during a rotation, the previous one. The webhook may have one of its own, which opens nothing
/// else.
#[derive(Clone, Debug)]
pub struct SharedSecret {
    current: Secret,
    accepted: Vec<Accepted>,
    webhook: Option<Accepted>,
}

/// A secret, prepared for verification.
#[derive(Clone)]
struct Accepted {
    /// Keyed once: each verification starts from a copy.
    hmac: Hmac<Sha256>,
    /// Compared instead of the secret: digests have one length, so the comparison's time does not reveal the secret's.
    digest: [u8; 32],
}

impl fmt::Debug for Accepted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[redacted]")
    }
}

impl Accepted {
    fn new(secret: &Secret) -> Self {
        let key = secret.expose().as_bytes();
        let hmac = Hmac::<Sha256>::new_from_slice(key).expect("HMAC takes keys of any length");
        Self { hmac, digest: Sha256::digest(key).into() }
    }
}

impl SharedSecret {
    pub fn new(current: Secret, previous: Option<Secret>) -> Self {
        let accepted =
            [Some(&current), previous.as_ref()].into_iter().flatten().map(Accepted::new).collect();
        Self { current, accepted, webhook: None }
    }

    /// Signatures made with `secret` count too.
    #[must_use]
    pub fn with_webhook(self, secret: Option<&Secret>) -> Self {
        Self { webhook: secret.map(Accepted::new), ..self }
    }

    /// The secret that new tasks carry.
    pub fn current(&self) -> &Secret {
        &self.current
    }

    /// Verifies the signature of this body.
    pub fn verify_signature(&self, signature: &Signature, body: &[u8]) -> Result<(), Refused> {
        let made_by = |accepted: &Accepted| {
            accepted.hmac.clone().chain_update(body).verify_slice(&signature.0).is_ok()
        };
        if self.webhook.iter().chain(&self.accepted).any(made_by) {
            Ok(())
        } else {
            Err(Refused::WrongSignature)
        }
    }

    /// Verifies the header `X-Runner-Secret`.
    pub fn verify_secret(&self, header: Option<&[u8]>) -> Result<(), Refused> {
        let digest: [u8; 32] = Sha256::digest(header.ok_or(Refused::NoSecret)?).into();
        let none = Choice::from(0);
        let known = self
            .accepted
            .iter()
            .fold(none, |known, accepted| known | accepted.digest.ct_eq(&digest));
        if known.into() { Ok(()) } else { Err(Refused::WrongSecret) }
    }
}

/// The signature of a delivery, not verified yet.
#[derive(Clone, Copy, Debug)]
pub struct Signature([u8; 32]);

impl Signature {
    /// Parses the header `X-Hub-Signature-256`.
    pub fn parse(header: Option<&[u8]>) -> Result<Self, Refused> {
        let header = header.ok_or(Refused::NoSignature)?;
        let hex = header.strip_prefix(b"sha256=").ok_or(Refused::MalformedSignature)?;
        parse_hex(hex).map(Self).ok_or(Refused::MalformedSignature)
    }
}

fn parse_hex(hex: &[u8]) -> Option<[u8; 32]> {
    let mut bytes = [0; 32];
    if hex.len() != 2 * bytes.len() {
        return None;
    }
    let digit = |c: u8| char::from(c).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    for (byte, pair) in bytes.iter_mut().zip(hex.chunks_exact(2)) {
        *byte = digit(pair[0])? << 4 | digit(pair[1])?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verify(secret: &SharedSecret, header: Option<&[u8]>, body: &[u8]) -> Result<(), Refused> {
        secret.verify_signature(&Signature::parse(header)?, body)
    }

    // The example of GitHub's documentation.
    const SECRET: &str = "It's a Secret to Everybody";
    const BODY: &[u8] = b"Hello, World!";
    const SIGNATURE: &str =
        "sha256=757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17";

    fn secret() -> SharedSecret {
        SharedSecret::new(Secret::new(SECRET), None)
    }

    #[test]
    fn githubs_own_example_verifies() {
        assert_eq!(verify(&secret(), Some(SIGNATURE.as_bytes()), BODY), Ok(()));
        assert_eq!(
            verify(
                &secret(),
                Some(SIGNATURE.to_uppercase().replace("SHA", "sha").as_bytes()),
                BODY
            ),
            Ok(())
        );
    }

    #[track_caller]
    fn refuses(signature: &[u8], why: Refused) {
        assert_eq!(verify(&secret(), Some(signature), BODY), Err(why));
    }

    #[test]
    fn anything_else_is_refused() {
        assert_eq!(verify(&secret(), None, BODY), Err(Refused::NoSignature));
        refuses(b"", Refused::MalformedSignature);
        refuses(b"sha256=", Refused::MalformedSignature);
        refuses(b"sha1=757107ea0eb2509fc211221cce984b8a37570b6d", Refused::MalformedSignature);
        refuses(&SIGNATURE.as_bytes()[7..], Refused::MalformedSignature);
        refuses(&SIGNATURE.as_bytes()[..70], Refused::MalformedSignature);
        refuses(SIGNATURE.replace('7', "g").as_bytes(), Refused::MalformedSignature);
        refuses(SIGNATURE.replace('7', "\u{e9}").as_bytes(), Refused::MalformedSignature);
        refuses(SIGNATURE.replace('7', "8").as_bytes(), Refused::WrongSignature);
        assert_eq!(
            verify(&secret(), Some(SIGNATURE.as_bytes()), b"Hello, World?"),
            Err(Refused::WrongSignature)
        );
    }

    #[test]
    fn a_previous_secret_counts_while_it_is_configured() {
        let rotating = SharedSecret::new(Secret::new("new"), Some(Secret::new(SECRET)));
        assert_eq!(verify(&rotating, Some(SIGNATURE.as_bytes()), BODY), Ok(()));
        assert_eq!(rotating.verify_secret(Some(SECRET.as_bytes())), Ok(()));
        assert_eq!(rotating.verify_secret(Some(b"new")), Ok(()));
        assert_eq!(rotating.verify_secret(Some(b"")), Err(Refused::WrongSecret));
        assert_eq!(rotating.verify_secret(None), Err(Refused::NoSecret));
        assert_eq!(rotating.current().expose(), "new");
    }

    #[test]
    fn the_webhooks_own_secret_opens_nothing_else() {
        let both =
            SharedSecret::new(Secret::new("shared"), None).with_webhook(Some(&Secret::new(SECRET)));
        assert_eq!(verify(&both, Some(SIGNATURE.as_bytes()), BODY), Ok(()));
        assert_eq!(both.verify_secret(Some(SECRET.as_bytes())), Err(Refused::WrongSecret));
        assert_eq!(both.verify_secret(Some(b"shared")), Ok(()));
        // Until GitHub knows the new one, deliveries are signed with the shared secret.
        let unsigned = SharedSecret::new(Secret::new(SECRET), None)
            .with_webhook(Some(&Secret::new("of the webhook")));
        assert_eq!(verify(&unsigned, Some(SIGNATURE.as_bytes()), BODY), Ok(()));
    }

    #[test]
    fn a_previous_secret_that_is_the_current_one_does_no_harm() {
        let twice = SharedSecret::new(Secret::new(SECRET), Some(Secret::new(SECRET)));
        assert_eq!(twice.verify_secret(Some(SECRET.as_bytes())), Ok(()));
        assert_eq!(verify(&twice, Some(SIGNATURE.as_bytes()), BODY), Ok(()));
    }

    #[test]
    fn debug_does_not_show_the_secret() {
        assert!(!format!("{:?}", secret()).contains(SECRET));
    }
}
