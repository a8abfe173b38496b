# Several repositories of one owner, each with a VM of its own, and one service for all.

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
  source   = "../../terraform/runner-vm"
  for_each = var.repositories

  project            = var.project
  zone               = var.zone
  name               = each.value
  runner_manager_url = module.runner_manager.url
}

module "runner_manager" {
  source = "../../terraform/runner-manager"

  project    = var.project
  region     = local.region
  image      = var.image
  github_app = var.github_app

  runner_config = [for repository, vm in var.repositories : {
    repo             = repository
    labels           = ["self-hosted"]
    vm_instance_name = module.runner_vm[repository].name
    vm_instance_zone = var.zone
    register         = "repository"
  }]
}
