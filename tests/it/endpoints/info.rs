use http::{Method, StatusCode};
use serde_json::json;

use crate::world::World;

#[tokio::test(start_paused = true)]
async fn health_is_healthy() {
    let answer = World::new().send(Method::GET, "/health", &[], "").await;
    assert_eq!((answer.status, answer.body), (StatusCode::OK, json!({ "status": "healthy" })));
}

#[tokio::test(start_paused = true)]
async fn the_root_shows_the_fleet_and_nothing_else() {
    let answer = World::with_config(crate::world::fleet(r#", "discard_local_ssd": true"#))
        .send(Method::GET, "/", &[], "")
        .await;
    let entry = |repo, labels: &[&str], vm| json!({ "repo": repo, "labels": labels, "vm_instance_name": vm, "vm_instance_zone": "asia-northeast1-a" });
    let expected = json!({
        "service": "GitHub Runner Manager",
        "inactive_minutes": 3,
        "runner_configs": [
            entry("acme/app", &["self-hosted", "gpu"], "gpu-1"),
            entry("acme/app", &["self-hosted"], "runner-1"),
            entry("acme/web", &["self-hosted"], "runner-1"),
        ],
    });
    assert_eq!(answer.body, expected);
}
