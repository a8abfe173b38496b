//! The operator's page, served to browsers at `GET /`: one file, compiled in, that reads `/runner/status`.
//!
//! Its Content-Security-Policy allows the style and the script of the file, by their hashes, and nothing else: neither
//! injected scripts nor scripts from elsewhere run. The hashes are computed from the file.

use std::sync::LazyLock;

use axum::http::{HeaderMap, HeaderName, HeaderValue, header};
use axum::response::{Html, IntoResponse, Response};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use sha2::{Digest, Sha256};

const PAGE: &str = include_str!("page.html");

/// The page with its security headers.
pub(super) fn page() -> Response {
    let told: [(HeaderName, HeaderValue); 4] = [
        (header::CONTENT_SECURITY_POLICY, POLICY.clone()),
        (header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
        (header::REFERRER_POLICY, HeaderValue::from_static("no-referrer")),
        (header::CACHE_CONTROL, HeaderValue::from_static("no-store")),
    ];
    (told, Html(PAGE)).into_response()
}

static POLICY: LazyLock<HeaderValue> = LazyLock::new(|| {
    let hash = |element| BASE64_STANDARD.encode(Sha256::digest(inside(PAGE, element)));
    let policy = format!(
        "default-src 'none'; style-src 'sha256-{}'; script-src 'sha256-{}'; connect-src 'self'; img-src data:; \
         base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; \
         trusted-types 'none'",
        hash("style"),
        hash("script"),
    );
    HeaderValue::try_from(policy).expect("base64 and ASCII")
});

/// The text of the page's one element of this name; empty if there is none, and then the page does not run.
fn inside<'a>(page: &'a str, element: &str) -> &'a str {
    let text = page.split_once(&format!("<{element}>")).map_or("", |(_, rest)| rest);
    text.split_once(&format!("</{element}>")).map_or("", |(text, _)| text)
}

/// True if the client prefers HTML to JSON. A browser names HTML; curl accepts anything, and gets JSON.
/// <https://www.rfc-editor.org/rfc/rfc9110#name-accept>
pub(super) fn is_preferred(headers: &HeaderMap) -> bool {
    let accepted: Vec<&str> = headers
        .get_all(header::ACCEPT)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .collect();
    weight(&accepted, ["text/html", "text/*", "*/*"])
        > weight(&accepted, ["application/json", "application/*", "*/*"])
}

/// The weight of a media type, in thousandths, by the most specific of the ranges that cover it.
fn weight(accepted: &[&str], ranges: [&str; 3]) -> u16 {
    let of = |range: &str| {
        accepted.iter().find_map(|accept| {
            let mut parts = accept.split(';').map(str::trim);
            let named = parts.next()?.eq_ignore_ascii_case(range);
            let quality =
                parts.find_map(|part| part.strip_prefix("q=").or(part.strip_prefix("Q=")));
            let quality = quality.map_or(1.0, |q| q.trim().parse::<f32>().unwrap_or(0.0));
            named.then_some((quality.clamp(0.0, 1.0) * 1000.0) as u16)
        })
    };
    ranges.into_iter().find_map(of).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn prefers(accept: &[&str], html: bool) {
        let mut headers = HeaderMap::new();
        for accept in accept {
            headers.append(header::ACCEPT, HeaderValue::from_str(accept).unwrap());
        }
        assert_eq!(is_preferred(&headers), html, "{accept:?}");
    }

    #[test]
    fn a_client_that_names_html_gets_it_and_any_other_json() {
        prefers(&[], false);
        prefers(&["*/*"], false);
        prefers(&["application/json"], false);
        prefers(&["application/json, text/html"], false);
        prefers(&["application/json, text/html;q=0.9"], false);
        prefers(&["text/html;q=0, */*"], false);
        prefers(&["text/plain"], false);
        prefers(&["text/htm"], false);
        prefers(&["text/html;q=much"], false);
        prefers(&["text/html"], true);
        prefers(&["TEXT/HTML ; Q=0.5, application/*;q=0.4"], true);
        prefers(&["application/json;q=0.5, text/*"], true);
        prefers(&["text/html, application/xhtml+xml", "*/*;q=0.8"], true);
        // Firefox, Safari and Chromium.
        prefers(&["text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"], true);
        prefers(
            &[
                "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,image/apng,*/*;q=0.8,\
               application/signed-exchange;v=b3;q=0.7",
            ],
            true,
        );
    }

    #[test]
    fn the_page_is_one_small_file_whose_policy_fits_it() {
        assert!(PAGE.len() <= 40_000, "{} bytes", PAGE.len());
        for element in ["style", "script"] {
            assert_eq!(PAGE.matches(&format!("<{element}")).count(), 1, "{element}");
            assert!(inside(PAGE, element).len() > 1000, "{element}");
        }
        // Constructs that the policy would refuse, or that would bypass it.
        for never in
            [" style=", " onclick=", " src=", "@import", "url(", "innerHTML", "insertAdjacentHTML"]
        {
            assert!(!PAGE.contains(never), "{never}");
        }
        let policy = POLICY.to_str().unwrap();
        let digest = Sha256::digest(inside(PAGE, "script"));
        assert!(
            policy.contains(&format!("script-src 'sha256-{}'", BASE64_STANDARD.encode(digest)))
        );
        assert!(!policy.contains("unsafe"), "{policy}");
    }
}
