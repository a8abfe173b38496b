"""The gcloud commands of the documentation are commands that gcloud understands, as its own linter says."""

import json
import pathlib
import re
import subprocess
import tempfile
import unittest

ROOT = pathlib.Path(__file__).parents[2]
PAGES = ["README.md", "docs/api.md", "docs/deploy.md", "docs/migrating.md", "docs/operations.md",
         "deploy/terraform/runner-manager/README.md"]
VALUES = {"$URL": "https://service.run.app", "$ACCOUNT": "runner-manager@my-project.iam.gserviceaccount.com"}


def commands(text):
    """Those in console blocks, also within $(…) and after a pipe."""
    for block in re.findall(r"```console\n(.*?)```", text, re.S):
        for line in block.replace("\\\n", "").split("\n"):
            for command in re.findall(r"(?:^\s*|\$\(|\| )(gcloud (?:'[^']*'|\"[^\"]*\"|[^|)'\"])*)", line):
                for name, value in VALUES.items():
                    command = command.replace(name, value)
                yield " ".join(command.split())


def lint(all_commands):
    """The commands that gcloud rejects, with its reasons."""
    with tempfile.TemporaryDirectory() as directory:
        # Files that commands name are read.
        for name in ("env.yaml", "APP.private-key.pem", "NEW.private-key.pem", "TOKEN_FILE", "deploy/terraform/runner-vm/files/runner-vm.sh"):
            file = pathlib.Path(directory) / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text("{}")
        file = pathlib.Path(directory) / "commands.json"
        file.write_text(json.dumps([{"command_string": each} for each in all_commands]))
        command = ["gcloud", "meta", "lint-gcloud-commands", f"--commands-file={file}"]
        done = subprocess.run(command, cwd=directory, capture_output=True, text=True, check=True)
    return [
        f"{each['command_string']}: {each['error_message']}" for each in json.loads(done.stdout) if not each["success"]
    ]


class Commands(unittest.TestCase):
    def test_every_command_is_one_of_gclouds(self):
        for page in PAGES:
            with self.subTest(page):
                found = list(commands((ROOT / page).read_text()))
                self.assertTrue(found)
                self.assertEqual(lint(found), [])

    def test_those_that_terraform_prints_too(self):
        text = (ROOT / "deploy/terraform/runner-manager/outputs.tf").read_text()
        (resync,) = re.findall(r"^    (gcloud scheduler.*?)\n  EOT", text, re.S | re.M)
        resync = re.sub(r"\$\{local\.url\}", "https://service.run.app", " ".join(resync.replace("\\\n", "").split()))
        self.assertEqual(lint([re.sub(r"\$\{[^}]*\}", "60", resync)]), [])

    def test_mistakes_are_found(self):
        for mistake in (
            "gcloud secret versions list x",
            "gcloud secrets versions list x --nope",
            "gcloud tasks queues create --location a",
        ):
            self.assertEqual(len(lint([mistake])), 1, mistake)


if __name__ == "__main__":
    unittest.main()
