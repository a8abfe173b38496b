//! The GitHub App's deliveries, and the redelivery of a lost one.

use http::StatusCode;
use runner_manager::clients::github::app::DeliveryFilter;
use runner_manager::clock::Deadline;
use runner_manager::emulators::{ErrorBody, Fault};

use crate::harness;
use crate::world::{World, fleet, minutes, seconds};

fn soon() -> Deadline {
    Deadline::after(seconds(20))
}

#[tokio::test(start_paused = true)]
async fn a_lost_delivery_is_listed_and_starts_its_vm_once_it_is_sent_again() {
    let mut world = World::new();
    let github = harness::app(&fleet(""), &world.cloud, &world.clock).cx.github.clone();
    world.cloud.github.lose_next_webhook(1);
    let job = world.queue_job("acme/app", "self-hosted", minutes(1));
    world.pass(minutes(10)).await;
    assert!(world.is_stopped("runner-1"));
    let failed = github.deliveries(DeliveryFilter::Failed, None, soon()).await.unwrap();
    assert_eq!((failed.items.len(), failed.next), (1, None));
    let lost = &failed.items[0];
    assert_eq!((lost.event.as_str(), lost.action.as_deref()), ("workflow_job", Some("queued")));
    assert!(!lost.was_accepted() && !lost.redelivery);

    github.redeliver(lost.id, soon()).await.unwrap();
    world.pass_until(minutes(5), |world| world.is_completed(job)).await;
    let all = github.deliveries(DeliveryFilter::All, None, soon()).await.unwrap().items;
    let again = all.iter().find(|one| one.guid == lost.guid).unwrap();
    assert!(again.was_accepted() && again.redelivery && again.id != lost.id, "{again:?}");
    let gone = github.redeliver(1, soon()).await.unwrap_err();
    assert!(gone.is_not_found(), "{gone}");
    world.settle().await;
}

#[tokio::test(start_paused = true)]
async fn deliveries_are_read_page_by_page_and_each_once() {
    let mut world = World::new();
    let github = harness::app(&fleet(""), &world.cloud, &world.clock).cx.github.clone();
    for _ in 0..250 {
        world.queue_job("acme/app", "nobody-has-this", minutes(1));
    }
    world.pass(seconds(10)).await;
    let (mut seen, mut cursor) = (Vec::new(), None);
    for page in [100, 100, 50] {
        let found =
            github.deliveries(DeliveryFilter::All, cursor.as_deref(), soon()).await.unwrap();
        assert_eq!(found.items.len(), page);
        seen.extend(found.items.iter().map(|one| one.id));
        cursor = found.next;
    }
    assert_eq!(cursor, None);
    assert!(seen.is_sorted_by(|a, b| a > b), "the newest first");
}

#[tokio::test(start_paused = true)]
async fn the_app_learns_where_it_is_installed_and_where_its_webhook_goes() {
    let world = World::new();
    let github = harness::app(&fleet(""), &world.cloud, &world.clock).cx.github.clone();
    assert_eq!(github.app(soon()).await.unwrap().id, 123_456);
    let repo = "acme/app".into();
    let here = github.repo_installation(&repo, soon()).await.unwrap();
    assert_eq!(here.id, github.installation_id());
    assert_eq!(here.permissions.get("actions").map(String::as_str), Some("read"));
    assert_eq!(github.installation(soon()).await.unwrap().id, here.id);
    let hook = github.hook_config(soon()).await.unwrap();
    assert_eq!(hook.url.as_deref(), Some("https://service.example/github/webhook"));
    world.cloud.github.rename_repository("acme/app", "acme/better");
    let now = github.repository(&repo, soon()).await.unwrap();
    assert_eq!((now.full_name.as_str(), now.private), ("acme/better", true));
    let fault = Fault::Before(StatusCode::BAD_REQUEST, ErrorBody::Api);
    world.cloud.faults.next("apps.listWebhookDeliveries", fault);
    let refused = github.deliveries(DeliveryFilter::All, None, soon()).await.unwrap_err();
    assert_eq!(refused.status(), Some(StatusCode::BAD_REQUEST));
}
