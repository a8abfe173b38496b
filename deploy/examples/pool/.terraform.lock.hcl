# Versions. terraform init adds the checksums of your platform.

provider "registry.terraform.io/hashicorp/google" {
  version     = "8.7.0"
  constraints = ">= 6.50.0, < 9.0.0"
}

provider "registry.terraform.io/hashicorp/random" {
  version     = "3.9.1"
  constraints = "~> 3.7"
}

provider "registry.terraform.io/hashicorp/time" {
  version     = "0.14.2"
  constraints = "~> 0.12"
}
