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
    labels     the runner's labels, if the service does not tell them.
    default_labels  false: the runner has no labels self-hosted, Linux and X64 but those that are named, so that jobs
               with `runs-on: self-hosted` leave an expensive VM alone. It counts at the next registration.
    group      runner group of an organization.
    user       the VM's user that jobs run as.
    directory  the runner's directory, if not in the user's home: for a VM that has one already.
  EOT
  type = object({
    repository     = optional(string)
    version        = optional(string, "latest")
    sha256         = optional(string)
    labels         = optional(list(string), [])
    default_labels = optional(bool, true)
    group          = optional(string)
    user           = optional(string)
    directory      = optional(string)
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
  description = "Debian packages that jobs need, such as [\"docker.io\", \"docker-cli\"]. If there is a group docker, the runner's user joins it: each job can act as root then."
  type        = list(string)
  default     = []

  validation {
    condition     = alltrue([for package in var.packages : can(regex("^[a-z0-9][a-z0-9+.-]*$", package))])
    error_message = "A package is named as Debian names it, without a version."
  }
}

variable "keep_free_percent" {
  description = "Percentage of each disk that is kept free: below that, old files and unused images are removed while no job runs."
  type        = number
  default     = 20

  validation {
    condition     = var.keep_free_percent >= 0 && var.keep_free_percent <= 90
    error_message = "keep_free_percent is between 0 and 90."
  }
}

# -- own provisioning ----------------------------------------------------------------------------------------------

variable "userdata_pre_install" {
  description = "Script that root runs before packages and the runner are installed: once on each boot disk, and again when it changes. Until it succeeds, no job runs. Bash, unless it begins with #!."
  type        = string
  default     = null
}

variable "userdata_post_install" {
  description = "Script that root runs after packages and the runner are installed: once on each boot disk, and again when it changes. Until it succeeds, no job runs. Bash, unless it begins with #!."
  type        = string
  default     = null
}

variable "runner_hook_job_started" {
  description = "Script that the runner runs before each job, as the runner's user: ACTIONS_RUNNER_HOOK_JOB_STARTED."
  type        = string
  default     = null
}

variable "runner_hook_job_completed" {
  description = "Script that the runner runs after each job, as the runner's user: ACTIONS_RUNNER_HOOK_JOB_COMPLETED."
  type        = string
  default     = null
}

variable "proxy" {
  description = "HTTP proxy of the script, apt, the runner and its jobs, and the hosts that are reached without it. Docker's daemon has a configuration of its own. Jobs can read the URL."
  type = object({
    url      = string
    no_proxy = optional(list(string), [])
  })
  default = null

  validation {
    condition     = var.proxy == null || can(regex("^https?://[^\\s]+$", var.proxy.url))
    error_message = "The proxy's URL begins with http:// or https://."
  }
}

variable "ca_certificates" {
  description = "PEM certificates of authorities that the VM has to trust, such as that of a proxy."
  type        = string
  default     = null

  validation {
    condition     = var.ca_certificates == null || can(regex("^-----BEGIN CERTIFICATE-----", var.ca_certificates))
    error_message = "Certificates are in PEM: they begin with -----BEGIN CERTIFICATE-----."
  }
}

variable "ops_agent" {
  description = "Installs the Ops Agent, which sends the VM's journal, and with it the runner's log, to Cloud Logging. The account that this module makes may write logs and metrics then; an account that is given needs these roles."
  type        = bool
  default     = false
}

variable "block_metadata" {
  description = "Keeps jobs from the metadata server, which would give them the VM's identity. By default true if the VM registers its runner by itself with the account that this module makes. A job that may use Docker or sudo can act as root and get around it."
  type        = bool
  default     = null
}

# -- the machine ---------------------------------------------------------------------------------------------------

variable "machine_type" {
  description = "Machine type. Those of the families a2, a3, a4, a4x, a5x, g2 and g4 come with GPUs; some types come with local SSDs, see discard_local_ssd."
  type        = string
  default     = "e2-standard-4"

  validation {
    condition     = var.discard_local_ssd || !can(regex("lssd|^(z3|z4d|z4m|a2-ultragpu|a3|a4|a4x|a5x)-", var.machine_type))
    error_message = "This machine type comes with local SSDs (so do those with lssd in their names, z3, z4d, z4m, a2-ultragpu, a3, a4, a4x and a5x), which a stop empties: set discard_local_ssd here and in the entry of runner_config, or take another."
  }
}

variable "discard_local_ssd" {
  description = "Allows machine types with local SSDs. Each stop loses what they hold; the entry in runner_config has to say discard_local_ssd as well, or the service cannot stop the VM."
  type        = bool
  default     = false
}

variable "image" {
  description = "Image of the boot disk: Debian or Ubuntu, for the machine type's architecture. A newer image of the family does not replace the VM."
  type        = string
  default     = "debian-cloud/debian-13"
}

variable "boot_disk" {
  description = "Size in GB and type of the boot disk. You pay for it also while the VM is stopped. Machine types of the fourth generation and later, such as c4, n4, a4 and g4, and a3-ultragpu take Hyperdisk alone: hyperdisk-balanced."
  type = object({
    size_gb = optional(number, 50)
    type    = optional(string, "pd-balanced")
  })
  default = {}

  validation {
    condition     = var.boot_disk.size_gb >= 10
    error_message = "The boot disk has at least 10 GB."
  }

  validation {
    condition     = !(startswith(var.boot_disk.type, "pd-") && can(regex("^(c4|c4a|c4d|c4n|n4|n4a|n4d|m4|x4|z4d|z4m|a4|a4x|a5x|g4|h4d|a3-ultragpu)-", var.machine_type)))
    error_message = "This machine type takes no Persistent Disk: set boot_disk.type to hyperdisk-balanced."
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

  validation {
    condition     = !(startswith(try(var.data_disk.type, ""), "pd-") && can(regex("^(c4|c4a|c4d|c4n|n4|n4a|n4d|m4|x4|z4d|z4m|a4|a4x|a5x|g4|h4d|a3-ultragpu)-", var.machine_type)))
    error_message = "This machine type takes no Persistent Disk: set data_disk.type to hyperdisk-balanced."
  }
}

variable "gpu" {
  description = "GPUs for a machine type of the family n1, such as {type = \"nvidia-tesla-t4\", count = 1}. Other types come with theirs. The image has to bring the driver, or userdata_post_install installs it."
  type = object({
    type  = string
    count = optional(number, 1)
  })
  default = null

  validation {
    condition     = var.gpu == null || can(regex("^(n1-|custom-)", var.machine_type))
    error_message = "GPUs can be added to machine types of the family n1 alone, such as n1-standard-4. Types of the families a2, a3, a4, a4x, a5x, g2 and g4 come with theirs: leave gpu out."
  }
}

variable "spot" {
  description = "A Spot VM: cheaper, and Compute Engine may stop it in the middle of a job."
  type        = bool
  default     = false
}

variable "on_host_maintenance" {
  description = "What Compute Engine does with the VM when its host needs maintenance: MIGRATE or TERMINATE. By default TERMINATE for VMs that it cannot migrate: Spot VMs, those with GPUs, h4d and bare metal; MIGRATE for others. Z3, Z4D and Z4M with the largest local SSDs, and VMs with Cloud RDMA, need TERMINATE."
  type        = string
  default     = null

  validation {
    condition     = var.on_host_maintenance == null || contains(["MIGRATE", "TERMINATE"], coalesce(var.on_host_maintenance, "MIGRATE"))
    error_message = "on_host_maintenance is MIGRATE or TERMINATE, or left out."
  }

  validation {
    condition     = var.on_host_maintenance != "TERMINATE" || var.spot || !startswith(var.machine_type, "e2-")
    error_message = "Compute Engine always migrates VMs of the family e2 unless they are Spot VMs: leave on_host_maintenance out."
  }
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
  description = "Email of the VM's service account. By default one is made that has no roles: it only proves to the service which VM this is. What it may do, every job may do unless block_metadata is set."
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
