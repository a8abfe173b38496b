"""The runner VM's script as root, with a user of another name for the runner: nothing that a job leaves behind leads root
astray, and no job gets the VM's identity.

    unshare --net --mount python3 -m unittest test_runner_vm_as_root

The network and the mounts of its own are what the tests change: 169.254.169.254 is there, and file systems are full.
"""

import fcntl
import os
import pathlib
import shutil
import socket
import subprocess
import threading
import time
import unittest

from test_runner_vm import SCRIPT, Surrounded, Surroundings

USER = "nobody"
ADDRESS = "169.254.169.254"


def setUpModule():
    if os.listdir("/sys/class/net") != ["lo"] and len(socket.if_nameindex()) > 1:
        raise RuntimeError("not in a network of its own: run it by unshare --net --mount")
    for command in ("link set lo up", f"address add {ADDRESS}/32 dev lo", "-6 address add fd20:ce::254/128 dev lo"):
        subprocess.run(["ip", *command.split()], check=False, capture_output=True)


class AsRoot(Surrounded):
    user = USER

    def setUp(self):
        super().setUp()
        # Others may read everything, as they may on a VM.
        self.root.chmod(0o755)
        self.seen.chmod(0o777)
        (self.root / "tmp").chmod(0o1777)
        for place in (self.runner.parent, self.state):
            subprocess.run(["chown", "--recursive", f"{USER}:", place], check=True)
        self.victim = self.root / "victim"
        self.victim.mkdir()
        (self.victim / "file").write_text("root's own\n")
        self.old(self.victim / "old/file")
        self.before = self.snapshot()

    def snapshot(self):
        files = sorted(self.victim.rglob("*")) + [self.victim]
        return [(file, file.stat().st_uid, file.stat().st_mode, file.is_file() and file.read_text()) for file in files]

    def old(self, file):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("old\n")
        then = time.time() - 60 * 86400
        for each in (file, file.parent):
            os.utime(each, (then, then))

    def planted(self, link, target):
        """A link that the runner's user has put in the place of what was there."""
        link.unlink() if link.is_symlink() or link.is_file() else shutil.rmtree(link, ignore_errors=True)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(target)
        os.chown(link, 65534, 65534, follow_symlinks=False)

    def full(self):
        self.stand_in("df", "#!/bin/bash\necho 'Use%'; echo 95%\n")
        self.stand_in("pgrep", "#!/bin/bash\nexit 1\n")
        self.stand_in("docker", "#!/bin/bash\nif [[ $1 == info ]]; then echo /; fi\n")

    # -- links -----------------------------------------------------------------------------------------------------

    def test_pruning_follows_no_link(self):
        self.full()
        self.planted(self.runner / "_diag", self.victim)
        self.planted(self.runner / "_work/old", self.victim / "old")
        self.planted(self.runner / "_work/_tool", self.victim)
        self.assertEqual(self.script("prune"), 0, self.log)
        self.assertEqual(self.snapshot(), self.before)
        self.planted(self.runner / "_work", self.victim)
        self.assertEqual(self.script("prune"), 0, self.log)
        self.assertEqual(self.snapshot(), self.before)

    def test_pruning_removes_what_is_the_users(self):
        self.full()
        self.old(self.runner / "_work/app/file")
        subprocess.run(["chown", "--recursive", f"{USER}:", self.runner], check=True)
        self.assertEqual(self.script("prune"), 0, self.log)
        self.assertFalse((self.runner / "_work/app").exists())

    def test_installing_writes_through_no_link(self):
        for name in ("config.sh", ".runner-vm-version", ".runner-vm-archive", "run.sh"):
            self.planted(self.runner / name, self.victim / "file")
        for name in ("bin", "externals", "externals.2.300.0"):
            self.planted(self.runner / name, self.victim)
        self.planted(self.state / "registrations", self.victim / "file")
        (self.own / "version").write_text("2.300.0\n")
        self.assertEqual(self.script("prepare") or self.script("register"), 0, self.log)
        self.assertEqual(self.snapshot(), self.before)
        self.assertIn("2.400.0", (self.runner / "bin/Runner.Listener").read_text())
        owners = {file.lstat().st_uid for file in self.runner.rglob("*")}
        self.assertEqual(owners, {65534})

    def test_a_link_in_the_place_of_the_runners_directory_is_not_written_through(self):
        self.planted(self.runner, self.victim)
        self.assertNotEqual(self.service(), 0)
        self.assertEqual(self.snapshot(), self.before)

    def test_a_link_to_nowhere_in_the_place_of_the_runners_directory_creates_nothing(self):
        self.planted(self.runner, self.root / "created")
        self.assertNotEqual(self.service(), 0)
        self.assertFalse((self.root / "created").exists())

    def test_root_runs_no_program_of_the_users(self):
        evil = self.runner / "bin/installdependencies.sh"
        evil.write_text('#!/bin/bash\ntouch "$SEEN/evil"\n')
        (self.own / "dependencies").unlink()
        self.assertEqual(self.script("prepare"), 0, self.log)
        self.assertEqual(self.read("dependencies"), f"{self.own}/installdependencies.sh\n")
        self.assertFalse((self.seen / "evil").exists())

    def test_a_directory_in_the_place_of_a_flag_is_no_obstacle(self):
        for flag in ("outdated", "unknown-to-github"):
            (self.state / flag / "x").mkdir(parents=True)
        subprocess.run(["chown", "--recursive", f"{USER}:", self.state], check=True)
        self.assertEqual(self.script("prepare") or self.script("register"), 0, self.log)
        self.assertEqual(list(self.state.iterdir()), [])

    # -- the VM's identity -----------------------------------------------------------------------------------------

    def reaches(self, user, port=80):
        command = ["runuser", "-u", user, "--", "curl", "--silent", "--noproxy", "*", "--max-time", "5", "--output"]
        command += ["/dev/null", "--header", "Metadata-Flavor: Google", f"http://{ADDRESS}:{port}/computeMetadata/v1/instance/name"]
        return subprocess.run(command, capture_output=True).returncode == 0

    def test_jobs_cannot_ask_for_the_identity_that_registers_the_runner(self):
        metadata = Surroundings(ADDRESS, 80)
        names = Surroundings(ADDRESS, 53)
        for server in (metadata, names):
            self.addCleanup(server.server_close)
            self.addCleanup(server.shutdown)
        metadata.attributes = self.around.attributes | {"runner-block-metadata": "true", "runner-manager-url": metadata.url}
        self.environment["RUNNER_VM_METADATA"] = metadata.url
        self.environment["no_proxy"] = "*"
        self.assertTrue(self.reaches(USER))
        self.assertEqual(self.script("prepare") or self.script("register"), 0, self.log)
        self.assertEqual(len(metadata.registrations), 1)
        self.assertFalse(self.reaches(USER))
        self.assertTrue(self.reaches("root"))
        self.assertTrue(self.reaches(USER, port=53))
        # Again, as at each start of the service; then without the setting.
        self.assertEqual(self.script("prepare"), 0, self.log)
        self.assertFalse(self.reaches(USER))
        del metadata.attributes["runner-block-metadata"]
        self.assertEqual(self.script("prepare"), 0, self.log)
        self.assertTrue(self.reaches(USER))

    # -- disks and locks -------------------------------------------------------------------------------------------

    def file_system(self, directory, full):
        directory.mkdir(parents=True, exist_ok=True)
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m,mode=777", "tmpfs", directory], check=True)
        self.addCleanup(subprocess.run, ["umount", directory], check=True)
        if full:
            (directory / "filler").write_bytes(bytes(7_600_000))

    def test_each_file_system_is_judged_by_itself(self):
        for runner_full, images_full in ((False, True), (True, False)):
            with self.subTest(runner_full=runner_full):
                (self.seen / "commands").unlink(missing_ok=True)
                images = self.root / f"docker-{images_full}"
                directory = self.root / f"runner-{runner_full}"
                self.file_system(images, images_full)
                self.file_system(directory, runner_full)
                self.around.attributes["runner-directory"] = str(directory)
                self.stand_in("pgrep", "#!/bin/bash\nexit 1\n")
                answer = f'if [[ $1 == info ]]; then echo {images}; else echo "$*" >>"$SEEN/commands"; fi'
                self.stand_in("docker", f"#!/bin/bash\n{answer}\n")
                self.old(directory / "_work/app/file")
                subprocess.run(["chown", "--recursive", f"{USER}:", directory / "_work"], check=True)
                self.assertEqual(self.script("prune"), 0, self.log)
                self.assertEqual((directory / "_work/app").exists(), not runner_full)
                self.assertEqual("system prune" in self.read("commands"), images_full)

    @unittest.skipUnless(shutil.which("apt-get"), "apt-get is not on the PATH")
    def test_apt_waits_for_a_lock_that_is_held(self):
        self.assertEqual(self.script("boot"), 0, self.log)
        configuration = self.root / "etc/apt/apt.conf.d/90runner-vm"
        state = self.root / "dpkg"
        state.mkdir()
        (state / "status").touch()
        command = ["/usr/bin/apt-get", "-o", f"Dir::State::status={state}/status", "--yes", "autoremove"]
        with (state / "lock-frontend").open("w") as lock:
            fcntl.lockf(lock, fcntl.LOCK_EX)
            refused = subprocess.run([*command, "-o", "DPkg::Lock::Timeout=0"], capture_output=True, text=True)
            self.assertIn("Could not get lock", refused.stderr)
            threading.Timer(2, fcntl.lockf, (lock, fcntl.LOCK_UN)).start()
            environment = os.environ | {"APT_CONFIG": str(configuration)}
            waited = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
        self.assertEqual(waited.returncode, 0, waited.stderr)

    @unittest.skipUnless(shutil.which("dpkg") and shutil.which("apt-get"), "dpkg and apt-get are not on the PATH")
    def test_apt_works_again_after_a_stop_in_the_middle_of_an_installation(self):
        for name in ("dpkg", "apt-get"):
            (self.bin / name).unlink()
        state = self.root / "dpkg"
        for directory in ("updates", "info", "triggers"):
            (state / directory).mkdir(parents=True)
        package = "Package: jobs-tool\nStatus: install ok %s\nVersion: 1\nArchitecture: all\nMaintainer: x <x@example.com>\nDescription: x\n"
        (state / "status").write_text(package % "half-configured")
        (state / "info/jobs-tool.list").write_text("/.\n")
        # dpkg's journal, which a shutdown leaves behind.
        (state / "updates/0000").write_text(package % "unpacked")
        self.environment["DPKG_ADMINDIR"] = str(state)
        command = ["apt-get", "-o", f"Dir::State::status={state}/status", "--yes", "autoremove"]
        refused = subprocess.run(command, env=os.environ | {"DPKG_ADMINDIR": str(state)}, capture_output=True, text=True)
        self.assertIn("dpkg was interrupted", refused.stderr)
        self.assertEqual(self.script("prepare"), 0, self.log)
        self.assertIn("dpkg was interrupted: finishing its work", self.log)
        done = subprocess.run(command, env=os.environ | {"DPKG_ADMINDIR": str(state)}, capture_output=True, text=True)
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertIn("Status: install ok installed", (state / "status").read_text())

    # -- the user --------------------------------------------------------------------------------------------------

    def test_the_runner_runs_as_its_user_with_its_home(self):
        script = self.root / "usr-local-sbin-runner-vm"
        shutil.copy(SCRIPT, script)
        self.assertEqual(self.script("prepare") or self.script("register"), 0, self.log)
        with self.as_the_unit_does(script) as service:
            for line in service.stderr:
                if "Listening for Jobs" in line:
                    service.terminate()
            self.assertEqual(service.wait(timeout=20), 0)
        self.assertEqual(self.read("runs"), "started\nsigned off\n")
        self.assertEqual(pathlib.Path(self.seen / "runs").owner(), USER)

    def as_the_unit_does(self, script):
        return subprocess.Popen(
            [script, "run"],
            env=self.environment | self.for_run("run"),
            stderr=subprocess.PIPE,
            text=True,
            user=USER,
            extra_groups=[],
        )


if __name__ == "__main__":
    unittest.main()
