//! The HTTP server and its graceful shutdown.
//!
//! Cloud Run sends SIGTERM and kills the process 10 s later. In that time requests in flight are finished; requests that
//! arrive after the signal are refused, since they might be cut off.

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

/// One second less than Cloud Run allows, so that the process ends by itself.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(9);

/// The buffer of a connection, in bytes. A request's head has to fit into it; deliveries have 7 to 14 KB.
const MAX_BUFFER_SIZE: usize = 16 << 10;

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
/// `axum::serve` would add an HTTP/2 server, which Cloud Run does not use unless configured to, and buffers that grow to
/// half a megabyte per connection.
pub async fn until_signal(
    mut listener: TcpListener,
    router: Router,
    draining: Draining,
) -> io::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut http = http1::Builder::new();
    http.max_buf_size(MAX_BUFFER_SIZE);
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
            reason = "a connection carries requests, and ends with their responses"
        )]
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!("a connection ended: {error}");
            }
        });
    }
    draining.set();
    drop(listener);
    tracing::info!("shutdown: signal received, finishing the requests in flight");
    if tokio::time::timeout(DRAIN_TIMEOUT, connections.shutdown()).await.is_err() {
        tracing::warn!(
            "shutdown: requests still in flight after 9 s were cut off; their callers will repeat them"
        );
    }
    Ok(())
}
