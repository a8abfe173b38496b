#!/usr/bin/env python3
"""Fetches the declarations of the resources that the modules and tests name, for each line of providers.txt.

    fetch_providers.py DIRECTORY

A package has all of a provider, hundreds of megabytes: only what is named is unpacked, into DIRECTORY/NAME.
"""

import io
import pathlib
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile

TESTS = pathlib.Path(__file__).parent
DEPLOY = TESTS.parent


def named():
    """Every type that could be one of a provider's."""
    files = [*DEPLOY.rglob("*.tf"), *DEPLOY.rglob("*.hcl"), *TESTS.glob("*.py")]
    return sorted({word for file in files for word in re.findall(r"\b(?:google|random|time)_\w+", file.read_text())})


def packages():
    lines = [line for line in (TESTS / "providers.txt").read_text().splitlines() if not line.startswith("#")]
    return [line.split() for line in lines]


def unpack(requirement, target, types):
    with tempfile.TemporaryDirectory() as directory:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
        subprocess.run([*command, "--dest", directory, requirement], check=True)
        (wheel,) = pathlib.Path(directory).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            (name,) = [each for each in archive.namelist() if each.endswith(".jsii.tgz")]
            packed = archive.read(name)
    folders = {"provider"}
    for each in types:
        folders |= {"data-" + each.replace("_", "-"), each.split("_", 1)[1].replace("_", "-")}
    shutil.rmtree(target, ignore_errors=True)
    with tarfile.open(fileobj=io.BytesIO(packed)) as tar:
        for member in tar:
            parts = pathlib.PurePosixPath(member.name).parts
            if len(parts) == 4 and parts[1] == "lib" and parts[2] in folders and parts[3] in ("index.d.ts", "index.js"):
                file = target / "lib" / parts[2] / parts[3]
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(tar.extractfile(member).read())


def main():
    target = pathlib.Path(sys.argv[1])
    types = named()
    wanted = repr((packages(), types))
    stamp = target / "fetched"
    if stamp.exists() and stamp.read_text() == wanted:
        return
    target.mkdir(parents=True, exist_ok=True)
    for requirement, name in packages():
        unpack(requirement, target / name, types)
    stamp.write_text(wanted)


if __name__ == "__main__":
    main()
