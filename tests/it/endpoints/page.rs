//! The response of `GET /` to a browser. tests/page/run.sh tests the page itself in a real one.

use axum::body::Body;
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use sha2::{Digest, Sha256};

use crate::world::{SECRET, World};

const BROWSER: &str = "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,*/*;q=0.8";

async fn root(accept: Option<&str>) -> Response<Bytes> {
    let request = Request::builder().method(Method::GET).uri("/");
    let request = accept.into_iter().fold(request, |request, text| request.header("Accept", text));
    World::new().exchange(request.body(Body::empty()).unwrap()).await
}

fn header<'a>(answer: &'a Response<Bytes>, name: &str) -> &'a str {
    answer.headers().get(name).map_or("", |value| value.to_str().unwrap())
}

#[tokio::test(start_paused = true)]
async fn a_browser_gets_the_page_and_everybody_else_the_same_json_as_ever() {
    for accept in [None, Some("*/*"), Some("application/json"), Some("application/json, text/html")]
    {
        let json = root(accept).await;
        assert_eq!(
            (json.status(), header(&json, "content-type")),
            (StatusCode::OK, "application/json")
        );
        assert_eq!(header(&json, "vary"), "Accept");
        assert!(
            json.body().starts_with(br#"{"service":"GitHub Runner Manager","inactive_minutes":3,"#)
        );
    }
    let page = root(Some(BROWSER)).await;
    assert_eq!(page.status(), StatusCode::OK);
    assert_eq!(header(&page, "content-type"), "text/html; charset=utf-8");
    assert_eq!(header(&page, "vary"), "Accept");
}

#[tokio::test(start_paused = true)]
async fn the_page_runs_its_own_script_and_nothing_else() {
    let page = root(Some(BROWSER)).await;
    assert_eq!(header(&page, "x-content-type-options"), "nosniff");
    assert_eq!(header(&page, "referrer-policy"), "no-referrer");
    assert_eq!(header(&page, "cache-control"), "no-store");
    let policy: Vec<&str> = header(&page, "content-security-policy").split("; ").collect();
    for rule in [
        "default-src 'none'",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    ] {
        assert!(policy.contains(&rule), "{rule}: {policy:?}");
    }
    let text = std::str::from_utf8(page.body()).unwrap();
    for element in ["style", "script"] {
        let (_, rest) = text.split_once(&format!("<{element}>")).unwrap();
        let (inside, _) = rest.split_once(&format!("</{element}>")).unwrap();
        let hash = BASE64_STANDARD.encode(Sha256::digest(inside));
        assert!(policy.contains(&format!("{element}-src 'sha256-{hash}'").as_str()), "{policy:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn the_page_shows_nothing_of_the_fleet_without_the_secret() {
    let page = root(Some(BROWSER)).await;
    let text = std::str::from_utf8(page.body()).unwrap();
    for word in ["acme", "gpu-1", "asia-northeast1", SECRET] {
        assert!(!text.contains(word), "{word}");
    }
}
