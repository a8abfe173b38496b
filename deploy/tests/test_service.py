"""The Terraform modules agree with the service: on its log lines, its variables, its calls.

The alerts are tried on lines that the real program logs on the embedded cloud. PROGRAM names it, built with the feature
dev.
"""

import json
import os
import pathlib
import re
import signal
import socket
import subprocess
import tempfile
import time
import unittest
import urllib.error
import urllib.request

import hcl2

ROOT = pathlib.Path(__file__).parents[2]
MODULE = ROOT / "deploy/terraform/runner-manager"
PROGRAM = pathlib.Path(os.environ["PROGRAM"]).resolve()


def terraform(file):
    with (MODULE / file).open() as text:
        return hcl2.load(
            text, serialization_options=hcl2.SerializationOptions(with_comments=False, strip_string_quotes=True)
        )


def local(file, name):
    return next(block[name] for block in terraform(file)["locals"] if name in block)


def resources(file, type_):
    return {name: body for each in terraform(file)["resource"] for name, body in each.get(type_, {}).items()}


def source():
    return "\n".join(file.read_text() for file in (ROOT / "src").rglob("*.rs"))


class Written(unittest.TestCase):
    def test_the_alerts_texts_are_the_services(self):
        # A text may go on in the next line of the source.
        written = re.sub(r"\\\n\s*", "", source())
        texts = [text for texts in local("alerts.tf", "texts").values() if isinstance(texts, list) for text in texts]
        self.assertGreater(len(texts), 4)
        for text in texts:
            self.assertIn(text, written)

    def test_the_roles_are_the_calls_that_the_service_makes(self):
        calls = set()
        for client in ("compute.rs", "cloud_tasks.rs"):
            text = (ROOT / "src/clients" / client).read_text().split("#[cfg(test)]")[0]
            calls |= set(re.findall(r'"((?:instances|zoneOperations|tasks|queues)\.\w+)"', text))
        # A list of all zones needs the same permission as one of a zone; testIamPermissions needs none; and the queue's
        # state is read by `check` alone, which does without it.
        calls = {call.replace("aggregatedList", "list") for call in calls if not call.endswith("testIamPermissions")}
        calls -= {"queues.get"}
        needed = {("cloudtasks." if call.startswith(("tasks", "queues")) else "compute.") + call for call in calls}
        granted = [
            each
            for role in resources("permissions.tf", "google_project_iam_custom_role").values()
            for each in role["permissions"]
        ]
        self.assertEqual(sorted(granted), sorted(needed))

    def test_the_environment_is_the_services(self):
        known = set(re.findall(r"^#? ?([A-Z_]+)=", (ROOT / ".env.example").read_text(), re.M))
        required = set(re.findall(r"^([A-Z_]+)=", (ROOT / ".env.example").read_text(), re.M))
        text = (MODULE / "main.tf").read_text() + (MODULE / "secrets.tf").read_text()
        given = set(re.findall(r"^\s+([A-Z][A-Z_]+)\s+= ", text, re.M))
        self.assertEqual(given - known, set())
        self.assertEqual(required - given, set())

    def test_the_entries_have_the_services_fields(self):
        text = (MODULE / "variables.tf").read_text()
        entry = re.search(r"type = list\(object\(\{\n(.*?)\n  \}\)\)", text, re.S).group(1)
        fields = re.findall(r"^\s+(\w+)\s+=", entry, re.M)
        # The table of RUNNER_CONFIG's fields.
        table = re.search(r"\| `repo` \|.*?\n\n", (ROOT / "docs/configuration.md").read_text(), re.S).group(0)
        documented = re.findall(r"`(\w+)`", "\n".join(row.split("|")[1] for row in table.strip().split("\n")))
        self.assertEqual(sorted(fields), sorted(documented))


class Logged(unittest.TestCase):
    """One life of the service with trouble in it, and what the alerts see of it."""

    @classmethod
    def setUpClass(cls):
        cls.directory = tempfile.TemporaryDirectory()
        cls.addClassCleanup(cls.directory.cleanup)
        cloud = cls.start({}, "dev", "--real-time", "--port", "0", "--cloud-port", "0")
        exports = ""
        for line in cloud.stdout:
            exports += line
            if line.startswith("export GOOGLE_APPLICATION_CREDENTIALS"):
                break
        shell = subprocess.run(
            ["bash", "-c", f"{re.sub('^(?!export ).*$', '', exports, flags=re.M)}\nenv -0"],
            capture_output=True,
            text=True,
        )
        environment = dict(each.split("=", 1) for each in shell.stdout.split("\0") if "=" in each)
        cls.cloud, cls.secret = environment["COMPUTE_API_URL"], environment["RUNNER_MANAGER_SECRET"]
        port = free_port()
        cls.url = f"http://127.0.0.1:{port}"
        service = cls.start(environment | {"PORT": str(port), "K_SERVICE": "runner-manager"})
        cls.cause_trouble()
        service.send_signal(signal.SIGTERM)
        lines = [json.loads(line) for line in service.communicate(timeout=30)[0].splitlines()]
        cls.lines = [line | {"log": "run.googleapis.com/stdout"} for line in lines] + cls.requests

    @classmethod
    def start(cls, environment, *arguments):
        environment = {**os.environ, **environment, "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}
        process = subprocess.Popen(
            [PROGRAM, *arguments], env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )

        def end():
            process.kill()
            process.wait()
            process.stdout.close()

        cls.addClassCleanup(end)
        return process

    @classmethod
    def cause_trouble(cls):
        for _ in range(100):
            if ask(f"{cls.url}/health", method="GET"):
                break
            time.sleep(0.1)
        # Cloud Run's own line for each request, as it documents it.
        cls.requests = []
        for _ in range(3):
            ask(f"{cls.url}/github/webhook", body=b"{}", statuses=cls.requests)
        ask(f"{cls.url}/runner/start", body=b"{}", statuses=cls.requests)
        ask(f"{cls.url}/runner/reconcile", secret=cls.secret)
        cls.requests.append(request_line(f"{cls.url}/runner/stop", 503))
        ask(f"{cls.cloud}/play/forbid?permission=compute.instances.start")
        cls.command("start")
        ask(f"{cls.cloud}/play/permit?permission=compute.instances.start")
        ask(f"{cls.cloud}/play/forbid?permission=compute.instances.get")
        cls.command("start")
        ask(f"{cls.cloud}/play/permit?permission=compute.instances.get")
        cls.command("start")
        ask(f"{cls.cloud}/play/github?outage=true")
        # While it boots it is not looked at.
        for _ in range(60):
            if "unknown" in cls.command("stop"):
                break
            time.sleep(1)

    @classmethod
    def command(cls, which):
        return ask(f"{cls.url}/runner/{which}", body=b'{"vm_instance_name": "gpu-1"}', secret=cls.secret)

    def seen_by(self, expression):
        """The lines that an alert's expression would find: only the forms that ours have are understood."""
        found = self.lines
        for term in expression.split(" AND "):
            negated, term = term.startswith("NOT "), term.removeprefix("NOT ")
            term = re.sub(r'log_id\("(.*)"\)', r'log="\1"', term)
            field, operator, value = re.fullmatch(r'([\w.]+)(=~|>=|=)"?(.*?)"?', term).groups()
            found = [line for line in found if self.holds(line, field, operator, value) != negated]
        return found

    def holds(self, line, field, operator, value):
        # Cloud Logging takes the severity out of the payload.
        actual = line
        for name in field.removeprefix("jsonPayload.").split("."):
            actual = actual.get(name, "")
        if operator == ">=" and field != "severity":
            return actual >= int(value)
        if operator == ">=":
            levels = ["DEBUG", "INFO", "WARNING", "ERROR"]
            return levels.index(actual) >= levels.index(value)
        return bool(re.search(value, actual)) if operator == "=~" else actual == value

    def of_texts(self, alert):
        text = self.where("log_filter") + local("alerts.tf", "log_alerts")[alert]["filter"]
        texts = local("alerts.tf", "texts")
        for name, each in (("start", texts["start"]), ("runner", texts["runner"])):
            text = text.replace(f'${{join("|", local.texts.{name})}}', "|".join(each))
        both = '${join("|", concat(local.texts.start, local.texts.runner))}'
        text = text.replace(both, "|".join(texts["start"] + texts["runner"])).replace('\\"', '"')
        self.assertNotIn("${", text)
        return text

    def of_metric(self, name):
        text = resources("alerts.tf", "google_logging_metric")[name]["filter"]
        for each in ("log_filter", "request_filter"):
            text = text.replace(f"${{local.{each}}} AND ", self.where(each))
        self.assertNotIn("${", text)
        return text.replace('\\"', '"').replace("\\\\", "\\")

    def where(self, name):
        """The part of a filter that names the log."""
        return local("alerts.tf", name).replace("${local.service_filter} AND ", "") + " AND "

    def test_a_start_that_failed_is_seen_with_its_reason(self):
        lines = self.seen_by(self.of_texts("start"))
        self.assertEqual(len(lines), 1, self.lines)
        self.assertIn("compute.instances.start", lines[0]["message"])

    def test_other_errors_are_seen_apart_from_it(self):
        lines = self.seen_by(self.of_texts("error"))
        self.assertTrue(lines)
        self.assertFalse([line for line in lines if "could not be started" in line["message"]])

    def test_a_request_that_cloud_run_answers_with_an_error_is_no_error_of_the_service(self):
        errors = [line for line in self.lines if line["severity"] == "ERROR"]
        self.assertIn("run.googleapis.com/requests", [line["log"] for line in errors])
        for alert in local("alerts.tf", "log_alerts"):
            if alert != "__is_block__":
                logs = {line["log"] for line in self.seen_by(self.of_texts(alert))}
                self.assertLessEqual(logs, {"run.googleapis.com/stdout"})

    def test_a_vm_that_cannot_be_judged_is_seen_by_its_name(self):
        lines = self.seen_by(self.of_metric("unknown"))
        extractor = resources("alerts.tf", "google_logging_metric")["unknown"]["label_extractors"]["vm"]
        field = re.fullmatch(r"EXTRACT\(jsonPayload\.(\w+)\)", extractor).group(1)
        self.assertEqual([line[field] for line in lines], ["gpu-1"])

    def test_each_resync_is_counted_and_nothing_else(self):
        lines = self.seen_by(self.of_metric("resync"))
        self.assertEqual(len(lines), 1, self.lines)

    def test_each_refused_delivery_is_counted_and_nothing_else(self):
        lines = self.seen_by(self.of_metric("refused"))
        self.assertEqual([line["httpRequest"]["status"] for line in lines], [401] * 3)


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def request_line(url, status):
    severity = "ERROR" if status >= 500 else "WARNING" if status >= 400 else "INFO"
    line = {"log": "run.googleapis.com/requests", "severity": severity}
    return line | {"httpRequest": {"requestUrl": url, "status": status}}


def ask(url, method="POST", body=b"", secret=None, statuses=None):
    request = urllib.request.Request(
        url, body if method == "POST" else None, {"X-Runner-Secret": secret} if secret else {}, method=method
    )
    try:
        with urllib.request.urlopen(request, timeout=30) as reply:
            return reply.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            if statuses is not None:
                statuses.append(request_line(url, error.code))
            return error.read().decode()
    except OSError:
        return ""


if __name__ == "__main__":
    unittest.main()
