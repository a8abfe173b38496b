//! The URL of GitHub's webhook.

use http::Uri;

/// The path of GitHub's webhook.
pub const PATH: &str = "/github/webhook";

/// The webhook at `url` leads to the service at `service_url`.
///
/// Scheme and host have no case, and a query does not matter. Cloud Run gives each service two addresses, of which
/// CLOUD_RUN_SERVICE_URL names one: `NAME-PROJECT_NUMBER.REGION.run.app` and `NAME-HASH-REGION_CODE.a.run.app`.
/// <https://cloud.google.com/run/docs/triggering/https-request>
pub fn leads_here(url: &str, service_url: &str) -> bool {
    let (Some(hook), Some(service)) = (Address::of(url), Address::of(service_url)) else {
        return false;
    };
    let root = service.path.trim_end_matches('/');
    hook.scheme == service.scheme
        && hook.path.trim_end_matches('/').strip_prefix(root) == Some(PATH)
        && (hook.host == service.host || is_same_service(&hook.host, &service.host))
}

struct Address {
    scheme: String,
    /// With the port.
    host: String,
    path: String,
}

impl Address {
    fn of(url: &str) -> Option<Self> {
        let uri: Uri = url.trim().parse().ok()?;
        Some(Self {
            scheme: uri.scheme_str()?.to_ascii_lowercase(),
            host: uri.authority()?.as_str().to_ascii_lowercase(),
            path: uri.path().to_owned(),
        })
    }
}

/// The two hosts are the two addresses of one service, as far as its name tells.
fn is_same_service(one: &str, other: &str) -> bool {
    match (RunApp::of(one), RunApp::of(other)) {
        (Some(RunApp::Hashed(one)), Some(RunApp::Numbered(other)))
        | (Some(RunApp::Numbered(one)), Some(RunApp::Hashed(other))) => one == other,
        _ => false,
    }
}

/// A host under run.app, by its form, with the service's name.
enum RunApp<'a> {
    Numbered(&'a str),
    Hashed(&'a str),
}

impl<'a> RunApp<'a> {
    fn of(host: &'a str) -> Option<Self> {
        let label = host.strip_suffix(".run.app")?;
        if let Some(label) = label.strip_suffix(".a") {
            let (rest, _region) = label.rsplit_once('-')?;
            return rest.rsplit_once('-').map(|(name, _hash)| Self::Hashed(name));
        }
        let (label, _region) = label.split_once('.')?;
        let (name, number) = label.rsplit_once('-')?;
        let is_number = !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit());
        is_number.then_some(Self::Numbered(name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_webhook_leads_here_if_its_address_is_one_of_the_services() {
        let numbered = "https://runner-manager-123456789012.us-central1.run.app";
        let hashed = "https://runner-manager-abcdefghij-uc.a.run.app";
        for (url, service) in [
            ("https://service.test/github/webhook", "https://service.test"),
            ("HTTPS://Service.TEST/github/webhook/?from=acme", "https://service.test"),
            ("https://service.test/rm/github/webhook", "https://service.test/rm"),
            (&format!("{numbered}/github/webhook"), numbered),
            (&format!("{numbered}/github/webhook"), hashed),
            (&format!("{hashed}/github/webhook"), numbered),
        ] {
            assert!(leads_here(url, service), "{url} {service}");
        }
        for (url, service) in [
            ("https://service.test/webhook", "https://service.test"),
            ("http://service.test/github/webhook", "https://service.test"),
            ("https://service.test:8443/github/webhook", "https://service.test"),
            ("https://other.test/github/webhook", "https://service.test"),
            ("https://other-abcdefghij-uc.a.run.app/github/webhook", numbered),
            ("https://runner-manager-abcdefghik-uc.a.run.app/github/webhook", hashed),
            ("https://runner-manager-1.us-central1.run.app/github/webhook", numbered),
            ("not a URL", "https://service.test"),
        ] {
            assert!(!leads_here(url, service), "{url} {service}");
        }
    }
}
