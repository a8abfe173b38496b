# A VM that exists and is managed elsewhere. Its runner is registered already; the service starts and stops the VM.
# docs/deploy.md says how such a VM registers its runner by itself.

terraform {
  required_version = ">= 1.11"

  required_providers {
    google = {
      source  = "hashicorp/google"
      version = ">= 6.50, < 9.0"
    }
  }
}

provider "google" {
  project = var.project
  region  = local.region
}

locals {
  region = regex("^[a-z]+-[a-z]+[0-9]+", var.zone)
}

module "runner_manager" {
  source = "../../terraform/runner-manager"

  project    = var.project
  region     = local.region
  image      = var.image
  github_app = var.github_app

  runner_config = [{
    repo             = var.repository
    labels           = ["self-hosted"]
    vm_instance_name = var.vm_name
    vm_instance_zone = var.zone
    runner_names     = var.runner_names
  }]
}
