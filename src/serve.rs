//! The HTTP server and its graceful shutdown.
//!
//! Cloud Run sends SIGTERM and kills the process 10 s later. In that time requests in flight are finished; requests that
//! arrive after the signal are refused, since they might be cut off.

use std::convert::Infallible;
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use axum::Router;
use axum::extract::Request;
use axum::response::Response;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tower::ServiceExt;

use crate::clock::Clock;
use crate::state::Draining;
use crate::throttle::Throttle;

/// One second less than Cloud Run allows, so that the process ends by itself.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(9);

/// The buffer of a connection, in bytes. A request's head has to fit into it; deliveries have 7 to 14 KB.
const MAX_BUFFER_SIZE: usize = 16 << 10;

/// Connections at a time. Cloud Run sends an instance a thousand requests at most, and 80 unless configured.
const MAX_CONNECTIONS: u32 = 1024;

/// The time in which the head of a connection's first request has to arrive.
const FIRST_REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

/// The time in which the head of a later request has to arrive, the connection's idle time included: Cloud Run's proxy
/// keeps connections open.
const IDLE_TIMEOUT: Duration = Duration::from_secs(75);

/// The time for the last bytes of a response when the service shuts down.
const FLUSH_TIME: Duration = Duration::from_millis(500);

/// The pause after a failed accept: file descriptors have to become free first.
const ACCEPT_PAUSE: Duration = Duration::from_secs(1);

/// Listens on all addresses, as Cloud Run requires.
pub async fn listen(port: u16) -> io::Result<TcpListener> {
    TcpListener::bind(("0.0.0.0", port)).await.map_err(|error| {
        let hint =
            if error.kind() == io::ErrorKind::AddrInUse { ": set PORT to a free port" } else { "" };
        io::Error::new(
            error.kind(),
            format!("cannot listen on port {port} ({}){hint}", error.kind()),
        )
    })
}

/// Serves HTTP/1.1 until SIGTERM or Ctrl-C, then finishes the requests in flight.
///
/// `axum::serve` has no limits of time and number for connections. It would add an HTTP/2 server, which Cloud Run does not
/// use unless configured to, and buffers that grow to half a megabyte per connection.
pub async fn until_signal(
    listener: TcpListener,
    router: Router,
    draining: Draining,
) -> io::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS as usize));
    let problems = Problems::default();
    loop {
        let (stream, slot) = tokio::select! {
            biased;
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
            accepted = accept(&listener, &slots, &problems) => accepted,
        };
        let connection =
            serve_connection(stream, router.clone(), draining.clone(), problems.clone());
        #[expect(
            clippy::disallowed_methods,
            reason = "a connection carries requests, and ends with their responses"
        )]
        tokio::spawn(async move {
            connection.await;
            drop(slot);
        });
    }
    draining.set();
    drop(listener);
    tracing::info!("shutdown: signal received, finishing the requests in flight");
    // All slots are free once all connections have ended.
    if tokio::time::timeout(DRAIN_TIMEOUT, slots.acquire_many(MAX_CONNECTIONS)).await.is_err() {
        tracing::warn!(
            "shutdown: requests still in flight after 9 s were cut off; their callers will repeat them"
        );
    }
    Ok(())
}

/// The next connection, once there is a slot for it.
async fn accept(
    listener: &TcpListener,
    slots: &Arc<Semaphore>,
    problems: &Problems,
) -> (TcpStream, OwnedSemaphorePermit) {
    if slots.available_permits() == 0 {
        problems.warn(&format!("{MAX_CONNECTIONS} connections are open; others have to wait"));
    }
    let slot = slots.clone().acquire_owned().await.expect("the semaphore is never closed");
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                if let Err(error) = stream.set_nodelay(true) {
                    tracing::debug!("TCP_NODELAY: {error}");
                }
                return (stream, slot);
            }
            // The client is gone already.
            Err(error) if is_of_one_connection(&error) => {}
            Err(error) => {
                problems.warn(&format!("no connection can be accepted: {error}"));
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

fn is_of_one_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset)
}

/// The activity of a connection.
#[derive(Debug, Default)]
struct Activity {
    had_a_request: AtomicBool,
    is_busy: AtomicBool,
}

/// Serves the requests of a connection. It ends early if its first request does not come, and on a shutdown as soon as no
/// request is in flight.
async fn serve_connection(
    stream: TcpStream,
    router: Router,
    draining: Draining,
    problems: Problems,
) {
    let activity = Arc::new(Activity::default());
    let respond = service_fn(|request: Request<Incoming>| {
        let (router, activity) = (router.clone(), activity.clone());
        async move {
            activity.had_a_request.store(true, Relaxed);
            activity.is_busy.store(true, Relaxed);
            let response: Result<Response, Infallible> = router.oneshot(request).await;
            activity.is_busy.store(false, Relaxed);
            response
        }
    });
    let mut connection = pin!(
        http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(IDLE_TIMEOUT)
            .max_buf_size(MAX_BUFFER_SIZE)
            .serve_connection(TokioIo::new(stream), respond)
    );
    let ended = tokio::select! {
        biased;
        ended = connection.as_mut() => ended,
        () = silence(&activity) => return,
        () = draining.wait() => {
            connection.as_mut().graceful_shutdown();
            tokio::select! {
                biased;
                ended = connection.as_mut() => ended,
                () = rest(&activity) => return,
            }
        }
    };
    if let Err(error) = ended {
        if error.is_parse() && error.to_string().contains("HTTP2 preface") {
            problems.warn("a request came by HTTP/2: deploy the service without --use-http2");
        }
        tracing::debug!("a connection ended: {error}");
    }
}

/// Ends if the connection's first request has not come in time.
async fn silence(activity: &Activity) {
    tokio::time::sleep(FIRST_REQUEST_TIMEOUT).await;
    if activity.had_a_request.load(Relaxed) {
        std::future::pending().await
    }
}

/// Ends once no request was in flight for a while: half a head may have arrived, and the rest of it may never come.
async fn rest(activity: &Activity) {
    loop {
        let was_busy = activity.is_busy.load(Relaxed);
        tokio::time::sleep(FLUSH_TIME).await;
        if !was_busy && !activity.is_busy.load(Relaxed) {
            return;
        }
    }
}

/// Warnings that any client can cause.
#[derive(Clone, Debug)]
struct Problems {
    throttle: Arc<Throttle>,
    clock: Clock,
}

impl Default for Problems {
    fn default() -> Self {
        Self { throttle: Arc::default(), clock: Clock::system() }
    }
}

impl Problems {
    fn warn(&self, line: &str) {
        match self.throttle.admit(line, self.clock.now()) {
            None => {}
            Some(0) => tracing::warn!("{line}"),
            Some(more) => tracing::warn!("{line} ({more} more times since the last such line)"),
        }
    }
}

#[cfg(test)]
mod tests {
    use axum::routing::get;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    /// A connection to a server of its own, which has answered `requests` already.
    async fn client(requests: usize) -> TcpStream {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (stream, _) = listener.accept().await.unwrap();
        let router = Router::new().route("/", get(|| async { "hello" }));
        #[expect(clippy::disallowed_methods, reason = "the server of a test")]
        tokio::spawn(serve_connection(stream, router, Draining::default(), Problems::default()));
        for _ in 0..requests {
            client.write_all(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n").await.unwrap();
            let mut answer = [0; 1024];
            let length = client.read(&mut answer).await.unwrap();
            assert!(answer[..length].starts_with(b"HTTP/1.1 200 OK"), "{length}");
        }
        client
    }

    #[tokio::test]
    async fn a_connection_is_closed_in_time() {
        for (requests, sent, limit) in [
            (0, &b""[..], FIRST_REQUEST_TIMEOUT),
            (0, b"GET / HT", FIRST_REQUEST_TIMEOUT),
            (2, b"", IDLE_TIMEOUT),
            (1, b"GET / HT", IDLE_TIMEOUT),
        ] {
            let mut client = client(requests).await;
            client.write_all(sent).await.unwrap();
            tokio::time::pause();
            let mut rest = Vec::new();
            let end = tokio::time::timeout(limit * 2, client.read_to_end(&mut rest)).await;
            assert!(end.is_ok(), "{requests} requests, then {sent:?}: it is still open");
            tokio::time::resume();
        }
    }
}
