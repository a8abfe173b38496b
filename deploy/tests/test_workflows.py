"""The workflows and the image: everything from elsewhere is pinned, renewed by dependabot, and published with proof."""

import fnmatch
import pathlib
import re
import subprocess
import unittest

import yaml

ROOT = pathlib.Path(__file__).parents[2]
WORKFLOWS = {file.name: yaml.safe_load(file.read_text()) for file in (ROOT / ".github/workflows").glob("*.yml")}
# A manifest's name, and the ecosystem that renews it.
MANIFESTS = {"Cargo.toml": "cargo", "package.json": "npm", "requirements.txt": "pip", "Dockerfile": "docker"}
MANIFESTS |= {"versions.tf": "terraform", "main.tf": "terraform"}


def steps(workflow):
    for job in workflow["jobs"].values():
        yield from job["steps"]


class Pinned(unittest.TestCase):
    def test_actions_are_pinned_by_commit(self):
        used = [step["uses"] for workflow in WORKFLOWS.values() for step in steps(workflow) if "uses" in step]
        self.assertGreater(len(used), 8)
        for each in used:
            self.assertRegex(each, r"@[0-9a-f]{40}$")

    def test_the_images_bases_are_pinned_by_digest(self):
        stages, bases = set(), []
        for base, stage in re.findall(r"^FROM (\S+)(?: AS (\S+))?", (ROOT / "Dockerfile").read_text(), re.M):
            # An argument's default is an earlier stage.
            if argument := re.fullmatch(r"\$\{(\w+)\}", base):
                default = re.search(rf"^ARG {argument.group(1)}=(\S+)$", (ROOT / "Dockerfile").read_text(), re.M)
                self.assertIn(default.group(1), stages)
            else:
                bases.append(base)
                self.assertRegex(base, r"@sha256:[0-9a-f]{64}$")
            stages.add(stage)
        self.assertEqual(len(bases), 2)

    def test_dependabot_renews_every_manifest(self):
        updates = yaml.safe_load((ROOT / ".github/dependabot.yml").read_text())["updates"]
        listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
        seen = set()
        for file in map(pathlib.PurePosixPath, listed.splitlines()):
            if ecosystem := MANIFESTS.get(file.name):
                seen.add(ecosystem)
                directory = "/" + str(file.parent).removeprefix(".")
                patterns = [
                    pattern
                    for update in updates
                    if update["package-ecosystem"] == ecosystem
                    for pattern in update.get("directories", [update.get("directory")])
                ]
                self.assertTrue(any(fnmatch.fnmatch(directory, each) for each in patterns), file)
        self.assertEqual(seen, set(MANIFESTS.values()))
        self.assertIn("github-actions", [update["package-ecosystem"] for update in updates])


class Released(unittest.TestCase):
    def setUp(self):
        self.jobs = WORKFLOWS["release.yml"]["jobs"]
        self.scripts = {job: "\n".join(step.get("run", "") for step in body["steps"]) for job, body in self.jobs.items()}

    def test_what_is_published_was_run_before_it_has_a_name(self):
        script = self.scripts["image"]
        self.assertIn("push-by-digest=true", script)
        self.assertNotIn("--tag", script)
        self.assertLess(script.index("docker buildx build"), script.index("deploy/image/test.sh --image"))
        self.assertEqual(self.jobs["publish"]["needs"], "image")

    def test_an_image_has_an_sbom_and_provenance_that_is_signed(self):
        self.assertIn("--provenance mode=max --sbom true", self.scripts["image"])
        publish = self.jobs["publish"]
        (attest,) = [step for step in publish["steps"] if "attest-build-provenance" in step.get("uses", "")]
        self.assertEqual(attest["with"]["subject-digest"], "${{ steps.manifest.outputs.digest }}")
        self.assertEqual({"attestations": "write", "id-token": "write", "packages": "write"}, publish["permissions"])

    def test_both_platforms_are_merged_by_their_digests(self):
        script = self.scripts["publish"]
        create = next(line for line in script.splitlines() if "imagetools create" in line)
        self.assertIn('"${references[@]}"', create)
        self.assertRegex(script, r'references\+=\("\$image@sha256:')


class Checked(unittest.TestCase):
    def test_the_deployment_is_checked_with_terraform_there(self):
        job = WORKFLOWS["ci.yml"]["jobs"]["deployment"]["steps"]
        order = [step.get("uses", step.get("run", "")) for step in job]
        setup = next(i for i, each in enumerate(order) if each.startswith("hashicorp/setup-terraform@"))
        self.assertLess(setup, order.index(".ci/run deployment"))
        self.assertLess(setup, order.index("deploy/check-providers.sh"))

    def test_a_check_that_left_something_out_fails_where_changes_are_checked(self):
        text = (ROOT / "deploy/check.sh").read_text()
        tail = text[text.index('for each in ${skipped[@]'):]
        for ci, skipped, code in [("true", "()", 0), ("true", "(x)", 1), ("", "(x)", 0), ("", "()", 0)]:
            script = f"set -euo pipefail\nsay() {{ echo \"$*\"; }}\nskipped={skipped}\n{tail}"
            done = subprocess.run(["bash", "-c", script], env={"PATH": "/usr/bin:/bin", "CI": ci}, capture_output=True)
            self.assertEqual(done.returncode, code, (ci, skipped))


if __name__ == "__main__":
    unittest.main()
