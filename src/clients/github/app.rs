//! GitHub's REST API, as the App itself: its settings, its installations, its webhook and the webhook's deliveries.
//!
//! GitHub sends a delivery once. One that was not answered 2xx is sent again only on request, within three days.
//! <https://docs.github.com/en/rest/apps/webhooks>

use std::collections::BTreeMap;

use bytes::Bytes;
use http::{Response, header};
use serde::Deserialize;

use super::{GitHub, PER_PAGE};
use crate::clients::Error;
use crate::clients::transport::{Outgoing, read};
use crate::clock::{Deadline, Timestamp};
use crate::fleet::RepoName;

/// Permissions of the App or of an installation: `read` or `write`, by name, such as `actions`.
pub type Permissions = BTreeMap<String, String>;

/// The App's settings.
#[derive(Clone, Debug, Deserialize)]
pub struct App {
    /// Its id.
    pub id: u64,
    /// Its display name.
    #[serde(default)]
    pub name: String,
    /// The permissions that it requests. An installation may not have granted all of them yet.
    #[serde(default)]
    pub permissions: Permissions,
    /// The events that it subscribes to.
    #[serde(default)]
    pub events: Vec<String>,
}

/// An installation of the App on an account.
#[derive(Clone, Debug, Deserialize)]
pub struct Installation {
    /// Its id.
    pub id: u64,
    /// The permissions that were granted.
    #[serde(default)]
    pub permissions: Permissions,
    /// The events that the App receives from it.
    #[serde(default)]
    pub events: Vec<String>,
    /// The time of its suspension, if it is suspended, RFC 3339.
    pub suspended_at: Option<String>,
    /// The URL of its page.
    pub html_url: Option<String>,
}

/// The settings of the App's webhook.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct HookConfig {
    /// The payload URL, if one is set.
    pub url: Option<String>,
    /// `json` or `form`.
    pub content_type: Option<String>,
    /// Asterisks, if deliveries are signed.
    pub secret: Option<String>,
}

/// The filter of a list of deliveries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeliveryFilter {
    /// All deliveries.
    All,
    /// Deliveries answered 4xx or 5xx, or not at all. A server that does not know the filter lists all of them.
    Failed,
}

/// One attempt to deliver an event.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Delivery {
    /// The attempt's id, with which a redelivery is requested.
    pub id: u64,
    /// The event's own id, shared by all its attempts: `X-GitHub-Delivery`.
    pub guid: String,
    /// The event's name, as in `X-GitHub-Event`.
    pub event: String,
    /// The payload's `action`, if the event has one.
    pub action: Option<String>,
    /// The attempt's result, in words.
    #[serde(default)]
    pub status: String,
    /// The status of the response, or GitHub's code for a missing one.
    #[serde(default)]
    pub status_code: u16,
    /// The time of the attempt.
    #[serde(deserialize_with = "timestamp")]
    pub delivered_at: Timestamp,
    /// The attempt was made on request, after an earlier one.
    #[serde(default)]
    pub redelivery: bool,
}

impl Delivery {
    /// True if the receiver accepted the delivery.
    pub fn was_accepted(&self) -> bool {
        (200..400).contains(&self.status_code)
    }
}

/// A page of deliveries, the newest first.
#[derive(Clone, Debug)]
pub struct Deliveries {
    /// The attempts on this page.
    pub items: Vec<Delivery>,
    /// The cursor of the next page, if there is one.
    pub next: Option<String>,
}

impl GitHub {
    /// The App that the key belongs to.
    /// <https://docs.github.com/en/rest/apps/apps#get-the-authenticated-app>
    ///
    /// # Errors
    /// 401 if the key is not the App's, 404 if there is no such App.
    pub async fn app(&self, deadline: Deadline) -> Result<App, Error> {
        let call = "get the authenticated app";
        read(call, &self.get_as_app(call, "/app", &[], deadline).await?)
    }

    /// The id of the service's own installation.
    pub fn installation_id(&self) -> u64 {
        self.app.installation_id
    }

    /// The service's own installation.
    /// <https://docs.github.com/en/rest/apps/apps#get-an-installation-for-the-authenticated-app>
    ///
    /// # Errors
    /// 404 if the App has no such installation.
    pub async fn installation(&self, deadline: Deadline) -> Result<Installation, Error> {
        let call = "get an installation";
        let path = format!("/app/installations/{}", self.app.installation_id);
        read(call, &self.get_as_app(call, &path, &[], deadline).await?)
    }

    /// The installation that covers a repository.
    /// <https://docs.github.com/en/rest/apps/apps#get-a-repository-installation-for-the-authenticated-app>
    ///
    /// # Errors
    /// 404 if none does.
    pub async fn repo_installation(
        &self,
        repo: &RepoName,
        deadline: Deadline,
    ) -> Result<Installation, Error> {
        let call = "get a repository installation";
        let path = format!("/repos/{repo}/installation");
        read(call, &self.get_as_app(call, &path, &[], deadline).await?)
    }

    /// The settings of the App's webhook.
    /// <https://docs.github.com/en/rest/apps/webhooks#get-a-webhook-configuration-for-an-app>
    pub async fn hook_config(&self, deadline: Deadline) -> Result<HookConfig, Error> {
        let call = "get the app's webhook configuration";
        read(call, &self.get_as_app(call, "/app/hook/config", &[], deadline).await?)
    }

    /// A page of deliveries of the App's webhook, from `cursor` on, as given by an earlier page.
    /// <https://docs.github.com/en/rest/apps/webhooks#list-deliveries-for-an-app-webhook>
    pub async fn deliveries(
        &self,
        filter: DeliveryFilter,
        cursor: Option<&str>,
        deadline: Deadline,
    ) -> Result<Deliveries, Error> {
        let call = "list deliveries for the app's webhook";
        let size = PER_PAGE.to_string();
        let status = (filter == DeliveryFilter::Failed).then_some(("status", "failure"));
        let from = cursor.map(|cursor| ("cursor", cursor));
        let query: Vec<_> =
            [("per_page", size.as_str())].into_iter().chain(status).chain(from).collect();
        let answer = self.get_as_app(call, "/app/hook/deliveries", &query, deadline).await?;
        Ok(Deliveries { items: read(call, &answer)?, next: next_cursor(&answer) })
    }

    /// Requests a redelivery, which GitHub makes a moment later.
    /// <https://docs.github.com/en/rest/apps/webhooks#redeliver-a-delivery-for-an-app-webhook>
    ///
    /// # Errors
    /// 404 if GitHub no longer has the delivery.
    pub async fn redeliver(&self, delivery: u64, deadline: Deadline) -> Result<(), Error> {
        let call = "redeliver a delivery for the app's webhook";
        let url = format!("{}/app/hook/deliveries/{delivery}/attempts", self.root);
        self.send_as_app(call, Outgoing::post(call, url), deadline).await.map(drop)
    }

    async fn get_as_app(
        &self,
        call: &'static str,
        path: &str,
        query: &[(&str, &str)],
        deadline: Deadline,
    ) -> Result<Response<Bytes>, Error> {
        let request = Outgoing::get(call, format!("{}{path}", self.root));
        self.send_as_app(call, request.query(query.iter().copied()), deadline).await
    }
}

/// The cursor in the `Link` header that points to the next page.
fn next_cursor(answer: &Response<Bytes>) -> Option<String> {
    let links = answer.headers().get(header::LINK)?.to_str().ok()?;
    let next = links.split(',').find(|link| link.contains(r#"rel="next""#))?;
    let url = next.split_once('<')?.1.split_once('>')?.0;
    let query = url.split_once('?')?.1;
    form_urlencoded::parse(query.as_bytes())
        .find(|(name, _)| name == "cursor")
        .map(|(_, cursor)| cursor.into_owned())
}

fn timestamp<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Timestamp, D::Error> {
    let text = String::deserialize(from)?;
    Timestamp::parse(&text).ok_or_else(|| serde::de::Error::custom("not a time as RFC 3339 has it"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn points_to(link: &'static str, cursor: Option<&str>) {
        let answer = Response::builder().header("link", link).body(Bytes::new()).unwrap();
        assert_eq!(next_cursor(&answer).as_deref(), cursor, "{link}");
    }

    #[test]
    fn the_next_page_is_found_among_the_links() {
        points_to(
            r#"<https://api.github.com/app/hook/deliveries?per_page=1&cursor=v1_173>; rel="next""#,
            Some("v1_173"),
        );
        points_to(
            r#"<https://h/app/hook/deliveries?cursor=a>; rel="prev", <https://h/x?cursor=b%3D>; rel="next""#,
            Some("b="),
        );
        points_to(r#"<https://h/app/hook/deliveries?cursor=a>; rel="prev""#, None);
        points_to(r#"<https://h/app/hook/deliveries>; rel="next""#, None);
        points_to("nonsense", None);
        assert_eq!(next_cursor(&Response::new(Bytes::new())), None);
    }

    #[test]
    fn deliveries_are_read_as_the_reference_shows_them() {
        let items: Vec<Delivery> = serde_json::from_str(
            r#"[{"id": 12345678, "guid": "0b989ba4", "delivered_at": "2019-06-03T00:57:16Z", "redelivery": false,
                 "duration": 0.27, "status": "OK", "status_code": 200, "event": "workflow_job", "action": "queued",
                 "installation_id": 123, "repository_id": 456, "throttled_at": null},
                {"id": 12345679, "guid": "0b989ba5", "delivered_at": "2019-06-03T00:58:16.25Z", "redelivery": true,
                 "duration": 10.0, "status": "timed out", "status_code": 504, "event": "ping", "action": null}]"#,
        )
        .unwrap();
        assert!(items[0].was_accepted() && !items[1].was_accepted() && items[1].redelivery);
        assert_eq!(items[1].action, None);
        let late =
            r#"[{"id": 1, "guid": "g", "event": "e", "action": null, "delivered_at": "soon"}]"#;
        assert!(serde_json::from_str::<Vec<Delivery>>(late).is_err());
    }
}
