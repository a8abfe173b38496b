output "name" {
  description = "The VM's name: vm_instance_name in RUNNER_CONFIG."
  value       = google_compute_instance.vm.name
}

output "zone" {
  description = "The VM's zone: vm_instance_zone in RUNNER_CONFIG."
  value       = google_compute_instance.vm.zone
}

output "service_account" {
  description = "Email of the VM's service account."
  value       = google_compute_instance.vm.service_account[0].email
}

output "external_ip" {
  description = "The VM's static address, if it has one."
  value       = one(google_compute_address.vm[*].address)
}

output "log_command" {
  description = "Command that shows the runner's log. It needs roles/compute.osAdminLogin, and without an external IP roles/iap.tunnelResourceAccessor."
  value       = "gcloud compute ssh ${var.name} --project ${var.project} --zone ${var.zone}${var.network.external_ip == "none" ? " --tunnel-through-iap" : ""} --command 'sudo journalctl --unit runner-vm --lines 50'"
}
