//! A client that asks for little itself: requests made beforehand, over connections that stay open.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::try_join_all;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use runner_manager::clients::transport::BoxError;
use tokio::net::TcpStream;
use tokio::time::Instant;

/// What one kind of request is answered with, and how often the answer is looked at.
#[derive(Clone)]
pub(crate) struct Load {
    /// One for each connection; the connections beyond begin again.
    pub(crate) requests: Vec<Request<Full<Bytes>>>,
    /// What is answered if all is well.
    pub(crate) status: StatusCode,
    /// What the outcome header then says; empty: there is none, or it does not matter.
    pub(crate) outcome: &'static str,
}

impl Load {
    /// The request of the nth connection.
    fn request(&self, nth: usize) -> &Request<Full<Bytes>> {
        &self.requests[nth % self.requests.len()]
    }

    fn judge(&self, answer: &Response<Bytes>, judge_outcome: bool) -> Result<(), BoxError> {
        let outcome = answer.headers().get("x-runner-manager-outcome");
        let outcome = outcome.and_then(|outcome| outcome.to_str().ok()).unwrap_or_default();
        if answer.status() != self.status || (judge_outcome && !outcome.contains(self.outcome)) {
            let body = String::from_utf8_lossy(answer.body());
            return Err(format!("answered {} {outcome:?}: {body}", answer.status()).into());
        }
        Ok(())
    }
}

/// Sends over this many connections at a time, each one request after the other, until the time is over. The
/// latencies, sorted.
pub(crate) async fn flood(
    to: SocketAddr,
    connections: usize,
    span: Duration,
    load: &Load,
) -> Result<Vec<Duration>, BoxError> {
    let end = Instant::now() + span;
    let worker = async |nth: usize| -> Result<Vec<Duration>, BoxError> {
        let request = load.request(nth);
        over(to, async |sender| {
            let mut latencies = Vec::new();
            while Instant::now() < end {
                let (answer, took) = exchange(sender, request).await?;
                load.judge(&answer, true)?;
                latencies.push(took);
            }
            Ok(latencies)
        })
        .await
    };
    let mut all = try_join_all((0..connections).map(worker)).await?.concat();
    all.sort_unstable();
    Ok(all)
}

/// Sends all of its requests at the same moment, each over a connection of its own. The latencies, sorted.
pub(crate) async fn burst(to: SocketAddr, load: &Load) -> Result<Vec<Duration>, BoxError> {
    // All connections first: a handshake is not part of what is measured.
    let ready = tokio::sync::Barrier::new(load.requests.len());
    let worker = async |request: &Request<Full<Bytes>>| {
        over(to, async |sender| {
            ready.wait().await;
            let (answer, took) = exchange(sender, request).await?;
            load.judge(&answer, true)?;
            Ok(took)
        })
        .await
    };
    let mut all = try_join_all(load.requests.iter().map(worker)).await?;
    all.sort_unstable();
    Ok(all)
}

/// Opens a connection and keeps it going while it is used.
async fn over<T>(
    to: SocketAddr,
    work: impl AsyncFnOnce(&mut SendRequest<Full<Bytes>>) -> Result<T, BoxError>,
) -> Result<T, BoxError> {
    let stream = TcpStream::connect(to).await?;
    stream.set_nodelay(true)?;
    let (mut sender, connection) = handshake(TokioIo::new(stream)).await?;
    tokio::select! {
        biased;
        done = work(&mut sender) => done,
        ended = connection => Err(format!("the connection ended: {ended:?}").into()),
    }
}

async fn exchange(
    sender: &mut SendRequest<Full<Bytes>>,
    request: &Request<Full<Bytes>>,
) -> Result<(Response<Bytes>, Duration), BoxError> {
    let begun = Instant::now();
    sender.ready().await?;
    let answer = sender.send_request(request.clone()).await?;
    let (head, body) = answer.into_parts();
    let answer = Response::from_parts(head, body.collect().await?.to_bytes());
    Ok((answer, begun.elapsed()))
}

/// The first answer that comes, as soon as somebody listens, and how long that took from `begun` on.
pub(crate) async fn first_answer(
    to: SocketAddr,
    begun: Instant,
    load: &Load,
) -> Result<Duration, BoxError> {
    while begun.elapsed() < Duration::from_secs(10) {
        if TcpStream::connect(to).await.is_err() {
            // tokio's timers count in milliseconds.
            std::thread::sleep(Duration::from_micros(50));
            continue;
        }
        return over(to, async |sender| {
            let (answer, _) = exchange(sender, load.request(0)).await?;
            load.judge(&answer, true)?;
            Ok(begun.elapsed())
        })
        .await;
    }
    Err("nobody listens".into())
}
