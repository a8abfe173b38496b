"""State, secrets and downloads stay out of commits and builds; the packages that examples install are in Debian."""

import os
import pathlib
import pwd
import re
import shutil
import subprocess
import tempfile
import unittest

ROOT = pathlib.Path(__file__).parents[2]
EXAMPLES = ROOT / "deploy/examples"
SECRET = [
    "deploy/examples/one-repository/.terraform/providers/x",
    "deploy/examples/one-repository/terraform.tfstate",
    "deploy/examples/one-repository/terraform.tfstate.backup",
    "deploy/examples/one-repository/terraform.tfvars",
    "src/terraform.tfstate",
    "src/prod.auto.tfvars",
    ".env",
    "APP.private-key.pem",
]
BUILT_FROM = {"Dockerfile", "Cargo.toml", "Cargo.lock", ".cargo/config.toml", "src/main.rs", "src/lifecycle/tests/x.rs"}
SOURCES = """\
deb [trusted=yes] http://deb.debian.org/debian trixie main contrib non-free non-free-firmware
"""


class LeftOut(unittest.TestCase):
    def test_git_ignores_state_and_secrets(self):
        for file in SECRET:
            done = subprocess.run(["git", "check-ignore", "--quiet", "--no-index", file], cwd=ROOT)
            self.assertEqual(done.returncode, 0, file)
        for file in ("deploy/examples/one-repository/.terraform.lock.hcl", "deploy/examples/one-repository/main.tf"):
            done = subprocess.run(["git", "check-ignore", "--quiet", "--no-index", file], cwd=ROOT)
            self.assertEqual(done.returncode, 1, file)

    @unittest.skipUnless(shutil.which("gcloud"), "gcloud is not on the PATH")
    def test_gcloud_uploads_what_the_image_is_built_from_and_no_secret(self):
        with tempfile.TemporaryDirectory() as directory:
            root = pathlib.Path(directory)
            tracked = subprocess.run(["git", "ls-files", "--cached", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
            files = [each for each in tracked.splitlines() if (ROOT / each).exists()]
            for each in [*files, *SECRET, "target/debug/x", ".git/config", "src/lifecycle/tests/x.rs"]:
                (root / each).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(ROOT / each, root / each) if each in files else (root / each).touch()
            command = ["gcloud", "meta", "list-files-for-upload", directory]
            listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
        self.assertLessEqual(BUILT_FROM, set(listed))
        self.assertEqual(set(listed) & set(SECRET), set())
        self.assertFalse([each for each in listed if each.startswith(("target/", ".git/", "deploy/"))])


@unittest.skipUnless(shutil.which("terraform"), "terraform is not on the PATH")
class Locked(unittest.TestCase):
    """terraform init, with a mirror of empty providers: it only has to choose among versions."""

    def test_each_example_takes_the_versions_of_its_lock_file_though_newer_ones_are_allowed(self):
        with tempfile.TemporaryDirectory() as directory:
            root = pathlib.Path(directory)
            shutil.copytree(ROOT / "deploy", root / "deploy", ignore=shutil.ignore_patterns(".terraform", "*.tfstate*"))
            platform = {"x86_64": "linux_amd64", "aarch64": "linux_arm64"}[os.uname().machine]
            for name, version in (("google", "8.999.0"), ("random", "3.999.0"), ("time", "0.999.0")):
                for each in (version, self.locked(EXAMPLES / "one-repository")[name]):
                    place = root / f"mirror/registry.terraform.io/hashicorp/{name}/{each}/{platform}"
                    place.mkdir(parents=True)
                    (place / f"terraform-provider-{name}_v{each}").touch(mode=0o755)
            configuration = root / "terraform.rc"
            configuration.write_text(f'provider_installation {{ filesystem_mirror {{ path = "{root}/mirror" }} }}')
            environment = {name: value for name, value in os.environ.items() if not name.startswith("TF_")}
            environment |= {"TF_CLI_CONFIG_FILE": str(configuration), "CHECKPOINT_DISABLE": "1"}
            for example in sorted((root / "deploy/examples").iterdir()):
                with self.subTest(example.name):
                    before = self.locked(example)
                    command = ["terraform", f"-chdir={example}", "init", "-backend=false", "-input=false"]
                    subprocess.run(command, env=environment, check=True, capture_output=True)
                    self.assertEqual(self.locked(example), before)
                    # Terraform writes a constraint that is not that of the modules anew.
                    lines = [re.findall("constraints.*", (place / ".terraform.lock.hcl").read_text()) for place in (example, EXAMPLES / example.name)]
                    self.assertEqual(lines[0], lines[1])

    def locked(self, example):
        text = (example / ".terraform.lock.hcl").read_text()
        return dict(re.findall(r'hashicorp/(\w+)" {\n  version += "([0-9.]+)"', text))


@unittest.skipUnless(shutil.which("apt-get"), "apt-get is not on the PATH")
class Packages(unittest.TestCase):
    """Debian 13's own list of packages, in a directory of its own."""

    @classmethod
    def setUpClass(cls):
        directory = tempfile.TemporaryDirectory()
        cls.addClassCleanup(directory.cleanup)
        root = pathlib.Path(directory.name)
        root.chmod(0o755)
        for each in ("state/lists/partial", "cache/archives/partial", "empty"):
            (root / each).mkdir(parents=True)
        (root / "status").touch()
        (root / "sources.list").write_text(SOURCES)
        options = {
            "Dir::Etc::SourceList": root / "sources.list",
            "Dir::Etc::SourceParts": root / "empty",
            "Dir::Etc::PreferencesParts": root / "empty",
            "Dir::State": root / "state",
            "Dir::State::status": root / "status",
            "Dir::Cache": root / "cache",
            "APT::Architecture": "amd64",
            "APT::Sandbox::User": pwd.getpwuid(os.getuid()).pw_name,
            "Acquire::Languages": "none",
        }
        cls.options = [word for name, value in options.items() for word in ("-o", f"{name}={value}")]
        cls.apt_get("update")

    @classmethod
    def apt_get(cls, *arguments):
        done = subprocess.run(["apt-get", *cls.options, "--quiet", *arguments], capture_output=True, text=True)
        if done.returncode != 0:
            raise AssertionError(done.stdout + done.stderr)
        return done.stdout

    def installed(self, *packages):
        """Packages that apt-get would install, called as the VM's script does."""
        log = self.apt_get("install", "--simulate", "--yes", "--no-install-recommends", *packages)
        return set(re.findall(r"^Inst (\S+)", log, re.M))

    def test_the_image_is_debian_13(self):
        text = (ROOT / "deploy/terraform/runner-vm/variables.tf").read_text()
        self.assertIn('default     = "debian-cloud/debian-13"', text)

    def test_the_examples_packages_are_a_docker_with_buildx_and_compose(self):
        text = (EXAMPLES / "one-repository/variables.tf").read_text()
        packages = re.findall(r'"([^"]+)"', re.search(r'variable "packages".*?default += \[(.*?)\]', text, re.S).group(1))
        installed = self.installed(*packages)
        # docker.io alone brings the daemon, and none of these.
        self.assertLessEqual({"docker.io", "docker-cli", "docker-buildx", "docker-compose"}, installed)
        versions = self.apt_get("install", "--simulate", "--yes", "--no-install-recommends", "docker.io")
        self.assertGreaterEqual(int(re.search(r"^Inst docker.io \((\d+)", versions, re.M).group(1)), 26)

    def test_the_scripts_own_packages_are_there(self):
        self.assertLessEqual({"nftables", "jq", "curl", "git"}, self.installed("ca-certificates", "curl", "git", "jq", "tar", "nftables"))

    def test_the_driver_of_the_gpu_example_is_there(self):
        script = (EXAMPLES / "gpu-beside-plain/install-driver.sh").read_text()
        install = re.search(r"--no-install-recommends ((?:.*\\\n)*.*)", script).group(1).replace('"', "").replace("\\\n", "")
        for kernel in ("cloud-amd64", "amd64"):
            packages = install.replace("$kernel", kernel).split()
            installed = self.installed(*packages)
            self.assertLessEqual(set(packages), installed)
            # The kernel that a restart begins has the headers that the driver is built with.
            (image,) = [each for each in installed if re.match(r"linux-image-[0-9]", each)]
            self.assertIn(image.replace("image", "headers"), installed)


class Driver(unittest.TestCase):
    """The GPU example's script, with stand-ins for what it calls."""

    def run_script(self, running, installed):
        with tempfile.TemporaryDirectory() as directory:
            root = pathlib.Path(directory)
            script = (EXAMPLES / "gpu-beside-plain/install-driver.sh").read_text()
            (root / "script").write_text(script.replace("/etc/apt/sources.list.d", directory))
            (root / "bin").mkdir()
            stand_ins = {name: f'echo "{name} $*" >>{root}/log' for name in ("apt-get", "systemctl", "sleep", "nvidia-smi")}
            stand_ins["uname"] = f"echo {running}"
            stand_ins["modprobe"] = f"[[ {running} == {installed} ]]"
            stand_ins["linux-version"] = f"if [[ $1 == list ]]; then echo {installed}; echo {running}; else sort --version-sort; fi"
            for name, text in stand_ins.items():
                (root / "bin" / name).write_text(f"#!/bin/bash\n{text}\n")
                (root / "bin" / name).chmod(0o755)
            environment = os.environ | {"PATH": f"{root}/bin:{os.environ['PATH']}"}
            done = subprocess.run(["bash", root / "script"], env=environment, capture_output=True, text=True)
            return done.returncode, (root / "log").read_text()

    def test_the_headers_are_those_of_every_kernel_to_come(self):
        for running, kernel in (("6.12.43+deb13-cloud-amd64", "cloud-amd64"), ("6.12.43+deb13-amd64", "amd64")):
            code, log = self.run_script(running, running)
            self.assertEqual(code, 0)
            self.assertIn(f" linux-image-{kernel} linux-headers-{kernel} ", log)
            self.assertNotIn("6.12", log)
            self.assertNotIn("reboot", log)

    def test_a_driver_for_a_newer_kernel_restarts_the_vm(self):
        code, log = self.run_script("6.12.43+deb13-cloud-amd64", "6.12.48+deb13-cloud-amd64")
        self.assertNotEqual(code, 0)
        self.assertIn("systemctl reboot", log)
        self.assertNotIn("nvidia-smi \n", log)


if __name__ == "__main__":
    unittest.main()
