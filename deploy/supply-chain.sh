#!/usr/bin/env bash
# Holds the dependencies against deny.toml: known vulnerabilities, licences, bans, sources.
#
# cargo-deny is built once, if it is not on the PATH. A database of advisories of the last week is used as it is, so this
# works without a network then; else it is fetched.
set -euo pipefail
cd "$(dirname "$0")/.."

version=0.20.2
tools=$PWD/target/deploy/cargo-deny
export PATH=$PATH:$tools/bin
if ! command -v cargo-deny >/dev/null; then
  cargo install cargo-deny --version "$version" --locked --quiet --root "$tools"
fi

# Fetches the crates where they are missing.
cargo deny --locked check --hide-inclusion-graph bans licenses sources

database=${CARGO_HOME:-$HOME/.cargo}/advisory-dbs
offline=()
if [[ -n $(find "$database" -maxdepth 3 -name FETCH_HEAD -mtime -7 2>/dev/null) ]]; then offline=(--offline); fi
cargo deny --locked "${offline[@]}" check advisories
