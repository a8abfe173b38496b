//! Sends the cloud's requests, webhooks and callbacks, to the service.

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;

use bytes::Bytes;
use futures_util::stream::{FuturesUnordered, StreamExt};
use http_body_util::Full;
use tower::ServiceExt;
use tower::util::BoxCloneSyncService;

use super::{Outgoing, Reply, Ticket};

pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// The transport from the cloud to the service: the network, or the service's router in the same process.
pub type HttpService =
    BoxCloneSyncService<http::Request<Full<Bytes>>, http::Response<Bytes>, BoxError>;

type InFlight = Pin<Box<dyn Future<Output = (u64, Reply)> + Send>>;

/// Sends the cloud's requests. A driver outlives [`Cloud::run_until`](super::Cloud::run_until): dropping it would cancel the
/// requests in flight.
pub struct Driver {
    http: HttpService,
    in_flight: FuturesUnordered<InFlight>,
    tickets: BTreeMap<u64, Ticket>,
    sent: u64,
}

impl Driver {
    pub fn new(http: HttpService) -> Self {
        let in_flight = FuturesUnordered::new();
        Self { http, in_flight, tickets: BTreeMap::new(), sent: 0 }
    }

    /// The number of requests without a reply.
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

    /// The next reply or timeout, with the request's ticket. Waits forever while nothing is in flight.
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
