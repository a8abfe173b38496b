//! A client with little overhead: it sends prepared requests over connections that stay open.

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

/// A kind of request, with its expected response.
#[derive(Clone)]
pub(crate) struct Load {
    /// One for each connection; further connections reuse them from the first.
    pub(crate) requests: Vec<Request<Full<Bytes>>>,
    /// The expected status.
    pub(crate) status: StatusCode,
    /// A text that the outcome header has to contain; empty if the header does not matter.
    pub(crate) outcome: &'static str,
}

impl Load {
    fn request(&self, nth: usize) -> &Request<Full<Bytes>> {
        &self.requests[nth % self.requests.len()]
    }

    fn verify(&self, response: &Response<Bytes>) -> Result<(), BoxError> {
        let outcome = response.headers().get("x-runner-manager-outcome");
        let outcome = outcome.and_then(|outcome| outcome.to_str().ok()).unwrap_or_default();
        if response.status() != self.status || !outcome.contains(self.outcome) {
            let body = String::from_utf8_lossy(response.body());
            return Err(format!("the response is {} {outcome:?}: {body}", response.status()).into());
        }
        Ok(())
    }
}

/// Sends requests for this time over this number of connections, one after the other on each. Returns the sorted
/// latencies.
pub(crate) async fn flood(
    to: SocketAddr,
    connections: usize,
    span: Duration,
    load: &Load,
) -> Result<Vec<Duration>, BoxError> {
    let end = Instant::now() + span;
    let worker = async |nth: usize| -> Result<Vec<Duration>, BoxError> {
        let request = load.request(nth);
        with_connection(to, async |sender| {
            let mut latencies = Vec::new();
            while Instant::now() < end {
                let (response, took) = exchange(sender, request).await?;
                load.verify(&response)?;
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

/// Sends all requests at the same time, each over its own connection. Returns the sorted latencies.
pub(crate) async fn burst(to: SocketAddr, load: &Load) -> Result<Vec<Duration>, BoxError> {
    // The measurement does not include the connections' handshakes.
    let ready = tokio::sync::Barrier::new(load.requests.len());
    let worker = async |request: &Request<Full<Bytes>>| {
        with_connection(to, async |sender| {
            ready.wait().await;
            let (response, took) = exchange(sender, request).await?;
            load.verify(&response)?;
            Ok(took)
        })
        .await
    };
    let mut all = try_join_all(load.requests.iter().map(worker)).await?;
    all.sort_unstable();
    Ok(all)
}

/// Opens a connection and drives it while `work` uses it.
async fn with_connection<T>(
    to: SocketAddr,
    work: impl AsyncFnOnce(&mut SendRequest<Full<Bytes>>) -> Result<T, BoxError>,
) -> Result<T, BoxError> {
    let stream = TcpStream::connect(to).await?;
    stream.set_nodelay(true)?;
    let (mut sender, connection) = handshake(TokioIo::new(stream)).await?;
    tokio::select! {
        biased;
        result = work(&mut sender) => result,
        result = connection => Err(format!("the connection ended: {result:?}").into()),
    }
}

async fn exchange(
    sender: &mut SendRequest<Full<Bytes>>,
    request: &Request<Full<Bytes>>,
) -> Result<(Response<Bytes>, Duration), BoxError> {
    let begun = Instant::now();
    sender.ready().await?;
    let response = sender.send_request(request.clone()).await?;
    let (head, body) = response.into_parts();
    let response = Response::from_parts(head, body.collect().await?.to_bytes());
    Ok((response, begun.elapsed()))
}

/// Sends a request as soon as the port is open, and returns the time from `begun` to its response.
pub(crate) async fn first_response(
    to: SocketAddr,
    begun: Instant,
    load: &Load,
) -> Result<Duration, BoxError> {
    while begun.elapsed() < Duration::from_secs(10) {
        if TcpStream::connect(to).await.is_err() {
            // tokio's timers have a resolution of a millisecond.
            std::thread::sleep(Duration::from_micros(50));
            continue;
        }
        return with_connection(to, async |sender| {
            let (response, _) = exchange(sender, load.request(0)).await?;
            load.verify(&response)?;
            Ok(begun.elapsed())
        })
        .await;
    }
    Err("the port did not open within 10 s".into())
}
