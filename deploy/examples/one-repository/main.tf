# One repository, one VM that registers its runner by itself, one service. docs/deploy.md goes through it step by step.

terraform {
  required_version = ">= 1.11"

  required_providers {
    google = {
      source  = "hashicorp/google"
      version = ">= 6.50, < 9.0"
    }
  }

  # The state holds no secret, but names everything: keep it where only administrators can read it.
  # backend "gcs" {
  #   bucket = "PROJECT-terraform"
  #   prefix = "runner-manager"
  # }
}

provider "google" {
  project = var.project
  region  = regex("^[a-z]+-[a-z]+[0-9]+", var.zone)
}

module "runner_vm" {
  source = "../../terraform/runner-vm"

  project            = var.project
  zone               = var.zone
  name               = var.vm_name
  machine_type       = var.machine_type
  packages           = var.packages
  data_disk          = { size_gb = 50 }
  runner_manager_url = module.runner_manager.url
}

module "runner_manager" {
  source = "../../terraform/runner-manager"

  project    = var.project
  region     = regex("^[a-z]+-[a-z]+[0-9]+", var.zone)
  image      = var.image
  github_app = var.github_app

  deletion_protection = var.deletion_protection

  runner_config = [{
    repo             = var.repository
    labels           = ["self-hosted"]
    vm_instance_name = module.runner_vm.name
    vm_instance_zone = module.runner_vm.zone
    register         = "repository"
  }]

  alerts = length(var.notification_channels) == 0 ? null : { notification_channels = var.notification_channels }
}
