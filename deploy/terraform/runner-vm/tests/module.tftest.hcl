# terraform init && terraform test: with mocked providers, so it needs no account.

mock_provider "google" {}

variables {
  project = "my-project"
  name    = "vm-1"
  zone    = "us-central1-a"
}

run "a_plain_vm" {
  command = plan

  assert {
    condition     = google_compute_instance.vm.scheduling[0].on_host_maintenance == "MIGRATE"
    error_message = "a plain VM would be stopped for maintenance of its host"
  }

  assert {
    condition     = google_compute_instance.vm.deletion_protection
    error_message = "the VM is not protected"
  }

  assert {
    condition     = strcontains(google_compute_instance.vm.metadata["startup-script"], "runner-vm")
    error_message = "the VM has no start-up script"
  }
}

run "a_machine_type_that_comes_with_a_gpu" {
  command = plan

  variables {
    machine_type = "g2-standard-4"
  }

  assert {
    condition     = google_compute_instance.vm.scheduling[0].on_host_maintenance == "TERMINATE"
    error_message = "Compute Engine refuses a VM with a GPU that is to be moved to another host"
  }
}

run "a_gpu_for_a_machine_type_that_cannot_have_one_is_refused" {
  command = plan

  variables {
    gpu = { type = "nvidia-tesla-t4" }
  }

  expect_failures = [var.gpu]
}
