output "url" {
  description = "The service's URL: CLOUD_RUN_SERVICE_URL, and runner_manager_url of the module runner-vm."
  value       = local.url
}

output "webhook_url" {
  description = "Payload URL of GitHub's webhook."
  value       = "${local.url}/github/webhook"
}

output "service_account" {
  description = "Email of the service's account."
  value       = google_service_account.service.email
}

output "queue" {
  description = "Full name of the queue."
  value       = google_cloud_tasks_queue.callbacks.id
}

locals {
  secret_command = "gcloud secrets versions access ${local.versions.RUNNER_MANAGER_SECRET} --secret ${local.secret_ids.RUNNER_MANAGER_SECRET} --project ${var.project}"

  step_secret = <<-EOT
    # The secret, for this shell.
    SECRET=$(${local.secret_command})
  EOT

  step_health = <<-EOT
    # The service answers.
    curl ${local.url}/health
  EOT

  steps_webhook = [for repo in distinct([for entry in var.runner_config : entry.repo]) : <<-EOT
    # The webhook of ${repo}; or once for all repositories, in the organization's or the App's settings.
    gh api repos/${repo}/hooks --input - <<JSON
    {"name": "web", "active": true, "events": ["workflow_job"],
     "config": {"url": "${local.url}/github/webhook", "content_type": "json", "secret": "$SECRET"}}
    JSON
  EOT
  ]

  steps_resync = var.reconcile.managed ? [] : [<<-EOT
    # The fleet resync. Its job carries the secret; when that changes: gcloud scheduler jobs update http … --update-headers …
    gcloud scheduler jobs create http ${var.service_name}-reconcile --project ${var.project} --location ${var.region} \
      --schedule '${var.reconcile.schedule}' --uri ${local.url}/runner/reconcile --http-method POST \
      --headers "X-Runner-Secret=$SECRET" --attempt-deadline ${local.request_seconds}s
  EOT
  ]

  steps_start = [for vm in local.vms : <<-EOT
    # A new VM is up already, and the service does not know of it. After this it is stopped once it is idle.
    curl -X POST ${local.url}/runner/start -H "X-Runner-Secret: $SECRET" \
      -d '{"vm_instance_name": "${vm.name}", "vm_instance_zone": "${vm.zone}"}'
  EOT
  ]
}

output "secret_command" {
  description = "Prints the shared secret."
  value       = local.secret_command
}

output "next_steps" {
  description = "The commands that follow an apply: terraform output -raw next_steps"
  value       = join("\n", concat([local.step_secret, local.step_health], local.steps_webhook, local.steps_resync, local.steps_start))
}
