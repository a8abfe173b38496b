# A pool: several VMs for the same jobs, each in a zone of its own. The second wakes when the first is busy, or when its zone
# has no machines. No job is cut short by a stop.

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
  region = regex("^[a-z]+-[a-z]+[0-9]+", var.zones[0])
  # The first is the one that most jobs run on.
  names = [for index, zone in var.zones : "${var.vm_name}-${index + 1}"]
}

module "runner_vm" {
  source   = "../../terraform/runner-vm"
  for_each = zipmap(local.names, var.zones)

  project            = var.project
  zone               = each.value
  name               = each.key
  machine_type       = var.machine_type
  packages           = var.packages
  runner_manager_url = module.runner_manager.url
}

module "runner_manager" {
  source = "../../terraform/runner-manager"

  project    = var.project
  region     = local.region
  image      = var.image
  github_app = var.github_app

  deletion_protection = var.deletion_protection

  # The same labels make them a pool, in this order.
  runner_config = [for vm in local.names : {
    repo             = var.repository
    labels           = ["self-hosted"]
    vm_instance_name = module.runner_vm[vm].name
    vm_instance_zone = module.runner_vm[vm].zone
    register         = "repository"
    drain            = true
  }]
}
