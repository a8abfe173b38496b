output "next_steps" {
  description = "Commands that follow the first apply: terraform output -raw next_steps"
  value       = module.runner_manager.next_steps
}
