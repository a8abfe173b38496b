variable "project" {
  description = "Id of the project."
  type        = string
}

variable "zone" {
  description = "Zone of the VMs. The service is in its region."
  type        = string
  default     = "us-central1-a"
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

variable "repositories" {
  description = "Repositories of the organization whose jobs the VM runs, owner/repo."
  type        = list(string)
}

variable "runner_group" {
  description = "Runner group of the organization, which has to exist."
  type        = string
  default     = "Default"
}
