//! Listening, and stopping to listen.
//!
//! Cloud Run sends SIGTERM, waits 10 s and then kills. What is in flight is finished in that time; what comes
//! after the signal is turned away, so that nothing is begun that could not be finished.

use std::io;
use std::time::Duration;

use axum::Router;
use axum::serve::ListenerExt;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};

use crate::state::Draining;

/// A second less than Cloud Run allows, for the process to end by itself.
const DRAIN: Duration = Duration::from_secs(9);

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

/// Serves until SIGTERM or Ctrl-C, then finishes what is in flight.
///
/// # Errors
/// If signals cannot be received.
pub async fn until_told_to_stop(
    listener: TcpListener,
    router: Router,
    draining: Draining,
) -> io::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let (tell, told) = tokio::sync::oneshot::channel();
    let told_to_stop = async move {
        tokio::select! {
            biased;
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        draining.set();
        tracing::info!("told to stop: finishing what is in flight");
        tell.send(()).ok();
    };
    let no_delay = listener.tap_io(|connection| {
        if let Err(error) = connection.set_nodelay(true) {
            tracing::debug!("TCP_NODELAY: {error}");
        }
    });
    let too_long = async {
        // If the sender is gone without a word, the server has ended by itself.
        if told.await.is_ok() {
            tokio::time::sleep(DRAIN).await;
        } else {
            std::future::pending::<()>().await;
        }
    };
    tokio::select! {
        biased;
        ended = axum::serve(no_delay, router).with_graceful_shutdown(told_to_stop) => ended,
        () = too_long => {
            tracing::warn!("stopped with requests in flight: their callers will repeat them");
            Ok(())
        }
    }
}
