"""Calls the embedded cloud with Google's clients and PyGithub, as the service does with its own clients."""

import os
import time
import urllib.parse
import urllib.request

from github import Auth, Github, GithubException
from google.api_core import exceptions
from google.api_core.client_options import ClientOptions
from google.auth.transport.requests import Request
from google.cloud import compute_v1, tasks_v2
from google.oauth2 import service_account
from google.oauth2.credentials import Credentials
from google.protobuf import duration_pb2, timestamp_pb2

CLOUD = os.environ["COMPUTE_API_URL"]
PROJECT = os.environ["GCP_PROJECT_ID"]
ZONE = "asia-northeast1-a"
VM = dict(project=PROJECT, zone=ZONE, instance="gpu-1")
QUEUE = f"projects/{PROJECT}/locations/{os.environ['CLOUD_TASK_LOCATION']}/queues/{os.environ['CLOUD_TASK_QUEUE_NAME']}"

# google-auth exchanges a signed assertion at the embedded token endpoint. With the account itself the clients would send
# self-signed tokens, which the service never does.
account = service_account.Credentials.from_service_account_file(
    os.environ["GOOGLE_APPLICATION_CREDENTIALS"], scopes=["https://www.googleapis.com/auth/cloud-platform"]
)
account.refresh(Request())
credentials = Credentials(token=account.token)
options = ClientOptions(api_endpoint=CLOUD)


def play(path, **query):
    """Calls a /play endpoint of `runner-manager dev`."""
    url = f"{CLOUD}/play/{path}?{urllib.parse.urlencode(query)}"
    return urllib.request.urlopen(urllib.request.Request(url, method="POST")).read().decode()


def expect(error, call):
    try:
        call()
    except error as raised:
        print(f"  {type(raised).__name__}: {raised}".split("\n")[0][:150])
        return raised
    raise AssertionError(f"expected {error}")


def until(condition, holds, seconds=90):
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, f"not within {seconds} s: {condition}"
        time.sleep(0.5)
    print(f"  {condition}")


def compute():
    instances = compute_v1.InstancesClient(credentials=credentials, client_options=options)
    operations = compute_v1.ZoneOperationsClient(credentials=credentials, client_options=options)

    instance = instances.get(**VM)
    assert (instance.name, instance.status) == ("gpu-1", "TERMINATED"), instance
    assert instance.id > 0 and instance.label_fingerprint and instance.disks[0].type_ == "PERSISTENT", instance

    labels = compute_v1.InstancesSetLabelsRequest(
        labels={**instance.labels, "team": "infra"}, label_fingerprint=instance.label_fingerprint
    )
    operation = instances.set_labels_unary(instances_set_labels_request_resource=labels, **VM)
    assert operation.operation_type == "setLabels", operation
    assert instances.get(**VM).labels["team"] == "infra"
    # The fingerprint is outdated now.
    expect(
        exceptions.PreconditionFailed,
        lambda: instances.set_labels_unary(instances_set_labels_request_resource=labels, **VM),
    )

    operation = instances.start_unary(**VM)
    assert operation.operation_type == "start" and operation.name.startswith("operation-"), operation
    assert operations.get(project=PROJECT, zone=ZONE, operation=operation.name).name == operation.name
    until("gpu-1 is RUNNING", lambda: instances.get(**VM).status == "RUNNING")
    listed = operations.list(
        request=compute_v1.ListZoneOperationsRequest(
            project=PROJECT, zone=ZONE, filter=f"targetId={instance.id}", max_results=10
        )
    )
    assert "start" in {item.operation_type for item in listed}
    until(
        "the start is DONE",
        lambda: operations.get(project=PROJECT, zone=ZONE, operation=operation.name).status == compute_v1.Operation.Status.DONE,
    )

    def permitted(**more):
        names = compute_v1.TestPermissionsRequest(permissions=["compute.instances.get", "compute.instances.stop"])
        held = instances.test_iam_permissions(test_permissions_request_resource=names, **more)
        return list(held.permissions)

    resource = dict(project=PROJECT, zone=ZONE, resource="gpu-1")
    assert permitted(**resource) == ["compute.instances.get", "compute.instances.stop"]
    expect(exceptions.NotFound, lambda: permitted(**{**resource, "resource": "missing"}))

    expect(exceptions.BadRequest, lambda: instances.resume_unary(**VM))
    expect(exceptions.NotFound, lambda: instances.get(**{**VM, "instance": "missing"}))
    expect(exceptions.NotFound, lambda: instances.start_unary(**{**VM, "instance": "missing"}))
    play("forbid", permission="compute.instances.stop")
    expect(exceptions.Forbidden, lambda: instances.stop_unary(**VM))
    assert permitted(**resource) == ["compute.instances.get"]
    play("permit", permission="compute.instances.stop")

    request = compute_v1.StopInstanceRequest(
        request_id="0f0e0d0c-1111-4222-8333-444455556666", no_graceful_shutdown=True, **VM
    )
    first, again = instances.stop_unary(request), instances.stop_unary(request)
    assert first.name == again.name, "a repeated request id is one stop"
    until("gpu-1 is TERMINATED", lambda: instances.get(**VM).status == "TERMINATED")


def tasks():
    client = tasks_v2.CloudTasksClient(credentials=credentials, client_options=options, transport="rest")
    due = timestamp_pb2.Timestamp()
    due.FromSeconds(int(time.time()) + 3600)

    def task(name, **more):
        request = tasks_v2.HttpRequest(
            url="http://127.0.0.1:1/runner/stop",
            http_method=tasks_v2.HttpMethod.POST,
            headers={"X-Runner-Secret": "s"},
            body=b"{}",
        )
        deadline = duration_pb2.Duration(seconds=60)
        fields = dict(name=f"{QUEUE}/tasks/{name}", http_request=request, schedule_time=due, dispatch_deadline=deadline)
        return tasks_v2.Task(**{**fields, **more})

    created = client.create_task(parent=QUEUE, task=task("one"))
    assert created.name == f"{QUEUE}/tasks/one" and created.schedule_time == task("one").schedule_time, created
    assert [listed.name for listed in client.list_tasks(parent=QUEUE) if listed.name.endswith("/one")]
    expect(exceptions.Conflict, lambda: client.create_task(parent=QUEUE, task=task("one")))
    client.delete_task(name=created.name)
    expect(exceptions.Conflict, lambda: client.create_task(parent=QUEUE, task=task("one")))
    expect(exceptions.NotFound, lambda: client.get_task(name=f"{QUEUE}/tasks/never"))
    expect(exceptions.BadRequest, lambda: client.create_task(parent=QUEUE, task=task("not a name!")))
    short = duration_pb2.Duration(seconds=1)
    expect(exceptions.BadRequest, lambda: client.create_task(parent=QUEUE, task=task("two", dispatch_deadline=short)))
    nowhere = QUEUE.replace("runner-manager", "nowhere")
    elsewhere = task("three")
    elsewhere.name = f"{nowhere}/tasks/three"
    expect(exceptions.NotFound, lambda: client.create_task(parent=nowhere, task=elsewhere))
    assert client.get_queue(name=QUEUE).state == tasks_v2.Queue.State.RUNNING
    names = ["cloudtasks.tasks.create"]
    held = client.test_iam_permissions({"resource": QUEUE, "permissions": names})
    assert list(held.permissions) == names
    assert not client.test_iam_permissions({"resource": nowhere, "permissions": names}).permissions


def github():
    app = Auth.AppAuth(os.environ["GITHUB_APP_ID"], os.environ["GITHUB_APP_PRIVATE_KEY"])
    installation = app.get_installation_auth(int(os.environ["GITHUB_APP_INSTALLATION_ID"]))
    client = Github(auth=installation, base_url=CLOUD, per_page=100, retry=None)
    repository = client.get_repo("acme/app")
    assert repository.full_name == "acme/app"
    runners = {runner.name: runner for runner in repository.get_self_hosted_runners()}
    assert set(runners) == {"gpu-1", "runner-1"}, runners
    assert "gpu" in {label["name"] for label in runners["gpu-1"].raw_data["labels"]}

    print(" ", play("job", repo="acme/app", labels="self-hosted,unmatched", seconds=5).strip())
    (run,) = repository.get_workflow_runs(status="queued")
    (job,) = run.jobs()
    assert job.status == "queued" and job.raw_data["labels"] == ["self-hosted", "unmatched"], job.raw_data

    expect(GithubException, lambda: client.get_repo("acme/nowhere")).status == 404
    play("forbid", permission="administration")
    assert expect(GithubException, lambda: list(repository.get_self_hosted_runners())).status == 403
    play("permit", permission="administration")


compute()
tasks()
github()
