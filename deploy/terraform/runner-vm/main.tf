# A persistent VM with a GitHub Actions runner as a service. It is stopped most of the time: the runner manager starts
# it for jobs. So nothing here says whether it runs, and nothing limits for how long.

locals {
  region = regex("^[a-z]+-[a-z]+[0-9]+", var.zone)

  # Machine types that come with GPUs.
  has_gpu = var.gpu != null || can(regex("^(a2|a3|a4|a4x|a5x|g2|g4)-", var.machine_type))

  # Compute Engine cannot move these to another host while they run.
  stays_on_host = var.spot || local.has_gpu || can(regex("^h4d-|-metal$", var.machine_type))

  # With an account of its own that has no roles, a VM needs its identity for the registration alone.
  block_metadata = coalesce(var.block_metadata, var.runner_manager_url != null && var.service_account == null)

  # Settings of the VM's script. Empty values are left out.
  settings = {
    runner-manager-url        = var.runner_manager_url
    runner-repository         = var.runner.repository
    runner-version            = var.runner.version
    runner-sha256             = var.runner.sha256
    runner-labels             = join(",", var.runner.labels)
    runner-default-labels     = var.runner.default_labels ? null : "false"
    runner-group              = var.runner.group
    runner-user               = var.runner.user
    runner-directory          = var.runner.directory
    runner-packages           = join(",", var.packages)
    runner-keep-free          = tostring(var.keep_free_percent)
    runner-pre-install        = var.userdata_pre_install
    runner-post-install       = var.userdata_post_install
    runner-hook-job-started   = var.runner_hook_job_started
    runner-hook-job-completed = var.runner_hook_job_completed
    runner-proxy              = try(var.proxy.url, null)
    runner-no-proxy           = join(",", try(var.proxy.no_proxy, []))
    runner-ca-certificates    = var.ca_certificates
    runner-ops-agent          = var.ops_agent ? "true" : null
    runner-block-metadata     = local.block_metadata ? "true" : null
  }
}

resource "google_service_account" "vm" {
  count = var.service_account == null ? 1 : 0

  project      = var.project
  account_id   = "${trimsuffix(substr(var.name, 0, 21), "-")}-${substr(sha256("${var.zone}/${var.name}"), 0, 6)}"
  display_name = "Runner VM ${var.name} in ${var.zone}"
  description  = "Proves to the runner manager which VM this is. It needs no roles."
}

# An account that is given has its own roles.
resource "google_project_iam_member" "ops_agent" {
  for_each = var.ops_agent && var.service_account == null ? toset(["roles/logging.logWriter", "roles/monitoring.metricWriter"]) : toset([])

  project = var.project
  role    = each.value
  member  = "serviceAccount:${google_service_account.vm[0].email}"
}

resource "google_compute_address" "vm" {
  count = var.network.external_ip == "static" ? 1 : 0

  project = var.project
  region  = local.region
  name    = var.name
}

resource "google_compute_disk" "data" {
  count = var.data_disk == null ? 0 : 1

  project = var.project
  zone    = var.zone
  name    = "${substr(var.name, 0, 58)}-data"
  size    = var.data_disk.size_gb
  type    = var.data_disk.type
  labels  = var.labels
}

resource "google_compute_instance" "vm" {
  project      = var.project
  zone         = var.zone
  name         = var.name
  machine_type = var.machine_type
  tags         = var.network.tags
  # Labels that are not named here, such as the service's own, are left alone.
  labels = var.labels

  allow_stopping_for_update = true
  deletion_protection       = var.deletion_protection

  boot_disk {
    initialize_params {
      image = var.image
      size  = var.boot_disk.size_gb
      type  = var.boot_disk.type
    }
  }

  dynamic "attached_disk" {
    for_each = google_compute_disk.data
    content {
      source = attached_disk.value.self_link
      # By this name the VM's script finds it.
      device_name = "runner-data"
    }
  }

  network_interface {
    network    = var.network.subnetwork == null ? var.network.network : null
    subnetwork = var.network.subnetwork

    dynamic "access_config" {
      for_each = var.network.external_ip == "none" ? [] : [one(google_compute_address.vm[*].address)]
      content {
        nat_ip = access_config.value
      }
    }
  }

  dynamic "guest_accelerator" {
    for_each = var.gpu == null ? [] : [var.gpu]
    content {
      type  = guest_accelerator.value.type
      count = guest_accelerator.value.count
    }
  }

  scheduling {
    # A Spot VM is not started again by Compute Engine; the service does it while a job waits.
    automatic_restart           = !var.spot
    on_host_maintenance         = coalesce(var.on_host_maintenance, local.stays_on_host ? "TERMINATE" : "MIGRATE")
    preemptible                 = var.spot
    provisioning_model          = var.spot ? "SPOT" : "STANDARD"
    instance_termination_action = var.spot ? "STOP" : null
  }

  service_account {
    email = var.service_account == null ? google_service_account.vm[0].email : var.service_account
    # The account's roles decide about the VM's permissions.
    scopes = ["cloud-platform"]
  }

  shielded_instance_config {
    # Drivers of GPUs are built on the VM and not signed.
    enable_secure_boot          = !local.has_gpu
    enable_vtpm                 = true
    enable_integrity_monitoring = true
  }

  metadata = merge(
    { enable-oslogin = "TRUE" },
    var.metadata,
    { for key, value in local.settings : key => value if value != null && value != "" },
    # Not metadata_startup_script, a change of which would replace the VM.
    { startup-script = file("${path.module}/files/runner-vm.sh") },
  )

  lifecycle {
    # The VM is what is kept: a newer image of the family is not a reason to replace it.
    ignore_changes = [boot_disk[0].initialize_params[0].image, metadata["ssh-keys"]]
  }
}
