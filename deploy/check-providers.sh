#!/usr/bin/env bash
# Validates, and tests with mocks, the modules and examples with the genuine providers: the oldest versions that they
# allow, and the newest. Needs registry.terraform.io, and no account.
set -euo pipefail
cd "$(dirname "$0")/.."

say() { printf -- '-- %s\n' "$*"; }

work=$(mktemp --directory)
trap 'rm -rf "$work"' EXIT
export TF_CLI_CONFIG_FILE=/dev/null TF_PLUGIN_CACHE_DIR=$work/plugins TF_PLUGIN_CACHE_MAY_BREAK_DEPENDENCY_LOCK_FILE=1
mkdir "$TF_PLUGIN_CACHE_DIR"

# The google provider's lower bound in the modules' constraint.
bound=$(sed -n 's/.*version = ">= \([0-9.]*\), < [0-9.]*"/\1/p' deploy/terraform/runner-manager/versions.tf)
for which in oldest newest; do
  cp --recursive deploy "$work/$which"
  # Lock files name versions in between.
  find "$work/$which" -name .terraform.lock.hcl -delete
  if [[ $which == oldest ]]; then
    find "$work/oldest" -name '*.tf' -exec sed -i "s/\">= $bound, < [0-9.]*\"/\"$bound.0\"/" {} +
  fi
  for directory in "$work/$which"/terraform/* "$work/$which"/examples/*; do
    terraform -chdir="$directory" init -backend=false -input=false -no-color >"$work/log" || { cat "$work/log"; exit 1; }
    say "$(basename "$directory"): $(sed -n 's/^- Installed hashicorp\/\(google v[0-9.]*\).*\|^- Using .*hashicorp\/\(google v[0-9.]*\).*/\1\2/p' "$work/log")"
    terraform -chdir="$directory" validate -no-color
    if [[ -d $directory/tests ]]; then terraform -chdir="$directory" test -no-color; fi
  done
done
