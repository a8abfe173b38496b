"""The check of Terraform files can fail: each mistake in a small module is found, and the module without it is fine."""

import os
import pathlib
import tempfile
import unittest

from check_terraform import Check
from provider_schema import Provider

FINE = """
variable "zone" {
  type = string
}

variable "disks" {
  type    = list(string)
  default = []
}

locals {
  name = "vm"
}

data "google_project" "this" {}

resource "google_compute_address" "vm" {
  count = 1
  name  = local.name
}

resource "google_compute_instance" "vm" {
  name         = local.name
  zone         = var.zone
  machine_type = "e2-small"

  boot_disk {
    initialize_params {
      size = 10
    }
  }

  network_interface {
    network = "default"
    access_config {
      nat_ip = google_compute_address.vm[0].address
    }
  }

  network_interface {
    network = "other"
  }

  dynamic "attached_disk" {
    for_each = var.disks
    content {
      source = attached_disk.value
    }
  }

  lifecycle {
    ignore_changes = [labels]
  }
}

output "number" {
  value = data.google_project.this.number
}

output "id" {
  value = google_compute_instance.vm.instance_id
}
"""

CALL = """
module "vm" {
  source = "../module"
  zone   = "us-central1-a"
}

output "id" {
  value = module.vm.id
}
"""

# A piece of what is fine, what stands in its place, and what has to be said of it.
MISTAKES = [
    ("machine_type =", "machine_typ =", "there is no argument machine_typ"),
    ("machine_type =", "machine_typ =", "the argument machine_type is required"),
    ("size = 10", "sice = 10", "there is no argument sice"),
    ("initialize_params {", "initialise_params {", "there is no block initialise_params"),
    ('  dynamic "attached_disk"', '  dynamic "attached_disks"', "there is no block attached_disks"),
    ("      source = attached_disk.value\n", "", "the argument source is required"),
    ("  lifecycle {", "  boot_disk {}\n  lifecycle {", "the block boot_disk may be there once"),
    ("  lifecycle {", "  scheduling = {}\n  lifecycle {", "scheduling is a block, not an argument"),
    ("  lifecycle {", "  labels {}\n  lifecycle {", "labels is an argument, not a block"),
    ('resource "google_compute_address"', 'resource "google_compute_addres"', "the provider has no such resource"),
    ('data "google_project"', 'data "google_projekt"', "the provider has no such data"),
    ("var.zone", "var.sone", "there is no such variable"),
    ("= local.name", "= local.nam", "there is no such local"),
    ("google_compute_address.vm[0]", "google_compute_address.vm", "it needs an index, or has none"),
    ("google_compute_address.vm[0]", "google_compute_address.ip[0]", "there is no such resource here"),
    ("this.number", "this.nummer", "it has no attribute nummer"),
    ("zone         = var.zone", 'zone         = "us-central1-a"', "it is never used"),
    ('  zone   = "us-central1-a"\n', "", "the module needs the variable zone"),
    ('  zone   = "us-central1-a"', '  zone = "a"\n  sone = "b"', "the module has no variable sone"),
    ("module.vm.id", "module.vm.ip", "the module has no such output"),
    ("module.vm.id", "module.wm.id", "no such module is called"),
    ("../module", "../modul", "is not among the directories"),
]


class CheckTerraform(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.provider = Provider(os.environ["PROVIDERS"].split(",")[0])

    def problems(self, *replacement):
        with tempfile.TemporaryDirectory() as root:
            directories = []
            for name, text in (("module", FINE), ("root", CALL)):
                if replacement and replacement[0] in text:
                    text = text.replace(*replacement, 1)
                directory = pathlib.Path(root) / name
                directory.mkdir()
                (directory / "main.tf").write_text(text)
                directories.append(directory)
            return Check([self.provider], directories).run()

    def test_what_is_fine_has_no_problems(self):
        self.assertEqual(self.problems(), [])

    def test_each_mistake_is_found(self):
        for piece, mistake, text in MISTAKES:
            with self.subTest(mistake=mistake or f"without {piece.strip()}"):
                self.assertEqual((FINE + CALL).count(piece) > 0, True)
                found = self.problems(piece, mistake)
                self.assertTrue(any(text in problem for problem in found), found)

    def test_the_schema_is_the_providers(self):
        queue = self.provider.find("resource", "google_cloud_tasks_queue").body
        self.assertTrue(queue.arguments["location"].required)
        self.assertFalse(queue.blocks["retry_config"].required)
        self.assertIn("max_attempts", queue.blocks["retry_config"].body.arguments)
        service = self.provider.find("resource", "google_cloud_run_v2_service").body
        self.assertTrue(service.blocks["template"].required)
        self.assertTrue(service.blocks["template"].body.blocks["containers"].repeated)
        self.assertIsNone(self.provider.find("resource", "google_no_such_thing"))


if __name__ == "__main__":
    unittest.main()
