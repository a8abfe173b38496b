"""Holds the published schema of RUNNER_CONFIG against the parser: both accept the same documents."""

import copy
import json
import os
import subprocess
import sys

import jsonschema

PROGRAM = sys.argv[1]
with open("docs/runner-config.schema.json", encoding="utf-8") as file:
    SCHEMA = json.load(file)
jsonschema.Draft202012Validator.check_schema(SCHEMA)
VALIDATOR = jsonschema.Draft202012Validator(SCHEMA)

ENTRY = {
    "repo": "acme/app",
    "labels": ["self-hosted", "gpu"],
    "vm_instance_name": "gpu-1",
    "vm_instance_zone": "asia-northeast1-a",
    "runner_names": ["gpu-*", "gpu-1"],
    "runner_labels": ["self-hosted", "gpu", "a label, with a comma"],
    "register": "organization",
    "discard_local_ssd": True,
    "drain": True,
    "suspend": True,
}
VALUES = [
    None, True, 7, "", "x", "X", "a b", "self-hosted", "acme/app", "acme/app.git", "acme/..", "./app", "acme/app/x",
    "repository", "-a", "a-", "a" * 63, "a" * 64, "a" * 257, "gpu-*", "*", "g*u", [], ["x"], ["x", ""], ["x", 7],
    ["a\tb"], ["a" * 256], ["a" * 257], ["*"], ["gpu-*"], ["g*u"], {}, {"a": 1},
]


def parsed(document):
    """The parser's view: accepted, accepted with a warning about an unknown field, or refused."""
    environment = {"RUNNER_CONFIG": json.dumps(document), "PATH": os.environ["PATH"]}
    command = [PROGRAM, "explain", "--repo", "acme/app", "--labels", "x"]
    run = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert run.returncode in (0, 2), run
    if run.returncode == 2:
        return "refused", run.stderr
    return "odd" if "is not a field of an entry" in run.stderr else "accepted", run.stderr


def documents():
    yield from ([], {}, None, "x", [ENTRY], [ENTRY, ENTRY], [[]], [None])
    for field in ENTRY:
        yield [{name: value for name, value in ENTRY.items() if name != field}]
        for value in VALUES:
            entry = copy.deepcopy(ENTRY)
            entry[field] = value
            yield [entry]
    yield [{**ENTRY, "runner_lables": ["x"]}]


count = 0
for document in documents():
    expected = VALIDATOR.is_valid(document)
    found, said = parsed(document)
    if expected != (found == "accepted"):
        sys.exit(f"the schema says {expected}, the parser {found}: {json.dumps(document)}\n{said}")
    count += 1
print(f"  {count} documents: the schema and the parser agree")
