# A plain VM for most jobs, and a VM with a GPU for those that ask for it. The latter has only its own label, so that
# jobs with runs-on: self-hosted leave it alone; jobs for it say runs-on: gpu.

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

module "plain" {
  source = "../../terraform/runner-vm"

  project            = var.project
  zone               = var.zone
  name               = "runner-plain"
  runner_manager_url = module.runner_manager.url
}

module "gpu" {
  source = "../../terraform/runner-vm"

  project               = var.project
  zone                  = var.zone
  name                  = "runner-gpu"
  machine_type          = "g2-standard-4"
  boot_disk             = { size_gb = 100 }
  runner                = { default_labels = false }
  runner_manager_url    = module.runner_manager.url
  userdata_post_install = file("${path.module}/install-driver.sh")
}

module "runner_manager" {
  source = "../../terraform/runner-manager"

  project    = var.project
  region     = local.region
  image      = var.image
  github_app = var.github_app

  runner_config = [
    {
      repo             = var.repository
      labels           = ["self-hosted"]
      runner_labels    = ["self-hosted", "Linux", "X64"]
      vm_instance_name = module.plain.name
      vm_instance_zone = module.plain.zone
      register         = "repository"
    },
    {
      repo             = var.repository
      labels           = ["gpu"]
      runner_labels    = ["gpu"]
      vm_instance_name = module.gpu.name
      vm_instance_zone = module.gpu.zone
      register         = "repository"
    },
  ]
}
