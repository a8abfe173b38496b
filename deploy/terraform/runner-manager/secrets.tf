# The shared secret and the App's key. The key is stored by hand, and Terraform never has it. The shared secret is made
# here unless it is given; it passes through Terraform without being kept, neither in the state nor in a plan.

locals {
  secret_ids = {
    RUNNER_MANAGER_SECRET  = var.secrets.runner_manager_secret.id
    GITHUB_APP_PRIVATE_KEY = var.secrets.github_app_private_key.id
  }

  versions = {
    RUNNER_MANAGER_SECRET  = var.secrets.create ? google_secret_manager_secret_version.runner_manager_secret[0].version : var.secrets.runner_manager_secret.version
    GITHUB_APP_PRIVATE_KEY = var.secrets.github_app_private_key.version
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

resource "google_secret_manager_secret" "runner_manager_secret" {
  count = var.secrets.create ? 1 : 0

  project   = var.project
  secret_id = local.secret_ids.RUNNER_MANAGER_SECRET

  replication {
    auto {}
  }

  depends_on = [google_project_service.this]
}

# Another one at each run. Only the one of the run that makes a version is stored.
ephemeral "random_password" "runner_manager_secret" {
  count = var.secrets.create ? 1 : 0

  length  = 48
  special = false
}

resource "google_secret_manager_secret_version" "runner_manager_secret" {
  count = var.secrets.create ? 1 : 0

  secret = google_secret_manager_secret.runner_manager_secret[0].id
  # The provider requires a value at each run, and stores it if the version of the argument changes.
  secret_data_wo         = coalesce(var.runner_manager_secret, ephemeral.random_password.runner_manager_secret[0].result)
  secret_data_wo_version = var.secrets.runner_manager_secret.revision
  # Pending tasks carry the version that a rotation leaves behind: it is disabled by hand, once they are gone.
  deletion_policy = "ABANDON"

  lifecycle {
    create_before_destroy = true
  }
}

resource "google_secret_manager_secret_iam_member" "service" {
  for_each = local.secret_ids

  project   = var.project
  secret_id = each.key == "RUNNER_MANAGER_SECRET" && var.secrets.create ? google_secret_manager_secret.runner_manager_secret[0].secret_id : each.value
  role      = "roles/secretmanager.secretAccessor"
  member    = local.member
}

# A revision does not start if it cannot read its secrets, and a grant takes minutes to be in force everywhere.
resource "time_sleep" "iam" {
  create_duration = var.propagation.iam

  triggers = merge(local.secret_ids, { account = google_service_account.service.email })

  depends_on = [google_secret_manager_secret_iam_member.service]
}

# Version 0.1 kept both secrets in one resource, and the App's key in Terraform. Neither is deleted.
moved {
  from = google_secret_manager_secret.this["RUNNER_MANAGER_SECRET"]
  to   = google_secret_manager_secret.runner_manager_secret[0]
}

removed {
  from = google_secret_manager_secret.this

  lifecycle {
    destroy = false
  }
}

removed {
  from = google_secret_manager_secret_version.github_app_private_key

  lifecycle {
    destroy = false
  }
}
