# terraform init && terraform test: with mocked providers, so it needs no account.

mock_provider "google" {
  mock_data "google_project" {
    defaults = { number = "123456789012" }
  }
}

# Terraform mocks no ephemeral resources; this provider needs no account either.
provider "random" {}

mock_provider "time" {}

variables {
  project    = "my-project"
  region     = "us-central1"
  image      = "ghcr.io/acme/runner-manager:0.1.0"
  github_app = { id = "123456", installation_id = "12345678" }
  runner_config = [{
    repo             = "acme/app"
    labels           = ["self-hosted"]
    vm_instance_name = "vm-1"
    vm_instance_zone = "us-central1-a"
  }]
}

run "the_service_knows_its_own_url" {
  command = plan

  assert {
    condition     = output.webhook_url == "https://runner-manager-123456789012.us-central1.run.app/github/webhook"
    error_message = "the webhook's URL is not the service's deterministic one"
  }
}

run "it_scales_to_zero_and_may_be_replaced_until_it_is_protected" {
  command = plan

  assert {
    condition     = google_cloud_run_v2_service.this.template[0].scaling[0].min_instance_count == 0
    error_message = "an instance is always up"
  }

  assert {
    condition     = google_cloud_run_v2_service.this.deletion_protection == false
    error_message = "a first revision that does not start could not be replaced"
  }
}

run "no_alert_without_a_channel" {
  command = plan

  assert {
    condition     = length(google_monitoring_alert_policy.log) == 0 && length(time_sleep.metrics) == 0
    error_message = "there are alerts, or a pause for them"
  }
}

run "the_tag_latest_is_refused" {
  command = plan

  variables {
    image = "ghcr.io/acme/runner-manager:latest"
  }

  expect_failures = [var.image]
}
