#!/usr/bin/env bash
# Tests the embedded cloud with Google's and GitHub's client libraries, and the service's requests against their contracts.
set -euo pipefail
cd "$(dirname "$0")/../.."

here=tests/oracle
work=target/oracle
mkdir -p "$work"

# Installed again only if the versions change.
installed=$(cat $here/requirements.txt $here/package.json | sha256sum)
if [ "$(cat "$work/installed" 2>/dev/null)" != "$installed" ]; then
  python3 -m venv --clear "$work/venv"
  "$work/venv/bin/pip" install --quiet --disable-pip-version-check -r $here/requirements.txt
  cp $here/package.json "$work/"
  npm install --prefix "$work" --no-audit --no-fund --loglevel=error
  echo "$installed" >"$work/installed"
fi
cp $here/clients.mjs "$work/"

cargo build --locked
program=target/debug/runner-manager

# Loopback, even if the environment has a proxy.
export NO_PROXY=127.0.0.1 no_proxy=127.0.0.1
"$program" dev --real-time --port 0 --cloud-port 0 >"$work/dev.log" 2>"$work/dev.err" &
dev=$!
trap 'kill $dev 2>/dev/null || true; wait $dev 2>/dev/null || true' EXIT
for _ in $(seq 100); do
  grep -q '^export GOOGLE_APPLICATION_CREDENTIALS' "$work/dev.log" && break
  kill -0 $dev || { cat "$work/dev.err"; exit 1; }
  sleep 0.1
done
grep '^export ' "$work/dev.log" >"$work/environment"
# shellcheck source=/dev/null
. "$work/environment"

# First, while the VMs are as the demo begins with.
echo "-- gcloud"
if command -v gcloud >/dev/null; then
  "$work/venv/bin/python" - "$work/access-token" <<'PYTHON'
import os
import sys

from google.auth.transport.requests import Request
from google.oauth2 import service_account

account = service_account.Credentials.from_service_account_file(
    os.environ["GOOGLE_APPLICATION_CREDENTIALS"], scopes=["https://www.googleapis.com/auth/cloud-platform"]
)
account.refresh(Request())
with open(sys.argv[1], "w", encoding="utf-8") as file:
    file.write(account.token)
PYTHON
  $here/gcloud.sh "$PWD/$work"
elif [ -n "${GITHUB_ACTIONS:-}" ]; then
  echo "gcloud is not installed" >&2
  exit 1
else
  echo "skipped: gcloud is not installed"
fi
echo "-- google-cloud-compute, google-cloud-tasks, PyGithub"
"$work/venv/bin/python" $here/clients.py
echo "-- @octokit/rest"
node "$work/clients.mjs"
echo "-- the schema of RUNNER_CONFIG against the parser"
"$work/venv/bin/python" $here/schema.py "$program"
echo "-- the service against the published contracts"
"$work/venv/bin/python" $here/conform.py "$program" "$work/node_modules/@octokit/openapi/generated/api.github.com.json"
