# -- required ------------------------------------------------------------------------------------------------------

variable "project" {
  description = "Id of the project of the service, its queue and the VMs."
  type        = string
}

variable "region" {
  description = "Region of the service, its queue and its scheduler, such as us-central1."
  type        = string

  validation {
    condition     = can(regex("^[a-z]+-[a-z]+[0-9]+$", var.region))
    error_message = "A region looks like us-central1: a zone without its last letter."
  }
}

variable "image" {
  description = "The service's image, with a tag or digest, in Artifact Registry or public on ghcr.io or Docker Hub. For a private image on ghcr.io: ghcr_credentials."
  type        = string

  validation {
    condition     = can(regex("[:@][^/]+$", var.image)) && !endswith(var.image, ":latest")
    error_message = "Name a tag or digest, and not latest: what runs should change only when you say so."
  }
}

variable "ghcr_credentials" {
  description = <<-EOT
    For a private image on ghcr.io, which Artifact Registry then fetches:
    username                 of GitHub
    password_secret_version  a token that may read packages: projects/PROJECT/secrets/NAME/versions/NUMBER
  EOT
  type = object({
    username                = string
    password_secret_version = string
  })
  default = null

  validation {
    condition     = var.ghcr_credentials == null || startswith(var.image, "ghcr.io/")
    error_message = "ghcr_credentials are for an image on ghcr.io."
  }

  validation {
    condition     = var.ghcr_credentials == null || can(regex("^projects/[^/]+/secrets/[^/]+/versions/[0-9]+$", var.ghcr_credentials.password_secret_version))
    error_message = "password_secret_version looks like projects/PROJECT/secrets/NAME/versions/1."
  }
}

variable "github_app" {
  description = "The GitHub App's id or client id, and the id of its installation in the account that owns the repositories."
  type = object({
    id              = string
    installation_id = string
  })

  validation {
    condition     = can(regex("^[0-9]+$", var.github_app.installation_id)) && can(regex("^[A-Za-z0-9.]+$", var.github_app.id))
    error_message = "installation_id is the number at the end of the installation's URL; id is the App's id or client id."
  }
}

variable "runner_config" {
  description = <<-EOT
    Which VM serves which jobs. docs/configuration.md says what each field means:
    repo               owner/repo
    labels             labels that a job must all have; at least one
    vm_instance_name   the VM, which has to exist
    vm_instance_zone   its zone
    runner_names       names of the VM's runners, if they are not the VM's own
    runner_labels      all labels of the VM's runner: match as GitHub does
    discard_local_ssd  a stop may lose what local SSDs hold
    register           repository or organization: where the VM may register its runner by itself
    drain              remove the runner from GitHub before each stop, so that no job is cut short; needs register
    suspend            suspend the VM in place of stopping it, where Compute Engine can
  EOT
  type = list(object({
    repo              = string
    labels            = list(string)
    vm_instance_name  = string
    vm_instance_zone  = string
    runner_names      = optional(list(string))
    runner_labels     = optional(list(string))
    discard_local_ssd = optional(bool)
    register          = optional(string)
    drain             = optional(bool)
    suspend           = optional(bool)
  }))

  validation {
    condition     = length(var.runner_config) > 0
    error_message = "runner_config needs an entry."
  }

  validation {
    condition     = alltrue([for entry in var.runner_config : can(regex("^[A-Za-z0-9._-]+/[A-Za-z0-9._-]+$", entry.repo))])
    error_message = "repo looks like owner/repo, without https://github.com/."
  }

  validation {
    condition     = alltrue([for entry in var.runner_config : length(entry.labels) > 0])
    error_message = "labels needs at least one label in each entry: without any, GitHub-hosted jobs would match."
  }

  validation {
    condition     = alltrue([for entry in var.runner_config : can(regex("^[a-z]+-[a-z]+[0-9]+-[a-z]$", entry.vm_instance_zone))])
    error_message = "vm_instance_zone looks like us-central1-a."
  }

  validation {
    condition     = alltrue([for entry in var.runner_config : can(regex("^[a-z]([-a-z0-9]{0,61}[a-z0-9])?$", entry.vm_instance_name))])
    error_message = "vm_instance_name is a VM's name, not its URL or id."
  }

  validation {
    condition     = alltrue([for entry in var.runner_config : contains(["repository", "organization"], coalesce(entry.register, "repository"))])
    error_message = "register is repository or organization, or left out."
  }

  validation {
    condition     = length(distinct([for entry in var.runner_config : lower(split("/", entry.repo)[0])])) == 1
    error_message = "All repositories have the same owner, since there is one App installation: use a deployment for each owner."
  }
}

# -- secrets -------------------------------------------------------------------------------------------------------

variable "runner_manager_secret" {
  description = "The shared secret, if it should be a given one: by default the module makes a random one. It is stored by an apply that makes a version, and never in the state."
  type        = string
  default     = null
  sensitive   = true
  ephemeral   = true

  validation {
    condition     = var.runner_manager_secret == null || can(regex("^[!-~]{16,}$", var.runner_manager_secret))
    error_message = "runner_manager_secret has at least 16 characters, all of them visible ASCII: create one with openssl rand -hex 32."
  }

  validation {
    condition = var.runner_manager_secret == null || (
      !can(regex("(?i)change.?me|placeholder|example|your.?secret|shared.?secret|manager.?secret|password|^<.*>$", var.runner_manager_secret))
      && length(distinct(split("", coalesce(var.runner_manager_secret, "x")))) >= 6
    )
    error_message = "runner_manager_secret looks like a placeholder, and anyone could guess it: create one with openssl rand -hex 32."
  }
}

variable "secrets" {
  description = <<-EOT
    The two secrets in Secret Manager. The App's key is stored by hand: gcloud secrets create github-app-private-key
    --data-file KEY.pem
    create     false: the shared secret exists as well, and its `version` is required
    id         name of the secret
    revision   of the shared secret: raise it to store a new random value, or the given one, as a new version
    version    the version that is used: of the key, by default the first; of the shared secret if create = false
    previous_version  of the shared secret: accepted as well, while it is rotated
  EOT
  type = object({
    create = optional(bool, true)
    runner_manager_secret = optional(object({
      id               = optional(string, "runner-manager-secret")
      revision         = optional(number, 1)
      version          = optional(string)
      previous_version = optional(string)
    }), {})
    github_app_private_key = optional(object({
      id      = optional(string, "github-app-private-key")
      version = optional(string, "1")
    }), {})
  })
  default = {}

  validation {
    condition     = var.secrets.create == (var.secrets.runner_manager_secret.version == null)
    error_message = "Give the version of the shared secret if create = false, and not if it is true."
  }

  validation {
    condition = alltrue([
      for version in [
        var.secrets.runner_manager_secret.version,
        var.secrets.runner_manager_secret.previous_version,
        var.secrets.github_app_private_key.version,
      ] : version == null || can(regex("^[0-9]+$", version))
    ])
    error_message = "A version is a number, as a string. With latest, instances of one revision could hold different secrets."
  }
}

# -- settings ------------------------------------------------------------------------------------------------------

variable "vm_inactive_minutes" {
  description = "How long a VM stays up after its last job: VM_INACTIVE_MINUTES."
  type        = number
  default     = 15

  validation {
    condition     = var.vm_inactive_minutes >= 1 && var.vm_inactive_minutes <= 1440 && floor(var.vm_inactive_minutes) == var.vm_inactive_minutes
    error_message = "vm_inactive_minutes is a whole number from 1 to 1440."
  }
}

variable "environment" {
  description = "More environment variables of the service, such as VM_KEEPALIVE_DAYS, GITHUB_API_URL or RUST_LOG."
  type        = map(string)
  default     = {}

  validation {
    condition = length(setintersection(keys(var.environment), [
      "GCP_PROJECT_ID", "CLOUD_TASK_LOCATION", "CLOUD_TASK_QUEUE_NAME", "CLOUD_RUN_SERVICE_URL", "GITHUB_APP_ID",
      "GITHUB_APP_INSTALLATION_ID", "RUNNER_CONFIG", "VM_INACTIVE_MINUTES", "RUNNER_MANAGER_SECRET",
      "RUNNER_MANAGER_SECRET_PREVIOUS", "GITHUB_APP_PRIVATE_KEY", "PORT",
    ])) == 0
    error_message = "Variables that this module sets itself do not belong into environment."
  }
}

variable "service_name" {
  description = "Name of the Cloud Run service. The service's URL follows from it."
  type        = string
  default     = "runner-manager"

  validation {
    condition     = can(regex("^[a-z]([-a-z0-9]{0,47}[a-z0-9])?$", var.service_name))
    error_message = "A service's name has at most 49 lower-case letters, digits and hyphens, and begins with a letter."
  }
}

variable "queue_name" {
  description = "Name of the queue. The name of a deleted queue cannot be used again for a week."
  type        = string
  default     = "runner-manager"
}

variable "account_id" {
  description = "Id of the service's own service account."
  type        = string
  default     = "runner-manager"
}

variable "role_prefix" {
  description = "What the ids of the custom roles begin with."
  type        = string
  default     = "runnerManager"

  validation {
    condition     = can(regex("^[A-Za-z0-9_.]{1,50}$", var.role_prefix))
    error_message = "A role's id has letters, digits, underscores and periods only."
  }
}

variable "public_access" {
  description = <<-EOT
    How GitHub, Cloud Tasks and operators get past Cloud Run: their signature or secret is the lock that counts.
    no_check   the check is turned off for this service: works where policies forbid allUsers
    all_users  allUsers may invoke it
    none       neither: something else lets them in
  EOT
  type        = string
  default     = "no_check"

  validation {
    condition     = contains(["no_check", "all_users", "none"], var.public_access)
    error_message = "public_access is no_check, all_users or none."
  }
}

variable "permissions_on" {
  description = "Where the service's account may start and stop: vm (only the VMs of runner_config, which have to exist) or project (every VM)."
  type        = string
  default     = "vm"

  validation {
    condition     = contains(["vm", "project"], var.permissions_on)
    error_message = "permissions_on is vm or project."
  }
}

variable "vm_service_accounts" {
  description = "Emails of the VMs' service accounts that the service has to be allowed to use, if a start is refused because of them."
  type        = set(string)
  default     = []
}

variable "max_instances" {
  description = "How many instances Cloud Run may start. One takes 80 requests at a time."
  type        = number
  default     = 5

  validation {
    condition     = var.max_instances >= 1
    error_message = "max_instances is at least 1."
  }
}

variable "reconcile" {
  description = <<-EOT
    The fleet resync, which makes up for what was lost on the way:
    schedule   when, as cron says it
    managed    true: this module makes the Cloud Scheduler job. It carries the shared secret in a header, and so does
               Terraform's state then. false: the output `next_steps` has the command that makes it.
  EOT
  type = object({
    schedule = optional(string, "*/5 * * * *")
    managed  = optional(bool, false)
  })
  default = {}
}

variable "alerts" {
  description = <<-EOT
    Alerts on what the service logs; none without it.
    notification_channels  names of the channels, projects/PROJECT/notificationChannels/NUMBER
    vm_up_hours            a VM that is up for longer is worth a look
    refused_deliveries     so many refused webhooks in a quarter of an hour are still no alert: anyone can send some
    resync_minutes         so long without a resync is an alert, once there was one: at least twice the interval of the
                           schedule; 0 for no such alert
  EOT
  type = object({
    notification_channels = list(string)
    vm_up_hours           = optional(number, 12)
    refused_deliveries    = optional(number, 2)
    resync_minutes        = optional(number, 30)
  })
  default = null

  validation {
    condition     = var.alerts == null || contains(concat([0], range(10, 1441, 2)), try(var.alerts.resync_minutes, 0))
    error_message = "alerts.resync_minutes is an even number from 10 to 1440, or 0 for no such alert."
  }

  validation {
    condition     = alltrue([for channel in try(var.alerts.notification_channels, []) : can(regex("^projects/[^/]+/notificationChannels/[0-9]+$", channel))])
    error_message = "A notification channel looks like projects/PROJECT/notificationChannels/NUMBER: gcloud beta monitoring channels list."
  }
}

variable "enable_apis" {
  description = "Whether this module turns the APIs on that it needs."
  type        = bool
  default     = true
}

variable "deletion_protection" {
  description = "Keeps the service from being deleted by Terraform. Set it once the first apply has succeeded: a first revision that does not start could not be replaced. The service itself holds no data."
  type        = bool
  default     = false
}

variable "propagation" {
  description = <<-EOT
    Pauses of an apply that creates what others wait for:
    iam      between granting access to secrets and what reads them: the service, Artifact Registry
    metrics  between creating log-based metrics and the alerts on them, which Cloud Monitoring refuses until then
  EOT
  type = object({
    iam     = optional(string, "120s")
    metrics = optional(string, "600s")
  })
  default = {}
}
