//! Properties of every request and every RUNNER_CONFIG, valid or not.
//!
//! The cases here resemble valid ones: a field is missing or of a wrong type, or the body is truncated. The fuzz targets in
//! `fuzz/` search for inputs that reach new code; their corpora are tried here too.

pub(crate) mod target;

use std::path::Path;

use proptest::prelude::*;
use proptest::test_runner::{RngSeed, TestRunner};
use serde_json::{Value, json};
use target::CANARY;

const QUEUED: &str = include_str!("../../fixtures/workflow_job.queued.json");
const COMPLETED: &str = include_str!("../../fixtures/workflow_job.completed.json");

/// Tries cases from a fixed seed, so that failures are reproducible; `PROPTEST_CASES=10000` tries more.
fn for_all<S: Strategy>(strategy: &S, holds: impl Fn(S::Value)) {
    let config = ProptestConfig {
        rng_seed: RngSeed::Fixed(4711),
        failure_persistence: None,
        ..ProptestConfig::default()
    };
    let checked = TestRunner::new(config).run(strategy, |value| {
        holds(value);
        Ok(())
    });
    if let Err(error) = checked {
        panic!("{error}");
    }
}

/// Arbitrary JSON, biased towards values that have caused errors before.
fn odd() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        "\\PC{0,12}".prop_map(Value::from),
        prop::sample::select(vec![
            "",
            " ",
            "*",
            "a/b/c",
            "../..",
            "\u{0}",
            "\n[FAKE] line",
            CANARY
        ])
        .prop_map(Value::from),
        Just(Value::from(u64::MAX)),
    ];
    leaf.prop_recursive(3, 16, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::btree_map("[a-z_]{1,8}", inner, 0..4)
                .prop_map(|fields| Value::Object(fields.into_iter().collect())),
        ]
    })
}

/// The document with the value at one of these JSON pointers removed or replaced.
fn with_one_changed(document: Value, pointers: Vec<&'static str>) -> impl Strategy<Value = Value> {
    (prop::sample::select(pointers), prop::option::of(odd())).prop_map(move |(pointer, value)| {
        let mut document = document.clone();
        match (value, pointer.rsplit_once('/')) {
            (Some(value), _) => {
                if let Some(place) = document.pointer_mut(pointer) {
                    *place = value;
                }
            }
            (None, Some((parent, field))) => {
                if let Some(Value::Object(fields)) = document.pointer_mut(parent) {
                    fields.remove(field);
                }
            }
            (None, None) => {}
        }
        document
    })
}

/// The document as a body: as JSON, as GitHub's form, or truncated.
fn sent(document: impl Strategy<Value = Value>) -> impl Strategy<Value = (Vec<u8>, &'static str)> {
    (document, 0..4_u8, any::<prop::sample::Index>()).prop_map(|(document, way, cut)| {
        let text = document.to_string();
        match way {
            0 => {
                let form = form_urlencoded::Serializer::new(String::new())
                    .append_pair("payload", &text)
                    .finish();
                (form.into_bytes(), "application/x-www-form-urlencoded")
            }
            1 => (text.as_bytes()[..cut.index(text.len() + 1)].to_vec(), "application/json"),
            _ => (text.into_bytes(), "application/json"),
        }
    })
}

fn request(head: &str, body: &[u8]) -> Vec<u8> {
    [head.as_bytes(), b"\n\n", body].concat()
}

/// Without this the properties could hold for trivial reasons.
#[test]
fn one_vm_is_busy_and_the_other_idle() {
    for (vm, status) in [("gpu-1", "busy"), ("runner-1", "stopping")] {
        let body = format!(r#"{{"vm_instance_name": "{vm}", "unmarked": true}}"#);
        let head = "POST /runner/stop\nX-Runner-Secret: right\nX-CloudTasks-TaskName: 0123abcd";
        let response = target::request_holds(&request(head, body.as_bytes())).unwrap();
        assert!(response.contains(&format!(r#""status":"{status}""#)), "{vm}: {response}");
    }
}

#[test]
fn every_delivery_gets_a_response_and_only_a_signed_one_has_effects() {
    let fields = vec![
        "/action",
        "/workflow_job",
        "/workflow_job/id",
        "/workflow_job/labels",
        "/workflow_job/labels/0",
        "/workflow_job/status",
        "/workflow_job/runner_name",
        "/repository",
        "/repository/full_name",
        "/sender",
    ];
    let of = |text: &str| with_one_changed(serde_json::from_str(text).unwrap(), fields.clone());
    let bodies = prop_oneof![
        4 => sent(prop_oneof![of(QUEUED), of(COMPLETED)]),
        1 => prop::collection::vec(any::<u8>(), 0..64).prop_map(|bytes| (bytes, "text/plain")),
    ];
    let signature =
        prop::sample::select(vec!["right", "right", "right", "sha256=00", "sha1=0", ""]);
    let event = prop::sample::select(vec!["workflow_job", "workflow_job", "ping", "\u{e9}", ""]);

    for_all(&(bodies, signature, event), |((body, kind), signature, event)| {
        let head = format!(
            "POST /github/webhook\nX-Hub-Signature-256: {signature}\nX-GitHub-Event: {event}\nContent-Type: {kind}"
        );
        _ = target::request_holds(&request(&head, &body));
    });
}

#[test]
fn no_callback_stops_a_busy_vm_or_delays_the_next_pass() {
    let documents = [
        json!({ "vm_instance_name": "gpu-1", "vm_instance_zone": "asia-northeast1-a", "idle_since": 0, "due": 0,
            "looks": 3, "confirmed": 1, "stops": 2, "unmarked": false, "forbidden_since": 1, "unconfigured_since": 1,
            "waiting": [{ "job": 9, "since": 0, "until": 0 }], "cursor": { "repo": "acme/app", "list": 5, "before": 1 } }),
        json!({ "vm_instance_name": "runner-1", "vm_instance_zone": "asia-northeast1-a", "event_at": 0, "due": 0,
            "job": { "repo": "acme/app", "id": 1, "queued_at": 0 }, "idle_since": 0, "force": true }),
    ];
    let fields = vec![
        "/vm_instance_name",
        "/vm_instance_zone",
        "/idle_since",
        "/due",
        "/looks",
        "/confirmed",
        "/stops",
        "/unmarked",
        "/forbidden_since",
        "/unconfigured_since",
        "/waiting",
        "/waiting/0/since",
        "/cursor",
        "/cursor/repo",
        "/cursor/list",
        "/cursor/before",
        "/event_at",
        "/job",
        "/job/repo",
        "/job/id",
        "/job/queued_at",
        "/force",
    ];
    let [stop, start] = documents.map(|document| with_one_changed(document, fields.clone()));
    let body = sent(prop_oneof![stop, start]);
    let path = prop::sample::select(vec!["start", "stop"]);
    let secret = prop::sample::select(vec!["right", "right", "right", "wrong"]);
    let task = prop::sample::select(vec!["X-CloudTasks-TaskName: 0123abcd", "Accept: */*"]);

    for_all(&(body, path, secret, task), |((body, _), path, secret, task)| {
        let head = format!("POST /runner/{path}\nX-Runner-Secret: {secret}\n{task}");
        _ = target::request_holds(&request(&head, &body));
    });
}

#[test]
fn every_runner_config_is_accepted_or_its_problems_are_named() {
    let entry = json!({ "repo": "acme/app", "labels": ["self-hosted", "gpu"], "vm_instance_name": "gpu-1",
        "vm_instance_zone": "asia-northeast1-a", "runner_names": ["gpu-1", "gpu-1-*"], "runner_labels": ["self-hosted", "gpu"],
        "discard_local_ssd": false, "register": "repository" });
    let fields = vec![
        "",
        "/0",
        "/0/repo",
        "/0/labels",
        "/0/labels/0",
        "/0/vm_instance_name",
        "/0/vm_instance_zone",
        "/1/runner_names",
        "/1/runner_names/1",
        "/1/runner_labels",
        "/1/runner_labels/1",
        "/1/discard_local_ssd",
        "/1/register",
        "/2/sender",
    ];
    let other = json!({ "repo": "Acme/App", "labels": ["Self-Hosted"], "vm_instance_name": "runner-1",
        "vm_instance_zone": "asia-northeast1-a" });
    for_all(&sent(with_one_changed(json!([entry.clone(), entry, other]), fields)), |(body, _)| {
        target::runner_config_holds(&String::from_utf8_lossy(&body))
    });
}

/// The inputs in the corpora reached new code, or caused a failure once.
#[test]
fn the_corpora_of_the_fuzz_targets_still_hold() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus");
    let mut tried = 0;
    for of in ["webhook", "callback", "runner_config"] {
        for file in std::fs::read_dir(corpus.join(of)).unwrap() {
            let input = std::fs::read(file.unwrap().path()).unwrap();
            match of {
                "runner_config" => target::runner_config_holds(&String::from_utf8_lossy(&input)),
                _ => _ = target::request_holds(&input),
            }
            tried += 1;
        }
    }
    assert!(tried > 3, "the corpora are missing");
}
