//! The keys that tokens are signed with.

use std::fmt;

use aws_lc_rs::encoding::AsDer;
use aws_lc_rs::rsa::{KeyPair, KeySize};
use aws_lc_rs::signature::KeyPair as _;
use base64::prelude::{BASE64_STANDARD, Engine};
use jsonwebtoken::DecodingKey;
use serde_json::json;

/// The RSA keys of the GitHub App and of the service account. They are random, but no response depends on them.
pub struct Keys {
    app_pem: String,
    service_pem: String,
    pub(super) app: DecodingKey,
    pub(super) service: DecodingKey,
}

impl Keys {
    pub fn generate() -> Self {
        let (app_pem, app) = rsa_key();
        let (service_pem, service) = rsa_key();
        Self { app_pem, service_pem, app, service }
    }

    /// The GitHub App's private key, PKCS#8 in PEM.
    pub fn app_private_key_pem(&self) -> &str {
        &self.app_pem
    }

    /// A key file for `GOOGLE_APPLICATION_CREDENTIALS` with this token endpoint.
    pub fn service_account_json(&self, token_uri: &str) -> String {
        json!({
            "type": "service_account",
            "project_id": "emulated",
            "private_key_id": "0000000000000000000000000000000000000001",
            "private_key": self.service_pem,
            "client_email": self.client_email(),
            "client_id": "100000000000000000001",
            "auth_uri": "https://accounts.google.com/o/oauth2/auth",
            "token_uri": token_uri,
        })
        .to_string()
    }

    pub(super) fn client_email(&self) -> &'static str {
        "runner-manager@emulated.iam.gserviceaccount.com"
    }
}

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Keys(..)")
    }
}

pub(super) fn rsa_key() -> (String, DecodingKey) {
    let pair = KeyPair::generate(KeySize::Rsa2048).expect("the system has randomness");
    let der = pair.as_der().expect("a fresh key has a PKCS#8 form");
    let text = BASE64_STANDARD.encode(der.as_ref());
    let mut pem = String::from("-----BEGIN PRIVATE KEY-----\n");
    for line in text.as_bytes().chunks(64) {
        pem.extend(line.iter().copied().map(char::from));
        pem.push('\n');
    }
    pem.push_str("-----END PRIVATE KEY-----\n");
    (pem, DecodingKey::from_rsa_der(pair.public_key().as_ref()))
}
