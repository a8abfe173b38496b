//! A VM at its boot gets a registration token if it proves that it is one of ours. No other caller gets one.

use base64::prelude::{BASE64_URL_SAFE_NO_PAD, Engine};
use http::{Method, StatusCode};
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use runner_manager::emulators::compute::Status;
use runner_manager::emulators::github::{Permission, Runner, Scope};
use runner_manager::emulators::{ErrorBody, Fault};
use serde_json::{Value, json};

use super::detail;
use crate::world::{Answer, World, ZONE, fleet, minutes, runner};

const SERVICE: &str = "https://service.example";
const REFUSED: &str = "no registration token is given for this; the service's log says why";

fn world() -> World {
    let world = World::with_config(fleet(r#", "register": "repository""#));
    world.cloud.github.permit(Permission::Registration);
    world
}

async fn ask(world: &World, token: &str, body: &str) -> Answer {
    let bearer = format!("Bearer {token}");
    let headers = [("Authorization", bearer.as_str()), ("Content-Type", "application/json")];
    world.send(Method::POST, "/runner/registration", &headers, body.to_owned()).await
}

fn claims(world: &World) -> Value {
    world.cloud.identities.claims("gpu-1", ZONE, SERVICE)
}

/// Asserts that the request gets nothing, learns nothing, and causes no call to GitHub.
#[track_caller]
fn is_refused(world: &World, answer: &Answer) {
    assert_eq!(detail(answer, StatusCode::FORBIDDEN), REFUSED);
    assert_eq!(world.count("actions.createRegistrationTokenForRepo"), 0);
}

#[tokio::test(start_paused = true)]
async fn a_vm_of_ours_gets_what_it_needs_to_register() {
    let world = world();
    let answer = ask(&world, &world.cloud.identities.sign(&claims(&world)), "{}").await;
    assert_eq!(answer.status, StatusCode::OK, "{answer:?}");
    let body = &answer.body;
    assert_eq!(body["url"], "http://github.example/acme/app");
    assert_eq!(body["expires_at"], "2026-11-24T10:00:07Z");
    assert_eq!((&body["name"], &body["labels"]), (&json!("gpu-1"), &json!(["self-hosted", "gpu"])));
    let token = body["token"].as_str().unwrap();
    let spec = |scope| Runner { scope, ..runner("gpu-1", "acme/app", "self-hosted gpu") };
    assert!(world.cloud.github.register(token, spec), "GitHub takes it");
    assert!(!answer.outcome.contains(token));
}

#[tokio::test(start_paused = true)]
async fn the_claims_of_a_token_are_checked() {
    let world = world();
    let now = world.clock.now().unix_seconds();
    let engine = |field: &str, value: &str| {
        let mut claims = claims(&world);
        claims["google"]["compute_engine"][field] = json!(value);
        claims
    };
    let with = |changes: Value| {
        let mut claims = claims(&world);
        claims.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
        claims
    };
    for wrong in [
        with(json!({"aud": "https://another.example"})),
        with(json!({"aud": null})),
        with(json!({"iss": "https://accounts.example"})),
        with(json!({"iss": null})),
        with(json!({"iat": now - 7200, "exp": now - 61})),
        with(json!({"exp": null})),
        with(json!({"iat": now + 120, "exp": now + 3600})),
        with(json!({"nbf": now + 120})),
        with(json!({"google": null})),
        with(json!({"google": {}})),
        engine("project_id", "another-project"),
        engine("zone", "asia-northeast1-b"),
        engine("instance_name", "gpu-2"),
        engine("instance_name", "GPU-1"),
        engine("instance_name", "gpu-1 "),
        json!({}),
    ] {
        let token = world.cloud.identities.sign(&wrong);
        is_refused(&world, &ask(&world, &token, "{}").await);
    }
    let late = with(json!({"iat": now - 3600, "exp": now - 30}));
    let early = with(json!({"iat": now + 30, "exp": now + 3600}));
    for clocks_differ in [late, early] {
        let token = world.cloud.identities.sign(&clocks_differ);
        assert_eq!(ask(&world, &token, "{}").await.status, StatusCode::OK);
    }
}

#[tokio::test(start_paused = true)]
async fn a_token_has_to_be_signed_by_google() {
    let world = world();
    let good = world.cloud.identities.sign(&claims(&world));
    let (head, rest) = good.split_once('.').unwrap();
    let (body, signature) = rest.split_once('.').unwrap();
    let pem = world.cloud.identities.private_key_pem();
    let forged = |header: &Header, key: &EncodingKey| {
        jsonwebtoken::encode(header, &claims(&world), key).unwrap()
    };
    let header = |alg, kid: Option<String>| Header { kid, ..Header::new(alg) };
    let kid = world.cloud.identities.key_id();
    let rsa = EncodingKey::from_rsa_pem(pem.as_bytes()).unwrap();
    // The public part of the key, used as a shared secret.
    let jwk = jsonwebtoken::jwk::Jwk::from_encoding_key(&rsa, Algorithm::RS256).unwrap();
    let public = serde_json::to_value(jwk).unwrap();
    let modulus = public["n"].as_str().unwrap();
    let secret = EncodingKey::from_secret(modulus.as_bytes());
    let stranger = include_str!("../../fixtures/app-private-key.pem");
    let stranger = EncodingKey::from_rsa_pem(stranger.as_bytes()).unwrap();
    let none = "eyJhbGciOiJub25lIiwia2lkIjoiMSJ9";
    for bad in [
        String::new(),
        "nonsense".into(),
        "a.b.c".into(),
        format!("{head}.{body}"),
        format!("{head}.{body}."),
        format!("{none}.{body}."),
        format!("{none}.{body}.{signature}"),
        format!("{head}.{body}.{}", &signature[..signature.len() - 4]),
        format!("{head}.{}.{signature}", body.replace(&body[40..44], "AAAA")),
        format!("{head}.{body}.{signature}.{signature}"),
        format!("{good}{}", "A".repeat(9_000)),
        forged(&header(Algorithm::HS256, Some(kid.clone())), &secret),
        forged(&header(Algorithm::RS384, Some(kid.clone())), &rsa),
        forged(&header(Algorithm::RS256, None), &rsa),
        forged(&header(Algorithm::RS256, Some("0123456789abcdef".into())), &rsa),
        forged(&header(Algorithm::RS256, Some(kid)), &stranger),
    ] {
        is_refused(&world, &ask(&world, &bad, "{}").await);
    }
    let nothing = world.send(Method::POST, "/runner/registration", &[], "{}").await;
    is_refused(&world, &nothing);
    let secret = [("X-Runner-Secret", crate::world::SECRET)];
    let operator = world.send(Method::POST, "/runner/registration", &secret, "{}").await;
    is_refused(&world, &operator);
    assert!(world.count("oauth2.certs") <= 2, "keys are not fetched for everybody who asks");
}

#[tokio::test(start_paused = true)]
async fn keys_that_are_rotated_are_found_and_those_withdrawn_are_not_believed() {
    let world = world();
    let identities = &world.cloud.identities;
    let old = identities.sign(&claims(&world));
    assert_eq!(ask(&world, &old, "{}").await.status, StatusCode::OK);
    identities.rotate();
    tokio::time::advance(minutes(2)).await;
    let new = identities.sign(&claims(&world));
    for token in [&new, &old, &new] {
        assert_eq!(ask(&world, token, "{}").await.status, StatusCode::OK);
    }
    assert_eq!(world.count("oauth2.certs"), 2);
    identities.withdraw_old();
    tokio::time::advance(minutes(7 * 60)).await;
    let mut forever = claims(&world);
    forever["exp"] = json!(world.clock.now().unix_seconds() + 86_400);
    assert_eq!(ask(&world, &identities.sign(&forever), "{}").await.status, StatusCode::OK);
    assert_eq!(ask(&world, &old, "{}").await.status, StatusCode::FORBIDDEN);
}

#[tokio::test(start_paused = true)]
async fn while_the_keys_cannot_be_had_those_known_still_count() {
    let world = world();
    world.cloud.faults.on(|call| {
        let down = Fault::Before(StatusCode::BAD_REQUEST, ErrorBody::Html);
        (call.method == "oauth2.certs").then_some(down)
    });
    let token = world.cloud.identities.sign(&claims(&world));
    for _ in 0..5 {
        let answer = ask(&world, &token, "{}").await;
        assert!(detail(&answer, StatusCode::SERVICE_UNAVAILABLE).contains("ask again later"));
    }
    assert_eq!(world.count("oauth2.certs"), 1, "asked once a minute");
    world.cloud.faults.off();
    tokio::time::advance(minutes(1)).await;
    assert_eq!(ask(&world, &token, "{}").await.status, StatusCode::OK);
    world.cloud.faults.on(|call| (call.method == "oauth2.certs").then_some(Fault::Hang));
    tokio::time::advance(minutes(7 * 60)).await;
    let token = world.cloud.identities.sign(&claims(&world));
    assert_eq!(ask(&world, &token, "{}").await.status, StatusCode::OK);
    tokio::time::advance(minutes(24 * 60)).await;
    let token = world.cloud.identities.sign(&claims(&world));
    assert_eq!(ask(&world, &token, "{}").await.status, StatusCode::SERVICE_UNAVAILABLE);
}

#[tokio::test(start_paused = true)]
async fn a_flood_of_one_vm_has_github_make_few_tokens() {
    let world = world();
    let token = world.cloud.identities.sign(&claims(&world));
    for _ in 0..40 {
        assert_eq!(ask(&world, &token, "{}").await.status, StatusCode::OK);
        tokio::time::advance(minutes(1)).await;
    }
    assert_eq!(world.count("actions.createRegistrationTokenForRepo"), 4);
    tokio::time::advance(minutes(30)).await;
    assert_eq!(ask(&world, &token, "{}").await.status, StatusCode::FORBIDDEN, "replayed too late");
}

#[tokio::test(start_paused = true)]
async fn a_vm_of_several_repositories_names_one() {
    let world = world();
    let claims = world.cloud.identities.claims("runner-1", ZONE, SERVICE);
    let token = world.cloud.identities.sign(&claims);
    is_refused(&world, &ask(&world, &token, "").await);
    is_refused(&world, &ask(&world, &token, r#"{"repo": "acme/other"}"#).await);
    detail(&ask(&world, &token, r#"{"repo": 5}"#).await, StatusCode::BAD_REQUEST);
    let answer = ask(&world, &token, r#"{"repo": "acme/web"}"#).await;
    assert_eq!(answer.body["url"], "http://github.example/acme/web", "{answer:?}");

    let world = World::with_config(fleet(r#", "register": "organization""#));
    world.cloud.github.permit(Permission::Registration);
    let token = world.cloud.identities.sign(&claims);
    let answer = ask(&world, &token, "{}").await;
    assert_eq!(answer.body["url"], "http://github.example/acme", "{answer:?}");
    assert_eq!(world.count("actions.createRegistrationTokenForOrg"), 1);
    let spec = |scope: Scope| {
        assert_eq!(scope, Scope::Organization("acme".into()));
        runner("runner-1", "acme/app", "self-hosted")
    };
    assert!(world.cloud.github.register(answer.body["token"].as_str().unwrap(), spec));
}

#[tokio::test(start_paused = true)]
async fn without_register_no_token_is_given() {
    let world = World::new();
    world.cloud.github.permit(Permission::Registration);
    let token = world.cloud.identities.sign(&claims(&world));
    is_refused(&world, &ask(&world, &token, "{}").await);
    assert!(world.cloud.calls().is_empty(), "{:?}", world.cloud.calls());
}

#[tokio::test(start_paused = true)]
async fn without_the_permission_the_answer_says_what_to_grant() {
    let world = World::with_config(fleet(r#", "register": "repository""#));
    let token = world.cloud.identities.sign(&claims(&world));
    let answer = ask(&world, &token, "{}").await;
    let told = detail(&answer, StatusCode::SERVICE_UNAVAILABLE);
    assert!(told.contains("grant the GitHub App Administration: write on acme/app"), "{told}");
}

#[tokio::test(start_paused = true)]
async fn no_token_is_given_while_a_runner_of_the_vm_is_online() {
    let mut world = world().vm("gpu-1", Status::Running);
    let token = world.cloud.identities.sign(&claims(&world));
    world
        .pass_until(minutes(5), |world| {
            world
                .cloud
                .github
                .runners()
                .iter()
                .any(|runner| runner.name == "gpu-1" && runner.online)
        })
        .await;
    for _ in 0..5 {
        let answer = ask(&world, &token, "{}").await;
        let refused = detail(&answer, StatusCode::SERVICE_UNAVAILABLE);
        assert!(refused.contains("its runner in acme/app is online"), "{refused}");
    }
    assert_eq!(world.count("actions.createRegistrationTokenForRepo"), 0);
    assert_eq!(
        world.count("actions.listSelfHostedRunnersForRepo"),
        1,
        "asked once, and not five times"
    );
}

#[tokio::test(start_paused = true)]
async fn no_token_is_given_while_the_runners_state_is_not_known() {
    let world = world();
    let token = world.cloud.identities.sign(&claims(&world));
    world.cloud.faults.on(|call| {
        let down = Fault::Before(StatusCode::SERVICE_UNAVAILABLE, ErrorBody::Html);
        (call.method == "actions.listSelfHostedRunnersForRepo").then_some(down)
    });
    assert_eq!(ask(&world, &token, "{}").await.status, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(world.count("actions.createRegistrationTokenForRepo"), 0);
    world.cloud.faults.on(|_| None);
    assert_eq!(ask(&world, &token, "{}").await.status, StatusCode::OK);
}

#[tokio::test(start_paused = true)]
async fn a_token_that_asks_for_an_extension_is_refused() {
    let world = world();
    let mut header = Header::new(Algorithm::RS256);
    header.kid = Some(world.cloud.identities.key_id());
    let mut header = serde_json::to_value(header).unwrap();
    header["crit"] = json!(["exp"]);
    let encode = |part: &Value| BASE64_URL_SAFE_NO_PAD.encode(part.to_string());
    let message = format!("{}.{}", encode(&header), encode(&claims(&world)));
    let key =
        EncodingKey::from_rsa_pem(world.cloud.identities.private_key_pem().as_bytes()).unwrap();
    let signature = jsonwebtoken::crypto::sign(message.as_bytes(), &key, Algorithm::RS256).unwrap();
    is_refused(&world, &ask(&world, &format!("{message}.{signature}"), "{}").await);
}
