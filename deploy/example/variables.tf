variable "project" {
  description = "Id of the project."
  type        = string
}

variable "zone" {
  description = "Zone of the VM. The service is in its region."
  type        = string
  default     = "us-central1-a"
}

variable "repository" {
  description = "The repository whose jobs the VM runs, owner/repo. It should be private: a pull request from a fork of a public one could run its code on the VM."
  type        = string
}

variable "vm_name" {
  description = "Name of the VM and of its runner."
  type        = string
  default     = "github-runner"
}

variable "machine_type" {
  description = "Machine type of the VM."
  type        = string
  default     = "e2-standard-4"
}

variable "packages" {
  description = "Debian packages that jobs need."
  type        = list(string)
  default     = ["build-essential", "docker.io"]
}

variable "image" {
  description = "The service's image, with its tag."
  type        = string
}

variable "github_app" {
  description = "The GitHub App's id, and the id of its installation."
  type = object({
    id              = string
    installation_id = string
  })
}

variable "runner_manager_secret" {
  description = "The shared secret. Only for the first apply, and to change it: TF_VAR_runner_manager_secret=$(openssl rand -hex 32)"
  type        = string
  default     = null
  sensitive   = true
  ephemeral   = true
}

variable "github_app_private_key" {
  description = "The App's private key. Only for the first apply, and to change it: TF_VAR_github_app_private_key=$(cat APP.private-key.pem)"
  type        = string
  default     = null
  sensitive   = true
  ephemeral   = true
}

variable "notification_channels" {
  description = "Who is told when something is wrong: projects/PROJECT/notificationChannels/NUMBER. Nobody by default."
  type        = list(string)
  default     = []
}
