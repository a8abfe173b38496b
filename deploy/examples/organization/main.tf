# A runner of an organization, in a runner group: the repositories that the group allows share one VM.

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

module "runner_vm" {
  source = "../../terraform/runner-vm"

  project            = var.project
  zone               = var.zone
  name               = "runner-org"
  data_disk          = { size_gb = 100 }
  runner             = { repository = var.repositories[0], group = var.runner_group }
  runner_manager_url = module.runner_manager.url
}

module "runner_manager" {
  source = "../../terraform/runner-manager"

  project    = var.project
  region     = local.region
  image      = var.image
  github_app = var.github_app

  # With "organization" a job could register a runner for all repositories of the organization: docs/deploy.md.
  runner_config = [for repository in var.repositories : {
    repo             = repository
    labels           = ["self-hosted"]
    vm_instance_name = module.runner_vm.name
    vm_instance_zone = module.runner_vm.zone
    register         = "organization"
  }]
}
