# Permissions of the service's account: the calls that the service makes, each on the resource that it is for.

resource "google_service_account" "service" {
  project      = var.project
  account_id   = var.account_id
  display_name = "Runner Manager"
  description  = "Starts and stops the VMs behind GitHub Actions runners."

  depends_on = [google_project_service.this]
}

locals {
  member = "serviceAccount:${google_service_account.service.email}"

  # Each VM once, however many entries share it.
  vms = {
    for vm in distinct([for entry in var.runner_config : { name = entry.vm_instance_name, zone = entry.vm_instance_zone }]) :
    "${vm.zone}/${vm.name}" => vm
  }
}

resource "google_project_iam_custom_role" "vms" {
  project     = var.project
  role_id     = "${var.role_prefix}Vms"
  title       = "Runner Manager: a VM"
  description = "Read, start, resume, stop, suspend and label a VM."
  permissions = [
    "compute.instances.get",
    "compute.instances.resume",
    "compute.instances.setLabels",
    "compute.instances.start",
    "compute.instances.stop",
    "compute.instances.suspend",
  ]

  depends_on = [google_project_service.this]
}

resource "google_compute_instance_iam_member" "service" {
  for_each = var.permissions_on == "vm" ? local.vms : {}

  project       = var.project
  zone          = each.value.zone
  instance_name = each.value.name
  role          = google_project_iam_custom_role.vms.name
  member        = local.member
}

resource "google_project_iam_member" "vms" {
  count = var.permissions_on == "project" ? 1 : 0

  project = var.project
  role    = google_project_iam_custom_role.vms.name
  member  = local.member
}

# Operations and lists are of a project or zone, so these cannot be bound to a VM. They only read.
resource "google_project_iam_custom_role" "project" {
  project     = var.project
  role_id     = "${var.role_prefix}Project"
  title       = "Runner Manager: the project"
  description = "See why a VM went down, and which VMs carry the service's label."
  permissions = [
    "compute.instances.list",
    "compute.zoneOperations.list",
  ]

  depends_on = [google_project_service.this]
}

resource "google_project_iam_member" "project" {
  project = var.project
  role    = google_project_iam_custom_role.project.name
  member  = local.member
}

resource "google_project_iam_custom_role" "queue" {
  project     = var.project
  role_id     = "${var.role_prefix}Queue"
  title       = "Runner Manager: its queue"
  description = "Create tasks. Not read them: they carry the shared secret."
  permissions = ["cloudtasks.tasks.create"]

  depends_on = [google_project_service.this]
}

resource "google_cloud_tasks_queue_iam_member" "service" {
  project  = var.project
  location = var.region
  name     = google_cloud_tasks_queue.callbacks.name
  role     = google_project_iam_custom_role.queue.name
  member   = local.member
}

resource "google_service_account_iam_member" "vms" {
  for_each = var.vm_service_accounts

  service_account_id = "projects/${var.project}/serviceAccounts/${each.value}"
  role               = "roles/iam.serviceAccountUser"
  member             = local.member
}
