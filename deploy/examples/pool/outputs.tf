output "url" {
  description = "The service."
  value       = module.runner_manager.url
}

output "next_steps" {
  description = "What follows the first apply: terraform output -raw next_steps"
  value       = module.runner_manager.next_steps
}

output "runner_log_commands" {
  description = "Shows what each VM's runner says."
  value       = { for name, vm in module.runner_vm : name => vm.log_command }
}
