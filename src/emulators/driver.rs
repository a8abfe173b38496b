//! Carries the cloud's own requests, webhooks and callbacks, to the service.

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;

use bytes::Bytes;
use futures_util::stream::{FuturesUnordered, StreamExt};
use http_body_util::Full;
use tower::ServiceExt;
use tower::util::BoxCloneSyncService;

use super::{Outgoing, Reply, Ticket};

/// Why a request got no answer.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// How the cloud reaches the service: over the network, or its Router in process.
pub type HttpService =
    BoxCloneSyncService<http::Request<Full<Bytes>>, http::Response<Bytes>, BoxError>;

type InFlight = Pin<Box<dyn Future<Output = (u64, Reply)> + Send>>;

/// Sends the cloud's requests. It outlives [`Cloud::run_until`](super::Cloud::run_until), or what the service works
/// on would be dropped with it.
pub struct Driver {
    http: HttpService,
    in_flight: FuturesUnordered<InFlight>,
    tickets: BTreeMap<u64, Ticket>,
    sent: u64,
}

impl Driver {
    /// A driver that sends by `http`.
    pub fn new(http: HttpService) -> Self {
        let in_flight = FuturesUnordered::new();
        Self { http, in_flight, tickets: BTreeMap::new(), sent: 0 }
    }

    /// How many requests wait for an answer.
    pub fn in_flight(&self) -> usize {
        self.tickets.len()
    }

    pub(super) fn send(&mut self, Outgoing { request, limit, ticket }: Outgoing) {
        self.sent += 1;
        let (id, http) = (self.sent, self.http.clone());
        self.tickets.insert(id, ticket);
        self.in_flight.push(Box::pin(async move {
            let reply = match tokio::time::timeout(limit, http.oneshot(request)).await {
                Ok(Ok(response)) => {
                    let (parts, body) = response.into_parts();
                    Reply { status: Some(parts.status), headers: parts.headers, body }
                }
                Ok(Err(_)) | Err(_) => Reply::default(),
            };
            (id, reply)
        }));
    }

    /// The next answer, or the lack of one, with the request's ticket. Waits for good while nothing is in flight.
    pub(super) async fn answer(&mut self) -> (Ticket, Reply) {
        loop {
            match self.in_flight.next().await {
                Some((id, reply)) => {
                    if let Some(ticket) = self.tickets.remove(&id) {
                        return (ticket, reply);
                    }
                }
                None => std::future::pending().await,
            }
        }
    }
}
