//! `runner-manager explain`: describes exactly what the webhook's handler would do.

use std::io::Write;
use std::process::{Output, Stdio};

use serde_json::{Value, json};

use crate::binary::program;
use crate::harness::ZONE;
use crate::world::{World, fleet, minutes, seconds};

const QUEUED: &str = include_str!("../fixtures/workflow_job.queued.json");
const COMPLETED: &str = include_str!("../fixtures/workflow_job.completed.json");
const PING: &str = include_str!("../fixtures/ping.json");

/// Explains this payload, on standard input.
fn explain(config: &str, payload: &[u8], more: &[&str]) -> Output {
    let mut command = program();
    command.args(["explain", "-"]).args(more).env("RUNNER_CONFIG", config);
    let mut running = command.stdin(Stdio::piped()).spawn().unwrap();
    // The program may exit before it has read everything.
    running.stdin.take().unwrap().write_all(payload).ok();
    running.wait_with_output().unwrap()
}

fn explained(config: &str, payload: &str) -> String {
    let output = explain(config, payload.as_bytes(), &[]);
    assert!(output.status.success(), "{output:?}");
    assert!(output.stderr.is_empty(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

fn as_json(config: &str, payload: &str) -> Value {
    let output = explain(config, payload.as_bytes(), &["--json"]);
    assert!(output.status.success(), "{output:?}");
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn each_entry_says_why_it_matches_or_not() {
    let text = explained(&fleet(""), QUEUED);
    for line in [
        "workflow_job queued: job 29679449 of acme/app asks for [\"self-hosted\"]\n",
        "✗ RUNNER_CONFIG[0] acme/app [\"self-hosted\", \"gpu\"] -> gpu-1: no match, the job does not ask for [\"gpu\"]; \
         if its runner may take such jobs, list all its labels in runner_labels\n",
        "✓ RUNNER_CONFIG[1] acme/app [\"self-hosted\"] -> runner-1: matches\n",
        "✗ RUNNER_CONFIG[2] acme/web [\"self-hosted\"] -> runner-1: no match, the entry is for another repository\n",
        "VM runner-1 in asia-northeast1-a: RUNNER_CONFIG[1] is the first entry that matches.\n",
        "  1. read the VM, and create a pass in 90 s",
        "no earlier than 3 min after the last job (VM_INACTIVE_MINUTES)",
    ] {
        assert!(text.contains(line), "{line}\n{text}");
    }
}

#[test]
fn a_job_is_explained_without_a_payload() {
    let run = |options: &[&str]| {
        let output = program()
            .arg("explain")
            .args(options)
            .env("RUNNER_CONFIG", fleet(""))
            .output()
            .unwrap();
        let text = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
        (output.status.code(), text)
    };
    for labels in
        [&["--labels", "self-hosted,GPU"][..], &["--labels", "gpu", "--labels", "self-hosted"]]
    {
        let (code, text) = run(&[&["--repo", "acme/app"], labels].concat());
        assert_eq!(code, Some(0), "{text}");
        assert!(text.starts_with("workflow_job queued: a job of acme/app asks for ["), "{text}");
        assert!(
            text.contains("VM gpu-1 in asia-northeast1-a: RUNNER_CONFIG[0] is the first"),
            "{text}"
        );
    }
    let (_, text) = run(&["--repo", "acme/app", "--labels", "gpu", "--json"]);
    let json: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(
        (&json["id"], &json["vm_instance_name"], &json["labels"]),
        (&Value::Null, &Value::Null, &json!(["gpu"]))
    );
    for (options, code, problem) in [
        (
            &["--repo", "acme", "--labels", "gpu"][..],
            1,
            "acme is not a repository's full name, owner/repo",
        ),
        (&["--repo", "acme/app"], 2, "--labels"),
        (&["--labels", "gpu"], 2, "--repo"),
        (&["--repo", "acme/app", "--labels", "gpu", "payload.json"], 2, "cannot be used with"),
        (&[], 2, "required"),
    ] {
        let (exit, text) = run(options);
        assert_eq!(exit, Some(code), "{options:?} {text}");
        assert!(text.contains(problem), "{options:?} {text}");
    }
}

#[test]
fn with_runner_labels_a_job_may_ask_for_no_others() {
    let exact = fleet(r#", "runner_labels": ["self-hosted", "linux"]"#);
    let windows = QUEUED.replace("\"self-hosted\"", "\"self-hosted\", \"windows\"");
    let verdicts = as_json(&exact, &windows);
    let why = r#"the job asks for ["windows"], which runner_labels lacks"#;
    assert_eq!(verdicts["entries"][1]["why"], why);
    assert_eq!((&verdicts["vm_instance_name"], &verdicts["steps"]), (&Value::Null, &json!([])));
    let linux = as_json(&exact, &QUEUED.replace("self-hosted", "linux"));
    assert_eq!(linux["vm_instance_name"], "gpu-1");
    assert_eq!(linux["entries"][1]["why"], "but RUNNER_CONFIG[0] comes first");
}

#[test]
fn entries_with_the_same_labels_are_told_as_a_pool() {
    let pool = fleet("").replace("[\"self-hosted\", \"gpu\"]", "[\"self-hosted\"]");
    let text = explained(&pool, QUEUED);
    let because =
        "RUNNER_CONFIG[0] is the first entry that matches, of a pool of 2 VMs (gpu-1, runner-1)";
    assert!(text.contains(because), "{text}");
    assert!(text.contains("matches, in the pool of RUNNER_CONFIG[0]"), "{text}");
    assert!(text.contains("claim the VM with the label runner-manager-claim"), "{text}");
    let json = as_json(&pool, QUEUED);
    assert_eq!(json["pool"], json!(["gpu-1", "runner-1"]));
}

#[test]
fn a_completed_job_belongs_to_the_vm_that_ran_it() {
    let other = COMPLETED.replace("\"runner_name\": \"runner-1\"", "\"runner_name\": \"gpu-1\"");
    assert_ne!(other, COMPLETED);
    let text = explained(&fleet(""), &other);
    assert!(text.contains("VM gpu-1 in asia-northeast1-a: the job ran on gpu-1"), "{text}");
    assert!(text.contains("  1. create a pass in 3 min, then write the label"), "{text}");
}

#[test]
fn a_payload_that_needs_no_vm_is_explained() {
    for (payload, why) in [
        (QUEUED.replacen("queued", "in_progress", 1), "only queued and completed need something"),
        (QUEUED.replace("acme/app", "acme/other"), "No VM: no entry matches"),
        (
            QUEUED.replace("self-hosted", "ubuntu-latest"),
            r#"does not ask for ["self-hosted", "gpu"]"#,
        ),
    ] {
        let text = explained(&fleet(""), &payload);
        assert!(text.contains(why) && text.contains("nothing is done"), "{why}: {text}");
    }
    let review = QUEUED.replace(r#""status": "queued""#, r#""status": "waiting""#);
    let text = explained(&fleet(""), &review);
    assert!(text.contains("the VM is not started yet"), "{text}");
}

#[test]
fn a_payload_may_come_from_a_file_an_editor_or_a_form() {
    let with_white_space = format!("\u{feff}\r\n\t {QUEUED}\n\n");
    let form =
        form_urlencoded::Serializer::new(String::new()).append_pair("payload", QUEUED).finish();
    for payload in [with_white_space, format!("{form}\n")] {
        assert_eq!(as_json(&fleet(""), &payload)["vm_instance_name"], "runner-1");
    }
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/workflow_job.queued.json");
    let output = program()
        .args(["explain", file])
        .env("RUNNER_CONFIG", fleet(""))
        .env("VM_INACTIVE_MINUTES", "15")
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(
        output.status.success() && text.contains("no earlier than 15 min after the last job"),
        "{text}"
    );
}

#[test]
fn an_unreadable_payload_exits_with_code_1() {
    let large = vec![b' '; (1 << 20) + 9];
    let large = [b"{", large.as_slice()].concat();
    for (payload, why) in [
        (
            PING.as_bytes(),
            "missing field `action`. The service acknowledges payloads of other events",
        ),
        (&QUEUED.as_bytes()[..900], "the body is not JSON: line "),
        (b"", "standard input is empty"),
        (b" \n", "standard input is empty"),
        (b"payload=%7B", "the body is not JSON"),
        (b"\xff\xfe\x00{", "the body is not JSON"),
        (br#"{"action":"queued","workflow_job":{"id":"7","labels":[]}}"#, "wrong type"),
        (&large, "larger than 1 MiB"),
    ] {
        let output = explain(&fleet(""), payload, &[]);
        let text = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{text}");
        assert!(
            text.starts_with("runner-manager: standard input ") && text.contains(why),
            "{text}"
        );
        assert!(output.stdout.is_empty());
    }
    let run = |file: &str| {
        program().args(["explain", file]).env("RUNNER_CONFIG", fleet("")).output().unwrap()
    };
    for file in ["/nowhere/payload.json", "/"] {
        let output = run(file);
        let text = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{text}");
        assert!(text.starts_with(&format!("runner-manager: {file} cannot be read: ")), "{text}");
    }
}

#[test]
fn a_wrong_configuration_exits_with_code_2_and_the_secrets_are_not_needed() {
    let output = program().args(["explain", "-"]).output().unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{text}");
    assert!(
        text.contains("1 problem with the configuration:\n  RUNNER_CONFIG: is not set"),
        "{text}"
    );
    let shadow = fleet("")
        .replacen("\"gpu\"", "\"self-hosted\"", 1)
        .replace("[\"self-hosted\"]", "[\"self-hosted\", \"x64\"]");
    let text = String::from_utf8(explain(&shadow, QUEUED.as_bytes(), &[]).stderr).unwrap();
    assert!(text.contains("warning: RUNNER_CONFIG[1]: never matches"), "{text}");
}

#[test]
fn control_characters_of_a_payload_do_not_reach_the_terminal() {
    let escape = QUEUED
        .replace("\"self-hosted\"", "\"self-hosted\", \"\\u001b[2J\\nVM\"")
        .replace("\"runner_name\": null", "\"runner_name\": \"\\u009b31m\"");
    let text = explained(&fleet(""), &escape);
    assert!(text.contains(r#"["self-hosted", "\u001b[2J\nVM"] and ran on ?31m"#), "{text}");
}

#[tokio::test(start_paused = true)]
async fn the_webhook_acts_as_explained() {
    let mut world = World::new();
    // All deliveries in the life of a job, as GitHub sends them.
    let job = world.queue_job("acme/app", "self-hosted gpu", minutes(1));
    world.queue_job("acme/web", "self-hosted", minutes(1));
    world.queue_job("acme/web", "ubuntu-latest", minutes(1));
    world.pass_until(minutes(5), |world| world.is_completed(job)).await;
    world.pass(seconds(30)).await;
    let deliveries = world.cloud.github.deliveries();
    assert!(deliveries.len() >= 6, "{deliveries:?}");
    for delivery in deliveries {
        let explained = as_json(&fleet(""), &delivery.payload.to_string());
        let reply = delivery.reply.unwrap();
        let outcome = reply.headers["x-runner-manager-outcome"].to_str().unwrap();
        match explained["vm_instance_name"].as_str() {
            Some(vm) => assert!(outcome.starts_with(&format!("{vm}: ")), "{outcome}\n{explained}"),
            None => assert!(outcome.starts_with("nothing to do: "), "{outcome}\n{explained}"),
        }
        let zone = &explained["vm_instance_zone"];
        assert!(zone == ZONE || zone.is_null(), "{explained}");
    }
}
