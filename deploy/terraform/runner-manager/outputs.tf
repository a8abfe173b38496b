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

output "secret_command" {
  description = "Prints the shared secret."
  value       = "gcloud secrets versions access ${local.versions.RUNNER_MANAGER_SECRET} --secret ${local.secret_ids.RUNNER_MANAGER_SECRET} --project ${var.project}"
}

output "next_steps" {
  description = "The commands that follow an apply: terraform output -raw next_steps"
  value       = <<-EOT
    # The secret, for this shell.
    SECRET=$(gcloud secrets versions access ${local.versions.RUNNER_MANAGER_SECRET} --secret ${local.secret_ids.RUNNER_MANAGER_SECRET} --project ${var.project})

    # The service answers.
    curl ${local.url}/health

    # The webhook, on each repository (or once on the organization, or in the App's settings).
    %{for repo in distinct([for entry in var.runner_config : entry.repo])~}
    gh api repos/${repo}/hooks -f name=web -F active=true -f 'events[]=workflow_job' \
      -f config[url]=${local.url}/github/webhook -f config[content_type]=json -f config[secret]="$SECRET"
    %{endfor~}

    %{if !var.reconcile.managed~}
    # The sweep. Its job carries the secret: make it again (update instead of create) when the secret changes.
    gcloud scheduler jobs create http ${var.service_name}-reconcile --project ${var.project} --location ${var.region} \
      --schedule '${var.reconcile.schedule}' --uri ${local.url}/runner/reconcile --http-method POST \
      --headers "X-Runner-Secret=$SECRET" --attempt-deadline ${local.request_seconds}s

    %{endif~}
    # Terraform made new VMs running. This has the service watch them: each is stopped once it is idle.
    %{for vm in local.vms~}
    curl -X POST ${local.url}/runner/start -H "X-Runner-Secret: $SECRET" \
      -d '{"vm_instance_name": "${vm.name}", "vm_instance_zone": "${vm.zone}"}'
    %{endfor~}
  EOT
}
