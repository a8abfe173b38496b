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
  default     = ["apparmor", "build-essential", "docker.io", "docker-cli", "docker-buildx", "docker-compose"]
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

variable "deletion_protection" {
  description = "Keeps the service from being deleted by Terraform: true once the first apply has succeeded."
  type        = bool
  default     = false
}

variable "notification_channels" {
  description = "Channels for alerts: projects/PROJECT/notificationChannels/NUMBER. None by default."
  type        = list(string)
  default     = []
}
