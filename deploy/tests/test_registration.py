"""A VM boots whose runner GitHub has forgotten: its script against the real service, on the embedded cloud.

Only the metadata server is a stand-in, and hands on what the embedded cloud signs; and the runner's own two scripts.
PROGRAM names the program, built with the feature dev.
"""

import os
import pathlib
import re
import subprocess
import unittest
import urllib.parse
import urllib.request

import test_runner_vm
from test_runner_vm import Handler

PROGRAM = pathlib.Path(os.environ["PROGRAM"]).resolve()


class Metadata(Handler):
    """The metadata server of `vm`."""

    def metadata(self, path):
        identity, _, query = path.partition("?")
        if not identity.endswith("/identity"):
            return super().metadata(path)
        audience = dict(urllib.parse.parse_qsl(query))["audience"]
        asked = {"vm": self.server.vm, "zone": "asia-northeast1-a", "audience": audience}
        url = f"{self.server.cloud}/play/identity?{urllib.parse.urlencode(asked)}"
        with urllib.request.urlopen(url) as answer:
            return self.answer(200, answer.read())


class OnTheEmbeddedCloud(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        os.environ["no_proxy"] = os.environ["NO_PROXY"] = "127.0.0.1"
        environment = os.environ | {"NO_COLOR": "1"}
        command = [PROGRAM, "dev", "--real-time", "--port", "0", "--cloud-port", "0"]
        cls.log = subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for line in cls.log.stdout:
            if found := re.search(r"The service is at (\S+), the embedded cloud at (\S+)\.", line):
                cls.service, cls.cloud = found.groups()
            if line.startswith("export GOOGLE_APPLICATION_CREDENTIALS"):
                break

    @classmethod
    def tearDownClass(cls):
        cls.log.terminate()
        cls.log.communicate()

    def boot(self, vm):
        """Runs the script's service on this VM until its runner listens, or it gives up."""
        case = test_runner_vm.Surrounded()
        case.setUp()
        self.addCleanup(case.doCleanups)
        case.around.RequestHandlerClass = Metadata
        case.around.cloud, case.around.vm = self.cloud, vm
        case.around.attributes["runner-manager-url"] = self.service
        return case

    def test_the_service_gives_it_what_its_runner_needs(self):
        case = self.boot("gpu-1")
        case.up()
        self.assertEqual(
            case.read("configured"),
            f"--unattended --replace --url {self.cloud}/acme/app --name gpu-1 --work _work --labels self-hosted,gpu\n",
        )
        self.assertEqual(len(case.read("tokens").split()), 1)
        case.tearDown()

    def test_a_vm_that_no_entry_lets_register_gets_nothing(self):
        case = self.boot("runner-1")
        service = subprocess.run(
            [test_runner_vm.SCRIPT, "register"], env=case.environment, capture_output=True, text=True, timeout=60
        )
        self.assertNotEqual(service.returncode, 0)
        self.assertEqual(case.read("configured"), "", service.stderr)
        self.assertIn("403", service.stderr)


if __name__ == "__main__":
    unittest.main()
