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

variable "repository" {
  description = "The repository whose jobs the VM runs, owner/repo."
  type        = string
}

variable "vm_name" {
  description = "Name of the VM."
  type        = string
}

variable "runner_names" {
  description = "Names of the VM's runners on GitHub, if they differ from the VM's name."
  type        = list(string)
  default     = null
}
