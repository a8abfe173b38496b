#!/usr/bin/env bash
# Builds the image and runs it: as a user without rights, writing nothing, until SIGTERM.
#
#   deploy/image/test.sh             the whole Dockerfile, with its release build: several minutes
#   deploy/image/test.sh PROGRAM     only its last stage, around a program that was built on this machine, on a base of
#                                    this machine's libraries
#   deploy/image/test.sh --image NAME   no build: runs an image that this machine has
#
# With Docker where there is an engine. Else with buildah, as root; and where no registry can be reached either, on
# bases made here: Debian's packages and this machine's Rust.
set -euo pipefail
cd "$(dirname "$0")/../.."

program=${1:-}
work=$PWD/target/deploy/image
name=localhost/runner-manager-test
built=false
if [[ $program == --image ]]; then program='' name=$2 built=true; fi
mkdir -p "$work"

say() { printf -- '-- %s\n' "$*"; }
fail() { printf 'failed: %s\n' "$*" >&2 && exit 1; }

# -- engines: each can build, tell the size, start with an environment, tell the user, signal SIGTERM, and finish ----

engine_docker() {
  import() { tar --create --directory "$1" . | docker import - "$2" >/dev/null; }
  build() { docker build --tag "$name" "$@"; }
  size() { docker image inspect --format '{{.Size}}' "$name"; }
  start() {
    local each environment=()
    for each in "$@"; do environment+=(--env "$each"); done
    container=$(docker run --detach --read-only --cap-drop ALL --publish 127.0.0.1::8080 "${environment[@]}" "$name")
    port=$(docker port "$container" 8080/tcp | head -n 1 | sed 's/.*://')
  }
  user() { docker inspect --format '{{.Config.User}}' "$container" | cut -d : -f 1; }
  signal() { docker kill --signal TERM "$container" >/dev/null; }
  # Sets `code`; the log goes to $work/log. Its root was read-only.
  finish() {
    code=$(docker wait "$container")
    docker logs "$container" >"$work/log" 2>&1
    remove
  }
  remove() { docker rm --force "$container" >/dev/null && container=; }
}

engine_buildah() {
  import() {
    local container
    container=$(buildah from scratch)
    buildah add --quiet "$container" "$1" / >/dev/null
    buildah commit --quiet "$container" "$2" >/dev/null
    buildah rm "$container" >/dev/null
  }
  build() { buildah bud --isolation chroot --tag "$name" "$@"; }
  size() {
    buildah inspect --type image --format '{{.Manifest}}' "$name" |
      python3 -c 'import json, sys; print(sum(layer["size"] for layer in json.load(sys.stdin)["layers"]))'
  }
  start() {
    local each environment=()
    # The host's network, so a port of its own.
    port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
    for each in "$@" "PORT=$port"; do environment+=(--env "$each"); done
    container=$(buildah from "$name")
    root=$(buildah mount "$container")
    touch "$work/before"
    buildah run --isolation chroot "${environment[@]}" "$container" -- /usr/local/bin/runner-manager >"$work/log" 2>&1 &
    runner=$!
  }
  # The program itself, told from its parents by what it executes.
  pid() {
    local each
    for each in /proc/[0-9]*; do
      if [[ $(readlink "$each/root" 2>/dev/null) != / || -e $each/exe ]] &&
        [[ $(readlink "$each/exe" 2>/dev/null) == */usr/local/bin/runner-manager ]] &&
        tr '\0' '\n' <"$each/environ" 2>/dev/null | grep --quiet --line-regexp "PORT=$port"; then
        echo "${each#/proc/}"
        return 0
      fi
    done
    return 1
  }
  user() { sed -n 's/^Uid:\t\([0-9]*\).*/\1/p' "/proc/$(pid)/status"; }
  signal() { kill -TERM "$(pid)"; }
  finish() {
    code=0
    wait "$runner" || code=$?
    nothing_written || code=written
    remove
  }
  remove() {
    kill -KILL "$(pid)" 2>/dev/null || true
    buildah umount "$container" >/dev/null
    buildah rm "$container" >/dev/null && container=
  }
  # Files that changed since the start, except those that buildah adds for its run.
  nothing_written() {
    local files
    files=$(find "$root" -xdev -newer "$work/before" ! -type d ! -path "$root/etc/*" ! -path "$root/run/*" \
      ! -path "$root/dev/*" ! -path "$root/proc/*" ! -path "$root/sys/*")
    if [[ -n $files ]]; then printf 'it wrote %s\n' "$files" >>"$work/log" && return 1; fi
  }
}

# -- bases for machines that no registry can be reached from --------------------------------------------------------

# Debian with this machine's toolchain.
local_build_base() {
  local root=$work/build-base toolchain
  if buildah inspect --type image localhost/rust-here >/dev/null 2>&1; then return 0; fi
  say "a base with this machine's $(rustc --version)"
  command -v debootstrap >/dev/null || apt-get install --quiet --quiet --yes debootstrap
  rm -rf "$root"
  debootstrap --variant=minbase --include=ca-certificates,gcc,libc6-dev bookworm "$root" >"$work/debootstrap.log"
  # The base has to trust the same package registries as this machine.
  cp /etc/ssl/certs/ca-certificates.crt "$root/etc/ssl/certs/"
  toolchain=$(rustc --print sysroot)
  cp --recursive "$toolchain/bin" "$toolchain/lib" "$root/usr/local/"
  import "$root" localhost/rust-here
  rm -rf "$root"
}

# A stand-in for distroless/cc: the C library, its unwinder, certificates and a user; no shell.
local_run_base() {
  local root=$work/run-base library loader=lib64/ld-linux-x86-64.so.2
  rm -rf "$root"
  mkdir -p "$root/etc/ssl/certs" "$root/tmp" "$root/lib64" "$root/usr/local/bin"
  chmod 1777 "$root/tmp"
  for library in libc.so.6 libm.so.6 libgcc_s.so.1 libpthread.so.0 libdl.so.2 librt.so.1; do
    library=$(ldconfig -p | sed -n "s|.*$library (libc6,.*) => ||p" | head -n 1)
    mkdir -p "$root/$(dirname "$library")"
    cp --dereference "$library" "$root/$library"
  done
  [[ -e /$loader ]] || loader=lib/ld-linux-aarch64.so.1
  mkdir -p "$root/lib"
  cp --dereference "/$loader" "$root/$loader"
  cp /etc/ssl/certs/ca-certificates.crt "$root/etc/ssl/certs/"
  echo 'nonroot:x:65532:65532:nonroot:/home/nonroot:/sbin/nologin' >"$root/etc/passwd"
  echo 'nonroot:x:65532:' >"$root/etc/group"
  import "$root" localhost/cc-here
}

# -- build ----------------------------------------------------------------------------------------------------------

# Removes the container, also after a failure.
container=
trap '[[ -z $container ]] || remove' EXIT

arguments=()
if docker info >/dev/null 2>&1; then
  engine_docker
else
  [[ $(id -u) == 0 ]] || fail "no Docker engine, and buildah needs root here: run it as root, or start Docker"
  command -v buildah >/dev/null || { apt-get update --quiet --quiet && apt-get install --quiet --quiet --yes buildah; }
  engine_buildah
  if [[ -z $program ]] && ! $built && ! timeout 30 buildah pull --quiet gcr.io/distroless/cc-debian12:nonroot >/dev/null 2>&1; then
    say "no registry can be reached: bases made here"
    local_run_base
    local_build_base
    arguments+=(--build-arg BASE_IMAGE=localhost/cc-here --build-arg BUILD_IMAGE=localhost/rust-here)
  fi
fi

dockerfile=Dockerfile context=.
if [[ -n $program ]]; then
  local_run_base
  arguments+=(--build-arg BASE_IMAGE=localhost/cc-here)
  # The same last stage; what comes before it is replaced by the program.
  context=$work/context dockerfile=$work/Dockerfile
  rm -rf "$context" && mkdir -p "$context"
  cp "$program" "$context/runner-manager"
  {
    sed -n '/^ARG BASE_IMAGE/p' Dockerfile
    printf 'FROM scratch AS build\nCOPY runner-manager /src/target/release/runner-manager\n'
    # shellcheck disable=SC2016 # Docker's variable
    sed -n '/^FROM ${BASE_IMAGE}/,$p' Dockerfile
  } >"$dockerfile"
fi
if ! $built; then say "building"; fi
if ! $built && ! build "${arguments[@]}" --file "$dockerfile" "$context" >"$work/build.log" 2>&1; then
  tail -n 40 "$work/build.log"
  fail "the build: $work/build.log"
fi
bytes=$(size)
say "the image has $((bytes / 1000000)) MB"

# -- run ------------------------------------------------------------------------------------------------------------

say "without configuration it says what it lacks, and ends with code 2"
start
finish
[[ $code == 2 ]] || fail "it ended with $code: $(cat "$work/log")"
grep --quiet 'RUNNER_CONFIG' "$work/log" || fail "it does not name RUNNER_CONFIG"

secret=deploy-image-test-secret
entries='[{"repo":"acme/app","labels":["self-hosted"],"vm_instance_name":"vm-1","vm_instance_zone":"us-central1-a"}]'
start GCP_PROJECT_ID=my-project CLOUD_TASK_LOCATION=us-central1 CLOUD_TASK_QUEUE_NAME=runner-manager \
  CLOUD_RUN_SERVICE_URL=https://runner-manager-1.us-central1.run.app RUNNER_MANAGER_SECRET=$secret \
  GITHUB_APP_ID=1 GITHUB_APP_INSTALLATION_ID=2 "GITHUB_APP_PRIVATE_KEY=$(cat tests/fixtures/app-private-key.pem)" \
  COMPUTE_API_URL=http://127.0.0.1:9 CLOUD_TASKS_API_URL=http://127.0.0.1:9 GITHUB_API_URL=http://127.0.0.1:9 \
  "RUNNER_CONFIG=$entries"
url=http://127.0.0.1:$port
export NO_PROXY=127.0.0.1 no_proxy=127.0.0.1

say "it answers /health"
for _ in $(seq 100); do
  health=$(curl --silent --max-time 5 "$url/health" || true)
  [[ -z $health ]] || break
  sleep 0.1
done
[[ $health == '{"status":"healthy"}' ]] || fail "/health said: $health"

say "it runs as a user without rights"
[[ $(user) == 65532 ]] || fail "it runs as user $(user)"

say "a signed delivery is taken; what is in flight when SIGTERM comes is finished, and what comes later is not begun"
python3 deploy/image/drain.py "$url" "$secret" >"$work/drain" &
client=$!
for _ in $(seq 100); do grep --quiet half "$work/drain" && break; sleep 0.1; done
signal
wait $client || fail "the request in flight: $(cat "$work/drain")"
finish
[[ $code == 0 ]] || fail "it ended with $code: $(cat "$work/log")"

say "fine: $((bytes / 1000000)) MB, user 65532, nothing written, drained on SIGTERM"
