//! Listening, and stopping to listen.
//!
//! Cloud Run sends SIGTERM, waits 10 s and then kills. What is in flight is finished in that time; what comes
//! after the signal is turned away, so that nothing is begun that could not be finished.

use std::io;
use std::time::Duration;

use axum::Router;
use axum::serve::Listener;
use hyper::server::conn::http1;
use hyper_util::rt::TokioIo;
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};

use crate::state::Draining;

/// A second less than Cloud Run allows, for the process to end by itself.
const DRAIN: Duration = Duration::from_secs(9);

/// What a connection reads, or holds back, at once. Deliveries have 7 to 14 KB; the head of a request must fit.
const LARGEST_BUFFER: usize = 16 << 10;

/// Listens on all addresses, as Cloud Run's contract asks for.
///
/// # Errors
/// If the port cannot be had; the text says what to do.
pub async fn listen(port: u16) -> io::Result<TcpListener> {
    TcpListener::bind(("0.0.0.0", port)).await.map_err(|error| {
        let hint =
            if error.kind() == io::ErrorKind::AddrInUse { ": set PORT to another" } else { "" };
        io::Error::new(
            error.kind(),
            format!("cannot listen on port {port} ({}){hint}", error.kind()),
        )
    })
}

/// Serves HTTP/1.1 until SIGTERM or Ctrl-C, then finishes what is in flight.
///
/// axum's own `serve` would bring a server for HTTP/2 along, which Cloud Run does not speak to a container unless told
/// to, and buffers that grow to half a megabyte a connection.
///
/// # Errors
/// If signals cannot be received.
pub async fn until_told_to_stop(
    mut listener: TcpListener,
    router: Router,
    draining: Draining,
) -> io::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut http = http1::Builder::new();
    http.max_buf_size(LARGEST_BUFFER);
    let connections = GracefulShutdown::new();
    loop {
        let (connection, _) = tokio::select! {
            biased;
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
            accepted = Listener::accept(&mut listener) => accepted,
        };
        if let Err(error) = connection.set_nodelay(true) {
            tracing::debug!("TCP_NODELAY: {error}");
        }
        let requests = TowerToHyperService::new(router.clone());
        let connection = http.serve_connection(TokioIo::new(connection), requests);
        let connection = connections.watch(connection);
        #[expect(
            clippy::disallowed_methods,
            reason = "it is there for requests, and ends with their answers"
        )]
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!("a connection ended: {error}");
            }
        });
    }
    draining.set();
    drop(listener);
    tracing::info!("told to stop: finishing what is in flight");
    if tokio::time::timeout(DRAIN, connections.shutdown()).await.is_err() {
        tracing::warn!("stopped with requests in flight: their callers will repeat them");
    }
    Ok(())
}
