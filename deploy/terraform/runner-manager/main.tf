# The service on Cloud Run, the queue that calls it back, and the account that may do what it does and nothing else.

data "google_project" "this" {
  project_id = var.project
}

locals {
  # Known before the service exists, so that it can be told its own URL.
  url = "https://${var.service_name}-${data.google_project.this.number}.${var.region}.run.app"

  # Handlers take 20 s at most, a resync 45 s, and Cloud Tasks waits 60 s.
  request_seconds = 60

  # Cloud Run reads public images by itself. A private one on ghcr.io comes through a repository with credentials.
  image = var.ghcr_credentials == null ? var.image : "${var.region}-docker.pkg.dev/${var.project}/${one(google_artifact_registry_repository.ghcr[*].repository_id)}/${trimprefix(var.image, "ghcr.io/")}"

  # Fields that are not given stay away, as the service's defaults.
  runner_config = jsonencode([
    for entry in var.runner_config : { for field, value in entry : field => value if value != null }
  ])

  environment = merge(var.environment, {
    GCP_PROJECT_ID             = var.project
    CLOUD_TASK_LOCATION        = var.region
    CLOUD_TASK_QUEUE_NAME      = google_cloud_tasks_queue.callbacks.name
    CLOUD_RUN_SERVICE_URL      = local.url
    GITHUB_APP_ID              = var.github_app.id
    GITHUB_APP_INSTALLATION_ID = var.github_app.installation_id
    VM_INACTIVE_MINUTES        = tostring(var.vm_inactive_minutes)
    RUNNER_CONFIG              = local.runner_config
  })
}

resource "google_project_service" "this" {
  for_each = var.enable_apis ? toset([
    "artifactregistry.googleapis.com",
    "cloudscheduler.googleapis.com",
    "cloudtasks.googleapis.com",
    "compute.googleapis.com",
    "iam.googleapis.com",
    "logging.googleapis.com",
    "monitoring.googleapis.com",
    "run.googleapis.com",
    "secretmanager.googleapis.com",
  ]) : toset([])

  project            = var.project
  service            = each.value
  disable_on_destroy = false
}

resource "google_artifact_registry_repository" "ghcr" {
  count = var.ghcr_credentials == null ? 0 : 1

  project       = var.project
  location      = var.region
  repository_id = "${var.service_name}-ghcr"
  description   = "Fetches the runner manager's image from ghcr.io"
  format        = "DOCKER"
  mode          = "REMOTE_REPOSITORY"

  remote_repository_config {
    docker_repository {
      custom_repository {
        uri = "https://ghcr.io"
      }
    }
    upstream_credentials {
      username_password_credentials {
        username                = var.ghcr_credentials.username
        password_secret_version = var.ghcr_credentials.password_secret_version
      }
    }
  }

  depends_on = [google_project_service.this, time_sleep.ghcr]
}

resource "google_secret_manager_secret_iam_member" "ghcr" {
  count = var.ghcr_credentials == null ? 0 : 1

  secret_id = regex("^(projects/[^/]+/secrets/[^/]+)/", var.ghcr_credentials.password_secret_version)[0]
  role      = "roles/secretmanager.secretAccessor"
  member    = "serviceAccount:service-${data.google_project.this.number}@gcp-sa-artifactregistry.iam.gserviceaccount.com"

  depends_on = [google_project_service.this]
}

# Artifact Registry refuses credentials that it cannot read, and a grant takes minutes to be in force everywhere.
resource "time_sleep" "ghcr" {
  count = var.ghcr_credentials == null ? 0 : 1

  create_duration = var.propagation.iam

  triggers = { secret = google_secret_manager_secret_iam_member.ghcr[0].secret_id }

  depends_on = [google_secret_manager_secret_iam_member.ghcr]
}

resource "google_cloud_tasks_queue" "callbacks" {
  project  = var.project
  location = var.region
  name     = var.queue_name

  # Each task says itself how often it is repeated. These are for those that came before.
  retry_config {
    max_attempts = 100
    min_backoff  = "2s"
    max_backoff  = "3600s"
  }

  depends_on = [google_project_service.this]
}

resource "google_cloud_run_v2_service" "this" {
  project  = var.project
  location = var.region
  name     = var.service_name
  ingress  = "INGRESS_TRAFFIC_ALL"

  deletion_protection  = var.deletion_protection
  invoker_iam_disabled = var.public_access == "no_check"

  template {
    service_account                  = google_service_account.service.email
    timeout                          = "${local.request_seconds}s"
    max_instance_request_concurrency = 80

    scaling {
      min_instance_count = 0
      max_instance_count = var.max_instances
    }

    containers {
      image = local.image

      resources {
        # Below one CPU, Cloud Run gives an instance one request at a time, and a burst of webhooks an instance each.
        limits            = { cpu = "1", memory = "512Mi" }
        cpu_idle          = true
        startup_cpu_boost = false
      }

      startup_probe {
        http_get {
          path = "/health"
        }
        period_seconds    = 1
        timeout_seconds   = 1
        failure_threshold = 60
      }

      dynamic "env" {
        for_each = local.environment
        content {
          name  = env.key
          value = env.value
        }
      }

      dynamic "env" {
        for_each = local.secret_environment
        content {
          name = env.key
          value_source {
            secret_key_ref {
              secret  = env.value.secret
              version = env.value.version
            }
          }
        }
      }
    }
  }

  depends_on = [
    google_project_service.this,
    # Without these a revision does not start, or its first webhook fails.
    time_sleep.iam,
    google_cloud_tasks_queue_iam_member.service,
    google_compute_instance_iam_member.service,
    google_project_iam_member.vms,
  ]
}

resource "google_cloud_run_v2_service_iam_member" "all_users" {
  count = var.public_access == "all_users" ? 1 : 0

  project  = var.project
  location = var.region
  name     = google_cloud_run_v2_service.this.name
  role     = "roles/run.invoker"
  member   = "allUsers"
}
