//! The compiled program over real sockets: tests that need a process of its own.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use runner_manager::clients::transport::over_tls;
use runner_manager::clock::{Clock, Timestamp};
use runner_manager::emulators::Cloud;
use runner_manager::emulators::compute::{Instance, Status};
use tower::ServiceExt;

use crate::harness;
use crate::world::{SECRET, sign};

const PEM: &str = include_str!("../fixtures/app-private-key.pem");

pub(crate) fn program() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_runner-manager"));
    command.env_clear().stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// The program with a complete configuration, and APIs at a port where nothing listens.
fn configured(port: u16) -> Command {
    let mut command = program();
    command.envs([
        ("GCP_PROJECT_ID", "my-project"),
        ("CLOUD_TASK_LOCATION", "asia-northeast1"),
        ("CLOUD_TASK_QUEUE_NAME", "runner-manager"),
        ("CLOUD_RUN_SERVICE_URL", "http://127.0.0.1:1"),
        ("RUNNER_MANAGER_SECRET", SECRET),
        ("GITHUB_APP_ID", "123456"),
        ("GITHUB_APP_PRIVATE_KEY", PEM),
        ("GITHUB_APP_INSTALLATION_ID", "12345678"),
        ("COMPUTE_API_URL", "http://127.0.0.1:1"),
        ("CLOUD_TASKS_API_URL", "http://127.0.0.1:1"),
        ("GITHUB_API_URL", "http://127.0.0.1:1"),
        (
            "RUNNER_CONFIG",
            r#"[{"repo":"acme/app","labels":["self-hosted"],"vm_instance_name":"runner-1","vm_instance_zone":"asia-northeast1-a"}]"#,
        ),
    ]);
    command.env("PORT", port.to_string());
    command
}

/// A port that was free a moment ago.
fn free_port() -> u16 {
    TcpListener::bind(("127.0.0.1", 0)).unwrap().local_addr().unwrap().port()
}

/// A running program, killed when the test is over.
pub(crate) struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

/// The demo, and the environment that it prints for other programs.
pub(crate) fn demo() -> (Running, String) {
    let mut dev = program();
    dev.args(["dev", "--real-time", "--port", "0", "--cloud-port", "0"]).env("NO_COLOR", "1");
    let mut dev = Running(dev.spawn().unwrap());
    let mut exports = String::new();
    for line in BufReader::new(dev.0.stdout.take().unwrap()).lines().map(Result::unwrap) {
        if line.starts_with("export ") {
            exports += &format!("{line}\n");
        }
        if line.contains("GOOGLE_APPLICATION_CREDENTIALS") {
            break;
        }
    }
    (dev, exports)
}

fn connect(port: u16) -> TcpStream {
    for _ in 0..500 {
        if let Ok(stream) = TcpStream::connect(("127.0.0.1", port)) {
            return stream;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    panic!("nothing listens on port {port}");
}

fn exchange(stream: &mut TcpStream, request: &str) -> String {
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

fn terminate(program: &Running) {
    let killed =
        Command::new("kill").args(["-TERM", &program.0.id().to_string()]).status().unwrap();
    assert!(killed.success());
}

#[test]
fn all_problems_of_a_configuration_are_printed_at_once_with_exit_code_2() {
    let output = program()
        .env("RUNNER_MANAGER_SECRET", "hush-hush\n")
        .env("VM_INACTIVE_MINUTES", "soon")
        .output()
        .unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{text}");
    assert!(text.starts_with("runner-manager: 10 problems with the configuration:\n"), "{text}");
    for variable in
        ["GCP_PROJECT_ID", "RUNNER_MANAGER_SECRET", "VM_INACTIVE_MINUTES", "RUNNER_CONFIG"]
    {
        assert!(text.contains(&format!("\n  {variable}: ")), "{text}");
    }
    assert!(!text.contains("hush-hush"), "{text}");
}

#[test]
fn help_version_and_nonsense_are_answered() {
    let run = |argument: &str| program().arg(argument).output().unwrap();
    let help = String::from_utf8(run("--help").stdout).unwrap();
    for word in ["serve", "explain", "dev", "docs/configuration.md"] {
        assert!(help.contains(word), "{word}: {help}");
    }
    assert!(String::from_utf8(run("--version").stdout).unwrap().starts_with("runner-manager 0."));
    let nonsense = run("nonsense");
    assert_eq!(nonsense.status.code(), Some(2));
    assert!(
        String::from_utf8(nonsense.stderr).unwrap().contains("unrecognized subcommand 'nonsense'")
    );
}

#[test]
fn a_port_in_use_is_reported() {
    let taken = TcpListener::bind(("0.0.0.0", 0)).unwrap();
    let output = configured(taken.local_addr().unwrap().port()).output().unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains("set PORT to a free port"), "{text}");
}

#[test]
fn sigterm_lets_a_request_in_flight_finish() {
    let port = free_port();
    let mut program = Running(configured(port).spawn().unwrap());
    let mut in_flight = connect(port);
    // The server has read half a request when the signal arrives.
    let body = r#"{"zen": "Keep it small."}"#;
    let (head, signature) = (body.len(), sign(SECRET, body.as_bytes()));
    write!(
        in_flight,
        "POST /github/webhook HTTP/1.1\r\nHost: h\r\nX-GitHub-Event: ping\r\nX-Hub-Signature-256: {signature}\r\n\
         Content-Length: {head}\r\n\r\n"
    )
    .unwrap();
    in_flight.write_all(&body.as_bytes()[..5]).unwrap();
    std::thread::sleep(Duration::from_millis(300));
    terminate(&program);
    std::thread::sleep(Duration::from_millis(300));
    let answer = exchange(&mut in_flight, &body[5..]);
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    assert!(program.0.wait().unwrap().success());
}

/// The text that the program logs until it ends.
fn log_of(mut program: Running) -> String {
    terminate(&program);
    assert!(program.0.wait().unwrap().success());
    let mut log = String::new();
    program.0.stderr.take().unwrap().read_to_string(&mut log).unwrap();
    log
}

#[test]
fn half_a_request_does_not_delay_the_end() {
    let port = free_port();
    let program = Running(configured(port).spawn().unwrap());
    let mut half = connect(port);
    half.write_all(b"POST /github/webhook HTTP/1.1\r\nHost:").unwrap();
    let _silent = connect(port);
    let answer = exchange(
        &mut connect(port),
        "GET /health HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n",
    );
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    let log = log_of(program);
    assert!(log.contains("shutdown: signal received") && !log.contains("cut off"), "{log}");
}

#[test]
fn http_2_is_named_in_the_log() {
    let port = free_port();
    let program = Running(configured(port).spawn().unwrap());
    exchange(&mut connect(port), "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
    let log = log_of(program);
    assert!(log.contains("--use-http2"), "{log}");
}

#[test]
fn connections_that_cannot_be_accepted_are_logged() {
    let port = free_port();
    let ready = configured(port);
    let mut limited = Command::new("sh");
    limited.args(["-c", "ulimit -n 40; exec \"$0\""]).arg(ready.get_program()).env_clear();
    limited.envs(ready.get_envs().filter_map(|(name, value)| Some((name, value?))));
    limited.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut program = Running(limited.spawn().unwrap());
    let silent: Vec<TcpStream> = (0..50).map(|_| connect(port)).collect();
    let log = BufReader::new(program.0.stderr.take().unwrap());
    let line = log.lines().map(Result::unwrap).find(|line| line.contains("no connection can be"));
    assert!(line.is_some_and(|line| line.contains("Too many open files")));
    drop(silent);
    let answer = exchange(
        &mut connect(port),
        "GET /health HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n",
    );
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
}

#[test]
fn on_cloud_run_each_line_is_json_that_names_its_trace() {
    let port = free_port();
    let mut program = Running(configured(port).env("K_SERVICE", "runner-manager").spawn().unwrap());
    let request = "POST /runner/start HTTP/1.1\r\nHost: h\r\nX-Runner-Secret: wrong\r\nConnection: close\r\nContent-Length: 0\r\n\
         traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01\r\nX-CloudTasks-TaskName: 0123abcd\r\n\r\n";
    let answer = exchange(&mut connect(port), request);
    assert!(answer.starts_with("HTTP/1.1 401 "), "{answer}");
    terminate(&program);
    assert!(program.0.wait().unwrap().success());
    let lines: Vec<serde_json::Value> = BufReader::new(program.0.stdout.take().unwrap())
        .lines()
        .map(|line| serde_json::from_str(&line.unwrap()).unwrap())
        .collect();
    let refused = |line: &&serde_json::Value| line["message"].to_string().contains("401 ");
    let refused = lines.iter().find(refused).unwrap();
    assert_eq!(refused["severity"], "WARNING");
    assert_eq!(
        refused["logging.googleapis.com/trace"],
        "projects/my-project/traces/0af7651916cd43dd8448eb211c80319c"
    );
    assert_eq!(refused["task"], "0123abcd");
    assert!(refused["message"].as_str().unwrap().starts_with("401 Unauthorized"), "{refused}");
    assert!(lines[0].get("logging.googleapis.com/trace").is_none());
}

#[test]
fn an_empty_post_to_google_says_that_it_is_empty() {
    // Only a socket shows the header: this server answers 200 and returns the head of the request.
    let google = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let url = format!("http://{}", google.local_addr().unwrap());
    let server = std::thread::spawn(move || {
        let (stream, _) = google.accept().unwrap();
        let mut reader = BufReader::new(stream);
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            assert!(reader.read_line(&mut head).unwrap() > 0, "{head}");
        }
        reader
            .get_mut()
            .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}")
            .unwrap();
        head
    });
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        use runner_manager::clients::transport::{Outgoing, Transport, over_tls};
        let transport = Transport::new(over_tls().unwrap());
        let deadline = runner_manager::clock::Deadline::after(Duration::from_secs(10));
        transport
            .send(&Outgoing::post("instances.start", format!("{url}/start")), deadline)
            .await
            .unwrap();
    });
    let head = server.join().unwrap().to_ascii_lowercase();
    assert!(
        head.starts_with("post /start http/1.1\r\n") && head.contains("\r\ncontent-length: 0\r\n"),
        "{head}"
    );
}

/// The cloud over loopback, which counts the connections that were opened.
async fn cloud_at(listener: tokio::net::TcpListener, cloud: &Cloud, connections: Arc<AtomicUsize>) {
    use axum::serve::ListenerExt;
    let listener = listener.tap_io(move |_| {
        connections.fetch_add(1, Ordering::Relaxed);
    });
    axum::serve(listener, cloud.router()).await.unwrap();
}

/// The program as on Cloud Run, with the APIs behind this listener and a key file of a service account.
fn on_cloud_run(port: u16, apis: &tokio::net::TcpListener) -> (Running, tempfile::NamedTempFile) {
    let url = format!("http://{}", apis.local_addr().unwrap());
    let key_file = tempfile::NamedTempFile::new().unwrap();
    let key = harness::keys().service_account_json(&format!("{url}/token"));
    std::fs::write(key_file.path(), key).unwrap();
    let mut program = configured(port);
    program
        .envs(["COMPUTE_API_URL", "CLOUD_TASKS_API_URL", "GITHUB_API_URL"].map(|api| (api, &url)))
        .env("GITHUB_APP_PRIVATE_KEY", harness::keys().app_private_key_pem())
        .env("GOOGLE_APPLICATION_CREDENTIALS", key_file.path())
        .env("K_SERVICE", "runner-manager");
    (Running(program.spawn().unwrap()), key_file)
}

#[tokio::test]
async fn the_token_endpoints_words_are_logged_once() {
    let cloud = harness::cloud(&Clock::system());
    // To the endpoint, each assertion has expired.
    cloud.accounts.use_clock(Clock::paced(Timestamp::from_unix_seconds(4_000_000_000), 1));
    let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let port = free_port();
    let (mut program, _key_file) = on_cloud_run(port, &listener);
    let stdout = program.0.stdout.take().unwrap();
    let (send, refused) = tokio::sync::oneshot::channel();
    std::thread::spawn(move || {
        let lines = BufReader::new(stdout).lines().map(Result::unwrap);
        let mut seen = Vec::new();
        for line in lines {
            let is_last = line.contains("no token yet");
            seen.push(line);
            if is_last {
                break;
            }
        }
        send.send(seen).unwrap();
    });
    let seen = tokio::select! {
        () = cloud_at(listener, &cloud, Arc::default()) => unreachable!("it serves for ever"),
        seen = refused => seen.unwrap(),
    };
    let warnings: Vec<&String> = seen.iter().filter(|line| line.contains("WARNING")).collect();
    assert_eq!(warnings.len(), 1, "{seen:#?}");
    assert!(warnings[0].contains("invalid_grant: Invalid JWT"), "{seen:#?}");
}

#[tokio::test]
async fn tokens_are_fetched_before_the_first_delivery_and_connections_stay_open() {
    let cloud = harness::cloud(&Clock::system());
    cloud.github.add_repository("acme/app");
    cloud
        .compute
        .insert(Instance { status: Status::Running, ..Instance::new("runner-1", harness::ZONE) });
    let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let port = free_port();
    let (mut program, _key_file) = on_cloud_run(port, &listener);
    let count = |method: &str| cloud.calls().iter().filter(|call| call.method == method).count();
    let tokens = || (count("token"), count("apps.createInstallationAccessToken"));
    let connections = Arc::new(AtomicUsize::new(0));
    let story = async {
        let begun = Clock::system().now();
        while tokens() != (1, 1) {
            tokio::time::sleep(Duration::from_millis(5)).await;
            let waited = Clock::system().now().since(begun);
            assert!(waited < Duration::from_secs(20), "{:?}", cloud.calls());
        }
        let http = over_tls().unwrap();
        let deliver = async |job: u64| {
            let body = queued_now();
            let body = body.replace("29679449", &job.to_string());
            let request = http::Request::post(format!("http://127.0.0.1:{port}/github/webhook"))
                .header("X-GitHub-Event", "workflow_job")
                .header("X-GitHub-Delivery", format!("72d3162e-{job}"))
                .header("X-Hub-Signature-256", sign(SECRET, body.as_bytes()))
                .body(http_body_util::Full::new(body.into()));
            let answer = http.clone().oneshot(request.unwrap()).await.unwrap();
            assert_eq!(answer.status(), 200, "{answer:?}");
        };
        for job in 1..=20 {
            deliver(job).await;
        }
        // Two for the tokens, and two for the concurrent calls of a delivery.
        assert!(connections.load(Ordering::Relaxed) <= 4, "{connections:?}");
        futures_util::future::join_all((21..=60).map(deliver)).await;
        assert_eq!(tokens(), (1, 1));
        cloud.accounts.revoke_all();
        deliver(61).await;
        assert_eq!(tokens(), (2, 1), "a token that is refused before its expiry is replaced");
    };
    tokio::select! {
        () = cloud_at(listener, &cloud, Arc::clone(&connections)) => {}
        () = story => {}
    }
    // Each delivery logged one line with its id, the VM and the outcome.
    terminate(&program);
    let lines: Vec<serde_json::Value> = BufReader::new(program.0.stdout.take().unwrap())
        .lines()
        .map(|line| serde_json::from_str(&line.unwrap()).unwrap())
        .collect();
    let outcomes: Vec<_> =
        lines.iter().filter(|line| line["outcome"] == "already_running").collect();
    assert_eq!(outcomes.len(), 61);
    assert_eq!(outcomes[0]["delivery"], "72d3162e-1");
    let message = outcomes[0]["message"].as_str().unwrap();
    assert!(message.starts_with("VM runner-1: already_running: job 1 of acme/app"), "{message}");
}

#[test]
fn the_demo_keeps_every_promise() {
    let output = program().args(["dev", "--once"]).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{text}");
    assert_eq!(text.matches("\n  kept: ").count(), 9, "{text}");
    assert!(!text.contains('\x1b'), "no colours without a terminal");
    for step in [
        "webhook queued -> runner-1: starting",
        "stopping: nothing needs it",
        "superseded",
        "busy: job ",
    ] {
        assert!(text.contains(step), "{step}: {text}");
    }
}

#[test]
fn the_service_works_with_googles_real_credential_chain() {
    // Another process, configured only by the environment that the demo prints, uses the demo's cloud.
    let (_dev, exports) = demo();
    let port = free_port();
    let script =
        format!("{exports}export PORT={port}\nexec {}", env!("CARGO_BIN_EXE_runner-manager"));
    let mut service = Command::new("sh");
    service.args(["-c", &script]).stdout(Stdio::null()).stderr(Stdio::null());
    let _service = Running(service.spawn().unwrap());

    let body = queued_now();
    let request = format!(
        "POST /github/webhook HTTP/1.1\r\nHost: h\r\nX-GitHub-Event: workflow_job\r\nX-Hub-Signature-256: {}\r\n\
         Content-Length: {}\r\nConnection: close\r\n\r\n{body}",
        sign("dev-secret-of-the-demo", body.as_bytes()),
        body.len()
    );
    let answer = exchange(&mut connect(port), &request);
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    assert!(
        answer.contains(
            "x-runner-manager-outcome: runner-1: starting: job 29679449 of acme/app is queued"
        ),
        "{answer}"
    );
    assert!(answer.ends_with(r#"{"status":"ok"}"#), "{answer}");
}

/// A delivery about a job that was created just now: one of days ago is asked for first.
fn queued_now() -> String {
    let now = runner_manager::clock::Clock::system().now().rfc3339();
    include_str!("../fixtures/workflow_job.queued.json").replace("2026-11-24T09:00:05Z", &now)
}
