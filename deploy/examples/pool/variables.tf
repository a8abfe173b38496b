variable "project" {
  description = "Id of the project."
  type        = string
}

variable "zones" {
  description = "Zone of each VM, in the order in which they are used. The service is in the region of the first."
  type        = list(string)
  default     = ["us-central1-a", "us-central1-b"]
}

variable "repository" {
  description = "The repository whose jobs the VMs run, owner/repo. It should be private: a pull request from a fork of a public one could run its code on them."
  type        = string
}

variable "vm_name" {
  description = "Beginning of the names of the VMs and their runners; a number follows."
  type        = string
  default     = "github-runner"
}

variable "machine_type" {
  description = "Machine type of the VMs."
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
