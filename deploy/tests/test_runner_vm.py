"""The runner VM's script, run for real against stand-ins for what surrounds it.

A server on loopback is the metadata server, the service and GitHub's releases. The runner's programs are stand-ins that
do and say what the runner's own do. Whatever a test is about, no token may be left in a file or a log.
"""

import hashlib
import http.server
import io
import json
import os
import pathlib
import pwd
import re
import shutil
import signal
import subprocess
import tarfile
import tempfile
import threading
import time
import unittest

SCRIPT = pathlib.Path(__file__).parents[1] / "terraform/runner-vm/files/runner-vm.sh"
USER = pwd.getpwuid(os.getuid()).pw_name
IDENTITY = "identity-token-of-this-vm"
TOKEN = "REGISTRATION-TOKEN-%d"
DELETED = (
    "Failed to create a session. The runner registration has been deleted from the server, please re-configure. "
    "Runner registrations are automatically deleted for runners that have not connected to the service recently."
)
DEPRECATED = "An error occured: Runner version v2.300.0 is deprecated and cannot receive messages."

# Says what it was told and what it saw, by which the tests know; then blurts its token out, which must not get through.
CONFIG_SH = """#!/bin/bash
if [[ -e .runner ]]; then echo "Cannot configure the runner because it is already configured."; exit 1; fi
printf '%s' "$ACTIONS_RUNNER_INPUT_TOKEN" | sha256sum | cut -c-64 >>"$SEEN/tokens"
printf '%s\\n' "$*" >>"$SEEN/configured"
for process in /proc/[0-9]*; do tr '\\0' ' ' <"$process/cmdline"; echo; done >>"$SEEN/processes" 2>/dev/null
grep --recursive --files-with-matches --fixed-strings "$ACTIONS_RUNNER_INPUT_TOKEN" "$ROOT" >>"$SEEN/leaks"
echo "using $ACTIONS_RUNNER_INPUT_TOKEN to register"
if [[ -e $SEEN/config-fails ]]; then exit 1; fi
echo '{"agentName": "runner-1"}' >.runner
touch .credentials
"""

# The runner's start script as it is with RUNNER_MANUALLY_TRAP_SIG: each signal reaches the helper's process group as
# SIGINT, and the script stays until the helper has ended.
RUN_SH = """#!/bin/bash
cd "$(dirname "$0")"
set -m
trap 'kill -INT -$helper' INT TERM
while true; do
  ./run-helper.sh &
  helper=$!
  wait $helper
  code=$?
  if ((code == 2)); then continue; fi
  echo "Exiting runner..."
  trap - INT TERM
  wait $helper
  exit $code
done
"""

RUN_HELPER_SH = """#!/bin/bash
./bin/Runner.Listener run
code=$?
if ((code == 1)); then echo "Runner listener exit with terminated error, stop the service, no retry needed."; fi
exit 0
"""

# Lines that the listener says are in $SEEN/says; without them it works until it is told to stop. Like .NET, bash leaves
# a signal alone that was ignored when it started.
LISTENER = """#!/bin/bash
# version %s
echo started >>"$SEEN/runs"
env >"$SEEN/environment"
sed -n 's/^SigIgn:[[:space:]]*//p' /proc/self/status >>"$SEEN/ignored"
if [[ -s $SEEN/says ]]; then
  cat "$SEEN/says"
  rm "$SEEN/says"
  exit 1
fi
trap 'echo signed off >>"$SEEN/runs"; exit 0' INT
echo "Listening for Jobs"
while true; do /bin/sleep 0.05; done
"""

INSTALL_DEPENDENCIES = """#!/bin/bash
echo "$0" >>"$SEEN/dependencies"
if [[ -s $SEEN/dependencies-fail ]]; then sed -i 1d "$SEEN/dependencies-fail"; exit 1; fi
"""

SLEEP = """#!/bin/bash
echo "$1" >>"$SEEN/sleeps"
exec /bin/sleep 0.01
"""


class Surroundings(http.server.ThreadingHTTPServer):
    """The metadata server, the service and GitHub, as one."""

    daemon_threads = True

    def __init__(self, host="127.0.0.1", port=0):
        super().__init__((host, port), Handler)
        self.url = f"http://{host}:{self.server_port}"
        self.attributes = {"runner-manager-url": self.url + "/", "runner-user": USER}
        self.metadata_late = 0  # so many requests are turned away first
        self.service_account = True
        self.preemptible = "FALSE"
        self.answers = []  # of the service, before it is fine: (status, body)
        self.registration = {"url": "https://github.com/acme/app", "name": "runner-1", "labels": ["self-hosted", "gpu"]}
        self.registrations = []
        self.wish = {}
        self.identity_in_processes = False
        self.releases = {"latest": "2.400.0"}
        self.archive = archive("2.400.0")
        self.digest = hashlib.sha256(self.archive).hexdigest()
        self.downloads = 0
        threading.Thread(target=self.serve_forever, daemon=True).start()


class Handler(http.server.BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def answer(self, status, body=b""):
        body = body if isinstance(body, bytes) else body.encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        path = self.path
        if path.startswith("/computeMetadata/v1/"):
            return self.metadata(path.removeprefix("/computeMetadata/v1/"))
        if path.startswith("/repos/actions/runner/releases/"):
            version = self.server.releases.get(path.rsplit("/", 1)[1])
            if version is None:
                return self.answer(404)
            file = f"actions-runner-{platform()}-{version}.tar.gz"
            assets = [{"name": "other.tar.gz", "digest": "sha256:" + "0" * 64}]
            assets.append({"name": file, "digest": "sha256:" + self.server.digest})
            return self.answer(200, json.dumps({"tag_name": "v" + version, "assets": assets}))
        if path == "/ops-agent.sh":
            return self.answer(200, '#!/bin/bash\necho "$*" >>"$SEEN/ops-agent"\n')
        if path.startswith("/actions/runner/releases/download/"):
            self.server.downloads += 1
            return self.answer(200, self.server.archive)
        return self.answer(404)

    def metadata(self, path):
        server = self.server
        if server.metadata_late > 0:
            server.metadata_late -= 1
            return self.answer(503)
        if self.headers["Metadata-Flavor"] != "Google":
            return self.answer(403)
        if path == "instance/name":
            return self.answer(200, "vm-name")
        if path == "instance/scheduling/preemptible":
            return self.answer(200, server.preemptible)
        if path.startswith("instance/attributes/"):
            value = server.attributes.get(path.removeprefix("instance/attributes/"))
            return self.answer(404) if value is None else self.answer(200, value)
        if path == f"instance/service-accounts/default/identity?audience={server.url}&format=full":
            return self.answer(200, IDENTITY) if server.service_account else self.answer(404)
        return self.answer(404)

    def do_POST(self):
        server = self.server
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.path != "/runner/registration" or json.loads(body) != server.wish:
            return self.answer(404)
        if self.headers["Authorization"] != f"Bearer {IDENTITY}":
            return self.answer(401)
        if any(IDENTITY in line for line in processes()):
            server.identity_in_processes = True
        if server.answers:
            return self.answer(*server.answers.pop(0))
        token = TOKEN % len(server.registrations)
        server.registrations.append(token)
        expires = {"token": token, "expires_at": "2026-11-25T12:00:00Z"}
        return self.answer(200, json.dumps(server.registration | expires))


def processes():
    for process in pathlib.Path("/proc").glob("[0-9]*/cmdline"):
        try:
            yield process.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            pass


def platform():
    return {"x86_64": "linux-x64", "aarch64": "linux-arm64"}[os.uname().machine]


def archive(version):
    """The archive of a version, with the files that the script uses."""
    packed = io.BytesIO()
    files = {"config.sh": CONFIG_SH, "run.sh": RUN_SH, "run-helper.sh": RUN_HELPER_SH}
    files |= {"bin/Runner.Listener": LISTENER % version, "bin/installdependencies.sh": INSTALL_DEPENDENCIES}
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        for name, text in files.items():
            info = tarfile.TarInfo("./" + name)
            info.size, info.mode = len(text), 0o755
            tar.addfile(info, io.BytesIO(text.encode()))
    return packed.getvalue()


class Surrounded(unittest.TestCase):
    """The script with all that surrounds it, in a directory of its own."""

    user = USER

    def setUp(self):
        self.root = pathlib.Path(tempfile.mkdtemp())
        self.addCleanup(shutil.rmtree, self.root)
        self.around = Surroundings()
        self.addCleanup(self.around.server_close)
        self.addCleanup(self.around.shutdown)
        self.around.attributes["runner-user"] = self.user
        self.seen, self.bin = self.root / "seen", self.root / "bin"
        self.state, self.runner = self.root / "run/runner-vm", self.root / "var/lib/runner/actions-runner"
        self.own = self.root / "var/lib/runner-vm"
        for directory in (self.seen, self.bin, self.state, self.runner, self.own, self.root / "tmp"):
            directory.mkdir(parents=True)
        self.log = ""
        self.stand_in("sleep", SLEEP)
        for name in ("systemctl", "apt-get", "useradd", "usermod", "update-ca-certificates"):
            self.stand_in(name, f'#!/bin/bash\necho "{name} $*" >>"$SEEN/commands"\n')
        self.stand_in("dpkg-query", "#!/bin/bash\necho 'install ok installed'\n")
        self.stand_in("dpkg", "#!/bin/bash\n")
        with tarfile.open(fileobj=io.BytesIO(self.around.archive)) as tar:
            tar.extractall(self.runner, filter="data")
        shutil.copy(self.runner / "bin/installdependencies.sh", self.own)
        (self.own / "dependencies").write_text(hashlib.sha256(INSTALL_DEPENDENCIES.encode()).hexdigest() + "  -\n")
        (self.own / "version").write_text("2.400.0\n")
        self.environment = {
            "PATH": f"{self.bin}:{os.environ['PATH']}",
            "SEEN": str(self.seen),
            "ROOT": str(self.root),
            "TMPDIR": str(self.root / "tmp"),
            "RUNNER_VM_ROOT": str(self.root),
            "RUNNER_VM_METADATA": self.around.url,
            "RUNNER_VM_GITHUB": self.around.url,
            "RUNNER_VM_GITHUB_API": self.around.url,
            "RUNNER_VM_OPS_AGENT": self.around.url + "/ops-agent.sh",
            "no_proxy": "127.0.0.1",
        }

    def tearDown(self):
        secrets = [IDENTITY] + self.around.registrations
        for secret in secrets:
            self.assertNotIn(secret, self.log)
            for file in self.root.rglob("*"):
                if file.is_file():
                    self.assertNotIn(secret.encode(), file.read_bytes(), file)
        self.assertEqual(self.read("leaks"), "", "the token was in a file while config.sh ran")
        self.assertFalse(self.around.identity_in_processes)

    def stand_in(self, name, text):
        (self.bin / name).write_text(text)
        (self.bin / name).chmod(0o755)

    def read(self, name):
        file = self.seen / name
        return file.read_text() if file.exists() else ""

    def registered(self):
        (self.runner / ".runner").write_text("{}")

    def script(self, command):
        """Runs a command of the script to its end."""
        done = subprocess.run(
            [SCRIPT, command], env=self.environment | self.for_run(command), capture_output=True, text=True, timeout=60
        )
        self.log += done.stdout + done.stderr
        return done.returncode

    def for_run(self, command):
        """The unit's EnvironmentFile, as systemd reads it."""
        file = self.own / "environment"
        if command != "run" or not file.exists():
            return {}
        lines = re.findall(r'^(\w+)="(.*)"$', file.read_text(), re.M)
        self.assertEqual(len(lines), len(file.read_text().splitlines()))
        return {name: re.sub(r"\\(.)", r"\1", value) for name, value in lines}

    def service(self):
        """Starts the service as systemd does, and lets its runner run to its end. The code of what failed, or 0."""
        return self.script("prepare") or self.script("register") or self.script("run")

    def up(self):
        """Runs the service until its runner listens, then shuts it down as systemd does. Its log."""
        before = len(self.log)
        self.assertEqual(self.script("prepare") or self.script("register"), 0, self.log)
        service = subprocess.Popen(
            [SCRIPT, "run"],
            env=self.environment | self.for_run("run"),
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        # A script that hangs is a failure, not a wait.
        watchdog = threading.Timer(20, lambda: os.killpg(service.pid, signal.SIGKILL))
        watchdog.start()
        self.addCleanup(watchdog.cancel)
        log = ""
        for line in service.stderr:
            log += line
            if "Listening for Jobs" in line:
                service.send_signal(signal.SIGTERM)
        service.stderr.close()
        self.assertEqual(service.wait(timeout=30), 0, log)
        self.log += log
        return self.log[before:]


class RunnerVm(Surrounded):
    # -- registration ----------------------------------------------------------------------------------------------

    def test_the_first_boot_registers_the_second_does_not(self):
        self.up()
        self.assertEqual(
            self.read("configured"),
            "--unattended --replace --url https://github.com/acme/app --name runner-1 --work _work "
            "--labels self-hosted,gpu\n",
        )
        token = hashlib.sha256(self.around.registrations[0].encode()).hexdigest()
        self.assertEqual(self.read("tokens").strip(), token)
        self.up()
        self.assertEqual(len(self.around.registrations), 1)
        self.assertEqual(self.read("runs"), "started\nsigned off\n" * 2)

    def test_no_list_of_processes_shows_the_token(self):
        log = self.up()
        self.assertIn("config.sh", self.read("processes"))
        self.assertNotIn(self.around.registrations[0], self.read("processes"))
        self.assertIn("using [token] to register", log)

    def test_a_runner_that_github_removed_is_registered_again(self):
        self.registered()
        (self.seen / "says").write_text(DELETED + "\n")
        self.assertEqual(self.service(), 1)
        self.assertEqual(self.around.registrations, [])
        self.up()
        self.assertEqual(len(self.around.registrations), 1)
        self.up()
        self.assertEqual(len(self.around.registrations), 1)

    def test_a_runner_that_ends_for_another_reason_keeps_its_registration(self):
        self.registered()
        (self.seen / "says").write_text("Runner connect error: The HTTP request timed out.\n")
        self.assertEqual(self.service(), 1)
        self.up()
        self.assertEqual(self.around.registrations, [])

    def test_a_registered_runner_needs_no_service(self):
        self.registered()
        del self.around.attributes["runner-manager-url"]
        self.up()
        self.assertEqual(self.around.registrations, [])

    def test_without_a_service_it_says_how_to_register_by_hand(self):
        del self.around.attributes["runner-manager-url"]
        self.assertEqual(self.service(), 1)
        self.assertIn("no runner-manager-url is set", self.log)
        self.assertIn("./config.sh --unattended --replace --url https://github.com/OWNER/REPO --name vm-name", self.log)
        self.assertEqual(self.read("sleeps"), "600\n")

    def test_the_vms_own_settings_stand_in_for_what_the_service_leaves_out(self):
        self.around.registration = {"url": "https://github.com/acme", "labels": []}
        self.around.attributes |= {"runner-labels": "gpu,big", "runner-group": "builders"}
        self.up()
        self.assertIn("--url https://github.com/acme --name vm-name", self.read("configured"))
        self.assertIn("--labels gpu,big --runnergroup builders\n", self.read("configured"))

    def test_a_vm_of_several_repositories_says_which_one(self):
        self.around.attributes["runner-repository"] = "acme/app"
        self.around.wish = {"repo": "acme/app"}
        self.up()
        self.assertEqual(len(self.around.registrations), 1)

    def test_it_waits_for_a_metadata_server_that_is_late(self):
        self.around.metadata_late = 3
        log = self.up()
        self.assertIn("the metadata server: not yet; again in 4 s", log)
        self.assertEqual(len(self.around.registrations), 1)

    def test_it_does_not_wait_for_ever(self):
        self.around.metadata_late = 10**6
        self.assertEqual(self.script("register"), 1)
        waited = [float(pause) for pause in self.read("sleeps").split()]
        self.assertTrue(300 <= sum(waited) <= 330, waited)
        self.assertIn("the metadata server: given up after", self.log)

    def test_it_asks_again_when_the_service_is_down_or_has_had_enough(self):
        self.around.answers = [(503, '{"detail": "shutting down: ask again"}'), (429, ""), (500, "<html>")]
        log = self.up()
        self.assertIn("answered 503: shutting down: ask again", log)
        self.assertEqual(self.read("sleeps").split()[:3], ["1", "2", "4"])
        self.assertEqual(len(self.around.registrations), 1)

    def test_a_refusal_is_final_for_a_while_and_says_what_to_do(self):
        self.around.answers = [(403, '{"detail": "no entry names this VM"}')]
        self.assertEqual(self.service(), 1)
        self.assertIn("refused with 403: no entry names this VM", self.log)
        self.assertIn("RUNNER_CONFIG", self.log)
        self.assertIn("By hand", self.log)
        self.assertEqual(self.read("sleeps"), "600\n")
        self.assertEqual(self.read("configured"), "")
        self.up()
        self.assertEqual(len(self.around.registrations), 1)

    def test_every_refusal_has_its_own_advice(self):
        for status, advice in ((401, "CLOUD_RUN_SERVICE_URL"), (404, "new enough")):
            self.around.answers = [(status, '{"detail": "no"}')]
            self.log = ""
            self.assertEqual(self.service(), 1)
            self.assertIn(advice, self.log)

    def test_a_refused_runner_keeps_its_registration_for_its_owner_to_see(self):
        self.registered()
        (self.state / "unknown-to-github").touch()
        self.around.answers = [(403, '{"detail": "no entry names this VM"}')]
        self.assertEqual(self.service(), 1)
        self.assertTrue((self.runner / ".runner").exists())

    def test_a_service_that_is_not_there_yet_is_asked_again_soon(self):
        page = "<html><title>404 Page not found</title></html>"
        self.around.answers = [(404, page), (403, page), (404, ""), (403, '{"error": {"code": 403}}')]
        log = self.up()
        self.assertIn("answered 404 without a reason", log)
        self.assertEqual(self.read("sleeps").split()[:4], ["1", "2", "4", "8"])
        self.assertEqual(len(self.around.registrations), 1)

    def test_the_labels_that_github_adds_are_left_out_where_asked(self):
        self.around.attributes["runner-default-labels"] = "false"
        self.up()
        self.assertIn("--labels self-hosted,gpu --no-default-labels\n", self.read("configured"))

    def test_a_vm_without_a_service_account_is_told_so(self):
        self.around.service_account = False
        self.assertEqual(self.service(), 1)
        self.assertIn("has no service account", self.log)

    def test_an_answer_that_was_not_agreed_on_is_no_registration(self):
        for nonsense in ("", "hello", "[]", "{}", '{"url": 1, "token": ["x"]}'):
            self.around.answers = [(200, nonsense)]
            self.assertEqual(self.service(), 1, nonsense)
        self.assertEqual(self.log.count("lacks url or token"), 5)
        self.assertEqual(self.read("configured"), "")

    def test_registrations_that_do_not_help_become_rare(self):
        (self.seen / "config-fails").touch()
        for _ in range(8):
            self.assertEqual(self.service(), 1)
        pauses = [pause for pause in self.read("sleeps").split() if float(pause) >= 1]
        self.assertEqual(pauses, ["30", "60", "120", "240", "480", "600", "600"])
        self.assertIn("config.sh failed", self.log)

    def test_a_pause_ends_when_the_vm_is_shut_down(self):
        self.stand_in("sleep", "#!/bin/bash\nexec /bin/sleep 60\n")
        del self.around.attributes["runner-manager-url"]
        service = subprocess.Popen(
            [SCRIPT, "register"], env=self.environment, stderr=subprocess.PIPE, text=True, start_new_session=True
        )
        for line in service.stderr:
            if "systemctl restart" in line:
                break
        time.sleep(0.2)
        service.send_signal(signal.SIGTERM)
        self.assertEqual(service.wait(timeout=10), 0)
        os.killpg(service.pid, signal.SIGKILL)
        service.stderr.close()

    # -- the runner -------------------------------------------------------------------------------------------------

    def test_the_runner_is_asked_to_sign_off_and_does_not_ignore_it(self):
        self.registered()
        log = self.up()
        self.assertEqual(self.read("runs"), "started\nsigned off\n")
        self.assertIn("the runner has signed off", log)
        ignored = int(self.read("ignored"), 16)
        for each in (signal.SIGINT, signal.SIGQUIT, signal.SIGTERM):
            self.assertFalse(ignored >> (each - 1) & 1, each)

    # -- the runner's program --------------------------------------------------------------------------------------

    def nothing_installed(self):
        for directory in (self.runner, self.own):
            shutil.rmtree(directory)
            directory.mkdir()

    def aged(self, days):
        then = time.time() - days * 86400
        os.utime(self.own / "version", (then, then))

    def version(self):
        return (self.own / "version").read_text().strip()

    def test_the_newest_runner_is_installed_once(self):
        self.nothing_installed()
        self.assertEqual(self.script("prepare"), 0, self.log)
        self.assertEqual(self.script("prepare"), 0, self.log)
        self.assertEqual((self.version(), self.around.downloads), ("2.400.0", 1))
        self.assertTrue((self.runner / "bin/Runner.Listener").exists())
        self.assertEqual(self.read("dependencies"), f"{self.own}/installdependencies.sh\n")
        self.assertFalse((self.own / "unpacked").exists() or (self.own / "archive").exists())

    def test_an_archive_with_another_checksum_is_not_installed(self):
        self.nothing_installed()
        self.around.archive += b"tampered with"
        self.assertNotEqual(self.script("prepare"), 0)
        self.assertIn("does not have the checksum", self.log)
        self.assertEqual(list(self.runner.iterdir()), [])

    def test_a_pinned_runner_is_checked_against_the_checksum_that_was_given(self):
        self.nothing_installed()
        self.around.attributes |= {"runner-version": "2.390.0", "runner-sha256": "0" * 64}
        self.assertNotEqual(self.script("prepare"), 0)
        self.around.attributes["runner-sha256"] = self.around.digest
        self.assertEqual(self.script("prepare"), 0, self.log)
        self.assertEqual(self.version(), "2.390.0")

    def test_a_runner_that_slept_long_is_renewed_before_it_connects(self):
        self.registered()
        self.around.releases["latest"] = "2.410.0"
        self.assertEqual(self.script("prepare"), 0)
        self.assertEqual(self.version(), "2.400.0")
        self.aged(days=21)
        self.assertEqual(self.script("prepare"), 0, self.log)
        self.assertEqual(self.version(), "2.410.0")
        self.assertTrue((self.runner / ".runner").exists())

    def test_a_runner_that_is_the_newest_is_left_alone(self):
        self.aged(days=21)
        self.assertEqual(self.script("prepare"), 0, self.log)
        self.assertEqual(self.around.downloads, 0)

    def test_a_runner_that_github_finds_too_old_is_renewed(self):
        self.registered()
        self.around.releases["latest"] = "2.410.0"
        (self.seen / "says").write_text(DEPRECATED + "\n")
        self.assertEqual(self.service(), 1)
        self.assertEqual(self.script("prepare"), 0, self.log)
        self.assertEqual(self.version(), "2.410.0")
        self.up()
        self.assertEqual(self.around.registrations, [])

    def test_a_pinned_runner_that_github_finds_too_old_is_told_of(self):
        self.around.attributes["runner-version"] = "2.400.0"
        (self.state / "outdated").touch()
        self.assertEqual(self.script("prepare"), 0)
        self.assertIn("raise runner-version", self.log)

    def test_an_installed_runner_is_used_when_github_cannot_be_asked_for_a_newer_one(self):
        self.aged(days=40)
        self.around.releases = {}
        self.assertEqual(self.script("prepare"), 0, self.log)
        self.assertIn("going on with the runner that is installed", self.log)

    def test_an_installation_that_was_cut_short_is_done_again(self):
        (self.own / "installing").touch()
        self.assertEqual(self.script("prepare"), 0, self.log)
        self.assertEqual(self.around.downloads, 1)
        self.assertFalse((self.own / "installing").exists())

    def test_dependencies_that_failed_are_tried_again(self):
        self.nothing_installed()
        (self.seen / "dependencies-fail").write_text("the lock is held\n" * 3)
        self.assertEqual(self.script("prepare"), 0, self.log)
        self.assertEqual(len(self.read("dependencies").split()), 4)
        self.assertEqual(self.script("prepare"), 0, self.log)
        self.assertEqual(len(self.read("dependencies").split()), 4)

    def test_dependencies_that_are_still_missing_are_tried_at_the_next_start(self):
        self.environment["RUNNER_VM_PATIENCE"] = "0"
        self.nothing_installed()
        (self.seen / "dependencies-fail").write_text("no mirror\n")
        self.assertEqual(self.script("prepare"), 0, self.log)
        self.assertIn("the next start tries again", self.log)
        self.assertEqual(self.script("prepare"), 0, self.log)
        self.assertEqual(len(self.read("dependencies").split()), 2)
        self.assertEqual(self.around.downloads, 1)

    def test_a_new_boot_disk_gets_the_dependencies_of_the_runner_on_the_data_disk(self):
        self.registered()
        shutil.rmtree(self.own)
        self.assertEqual(self.script("prepare"), 0, self.log)
        self.assertEqual(len(self.read("dependencies").split()), 1)
        self.assertTrue((self.runner / ".runner").exists())

    def test_a_newer_runner_brings_its_own_list_of_dependencies(self):
        (self.own / "dependencies").write_text("of another version\n")
        self.assertEqual(self.script("prepare"), 0, self.log)
        self.assertEqual(len(self.read("dependencies").split()), 1)

    # -- what the VM's owner adds ----------------------------------------------------------------------------------

    def test_the_owners_scripts_run_once_around_the_installation(self):
        self.nothing_installed()
        listener = self.runner / "bin/Runner.Listener"
        tell = f'{{ echo "$0"; test -e {listener} && echo installed; }} >>"$SEEN/provisioned"\n'
        self.around.attributes |= {"runner-pre-install": tell + "true", "runner-post-install": "#!/bin/sh\n" + tell}
        for _ in range(2):
            self.assertEqual(self.script("prepare"), 0, self.log)
        once = f"{self.own}/pre-install\n{self.own}/post-install\ninstalled\n"
        self.assertEqual(self.read("provisioned"), once)
        self.around.attributes["runner-post-install"] += "true"
        self.assertEqual(self.script("prepare"), 0, self.log)
        self.assertEqual(self.read("provisioned"), once + f"{self.own}/post-install\ninstalled\n")

    def test_no_job_runs_on_a_vm_that_was_not_provisioned(self):
        self.environment["RUNNER_VM_PATIENCE"] = "0"
        self.around.attributes["runner-pre-install"] = "echo the mirror is down >&2; false"
        for _ in range(2):
            self.assertEqual(self.service(), 1)
        self.assertEqual(self.log.count("the mirror is down"), 2)
        self.assertEqual(self.read("runs"), "")

    def test_hooks_are_root_files_that_the_runner_is_told_of(self):
        self.around.attributes |= {"runner-hook-job-started": "echo started", "runner-hook-job-completed": "#!/bin/sh\n"}
        self.up()
        environment = self.read("environment")
        self.assertIn(f"ACTIONS_RUNNER_HOOK_JOB_STARTED={self.own}/job-started.sh\n", environment)
        self.assertIn(f"ACTIONS_RUNNER_HOOK_JOB_COMPLETED={self.own}/job-completed.sh\n", environment)
        self.assertEqual((self.own / "job-started.sh").read_text(), "#!/bin/bash\necho started\n")
        del self.around.attributes["runner-hook-job-started"]
        self.up()
        self.assertNotIn("ACTIONS_RUNNER_HOOK_JOB_STARTED", self.read("environment"))

    def test_the_proxy_is_for_everything_but_the_metadata_server(self):
        proxy = f"http://user:p%22a%5Css@127.0.0.1:{self.around.server_port}/" + '\\"quoted"'
        self.around.attributes |= {"runner-proxy": proxy, "runner-no-proxy": "127.0.0.1,.internal"}
        self.up()
        environment = self.read("environment").splitlines()
        self.assertIn(f"https_proxy={proxy}", environment)
        self.assertIn(
            "no_proxy=localhost,127.0.0.1,169.254.169.254,metadata.google.internal,127.0.0.1,.internal", environment
        )

    def test_certificates_of_the_network_are_trusted_one_in_a_file(self):
        certificates = ["-----BEGIN CERTIFICATE-----\n%s\n-----END CERTIFICATE-----" % each for each in ("QQ==", "Qg==")]
        self.around.attributes["runner-ca-certificates"] = "\n".join(certificates) + "\n"
        for _ in range(2):
            self.up()
        files = sorted((self.root / "usr/local/share/ca-certificates/runner-vm").iterdir())
        self.assertEqual([file.name for file in files], ["1.crt", "2.crt"])
        self.assertEqual([file.read_text().strip() for file in files], certificates)
        self.assertEqual(self.read("commands").count("update-ca-certificates"), 1)
        self.assertIn(f"NODE_EXTRA_CA_CERTS={self.own}/ca-certificates.pem\n", self.read("environment"))
        del self.around.attributes["runner-ca-certificates"]
        self.up()
        self.assertEqual(list((self.root / "usr/local/share/ca-certificates/runner-vm").iterdir()), [])
        self.assertNotIn("NODE_EXTRA_CA_CERTS=" + str(self.own), self.read("environment"))

    def test_the_journal_goes_to_cloud_logging_where_asked(self):
        self.around.attributes["runner-ops-agent"] = "true"
        for _ in range(2):
            self.assertEqual(self.script("prepare"), 0, self.log)
        self.assertEqual(self.read("ops-agent"), "--also-install\n")
        self.assertIn("type: systemd_journald", (self.root / "etc/google-cloud-ops-agent/config.yaml").read_text())
        self.assertEqual(self.read("commands").count("systemctl restart google-cloud-ops-agent"), 1)

    def test_a_vm_without_the_ops_agent_still_runs_jobs(self):
        self.around.attributes["runner-ops-agent"] = "true"
        self.environment["RUNNER_VM_OPS_AGENT"] = self.around.url + "/nothing-here"
        self.up()
        self.assertIn("going on without the Ops Agent", self.log)

    def interrupted(self, configure):
        """A dpkg with a package that is not configured yet, and what it does when it is told to configure it."""
        (self.seen / "unfinished").touch()
        self.stand_in(
            "dpkg",
            '#!/bin/bash\nif [[ $1 == --audit ]]; then ls "$SEEN/unfinished" 2>/dev/null || true; exit 0; fi\n'
            f'echo "dpkg $*" >>"$SEEN/commands"\n{configure}\n',
        )

    def test_what_dpkg_left_unfinished_is_finished_before_anything_is_installed(self):
        self.interrupted('rm "$SEEN/unfinished"')
        self.around.attributes |= {"runner-pre-install": 'echo pre-install >>"$SEEN/commands"', "runner-packages": "zstd"}
        self.stand_in("dpkg-query", "#!/bin/bash\n")
        self.assertEqual(self.script("prepare"), 0, self.log)
        commands = [line for line in self.read("commands").splitlines() if line.startswith(("dpkg", "apt-get install", "pre"))]
        self.assertEqual(
            [re.match("dpkg|apt-get|pre-install", line).group() for line in commands], ["dpkg", "pre-install", "apt-get"]
        )
        self.assertIn("--configure --pending", commands[0])

    def test_a_package_that_cannot_be_configured_does_not_keep_jobs_from_running(self):
        self.interrupted("exit 1")
        self.assertEqual(self.script("prepare"), 0, self.log)
        self.assertIn("going on with packages that dpkg could not configure", self.log)
        self.assertLess(sum(float(pause) for pause in self.read("sleeps").split()), 100)

    def test_missing_packages_are_installed(self):
        self.around.attributes["runner-packages"] = "docker.io,zstd"
        self.stand_in("dpkg-query", '#!/bin/bash\n[[ ${!#} == zstd || ${!#} == jq ]] || echo "install ok installed"\n')
        self.assertEqual(self.script("prepare"), 0, self.log)
        self.assertIn("apt-get install --quiet --quiet --yes --no-install-recommends jq zstd\n", self.read("commands"))

    # -- boot and prune --------------------------------------------------------------------------------------------

    def test_boot_installs_itself_and_starts_the_service(self):
        for _ in range(2):
            self.assertEqual(self.script("boot"), 0, self.log)
        self.assertEqual((self.root / "usr/local/sbin/runner-vm").read_bytes(), SCRIPT.read_bytes())
        unit = (self.root / "etc/systemd/system/runner-vm.service").read_text()
        for line in (
            f"User={USER}",
            "Restart=always",
            "KillMode=mixed",
            "TimeoutStopSec=85",
            "Before=apt-daily.service apt-daily-upgrade.service",
        ):
            self.assertIn(line + "\n", unit)
        self.assertIn("systemctl start --no-block runner-vm.service runner-vm-prune.timer", self.read("commands"))

    def started(self):
        """The commands of the unit, in the order in which systemd runs them."""
        self.assertEqual(self.script("boot"), 0, self.log)
        unit = (self.root / "etc/systemd/system/runner-vm.service").read_text()
        return re.findall(r"^ExecStart(?:Pre)?=(.*)$", unit, re.M)

    def test_room_is_made_before_the_runner_takes_a_job(self):
        prepare, register, prune, run = self.started()
        for command, name in ((prepare, "prepare"), (register, "register"), (prune, "prune"), (run, "run")):
            self.assertTrue(command.endswith(f"/usr/local/sbin/runner-vm {name}"), command)
        # As root, and a failure does not keep the runner from its job.
        self.assertTrue(prune.startswith("-+/"), prune)

    def test_making_room_delays_the_runner_for_a_limited_time(self):
        command = self.started()[2].removeprefix("-+").split()
        seconds = command.index("180")
        command[seconds] = "1"
        self.disk(95, images=(95,))
        self.stand_in("docker", "#!/bin/bash\nexec /bin/sleep 60\n")
        before = time.monotonic()
        done = subprocess.run(command, env=self.environment, capture_output=True, timeout=30)
        self.assertEqual(done.returncode, 124)
        self.assertLess(time.monotonic() - before, 20)

    @unittest.skipUnless(shutil.which("perl"), "perl is not on the PATH")
    def test_updates_of_the_system_do_not_restart_the_runner(self):
        self.assertEqual(self.script("boot"), 0, self.log)
        # As needrestart does: its files are Perl, and each key is a regular expression of services.
        tell = """
            our %nrconf = (override_rc => {qr(^dbus) => 0});
            do $ARGV[0] or !$@ or die $@;
            for my $service ("runner-vm.service", "dbus.service", "ssh.service") {
                print "$service\n" if grep { $service =~ /$_/ && !$nrconf{override_rc}{$_} } keys %{$nrconf{override_rc}};
            }"""
        file = self.root / "etc/needrestart/conf.d/runner-vm.conf"
        done = subprocess.run(["perl", "-we", tell, file], capture_output=True, text=True)
        self.assertEqual((done.stdout, done.stderr), ("runner-vm.service\ndbus.service\n", ""))

    def test_a_spot_vm_has_less_time_to_sign_off(self):
        self.around.preemptible = "TRUE"
        self.assertEqual(self.script("boot"), 0, self.log)
        self.assertIn("TimeoutStopSec=25\n", (self.root / "etc/systemd/system/runner-vm.service").read_text())

    @unittest.skipUnless(shutil.which("systemd-analyze"), "systemd-analyze is not on the PATH")
    def test_systemd_understands_the_units(self):
        self.assertEqual(self.script("boot"), 0, self.log)
        units = sorted((self.root / "etc/systemd/system").iterdir())
        self.assertEqual(len(units), 3)
        # Only what it has against these units: others of this machine are not our business.
        done = subprocess.run(["systemd-analyze", "verify", *units], capture_output=True, text=True)
        about = [line for line in done.stderr.splitlines() if "runner-vm" in line]
        self.assertEqual(about, [])

    def old(self, path):
        file = self.runner / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("old")
        then = time.time() - 60 * 86400
        for each in (file, *file.parents):
            if each != self.runner and self.runner in each.parents:
                os.utime(each, (then, then))
        return file

    def disk(self, *used, images=(50,)):
        """Sets the use of the runner's disk and of the disk of Docker's images, for each call of df; the last value stays."""
        for name, values in (("used", used), ("used-by-images", images)):
            (self.seen / name).write_text("".join(f"{percent}\n" for percent in values))
        self.stand_in(
            "df",
            '#!/bin/bash\nfile=$SEEN/used; [[ $2 != /docker ]] || file=$SEEN/used-by-images\n'
            'echo "Use%"; head -n 1 "$file" | sed "s/$/%/"\n'
            'if (($(wc -l <"$file") > 1)); then sed -i 1d "$file"; fi\n',
        )
        self.stand_in("pgrep", '#!/bin/bash\ntest -e "$SEEN/job"\n')
        self.stand_in(
            "docker",
            '#!/bin/bash\nif [[ $1 == info ]]; then echo /docker; else echo "docker $*" >>"$SEEN/commands"; fi\n',
        )

    def test_nothing_is_removed_while_there_is_room(self):
        self.disk(80)
        cache = self.old("_work/app/target")
        self.assertEqual(self.script("prune"), 0, self.log)
        self.assertTrue(cache.exists())

    def test_nothing_is_removed_while_a_job_runs(self):
        self.disk(95)
        (self.seen / "job").touch()
        cache = self.old("_work/app/target")
        self.assertEqual(self.script("prune"), 0, self.log)
        self.assertTrue(cache.exists())
        self.assertIn("a job runs: later", self.log)

    def test_the_oldest_goes_first_and_only_until_there_is_room(self):
        self.disk(95, 70)
        log, cache = self.old("_diag/Runner_1.log"), self.old("_work/app/target")
        self.assertEqual(self.script("prune"), 0, self.log)
        self.assertEqual((log.exists(), cache.exists()), (False, True))

    def test_images_that_fill_the_boot_disk_cost_no_checkout(self):
        self.disk(50, images=(95, 60))
        log, cache = self.old("_diag/Runner_1.log"), self.old("_work/app/target")
        self.assertEqual(self.script("prune"), 0, self.log)
        self.assertEqual((log.exists(), cache.exists()), (True, True))
        self.assertEqual(self.read("commands"), "docker system prune --all --force --filter until=168h\n")

    def test_images_that_were_built_lately_go_as_well_if_the_disk_is_still_full(self):
        self.disk(50, images=(95, 95, 60))
        self.assertEqual(self.script("prune"), 0, self.log)
        self.assertEqual(
            self.read("commands"), "docker system prune --all --force --filter until=168h\ndocker system prune --all --force\n"
        )
        self.assertNotIn("enlarge it", self.log)

    def test_checkouts_that_fill_the_data_disk_cost_no_image(self):
        self.disk(95, images=(50,))
        cache = self.old("_work/app/target")
        self.old("_diag/Runner_1.log")
        self.assertEqual(self.script("prune"), 0, self.log)
        self.assertFalse(cache.exists())
        self.assertEqual(self.read("commands"), "")

    def test_what_is_in_use_stays_whatever_the_disk(self):
        self.disk(95, images=(95,))
        gone = [self.old("_work/app/target"), self.old("_work/_tool/node/18/node"), self.old("_work/_actions/acme/x")]
        stays = [self.runner / "_work/web/src", self.runner / "_work/_temp/x", self.runner / "_work/_tool/go/go"]
        for file in stays:
            file.parent.mkdir(parents=True)
            file.write_text("new")
        self.old("_diag/Runner_1.log")
        self.assertEqual(self.script("prune"), 0, self.log)
        self.assertEqual([file.exists() for file in gone], [False] * 3)
        self.assertEqual([file.exists() for file in stays], [True] * 3)
        self.assertIn("docker system prune --all --force --filter until=168h", self.read("commands"))
        self.assertEqual(self.log.count("enlarge it"), 2)


if __name__ == "__main__":
    unittest.main()
