//! What GitHub tells the App itself: who it is, which installation covers a repository, where its webhook goes, and
//! what became of the deliveries.
//!
//! GitHub sends a delivery once. One that was not answered 2xx stays lost, unless somebody asks for it again within
//! three days.
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

/// What the App, or an installation of it, may do: `read` or `write`, by the permission's name, such as `actions`.
pub type Permissions = BTreeMap<String, String>;

/// The App, as its owner set it up.
#[derive(Clone, Debug, Deserialize)]
pub struct App {
    /// Its number.
    pub id: u64,
    /// Its name, for a person.
    #[serde(default)]
    pub name: String,
    /// What it asks for. An installation may not have granted all of it yet.
    #[serde(default)]
    pub permissions: Permissions,
    /// The events that its webhook is sent.
    #[serde(default)]
    pub events: Vec<String>,
}

/// An installation of the App: what it may do on which account's repositories.
#[derive(Clone, Debug, Deserialize)]
pub struct Installation {
    /// Its number.
    pub id: u64,
    /// What was granted.
    #[serde(default)]
    pub permissions: Permissions,
    /// The events that the App is sent from here.
    #[serde(default)]
    pub events: Vec<String>,
    /// Since when it is suspended, if it is, RFC 3339.
    pub suspended_at: Option<String>,
    /// Its page, for a person.
    pub html_url: Option<String>,
}

/// Where the App's webhook goes.
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

/// Which deliveries are listed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeliveryFilter {
    /// All of them.
    All,
    /// Those that were answered 4xx or 5xx, or not at all. A server that does not know the filter lists all.
    Failed,
}

/// One attempt to deliver an event.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Delivery {
    /// The attempt's number, by which another can be asked for.
    pub id: u64,
    /// The event's own id, which all attempts share: `X-GitHub-Delivery`.
    pub guid: String,
    /// As in `X-GitHub-Event`.
    pub event: String,
    /// The payload's `action`, if the event has one.
    pub action: Option<String>,
    /// What became of it, in words.
    #[serde(default)]
    pub status: String,
    /// What it was answered, or what GitHub puts in its place where there was no answer.
    #[serde(default)]
    pub status_code: u16,
    /// When it was made.
    #[serde(deserialize_with = "timestamp")]
    pub delivered_at: Timestamp,
    /// Whether the event was delivered before.
    #[serde(default)]
    pub redelivery: bool,
}

impl Delivery {
    /// Whether the receiver took it.
    pub fn was_accepted(&self) -> bool {
        (200..400).contains(&self.status_code)
    }
}

/// A page of deliveries, the newest first.
#[derive(Clone, Debug)]
pub struct Deliveries {
    /// The attempts.
    pub items: Vec<Delivery>,
    /// Where the next page begins, if there is one.
    pub next: Option<String>,
}

impl GitHub {
    /// The App that the key belongs to.
    /// <https://docs.github.com/en/rest/apps/apps#get-the-authenticated-app>
    ///
    /// # Errors
    /// 401 if the key is not the App's, 404 if there is no such App; else as [`Error`] says.
    pub async fn app(&self, deadline: Deadline) -> Result<App, Error> {
        let call = "get the authenticated app";
        read(call, &self.get_as_app(call, "/app", &[], deadline).await?)
    }

    /// The installation that the service works as.
    pub fn installation_id(&self) -> u64 {
        self.app.installation_id
    }

    /// The installation that the service works as, by its number.
    /// <https://docs.github.com/en/rest/apps/apps#get-an-installation-for-the-authenticated-app>
    ///
    /// # Errors
    /// 404 if the App has no such installation; else as [`Error`] says.
    pub async fn installation(&self, deadline: Deadline) -> Result<Installation, Error> {
        let call = "get an installation";
        let path = format!("/app/installations/{}", self.app.installation_id);
        read(call, &self.get_as_app(call, &path, &[], deadline).await?)
    }

    /// The installation that covers a repository, whichever it is.
    /// <https://docs.github.com/en/rest/apps/apps#get-a-repository-installation-for-the-authenticated-app>
    ///
    /// # Errors
    /// 404 if none does; else as [`Error`] says.
    pub async fn repo_installation(
        &self,
        repo: &RepoName,
        deadline: Deadline,
    ) -> Result<Installation, Error> {
        let call = "get a repository installation";
        let path = format!("/repos/{repo}/installation");
        read(call, &self.get_as_app(call, &path, &[], deadline).await?)
    }

    /// Where the App's webhook goes.
    /// <https://docs.github.com/en/rest/apps/webhooks#get-a-webhook-configuration-for-an-app>
    ///
    /// # Errors
    /// As [`Error`] says.
    pub async fn hook_config(&self, deadline: Deadline) -> Result<HookConfig, Error> {
        let call = "get the app's webhook configuration";
        read(call, &self.get_as_app(call, "/app/hook/config", &[], deadline).await?)
    }

    /// A page of the deliveries of the App's webhook, from `cursor` on, which an earlier page named.
    /// <https://docs.github.com/en/rest/apps/webhooks#list-deliveries-for-an-app-webhook>
    ///
    /// # Errors
    /// As [`Error`] says.
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

    /// Asks for another attempt at a delivery: GitHub makes it in a moment.
    /// <https://docs.github.com/en/rest/apps/webhooks#redeliver-a-delivery-for-an-app-webhook>
    ///
    /// # Errors
    /// 404 if GitHub does not have the delivery any more; else as [`Error`] says.
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
