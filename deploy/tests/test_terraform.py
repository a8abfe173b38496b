"""The modules and examples in Terraform itself, against stand-ins for the providers: validated, planned, applied.

PROVIDERS names the packages with the providers' declarations, with commas between them.
"""

import json
import os
import pathlib
import re
import shutil
import subprocess
import tempfile
import unittest

from check_terraform import Module
from provider_stand_in import Running

DEPLOY = pathlib.Path(__file__).parents[1]
MODULES = ["terraform/runner-manager", "terraform/runner-vm"]
EXAMPLES = [f"examples/{directory.name}" for directory in sorted((DEPLOY / "examples").iterdir())]
DIRECTORIES = MODULES + EXAMPLES
SECRET = "the-secret-that-is-never-kept"

ENTRY = {"repo": "acme/app", "labels": ["self-hosted"], "vm_instance_name": "vm-1", "vm_instance_zone": "us-central1-a"}
MANAGER = {
    "project": "my-project",
    "region": "us-central1",
    "image": "us-central1-docker.pkg.dev/my-project/images/runner-manager:1.0.0",
    "github_app": {"id": "123456", "installation_id": "12345678"},
    "runner_config": [ENTRY],
}
CHANNEL = "projects/my-project/notificationChannels/1"
VM = {"project": "my-project", "name": "vm-1", "zone": "us-central1-a"}
EXAMPLE = {
    "project": "my-project",
    "repository": "acme/app",
    "image": "ghcr.io/acme/runner-manager:1.0.0",
    "github_app": {"id": "123456", "installation_id": "12345678"},
    "notification_channels": [CHANNEL],
}
ONE = "examples/one-repository"


class Terraform(unittest.TestCase):
    maxDiff = None

    @classmethod
    def setUpClass(cls):
        modules = [Module(DEPLOY / each) for each in DIRECTORIES]
        types = {(kind, type_) for module in modules for kind, type_, _ in module.resources}
        cls.stand_ins = Running(os.environ["PROVIDERS"].split(","), types)
        cls.addClassCleanup(cls.stand_ins.close)
        # Terraform writes beside the files that it reads: a copy of them, initialized once.
        root = tempfile.TemporaryDirectory()
        cls.addClassCleanup(root.cleanup)
        cls.root = pathlib.Path(root.name)
        for each in DIRECTORIES:
            shutil.copytree(
                DEPLOY / each, cls.root / each, ignore=shutil.ignore_patterns(".terraform*", "*.tfstate*", "*.tfvars")
            )
        for each in DIRECTORIES:
            done = cls.terraform(each, "init", "-backend=false")
            if done.returncode != 0:
                raise RuntimeError(done.stdout + done.stderr)

    @classmethod
    def terraform(cls, directory, *arguments, secret=None):
        environment = {name: value for name, value in os.environ.items() if not name.startswith("TF_")}
        environment |= cls.stand_ins.environment | {"TF_CLI_CONFIG_FILE": os.devnull, "CHECKPOINT_DISABLE": "1"}
        if secret:
            environment["TF_VAR_runner_manager_secret"] = secret
        command = ["terraform", f"-chdir={cls.root / directory}", arguments[0], "-no-color", *arguments[1:]]
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)

    def run_terraform(self, directory, *arguments, secret=None):
        done = self.terraform(directory, *arguments, secret=secret)
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
        return done.stdout

    def with_variables(self, variables):
        """Arguments that name these variables and a state of its own."""
        directory = tempfile.mkdtemp(dir=self.root)
        self.stand_ins.providers["google"].written.clear()
        file = pathlib.Path(directory) / "variables.tfvars.json"
        file.write_text(json.dumps(variables))
        return [f"-var-file={file}", f"-state={directory}/terraform.tfstate", "-input=false"], pathlib.Path(directory)

    def planned(self, directory, variables):
        """Every planned resource by its address, and the outputs."""
        arguments, place = self.with_variables(variables)
        self.run_terraform(directory, "plan", *arguments, f"-out={place}/plan")
        shown = self.run_terraform(directory, "show", "-json", f"{place}/plan")
        plan = json.loads(shown)
        return {each["address"]: each["change"]["after"] for each in plan["resource_changes"]}, plan[
            "planned_values"
        ].get("outputs", {})

    def refused(self, directory, variables, text, secret=None):
        arguments, _ = self.with_variables(variables)
        done = self.terraform(directory, "plan", *arguments, secret=secret)
        self.assertEqual(done.returncode, 1, f"{secret or variables} was accepted")
        self.assertIn(text, " ".join(re.sub(r"[│╷╵]", " ", done.stderr).split()), done.stderr)

    # -- all of them -----------------------------------------------------------------------------------------------

    def test_terraform_finds_them_valid(self):
        for each in DIRECTORIES:
            with self.subTest(each):
                self.run_terraform(each, "validate")

    def test_the_modules_own_tests_pass(self):
        for each in MODULES:
            with self.subTest(each):
                done = self.run_terraform(each, "test")
                self.assertRegex(done, r"Success! [1-9][0-9]* passed, 0 failed")

    def test_every_example_is_planned_with_its_own_values(self):
        for each in EXAMPLES:
            with self.subTest(each):
                self.run_terraform(each, "plan", "-input=false", f"-var-file={self.root / each}/terraform.tfvars.example")

    def test_the_example_is_applied_changes_nothing_more_and_keeps_no_secret(self):
        arguments, place = self.with_variables(EXAMPLE)
        self.run_terraform(ONE, "apply", "-auto-approve", *arguments)
        (secret,) = self.stand_ins.providers["google"].written
        self.assertRegex(secret, "^[0-9a-f]{32}$")
        for file in place.rglob("*"):
            self.assertNotIn(secret, file.read_text(), file)
        done = self.terraform(ONE, "plan", "-detailed-exitcode", *arguments)
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
        steps = self.run_terraform(ONE, "output", "-raw", f"-state={place}/terraform.tfstate", "next_steps")
        self.assertEqual(subprocess.run(["bash", "-n"], input=steps, text=True).returncode, 0, steps)
        for command in (
            "versions access 1 --secret runner-manager-secret",
            "repos/acme/app/hooks",
            '"vm_instance_name": "github-runner"',
        ):
            self.assertIn(command, steps)

    def test_a_first_revision_that_does_not_start_is_replaced_by_the_next_apply(self):
        arguments, _ = self.with_variables(EXAMPLE)
        failures = self.stand_ins.providers["google"].failures
        failures["google_cloud_run_v2_service"] = "Permission denied on secret: runner-manager-secret"
        done = self.terraform(ONE, "apply", "-auto-approve", *arguments)
        self.assertIn("Permission denied on secret", done.stderr)
        self.assertIn("replaced", self.run_terraform(ONE, "apply", "-auto-approve", *arguments))

    def test_with_protection_from_the_start_untaint_is_the_way_out(self):
        arguments, place = self.with_variables(EXAMPLE | {"deletion_protection": True})
        failures = self.stand_ins.providers["google"].failures
        failures["google_cloud_run_v2_service"] = "Permission denied on secret: runner-manager-secret"
        self.assertEqual(self.terraform(ONE, "apply", "-auto-approve", *arguments).returncode, 1)
        done = self.terraform(ONE, "apply", "-auto-approve", *arguments)
        self.assertIn("cannot destroy service without setting deletion_protection=false", done.stderr)
        (state,) = [each for each in arguments if each.startswith("-state=")]
        self.run_terraform(ONE, "untaint", state, "module.runner_manager.google_cloud_run_v2_service.this")
        self.run_terraform(ONE, "apply", "-auto-approve", *arguments)

    # -- the service -----------------------------------------------------------------------------------------------

    def environment(self, plan):
        (container,) = plan["google_cloud_run_v2_service.this"]["template"][0]["containers"]
        return {each["name"]: each.get("value") for each in container["env"]}, container

    def test_the_service_knows_its_own_url(self):
        plan, outputs = self.planned("terraform/runner-manager", MANAGER)
        environment, _ = self.environment(plan)
        self.assertEqual(
            environment["CLOUD_RUN_SERVICE_URL"], "https://runner-manager-123456789012.us-central1.run.app"
        )
        self.assertEqual(outputs["webhook_url"]["value"], environment["CLOUD_RUN_SERVICE_URL"] + "/github/webhook")

    def test_runner_config_has_what_was_given_and_no_more(self):
        entries = [
            ENTRY | {"runner_labels": ["self-hosted", "gpu"], "register": "organization", "discard_local_ssd": True},
            ENTRY | {"register": "repository", "drain": True, "suspend": True},
            ENTRY | {"repo": "acme/web", "runner_names": ["vm-*"]},
        ]
        plan, _ = self.planned("terraform/runner-manager", MANAGER | {"runner_config": entries})
        environment, _ = self.environment(plan)
        self.assertEqual(json.loads(environment["RUNNER_CONFIG"]), entries)

    def test_it_scales_to_zero_and_takes_a_burst_in_one_instance(self):
        plan, _ = self.planned("terraform/runner-manager", MANAGER)
        service = plan["google_cloud_run_v2_service.this"]
        template = service["template"][0]
        _, container = self.environment(plan)
        self.assertEqual(template["max_instance_request_concurrency"], 80)
        self.assertEqual(template["scaling"][0]["min_instance_count"], 0)
        self.assertEqual(container["resources"][0]["limits"]["cpu"], "1")
        self.assertIs(container["resources"][0]["cpu_idle"], True)
        self.assertEqual(container["startup_probe"][0]["http_get"][0]["path"], "/health")
        self.assertIs(service["invoker_iam_disabled"], True)
        self.assertNotIn("google_cloud_run_v2_service_iam_member.all_users[0]", plan)

    def test_the_account_may_act_on_each_vm_once_and_on_no_other(self):
        entries = [ENTRY, ENTRY | {"repo": "acme/web"}, ENTRY | {"vm_instance_name": "vm-2"}]
        plan, _ = self.planned("terraform/runner-manager", MANAGER | {"runner_config": entries})
        bound = sorted(address for address in plan if address.startswith("google_compute_instance_iam_member"))
        self.assertEqual(bound, [f'google_compute_instance_iam_member.service["us-central1-a/vm-{i}"]' for i in (1, 2)])
        self.assertFalse([address for address in plan if address.startswith("google_project_iam_member.vms")])

    def secrets_of(self, plan):
        _, container = self.environment(plan)
        return {
            each["name"]: each["value_source"][0]["secret_key_ref"][0]
            for each in container["env"]
            if each["value_source"]
        }

    def test_existing_secrets_are_taken_by_their_names_and_versions(self):
        secrets = {
            "create": False,
            "runner_manager_secret": {"id": "mine", "version": "3", "previous_version": "2"},
            "github_app_private_key": {"id": "key", "version": "4"},
        }
        plan, outputs = self.planned("terraform/runner-manager", MANAGER | {"secrets": secrets})
        self.assertFalse([address for address in plan if address.startswith("google_secret_manager_secret_version")])
        taken = self.secrets_of(plan)
        self.assertEqual(taken["RUNNER_MANAGER_SECRET"], {"secret": "mine", "version": "3"})
        self.assertEqual(taken["RUNNER_MANAGER_SECRET_PREVIOUS"], {"secret": "mine", "version": "2"})
        self.assertEqual(taken["GITHUB_APP_PRIVATE_KEY"], {"secret": "key", "version": "4"})
        self.assertIn("versions access 3 --secret mine", outputs["next_steps"]["value"])

    def test_the_apps_key_is_stored_by_hand_and_only_read(self):
        plan, _ = self.planned("terraform/runner-manager", MANAGER)
        made = [each["secret_id"] for address, each in plan.items() if address.startswith("google_secret_manager_secret.")]
        self.assertEqual(made, ["runner-manager-secret"])
        self.assertEqual(
            self.secrets_of(plan)["GITHUB_APP_PRIVATE_KEY"], {"secret": "github-app-private-key", "version": "1"}
        )
        member = plan['google_secret_manager_secret_iam_member.service["GITHUB_APP_PRIVATE_KEY"]']
        self.assertEqual(member["secret_id"], "github-app-private-key")

    def test_the_shared_secret_is_random_or_the_given_one_and_stored_when_its_revision_says_so(self):
        written = self.stand_ins.providers["google"].written
        arguments, place = self.with_variables(MANAGER)
        self.run_terraform("terraform/runner-manager", "apply", "-auto-approve", *arguments, secret=SECRET)
        self.assertEqual(written, [SECRET])
        # Each run passes a value, and none of them is stored unasked.
        self.run_terraform("terraform/runner-manager", "apply", "-auto-approve", *arguments)
        self.assertEqual(written, [SECRET])
        rotated = MANAGER | {"secrets": {"runner_manager_secret": {"revision": 2, "previous_version": "1"}}}
        (place / "variables.tfvars.json").write_text(json.dumps(rotated))
        self.run_terraform("terraform/runner-manager", "apply", "-auto-approve", *arguments)
        self.assertEqual(len(written), 2)
        for file in place.rglob("*"):
            for secret in written:
                self.assertNotIn(secret, file.read_text(), file)

    def test_a_shared_secret_that_can_be_guessed_is_refused(self):
        for secret, text in [
            ("0123456789abcde", "at least 16 characters"),
            ("a secret with white space", "visible ASCII"),
            ("a-line-break-at-its-end\n", "visible ASCII"),
            ("change-me-change-me", "looks like a placeholder"),
            ("<your secret goes here>".replace(" ", "-"), "looks like a placeholder"),
            ("runner-manager-secret", "looks like a placeholder"),
            ("xxxxxxxxxxxxxxxxxxxxxxxx", "looks like a placeholder"),
        ]:
            with self.subTest(secret):
                self.refused("terraform/runner-manager", MANAGER, text, secret=secret)

    def test_the_shared_secrets_that_the_documentation_creates_are_accepted(self):
        pages = "".join((DEPLOY.parent / page).read_text() for page in ("docs/deploy.md", "docs/migrating.md", "README.md"))
        commands = re.findall(r"^ *(printf .*) \| gcloud secrets", pages, re.M)
        self.assertGreaterEqual(len(commands), 2)
        arguments, _ = self.with_variables(MANAGER)
        for command in set(commands):
            done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True)
            self.run_terraform("terraform/runner-manager", "plan", *arguments, secret=done.stdout)

    def test_a_state_of_version_0_1_loses_no_secret(self):
        arguments, place = self.with_variables(MANAGER)
        self.run_terraform("terraform/runner-manager", "apply", "-auto-approve", *arguments)
        file = place / "terraform.tfstate"
        state = json.loads(file.read_text())
        resources = {(each["type"], each["name"]): each for each in state["resources"]}
        secret = resources["google_secret_manager_secret", "runner_manager_secret"]
        version = resources["google_secret_manager_secret_version", "runner_manager_secret"]
        # As that version left it: both secrets in one resource, and the key's version.
        (instance,) = secret["instances"]
        keys = ("RUNNER_MANAGER_SECRET", "GITHUB_APP_PRIVATE_KEY")
        secret |= {"name": "this", "instances": [instance | {"index_key": key} for key in keys]}
        state["resources"].append(version | {"name": "github_app_private_key"})
        file.write_text(json.dumps(state))
        plan = self.run_terraform("terraform/runner-manager", "plan", *arguments)
        self.assertIn('this["GITHUB_APP_PRIVATE_KEY"] will no longer be managed by Terraform', plan)
        self.assertIn("github_app_private_key[0] will no longer be managed by Terraform", plan)
        self.assertIn("has moved to google_secret_manager_secret.runner_manager_secret[0]", plan)
        self.assertIn("0 to destroy", plan)

    def test_a_public_image_on_ghcr_is_read_as_it_is_and_a_private_one_with_credentials(self):
        image = "ghcr.io/acme/runner-manager:1.0.0"
        plan, _ = self.planned("terraform/runner-manager", MANAGER | {"image": image})
        self.assertEqual(self.environment(plan)[1]["image"], image)
        self.assertFalse([address for address in plan if "artifact_registry" in address])
        version = "projects/my-project/secrets/ghcr-token/versions/1"
        credentials = {"username": "acme-bot", "password_secret_version": version}
        plan, _ = self.planned("terraform/runner-manager", MANAGER | {"image": image, "ghcr_credentials": credentials})
        self.assertEqual(
            self.environment(plan)[1]["image"],
            "us-central1-docker.pkg.dev/my-project/runner-manager-ghcr/acme/runner-manager:1.0.0",
        )
        upstream = plan["google_artifact_registry_repository.ghcr[0]"]["remote_repository_config"][0]
        self.assertEqual(
            upstream["upstream_credentials"][0]["username_password_credentials"][0]["password_secret_version"], version
        )
        member = plan["google_secret_manager_secret_iam_member.ghcr[0]"]
        self.assertEqual(member["secret_id"], "projects/my-project/secrets/ghcr-token")
        self.assertIn("@gcp-sa-artifactregistry.iam.gserviceaccount.com", member["member"])

    def test_the_service_waits_for_the_grants_and_the_alerts_for_their_metrics(self):
        plan, _ = self.planned("terraform/runner-manager", MANAGER | {"alerts": {"notification_channels": [CHANNEL]}})
        self.assertEqual(plan["time_sleep.iam"]["create_duration"], "120s")
        self.assertEqual(plan["time_sleep.metrics[0]"]["create_duration"], "600s")
        credentials = {"username": "x", "password_secret_version": "projects/my-project/secrets/x/versions/1"}
        private = {"image": "ghcr.io/acme/runner-manager:1.0.0", "ghcr_credentials": credentials}
        arguments, place = self.with_variables(MANAGER | private | {"alerts": {"notification_channels": [CHANNEL]}})
        log = self.run_terraform("terraform/runner-manager", "apply", "-auto-approve", *arguments)
        done = re.findall(r"^(\S+): Creation complete", log, re.M)

        def before(*addresses):
            places = [[i for i, each in enumerate(done) if each.startswith(address)] for address in addresses]
            self.assertTrue(all(places), (addresses, done))
            for earlier, later in zip(places, places[1:]):
                self.assertLess(max(earlier), min(later), done)

        before("google_secret_manager_secret_iam_member.service", "time_sleep.iam", "google_cloud_run_v2_service.this")
        before(
            "google_secret_manager_secret_iam_member.ghcr",
            "time_sleep.ghcr",
            "google_artifact_registry_repository.ghcr",
            "google_cloud_run_v2_service.this",
        )
        before("google_logging_metric.", "time_sleep.metrics", "google_monitoring_alert_policy.unknown")
        before("google_logging_metric.", "time_sleep.metrics", "google_monitoring_alert_policy.refused")
        before("google_logging_metric.", "time_sleep.metrics", "google_monitoring_alert_policy.resync")

    def test_everything_waits_until_the_apis_are_turned_on(self):
        graph = self.run_terraform("terraform/runner-manager", "graph")
        needs = {}
        for dependent, dependency in re.findall(r'"([^"]+)" -> "([^"]+)"', graph):
            needs.setdefault(dependent, set()).add(dependency)
        resources = set(re.findall(r'^\s*"(google_[a-z0-9_]+\.\w+)" \[', graph, re.M)) - {"google_project_service.this"}
        self.assertIn("google_cloud_run_v2_service.this", resources)

        def waits(address):
            return address == "google_project_service.this" or any(map(waits, needs.get(address, ())))

        self.assertEqual(sorted(each for each in resources if not waits(each)), [])

    def test_no_alert_has_a_condition_that_cloud_monitoring_refuses(self):
        plan, _ = self.planned("terraform/runner-manager", MANAGER | {"alerts": {"notification_channels": [CHANNEL]}})
        policies = [each for address, each in plan.items() if address.startswith("google_monitoring_alert_policy")]
        thresholds = [
            threshold
            for policy in policies
            for condition in policy["conditions"]
            for threshold in condition["condition_threshold"]
        ]
        self.assertEqual(len(thresholds), 4)
        for each in thresholds:
            seconds = int(each["duration"].removesuffix("s"))
            self.assertEqual(seconds % 60, 0)
            self.assertTrue(seconds > 0 or each["evaluation_missing_data"] is None, each)
            self.assertEqual(int(each["aggregations"][0]["alignment_period"].removesuffix("s")) % 60, 0)

    def test_resyncs_that_stop_are_an_alert(self):
        alerts = {"notification_channels": [CHANNEL]}
        plan, _ = self.planned("terraform/runner-manager", MANAGER | {"alerts": alerts})
        (condition,) = plan["google_monitoring_alert_policy.resync[0]"]["conditions"]
        (threshold,) = condition["condition_threshold"]
        (aggregation,) = threshold["aggregations"]
        # Fewer than one in a window: for half an hour with the window itself.
        self.assertEqual((threshold["comparison"], threshold["threshold_value"]), ("COMPARISON_LT", 1))
        self.assertEqual((aggregation["alignment_period"], threshold["duration"]), ("900s", "900s"))
        # Cloud Run is scaled to zero then, and no line means no data.
        self.assertEqual(threshold["evaluation_missing_data"], "EVALUATION_MISSING_DATA_ACTIVE")
        plan, _ = self.planned("terraform/runner-manager", MANAGER | {"alerts": alerts | {"resync_minutes": 0}})
        self.assertFalse([address for address in plan if address.endswith("resync[0]")])

    def test_the_resync_is_made_by_a_command_or_by_terraform(self):
        secrets = {"create": False, "runner_manager_secret": {"version": "1"}}
        plan, outputs = self.planned("terraform/runner-manager", MANAGER | {"secrets": secrets})
        self.assertNotIn("google_cloud_scheduler_job.reconcile[0]", plan)
        self.assertIn("gcloud scheduler jobs create http runner-manager-reconcile", outputs["next_steps"]["value"])
        plan, outputs = self.planned(
            "terraform/runner-manager", MANAGER | {"reconcile": {"managed": True}, "secrets": secrets}
        )
        (target,) = plan["google_cloud_scheduler_job.reconcile[0]"]["http_target"]
        self.assertEqual(target["headers"], {"X-Runner-Secret": "the-value-in-secret-manager"})
        self.assertNotIn("gcloud scheduler", outputs["next_steps"]["value"])

    def test_alerts_are_there_if_they_have_a_channel(self):
        plan, _ = self.planned("terraform/runner-manager", MANAGER)
        self.assertFalse([address for address in plan if "google_monitoring" in address])
        plan, _ = self.planned(
            "terraform/runner-manager", MANAGER | {"alerts": {"notification_channels": [CHANNEL], "vm_up_hours": 6}}
        )
        policies = [each for address, each in plan.items() if address.startswith("google_monitoring_alert_policy")]
        self.assertEqual(len(policies), 7)
        self.assertTrue(all(each["notification_channels"] == [CHANNEL] for each in policies))
        threshold = plan["google_monitoring_alert_policy.up[0]"]["conditions"][0]["condition_threshold"][0]
        self.assertEqual(threshold["threshold_value"], 6 * 3600)
        self.assertIn('one_of("vm-1")', threshold["filter"])

    def test_what_the_service_would_refuse_is_refused_before(self):
        for change, text in [
            ({"region": "us-central1-a"}, "A region looks like us-central1"),
            ({"image": "gcr.io/x/y"}, "Name a tag or digest"),
            ({"image": "gcr.io/x/y:latest"}, "Name a tag or digest"),
            ({"runner_config": []}, "runner_config needs an entry"),
            ({"runner_config": [ENTRY | {"labels": []}]}, "labels needs at least one label"),
            ({"runner_config": [ENTRY | {"repo": "https://github.com/acme/app"}]}, "repo looks like owner/repo"),
            ({"runner_config": [ENTRY | {"vm_instance_zone": "us-central1"}]}, "vm_instance_zone looks like"),
            ({"runner_config": [ENTRY | {"vm_instance_name": "VM"}]}, "vm_instance_name is a VM's name"),
            ({"runner_config": [ENTRY | {"register": "enterprise"}]}, "register is repository or organization"),
            ({"runner_config": [ENTRY, ENTRY | {"repo": "other/app"}]}, "same owner"),
            ({"github_app": {"id": "1", "installation_id": "acme"}}, "installation_id is the number"),
            ({"vm_inactive_minutes": 0}, "whole number from 1 to 1440"),
            ({"environment": {"PORT": "1"}}, "do not belong into environment"),
            ({"secrets": {"create": False}}, "Give the version of the shared secret"),
            (
                {
                    "secrets": {
                        "create": False,
                        "runner_manager_secret": {"version": "latest"},
                        "github_app_private_key": {"version": "1"},
                    }
                },
                "A version is a number",
            ),
            ({"alerts": {"notification_channels": ["me@example.com"]}}, "A notification channel looks like"),
            ({"alerts": {"notification_channels": [CHANNEL], "resync_minutes": 5}}, "an even number from 10 to 1440"),
            ({"public_access": "yes"}, "public_access is no_check"),
            (
                {"ghcr_credentials": {"username": "x", "password_secret_version": "projects/p/secrets/s/versions/1"}},
                "for an image on ghcr.io",
            ),
        ]:
            with self.subTest(change=change):
                self.refused("terraform/runner-manager", MANAGER | change, text)

    # -- the VM ----------------------------------------------------------------------------------------------------

    def vm(self, **variables):
        plan, _ = self.planned("terraform/runner-vm", VM | variables)
        return plan["google_compute_instance.vm"], plan

    def test_a_vm_has_what_its_script_reads(self):
        runner = {"version": "2.330.0", "sha256": "0" * 64, "labels": ["gpu", "big"]}
        vm, _ = self.vm(runner=runner, packages=["docker.io"], runner_manager_url="https://service.run.app")
        metadata = vm["metadata"]
        self.assertEqual(
            metadata.pop("startup-script"), (DEPLOY / "terraform/runner-vm/files/runner-vm.sh").read_text()
        )
        expected = {
            "enable-oslogin": "TRUE",
            "runner-manager-url": "https://service.run.app",
            "runner-version": "2.330.0",
            "runner-sha256": "0" * 64,
            "runner-labels": "gpu,big",
            "runner-packages": "docker.io",
            "runner-keep-free": "20",
            "runner-block-metadata": "true",
        }
        self.assertEqual(metadata, expected)

    def test_what_is_not_set_is_not_in_the_metadata(self):
        vm, _ = self.vm()
        self.assertEqual(
            sorted(vm["metadata"]), ["enable-oslogin", "runner-keep-free", "runner-version", "startup-script"]
        )

    def test_every_setting_is_one_that_the_script_knows(self):
        script = (DEPLOY / "terraform/runner-vm/files/runner-vm.sh").read_text()
        settings = set(
            re.findall(r"^    (runner-[a-z0-9-]+) +=", (DEPLOY / "terraform/runner-vm/main.tf").read_text(), re.M)
        )
        self.assertGreater(len(settings), 7)
        self.assertEqual(settings - set(re.findall(r"setting (runner-[a-z0-9-]+)", script)), set())

    def test_nothing_limits_how_long_a_vm_runs_or_says_that_it_has_to(self):
        vm, _ = self.vm()
        self.assertEqual(vm["scheduling"][0]["max_run_duration"], [])
        self.assertIsNone(vm["desired_status"])
        self.assertEqual(vm["scratch_disk"], [])

    def test_options_of_a_vm(self):
        vm, plan = self.vm(spot=True, data_disk={"size_gb": 100}, network={"external_ip": "static"})
        self.assertEqual(vm["scheduling"][0]["provisioning_model"], "SPOT")
        self.assertEqual(vm["scheduling"][0]["instance_termination_action"], "STOP")
        self.assertEqual(vm["attached_disk"][0]["device_name"], "runner-data")
        self.assertIn("google_compute_address.vm[0]", plan)
        vm, _ = self.vm(
            machine_type="n1-standard-4", gpu={"type": "nvidia-tesla-t4"}, network={"external_ip": "none", "subnetwork": "private"}
        )
        self.assertEqual(vm["guest_accelerator"][0]["count"], 1)
        self.assertEqual(vm["scheduling"][0]["on_host_maintenance"], "TERMINATE")
        self.assertEqual(vm["network_interface"][0]["access_config"], [])
        self.assertIsNone(vm["network_interface"][0]["network"])

    def test_a_machine_type_that_comes_with_a_gpu_is_not_moved_to_another_host(self):
        for machine_type in ("g2-standard-4", "a2-highgpu-1g", "a3-highgpu-8g", "g4-standard-48"):
            with self.subTest(machine_type):
                disk = {"type": "hyperdisk-balanced"}
                vm, _ = self.vm(machine_type=machine_type, discard_local_ssd=True, boot_disk=disk)
                self.assertEqual(vm["scheduling"][0]["on_host_maintenance"], "TERMINATE")
                self.assertIs(vm["shielded_instance_config"][0]["enable_secure_boot"], False)
                self.assertEqual(vm["guest_accelerator"], [])
        for machine_type in ("e2-standard-4", "c3-standard-8", "n1-standard-4"):
            vm, _ = self.vm(machine_type=machine_type)
            self.assertEqual(vm["scheduling"][0]["on_host_maintenance"], "MIGRATE")

    def test_a_vm_that_cannot_be_moved_to_another_host_is_stopped_for_maintenance(self):
        disk = {"type": "hyperdisk-balanced"}
        for machine_type in ("h4d-standard-192", "h4d-highmem-192-lssd", "c3-standard-192-metal", "c4-standard-288-metal"):
            with self.subTest(machine_type):
                vm, _ = self.vm(machine_type=machine_type, boot_disk=disk, discard_local_ssd=True)
                self.assertEqual(vm["scheduling"][0]["on_host_maintenance"], "TERMINATE")
        vm, _ = self.vm(machine_type="c4-standard-4", boot_disk=disk)
        self.assertEqual(vm["scheduling"][0]["on_host_maintenance"], "MIGRATE")
        vm, _ = self.vm(
            machine_type="z3-highmem-88-highlssd", discard_local_ssd=True, on_host_maintenance="TERMINATE"
        )
        self.assertEqual(vm["scheduling"][0]["on_host_maintenance"], "TERMINATE")

    def test_jobs_get_the_vms_identity_only_where_something_on_it_may_need_it(self):
        url = "https://service.run.app"
        for variables, blocked in [
            ({"runner_manager_url": url}, True),
            ({}, False),
            ({"runner_manager_url": url, "service_account": "jobs@my-project.iam.gserviceaccount.com"}, False),
            ({"runner_manager_url": url, "block_metadata": False}, False),
            ({"block_metadata": True}, True),
        ]:
            with self.subTest(variables):
                vm, _ = self.vm(**variables)
                self.assertEqual(vm["metadata"].get("runner-block-metadata"), "true" if blocked else None)

    def test_what_the_owner_adds_reaches_the_script(self):
        vm, plan = self.vm(
            userdata_pre_install="echo before",
            userdata_post_install="echo after",
            runner_hook_job_started="echo started",
            runner_hook_job_completed="echo completed",
            proxy={"url": "http://proxy:3128", "no_proxy": [".internal", "10.0.0.1"]},
            ca_certificates="-----BEGIN CERTIFICATE-----\n",
            runner={"default_labels": False},
            ops_agent=True,
        )
        metadata = vm["metadata"]
        for name, value in {
            "runner-pre-install": "echo before",
            "runner-post-install": "echo after",
            "runner-hook-job-started": "echo started",
            "runner-hook-job-completed": "echo completed",
            "runner-proxy": "http://proxy:3128",
            "runner-no-proxy": ".internal,10.0.0.1",
            "runner-ca-certificates": "-----BEGIN CERTIFICATE-----\n",
            "runner-default-labels": "false",
            "runner-ops-agent": "true",
        }.items():
            self.assertEqual(metadata[name], value)
        roles = {each["role"] for address, each in plan.items() if address.startswith("google_project_iam_member")}
        self.assertEqual(roles, {"roles/logging.logWriter", "roles/monitoring.metricWriter"})

    def test_the_log_command_works_for_an_os_login_user(self):
        _, outputs = self.planned("terraform/runner-vm", VM)
        self.assertIn("sudo journalctl --unit runner-vm", outputs["log_command"]["value"])
        self.assertNotIn("iap", outputs["log_command"]["value"])
        _, outputs = self.planned("terraform/runner-vm", VM | {"network": {"external_ip": "none"}})
        self.assertIn("--tunnel-through-iap", outputs["log_command"]["value"])

    def test_a_vm_that_would_not_work_is_refused(self):
        for change, text in [
            ({"name": "VM"}, "A VM's name has"),
            ({"zone": "us-central1"}, "A zone looks like"),
            ({"runner_manager_url": "https://service.run.app/"}, "no slash at its end"),
            ({"runner": {"version": "v2.330.0"}}, "without a v"),
            ({"runner": {"sha256": "0" * 64}}, "needs a runner.version"),
            ({"machine_type": "c4-standard-8-lssd"}, "local SSDs"),
            ({"machine_type": "a3-highgpu-8g"}, "local SSDs"),
            ({"machine_type": "z3-highmem-88"}, "local SSDs"),
            ({"machine_type": "a2-ultragpu-1g"}, "local SSDs"),
            ({"gpu": {"type": "nvidia-tesla-t4"}}, "family n1 alone"),
            ({"gpu": {"type": "nvidia-l4"}, "machine_type": "g2-standard-4"}, "family n1 alone"),
            ({"machine_type": "n4-standard-4"}, "set boot_disk.type to hyperdisk-balanced"),
            (
                {
                    "machine_type": "c4-standard-4",
                    "boot_disk": {"type": "hyperdisk-balanced"},
                    "data_disk": {"size_gb": 50},
                },
                "set data_disk.type to hyperdisk-balanced",
            ),
            ({"on_host_maintenance": "STOP"}, "MIGRATE or TERMINATE"),
            ({"on_host_maintenance": "TERMINATE"}, "of the family e2"),
            ({"proxy": {"url": "proxy:3128"}}, "The proxy's URL"),
            ({"ca_certificates": "MIIB"}, "Certificates are in PEM"),
            ({"labels": {"runner-manager-hold": "x"}}, "the service's own"),
            ({"network": {"external_ip": "yes"}}, "ephemeral, static or none"),
            ({"data_disk": {"size_gb": 1}}, "at least 10 GB"),
        ]:
            with self.subTest(change=change):
                self.refused("terraform/runner-vm", VM | change, text)


if __name__ == "__main__":
    unittest.main()
