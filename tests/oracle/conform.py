"""Checks that every request of the service conforms to the published contracts.

The service runs as in production, with a recorder between it and the embedded cloud. The recorded requests are compared
with Google's discovery documents and GitHub's OpenAPI description: path, method, parameters, body.
"""

import base64
import hashlib
import hmac
import http.server
import importlib.resources
import json
import os
import re
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.parse
import urllib.request

import jsonschema

PROGRAM, OPENAPI = sys.argv[1:3]
CLOUD = os.environ["COMPUTE_API_URL"]
SECRET = os.environ["RUNNER_MANAGER_SECRET"]
VM = {"vm_instance_name": "gpu-1", "vm_instance_zone": "asia-northeast1-a"}


class Recorder(http.server.BaseHTTPRequestHandler):
    """Forwards every request to the embedded cloud, and records it."""

    protocol_version = "HTTP/1.1"
    seen = []

    def handle_any(self):
        length = self.headers.get("Content-Length")
        body = self.rfile.read(int(length)) if length else b""
        Recorder.seen.append((self.command, self.path, dict(self.headers), body))
        headers = {k: v for k, v in self.headers.items() if k.lower() not in ("host", "connection", "content-length")}
        request = urllib.request.Request(CLOUD + self.path, data=body or None, headers=headers, method=self.command)
        try:
            answer = urllib.request.urlopen(request)
        except urllib.error.HTTPError as error:
            answer = error
        content = answer.read()
        self.send_response(answer.status)
        for name, value in answer.headers.items():
            if name.lower() not in ("transfer-encoding", "content-length", "connection"):
                self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_POST = handle_any

    def log_message(self, *_):
        pass


def call(url, body=None, headers=None):
    data = json.dumps(body).encode() if body is not None else b""
    request = urllib.request.Request(url, data=data, headers=headers or {}, method="POST")
    try:
        with urllib.request.urlopen(request) as answer:
            return answer.status, json.loads(answer.read()), answer.headers.get("X-Runner-Manager-Outcome")
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read()), None


def drive(service):
    """Makes the service call every API method that it uses."""
    operator = {"X-Runner-Secret": SECRET, "Content-Type": "application/json"}
    task = {**operator, "X-CloudTasks-TaskName": "recorded"}

    def play(path):
        urllib.request.urlopen(urllib.request.Request(f"{CLOUD}/play/{path}", method="POST")).read()

    def webhook(action, job):
        body = {
            "action": action,
            "workflow_job": {"id": job, "labels": ["self-hosted", "gpu"], "runner_name": None},
            "repository": {"full_name": "acme/app"},
        }
        data = json.dumps(body).encode()
        signature = hmac.new(SECRET.encode(), data, hashlib.sha256).hexdigest()
        headers = {"X-GitHub-Event": "workflow_job", "X-Hub-Signature-256": f"sha256={signature}"}
        request = urllib.request.Request(f"{service}/github/webhook", data=data, headers=headers, method="POST")
        with urllib.request.urlopen(request) as answer:
            print(f"  {action}: {answer.headers['X-Runner-Manager-Outcome']}")
            assert json.loads(answer.read()) == {"status": "ok"}

    def post(path, body, headers):
        status, answer, outcome = call(f"{service}{path}", body, headers)
        print(f"  {path}: {status} {answer} {outcome or ''}"[:160])
        assert status == 200, answer
        return answer["status"]

    webhook("queued", 4711)
    time.sleep(1)
    # GitHub does not know the job in evidence, so the pass looks for others.
    play("job?repo=acme/app&labels=self-hosted,gpu,unmatched&seconds=5")
    task_body = {**VM, "job": {"repo": "acme/app", "id": 1, "queued_at": int(time.time())}, "event_at": int(time.time()) - 300}
    post("/runner/start", task_body, task)
    deadline = time.monotonic() + 90
    while post("/runner/start", VM, operator) != "already_running":
        assert time.monotonic() < deadline
        time.sleep(3)
    webhook("completed", 4711)
    post("/runner/stop", {**VM, "unmarked": True}, task)
    post("/runner/stop", {**VM, "force": True}, operator)
    # The calls of the operators' page and of a scheduler, which redelivers a lost webhook.
    post("/runner/hold", VM, operator)
    post("/runner/release", VM, operator)
    request = urllib.request.Request(f"{service}/runner/status", headers=operator)
    with urllib.request.urlopen(request) as answer:
        assert len(json.loads(answer.read())["vms"]) == 2
    play("lose?webhooks=1")
    play("job?repo=acme/app&labels=self-hosted,gpu,unmatched&seconds=5")
    time.sleep(1)
    post("/runner/reconcile", {}, operator)
    # Once the VM is stopped, an operator's pass that nothing supersedes reads why, and starts it.
    deadline = time.monotonic() + 90
    now = int(time.time())
    while post("/runner/start", {**VM, "idle_since": now + 600, "event_at": now}, task) != "starting":
        assert time.monotonic() < deadline
        time.sleep(3)
    # The next test needs a stopped VM.
    post("/runner/stop", {**VM, "force": True}, operator)


def discovery(name):
    documents = importlib.resources.files("googleapiclient.discovery_cache.documents")
    return json.loads((documents / f"{name}.json").read_text())


def methods(resource):
    yield from resource.get("methods", {}).values()
    for child in resource.get("resources", {}).values():
        yield from methods(child)


def closed(schema, schemas):
    """Converts a discovery schema to a JSON schema without additional properties."""
    if "$ref" in schema:
        return closed(schemas[schema["$ref"]], schemas)
    out = {k: schema[k] for k in ("type", "enum", "pattern") if k in schema and schema[k] != "any"}
    if schema.get("format") in ("int64", "uint64", "byte", "google-datetime", "google-duration"):
        out["type"] = "string"
    if "items" in schema:
        out["items"] = closed(schema["items"], schemas)
    if "properties" in schema:
        out["properties"] = {name: closed(child, schemas) for name, child in schema["properties"].items()}
        out["additionalProperties"] = False
    elif "additionalProperties" in schema:
        out["additionalProperties"] = closed(schema["additionalProperties"], schemas)
    return out


def check_google(document, request):
    verb, target, headers, body = request
    path, _, query = target.partition("?")
    for method in methods(document):
        template = "/" + document["servicePath"] + method["path"]
        parts = re.split(r"\{(\+?)(\w+)\}", template)
        pattern = "".join(
            re.escape(part) if index % 3 == 0 else "" if index % 3 == 1 else f"(?P<{part}>{'.+' if parts[index - 1] else '[^/]+'})"
            for index, part in enumerate(parts)
        )
        found = re.fullmatch(pattern, path)
        if not found or method["httpMethod"] != verb:
            continue
        known = {**document["parameters"], **method["parameters"]}
        values = {k: urllib.parse.unquote(v) for k, v in found.groupdict().items()}
        # Methods of several resources have the path `{+name}`; the parameter's pattern decides.
        if not all(re.fullmatch(known[name].get("pattern", ".+"), value) for name, value in values.items()):
            continue
        given = dict(urllib.parse.parse_qsl(query, strict_parsing=True)) if query else {}
        for name, value in {**values, **given}.items():
            assert name in known, f"{method['id']} has no parameter {name}"
            if known[name]["type"] == "boolean":
                assert value in ("true", "false"), (name, value)
            if known[name]["type"] == "integer":
                int(value)
            if "pattern" in known[name]:
                assert re.fullmatch(known[name]["pattern"], value), (name, value)
        if "request" in method:
            schema = closed(method["request"], document["schemas"])
            parsed = json.loads(body)
            jsonschema.validate(parsed, schema)
            assert headers.get("content-type", headers.get("Content-Type")) == "application/json"
            if method["id"].endswith("tasks.create"):
                base64.b64decode(parsed["task"]["httpRequest"]["body"], validate=True)
        else:
            assert not body, f"{method['id']} takes no body"
        if verb == "POST":
            assert "content-length" in {name.lower() for name in headers}, "Google requires it (411)"
        return method["id"]
    raise AssertionError(f"no method of {document['name']} is {verb} {path}")


def check_github(document, request):
    verb, target, headers, body = request
    path, _, query = target.partition("?")
    lower = {name.lower(): value for name, value in headers.items()}
    for template, item in document["paths"].items():
        pattern = re.sub(r"\\\{\w+\\\}", "[^/]+", re.escape(template))
        operation = item.get(verb.lower())
        if operation is None or not re.fullmatch(pattern, path):
            continue
        known = {}
        for parameter in operation.get("parameters", []):
            if "$ref" in parameter:
                parameter = document["components"]["parameters"][parameter["$ref"].split("/")[-1]]
            known[parameter["name"]] = parameter
        for name, value in urllib.parse.parse_qsl(query, strict_parsing=True) if query else []:
            assert name in known, f"{operation['operationId']} has no parameter {name}"
            schema = known[name]["schema"]
            if schema.get("type") == "integer":
                value = int(value)
            elif schema.get("type") == "boolean":
                value = {"true": True, "false": False}[value]
            jsonschema.validate(value, schema)
        assert lower["x-github-api-version"] == "2022-11-28" and "runner-manager" in lower["user-agent"], lower
        assert not body or json.loads(body) is not None
        return operation["operationId"]
    raise AssertionError(f"GitHub has no {verb} {path}")


def main():
    recorder = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Recorder)
    threading.Thread(target=recorder.serve_forever, daemon=True).start()
    between = f"http://127.0.0.1:{recorder.server_port}"
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Recorder) as probe:
        port = probe.server_port
    environment = {
        **os.environ,
        "PORT": str(port),
        # Callbacks go to the demo's service, which has the same secret and fleet.
        "COMPUTE_API_URL": between,
        "CLOUD_TASKS_API_URL": between,
        "GITHUB_API_URL": between,
    }
    service = subprocess.Popen([PROGRAM], env=environment, stderr=subprocess.DEVNULL)
    try:
        for _ in range(100):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health").read()
                break
            except OSError:
                time.sleep(0.05)
        drive(f"http://127.0.0.1:{port}")
        checked = subprocess.run([PROGRAM, "check", "--json"], env=environment, stdout=subprocess.PIPE, check=True)
        outcomes = {finding["outcome"] for finding in json.loads(checked.stdout)}
        print(f"  check: {', '.join(sorted(outcomes))}")
        assert "ok" in outcomes and "not_asked" not in outcomes, checked.stdout
    finally:
        service.terminate()
        assert service.wait() == 0

    compute, tasks = discovery("compute.v1"), discovery("cloudtasks.v2")
    with open(OPENAPI) as file:
        github = json.load(file)
    used = {}
    for request in Recorder.seen:
        path = request[1]
        if path.startswith("/compute/"):
            name = check_google(compute, request)
        elif path.startswith("/v2/"):
            name = check_google(tasks, request)
        else:
            name = check_github(github, request)
        used[name] = used.get(name, 0) + 1
    for name, count in sorted(used.items()):
        print(f"  {count:3} x {name}")
    expected = {
        "compute.instances.get",
        "compute.instances.start",
        "compute.instances.stop",
        "compute.instances.setLabels",
        "compute.instances.aggregatedList",
        "compute.instances.testIamPermissions",
        "compute.zoneOperations.list",
        "cloudtasks.projects.locations.queues.get",
        "cloudtasks.projects.locations.queues.testIamPermissions",
        "cloudtasks.projects.locations.queues.tasks.create",
        "apps/create-installation-access-token",
        "apps/get-webhook-config-for-app",
        "apps/list-webhook-deliveries",
        "apps/redeliver-webhook-delivery",
        "apps/get-authenticated",
        "apps/get-installation",
        "apps/get-repo-installation",
        "repos/get",
        "actions/list-self-hosted-runners-for-repo",
        "actions/list-self-hosted-runners-for-org",
        "actions/list-workflow-runs-for-repo",
        "actions/list-jobs-for-workflow-run",
        "actions/get-job-for-workflow-run",
    }
    missing = expected - set(used)
    assert not missing, f"these methods were not called: {missing}"


main()
