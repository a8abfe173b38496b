output "url" {
  description = "The service."
  value       = module.runner_manager.url
}

output "next_steps" {
  description = "What follows the first apply: terraform output -raw next_steps"
  value       = module.runner_manager.next_steps
}

output "runner_log_command" {
  description = "Shows what the VM's runner says."
  value       = module.runner_vm.log_command
}
