# The fleet resync. Cloud Scheduler can only send the secret as a header of the job, which then is in Terraform's state too: so
# this is off by default, and the output `next_steps` has the command instead.

data "google_secret_manager_secret_version_access" "runner_manager_secret" {
  count = var.reconcile.managed ? 1 : 0

  project = var.project
  secret  = local.secret_ids.RUNNER_MANAGER_SECRET
  version = local.versions.RUNNER_MANAGER_SECRET
}

resource "google_cloud_scheduler_job" "reconcile" {
  count = var.reconcile.managed ? 1 : 0

  project          = var.project
  region           = var.region
  name             = "${var.service_name}-reconcile"
  description      = "Has the runner manager find what was lost on the way."
  schedule         = var.reconcile.schedule
  time_zone        = "Etc/UTC"
  attempt_deadline = "${local.request_seconds}s"

  http_target {
    uri         = "${local.url}/runner/reconcile"
    http_method = "POST"
    headers = {
      "X-Runner-Secret" = data.google_secret_manager_secret_version_access.runner_manager_secret[0].secret_data
    }
  }

  # The next resync is the repetition.
  retry_config {
    retry_count = 0
  }

  depends_on = [google_cloud_run_v2_service.this]
}
