# The shared secret and the App's key. Their values pass through Terraform without being kept: neither in the state nor
# in a plan.

locals {
  secret_ids = {
    RUNNER_MANAGER_SECRET  = var.secrets.runner_manager_secret.id
    GITHUB_APP_PRIVATE_KEY = var.secrets.github_app_private_key.id
  }

  versions = {
    RUNNER_MANAGER_SECRET  = var.secrets.create ? google_secret_manager_secret_version.runner_manager_secret[0].version : var.secrets.runner_manager_secret.version
    GITHUB_APP_PRIVATE_KEY = var.secrets.create ? google_secret_manager_secret_version.github_app_private_key[0].version : var.secrets.github_app_private_key.version
  }

  previous = var.secrets.runner_manager_secret.previous_version

  # Versions by number: with latest, instances of one revision could hold different secrets.
  secret_environment = merge(
    { for name, id in local.secret_ids : name => { secret = id, version = local.versions[name] } },
    local.previous == null ? {} : {
      RUNNER_MANAGER_SECRET_PREVIOUS = { secret = local.secret_ids.RUNNER_MANAGER_SECRET, version = local.previous }
    },
  )
}

resource "google_secret_manager_secret" "this" {
  for_each = var.secrets.create ? local.secret_ids : {}

  project   = var.project
  secret_id = each.value

  replication {
    auto {}
  }

  depends_on = [google_project_service.this]
}

resource "google_secret_manager_secret_version" "runner_manager_secret" {
  count = var.secrets.create ? 1 : 0

  secret                 = google_secret_manager_secret.this["RUNNER_MANAGER_SECRET"].id
  secret_data_wo         = var.runner_manager_secret
  secret_data_wo_version = var.secrets.runner_manager_secret.revision
  # Pending tasks carry the version that a rotation leaves behind: it is disabled by hand, once they are gone.
  deletion_policy = "ABANDON"

  lifecycle {
    create_before_destroy = true
  }
}

resource "google_secret_manager_secret_version" "github_app_private_key" {
  count = var.secrets.create ? 1 : 0

  secret                 = google_secret_manager_secret.this["GITHUB_APP_PRIVATE_KEY"].id
  secret_data_wo         = var.github_app_private_key
  secret_data_wo_version = var.secrets.github_app_private_key.revision
  deletion_policy        = "ABANDON"

  lifecycle {
    create_before_destroy = true
  }
}

resource "google_secret_manager_secret_iam_member" "service" {
  for_each = local.secret_ids

  project   = var.project
  secret_id = var.secrets.create ? google_secret_manager_secret.this[each.key].secret_id : each.value
  role      = "roles/secretmanager.secretAccessor"
  member    = local.member
}
