# -- required ------------------------------------------------------------------------------------------------------

variable "project" {
  description = "Id of the project that the VM is in: the service's GCP_PROJECT_ID."
  type        = string
}

variable "name" {
  description = "Name of the VM, and by default of its runner: vm_instance_name in RUNNER_CONFIG."
  type        = string

  validation {
    condition     = can(regex("^[a-z]([-a-z0-9]{0,61}[a-z0-9])?$", var.name))
    error_message = "A VM's name has at most 63 lower-case letters, digits and hyphens, and begins with a letter."
  }
}

variable "zone" {
  description = "Zone of the VM, such as us-central1-a: vm_instance_zone in RUNNER_CONFIG."
  type        = string

  validation {
    condition     = can(regex("^[a-z]+-[a-z]+[0-9]+-[a-z]$", var.zone))
    error_message = "A zone looks like us-central1-a."
  }
}

# -- the runner ----------------------------------------------------------------------------------------------------

variable "runner_manager_url" {
  description = "The service's URL, exactly its CLOUD_RUN_SERVICE_URL. With it the VM registers its runner by itself; the service has to allow that (`register`). Without it the VM's log says how to do it by hand."
  type        = string
  default     = null

  validation {
    condition     = var.runner_manager_url == null || can(regex("^https://[^/?#]+$", var.runner_manager_url))
    error_message = "The URL begins with https:// and has no path and no slash at its end."
  }
}

variable "runner" {
  description = <<-EOT
    The runner's program and registration:
    repository which one it registers in, owner/repo, if its entries register in several.
    version    latest, or a version such as 2.330.0. A pinned runner still updates itself once it is connected.
    sha256     checksum of the pinned version's archive; by default the one that GitHub publishes for the release.
    labels     labels beside self-hosted, the system and the architecture, if the service does not tell them.
    group      runner group of an organization.
    user       the VM's user that jobs run as.
    directory  where the runner is, if not in the user's home: for a VM that has one already.
  EOT
  type = object({
    repository = optional(string)
    version    = optional(string, "latest")
    sha256     = optional(string)
    labels     = optional(list(string), [])
    group      = optional(string)
    user       = optional(string)
    directory  = optional(string)
  })
  default = {}

  validation {
    condition     = can(regex("^(latest|[0-9]+\\.[0-9]+\\.[0-9]+)$", var.runner.version))
    error_message = "runner.version is \"latest\" or a version such as \"2.330.0\", without a v."
  }

  validation {
    condition     = var.runner.sha256 == null || (can(regex("^[0-9a-f]{64}$", var.runner.sha256)) && var.runner.version != "latest")
    error_message = "runner.sha256 has 64 hexadecimal digits, and needs a runner.version that it is the checksum of."
  }

  validation {
    condition     = alltrue([for label in var.runner.labels : can(regex("^[^,\\s]+$", label))])
    error_message = "A runner's label has no comma and no white space."
  }
}

variable "packages" {
  description = "Debian packages that jobs need, such as [\"docker.io\"]. If there is a group docker, the runner's user joins it: whoever runs jobs is root then."
  type        = list(string)
  default     = []

  validation {
    condition     = alltrue([for package in var.packages : can(regex("^[a-z0-9][a-z0-9+.-]*$", package))])
    error_message = "A package is named as Debian names it, without a version."
  }
}

variable "keep_free_percent" {
  description = "How much of the disk is kept free: below that, what is oldest is removed while no job runs."
  type        = number
  default     = 20

  validation {
    condition     = var.keep_free_percent >= 0 && var.keep_free_percent <= 90
    error_message = "keep_free_percent is between 0 and 90."
  }
}

# -- the machine ---------------------------------------------------------------------------------------------------

variable "machine_type" {
  description = "Machine type, without local SSDs: a stop would lose what they hold."
  type        = string
  default     = "e2-standard-4"

  validation {
    condition     = !can(regex("lssd", var.machine_type))
    error_message = "Machine types with local SSDs cannot be stopped without losing data: take one without lssd in its name."
  }
}

variable "image" {
  description = "Image of the boot disk: Debian or Ubuntu, for the machine type's architecture. A newer image of the family does not replace the VM."
  type        = string
  default     = "debian-cloud/debian-12"
}

variable "boot_disk" {
  description = "Size in GB and type of the boot disk. You pay for it also while the VM is stopped."
  type = object({
    size_gb = optional(number, 50)
    type    = optional(string, "pd-balanced")
  })
  default = {}

  validation {
    condition     = var.boot_disk.size_gb >= 10
    error_message = "The boot disk has at least 10 GB."
  }
}

variable "data_disk" {
  description = "A disk of its own for all that the runner keeps (its registration, checkouts and caches), which outlives the VM. None by default."
  type = object({
    size_gb = number
    type    = optional(string, "pd-balanced")
  })
  default = null

  validation {
    condition     = var.data_disk == null || try(var.data_disk.size_gb, 0) >= 10
    error_message = "The data disk has at least 10 GB."
  }
}

variable "gpu" {
  description = "GPUs, such as {type = \"nvidia-tesla-t4\", count = 1}. The image has to bring their driver."
  type = object({
    type  = string
    count = optional(number, 1)
  })
  default = null
}

variable "spot" {
  description = "A Spot VM: cheaper, and Compute Engine may stop it in the middle of a job."
  type        = bool
  default     = false
}

variable "network" {
  description = "Network and subnetwork of the VM, by name or self link. A subnetwork alone is enough. `external_ip` is ephemeral, static or none; with none, the VM needs Cloud NAT to reach GitHub."
  type = object({
    network     = optional(string, "default")
    subnetwork  = optional(string)
    external_ip = optional(string, "ephemeral")
    tags        = optional(list(string), [])
  })
  default = {}

  validation {
    condition     = contains(["ephemeral", "static", "none"], var.network.external_ip)
    error_message = "network.external_ip is ephemeral, static or none."
  }
}

variable "service_account" {
  description = "Email of the VM's service account. By default one is made that has no roles: it only proves to the service which VM this is. Whatever it may do, every job may do."
  type        = string
  default     = null
}

variable "labels" {
  description = "Labels of the VM and its disks. Those that begin with runner-manager- belong to the service."
  type        = map(string)
  default     = {}

  validation {
    condition     = alltrue([for key in keys(var.labels) : !startswith(key, "runner-manager-")])
    error_message = "Labels that begin with runner-manager- are the service's own: leave them out."
  }
}

variable "metadata" {
  description = "More metadata for the VM."
  type        = map(string)
  default     = {}
}

variable "deletion_protection" {
  description = "Keeps the VM from being deleted, by Terraform too."
  type        = bool
  default     = true
}
