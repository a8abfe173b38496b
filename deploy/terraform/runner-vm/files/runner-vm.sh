#!/bin/bash
# A VM that is a GitHub Actions runner: its start-up script, its service and its housekeeping, in one file.
#
#   runner-vm [boot]    root, at each start of the VM: installs this file and its units, mounts the disk, starts both
#   runner-vm prepare   root, before each start of the service: user, packages, the runner's program
#   runner-vm run       the runner's user: registers the runner if GitHub does not know it, then runs it
#   runner-vm prune     root, hourly: makes room on the disk while no job runs
#
# Settings are attributes in the VM's metadata, all optional: runner-manager-url, runner-repository, runner-name,
# runner-labels, runner-group, runner-version, runner-sha256, runner-user, runner-directory, runner-packages,
# runner-keep-free.
#
# The registration token lives in this process and in the environment of config.sh: never on a disk, in a log or in
# a list of processes. So no here-documents around it, which bash may keep in files, and no arguments of programs.
set -euo pipefail

ROOT=${RUNNER_VM_ROOT:-}
STATE=${RUNNER_VM_STATE:-$ROOT/run/runner-vm}
METADATA=${RUNNER_VM_METADATA:-http://metadata.google.internal}
GITHUB=${RUNNER_VM_GITHUB:-https://github.com}
GITHUB_API=${RUNNER_VM_GITHUB_API:-https://api.github.com}
BASE=$ROOT/var/lib/runner
INSTALLED=$ROOT/usr/local/sbin/runner-vm

# How long in all a step waits for something that may come by itself, in seconds. Then systemd starts the service again.
PATIENCE=${RUNNER_VM_PATIENCE:-300}
# How long after a refusal, which only somebody else can mend.
REFUSED_PAUSE=600
# GitHub gives no jobs to a runner that has missed an update for 30 days, so one that slept long is renewed first.
RENEW_AFTER_DAYS=20

REFUSED=3

# Nothing but answers goes to standard output.
say() { printf 'runner-vm: %s\n' "$*" >&2; }

# Tries a command until it succeeds, after 1, 2, 4 … 30 s. A refusal is final.
patiently() {
  local what=$1 pause=1 waited=0 code
  shift
  while true; do
    code=0
    "$@" || code=$?
    if ((code == 0 || code == REFUSED)); then return "$code"; fi
    if ((waited >= PATIENCE)); then
      say "$what: given up after $waited s"
      return 1
    fi
    say "$what: not yet; again in $pause s"
    sleep "$pause"
    waited=$((waited + pause))
    pause=$((pause < 15 ? pause * 2 : 30))
  done
}

# -- the metadata server -----------------------------------------------------------------------------------------

# One value; nothing if there is none. Fails while the server does not answer.
metadata() {
  local answer
  answer=$(curl --silent --noproxy '*' --max-time 10 --header 'Metadata-Flavor: Google' --write-out '\n%{http_code}' \
    "$METADATA/computeMetadata/v1/$1") || return 1
  case ${answer##*$'\n'} in
    200) printf '%s' "${answer%$'\n'*}" ;;
    404) ;;
    *) return 1 ;;
  esac
}

# A setting, or its default.
setting() {
  local value
  value=$(patiently "the metadata server" metadata "instance/attributes/$1") || return 1
  printf '%s' "${value:-${2:-}}"
}

runner_user() { setting runner-user runner; }
runner_directory() { setting runner-directory "$BASE/actions-runner"; }

# -- boot ----------------------------------------------------------------------------------------------------------

boot() {
  local user
  command -v curl >/dev/null || patiently "curl" apt_get curl
  mkdir -p "$(dirname "$INSTALLED")" "$ROOT/etc/systemd/system" "$BASE"
  # The old file may be running: it is replaced, not written over.
  install -m 755 "$0" "$INSTALLED.new"
  mv "$INSTALLED.new" "$INSTALLED"
  mount_data_disk
  user=$(runner_user)
  id "$user" >/dev/null 2>&1 || useradd --home-dir "$BASE" --no-create-home --shell /bin/bash "$user"
  # A data disk may come from a VM on which the user had another number.
  [[ $(stat --format %U "$BASE") == "$user" ]] || chown --recursive --no-dereference "$user:" "$BASE"
  write_units "$user"
  systemctl daemon-reload
  # Not enabled: at the next boot this script, perhaps a newer one, starts them again.
  systemctl start --no-block runner-vm.service runner-vm-prune.timer
  say "started; its log: journalctl --unit runner-vm"
}

# The disk of that device name, if there is one, holds all that the runner keeps: it outlives the VM.
mount_data_disk() {
  local disk=$ROOT/dev/disk/by-id/google-runner-data
  [[ -e $disk ]] || return 0
  if mountpoint --quiet "$BASE"; then return 0; fi
  if [[ -z $(blkid --output value --match-tag TYPE "$disk") ]]; then
    say "the data disk is empty: making a file system on it"
    mkfs.ext4 -q -m 0 "$disk"
  fi
  mount -o discard,defaults "$disk" "$BASE"
  resize2fs "$disk" >/dev/null 2>&1 || say "the data disk's file system was not enlarged"
}

write_units() {
  local units=$ROOT/etc/systemd/system
  # Compute Engine takes the power away 90 s after it asked for a shutdown. Docker is to outlive the runner's jobs.
  cat >"$units/runner-vm.service" <<UNIT
[Unit]
Description=GitHub Actions runner
Wants=network-online.target
After=network-online.target docker.service
StartLimitIntervalSec=0

[Service]
User=$1
RuntimeDirectory=runner-vm
RuntimeDirectoryPreserve=yes
ExecStartPre=+$INSTALLED prepare
ExecStart=$INSTALLED run
Restart=always
RestartSec=5
KillMode=mixed
TimeoutStartSec=30min
TimeoutStopSec=85
StandardOutput=journal+console
StandardError=journal+console
UNIT
  cat >"$units/runner-vm-prune.service" <<UNIT
[Unit]
Description=Make room on the GitHub Actions runner's disk

[Service]
Type=oneshot
ExecStart=$INSTALLED prune
UNIT
  cat >"$units/runner-vm-prune.timer" <<UNIT
[Unit]
Description=Make room on the GitHub Actions runner's disk

[Timer]
OnActiveSec=10min
OnUnitActiveSec=1h
UNIT
}

# -- prepare -------------------------------------------------------------------------------------------------------

prepare() {
  local user directory
  user=$(runner_user)
  directory=$(runner_directory)
  mkdir -p "$directory" "$STATE"
  patiently "packages" install_packages
  install_runner "$directory" || return 1
  chown --recursive --no-dereference "$user:" "$STATE"
  if getent group docker >/dev/null; then usermod --append --groups docker "$user"; fi
}

# What this script needs and what the VM's owner asked for; what is there already costs nothing.
install_packages() {
  local wanted asked package missing=()
  asked=$(setting runner-packages) || return 1
  read -ra wanted <<<"ca-certificates curl git jq tar ${asked//,/ }"
  for package in "${wanted[@]}"; do
    dpkg-query --show --showformat '${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || missing+=("$package")
  done
  if ((${#missing[@]} == 0)); then return 0; fi
  say "installing ${missing[*]}"
  apt_get "${missing[@]}"
}

apt_get() {
  apt-get update --quiet --quiet &&
    DEBIAN_FRONTEND=noninteractive apt-get install --quiet --quiet --yes --no-install-recommends "$@"
}

# Installs the runner's program if there is none, if another version is pinned, or if it could be too old for GitHub.
install_runner() {
  local directory=$1 wanted stamp=$1/.runner-vm-version release version
  wanted=$(setting runner-version latest) || return 1
  if [[ -x $directory/bin/Runner.Listener && ! -e $directory/.runner-vm-installing ]]; then
    if [[ $wanted == latest ]]; then
      if [[ ! -e $STATE/outdated && -n $(find "$stamp" -mtime "-$RENEW_AFTER_DAYS" 2>/dev/null) ]]; then return 0; fi
    elif [[ $(cat "$stamp" 2>/dev/null) == "$wanted" ]]; then
      if [[ -e $STATE/outdated ]]; then
        say "GitHub refuses runner $wanted, which is pinned: raise runner-version, or take it away"
      fi
      return 0
    fi
    # An installed runner is better than none.
    release=$(PATIENCE=30 patiently "the runner's releases" find_release "$wanted") || {
      say "going on with the runner that is installed"
      return 0
    }
  else
    release=$(patiently "the runner's releases" find_release "$wanted") || return 1
  fi
  version=${release% *}
  if [[ ! -e $directory/.runner-vm-installing && $(cat "$stamp" 2>/dev/null) == "$version" ]]; then
    touch "$stamp"
  else
    patiently "the runner's program" fetch_runner "$directory" "$version" "${release#* }" || return 1
    printf '%s\n' "$version" >"$stamp"
    rm -f "$directory/.runner-vm-installing"
    say "installed runner $version"
  fi
  rm -f "$STATE/outdated"
}

# The system's name in the names of the runner's archives.
platform() {
  case $(uname -m) in
    x86_64) echo linux-x64 ;;
    aarch64) echo linux-arm64 ;;
    *) say "no runner is made for $(uname -m)" && return 1 ;;
  esac
}

# `VERSION SHA256` of what is wanted: the checksum that was given, or the one that GitHub publishes for the release.
find_release() {
  local wanted=$1 path=latest sha256 release version file
  [[ $wanted == latest ]] || path=tags/v$wanted
  sha256=$(setting runner-sha256) || return 1
  if [[ $wanted != latest && -n $sha256 ]]; then
    echo "$wanted $sha256"
    return 0
  fi
  release=$(curl --silent --fail --location --max-time 30 "$GITHUB_API/repos/actions/runner/releases/$path") || return 1
  version=$(printf '%s' "$release" | jq --raw-output '.tag_name // "" | ltrimstr("v")') || return 1
  file=actions-runner-$(platform)-$version.tar.gz
  sha256=$(printf '%s' "$release" | jq --raw-output --arg file "$file" \
    '.assets[]? | select(.name == $file) | .digest // "" | ltrimstr("sha256:")') || return 1
  if [[ ! $version =~ ^[0-9]+\.[0-9]+\.[0-9]+$ || ! $sha256 =~ ^[0-9a-f]{64}$ ]]; then
    say "the release $path has no version, or no checksum for $file; set runner-version and runner-sha256"
    return "$REFUSED"
  fi
  echo "$version $sha256"
}

fetch_runner() {
  local directory=$1 version=$2 sha256=$3 archive owner
  archive=$directory/.runner-vm-archive
  curl --silent --show-error --fail --location --max-time 600 --output "$archive" \
    "$GITHUB/actions/runner/releases/download/v$version/actions-runner-$(platform)-$version.tar.gz" || return 1
  if ! echo "$sha256  $archive" | sha256sum --check --status; then
    say "the archive of runner $version does not have the checksum $sha256: not installed"
    rm -f "$archive"
    return "$REFUSED"
  fi
  touch "$directory/.runner-vm-installing"
  # A runner that has updated itself has links here, to directories of its version.
  rm -rf "${directory:?}"/bin "${directory:?}"/bin.* "${directory:?}"/externals "${directory:?}"/externals.*
  owner=$(runner_user) || return 1
  tar --extract --gzip --no-same-owner --file "$archive" --directory "$directory" || return 1
  rm -f "$archive"
  chown --recursive --no-dereference "$owner:" "$directory"
  "$directory/bin/installdependencies.sh" >/dev/null || say "some of the runner's dependencies were not installed"
}

# -- run -----------------------------------------------------------------------------------------------------------

run() {
  local code=0
  DIRECTORY=$(runner_directory)
  cd "$DIRECTORY"
  if [[ ! -e .runner || -e $STATE/unknown-to-github ]]; then
    register || code=$?
    # A signal ends the pause: the VM may be asked to stop meanwhile.
    case $code in
      0) ;;
      "$REFUSED") pause "$REFUSED_PAUSE" && return 1 ;;
      *) return 1 ;;
    esac
  fi
  run_runner
}

# Sleeps so that a signal ends it at once.
pause() {
  trap 'exit 0' TERM INT
  sleep "$1" &
  wait $!
  trap - TERM INT
}

# Gets a registration token from the service and registers the runner anew, under its old name.
register() {
  local service repository body='{}' answer code=0
  service=$(setting runner-manager-url) || return 1
  repository=$(setting runner-repository) || return 1
  if [[ -n $repository ]]; then body=$(jq --null-input --compact-output --arg repo "$repository" '{repo: $repo}'); fi
  service=${service%/}
  if [[ -z $service ]]; then
    tell_how_by_hand "no runner-manager-url is set"
    return "$REFUSED"
  fi
  say "GitHub does not know this runner: asking $service to register it"
  slow_down
  answer=$(patiently "$service" ask "$service" "$body") || code=$?
  if ((code != 0)); then
    if ((code == REFUSED)); then tell_how_by_hand "$service did not agree to register it"; fi
    return "$code"
  fi
  configure "$answer" || return 1
  rm -f "$STATE/unknown-to-github"
  say "registered"
}

# Each registration of this boot waits longer than the one before: something else may be wrong with it.
slow_down() {
  local count
  count=$(cat "$STATE/registrations" 2>/dev/null || echo 0)
  echo $((count + 1)) >"$STATE/registrations"
  if ((count > 0)); then
    local wait=$((count < 6 ? 15 * 2 ** count : 600))
    say "it is registration $((count + 1)) since the VM was started: in $wait s"
    pause "$wait"
  fi
}

# The service's answer, which holds the token. The VM proves which one it is by an identity token of Google's.
ask() {
  local service=$1 body=$2 identity answer status
  identity=$(metadata "instance/service-accounts/default/identity?audience=$service&format=full") || return 1
  if [[ -z $identity ]]; then
    say "the VM has no service account, so it cannot prove who it is: give it one (it needs no roles)"
    return "$REFUSED"
  fi
  answer=$(printf 'header = "Authorization: Bearer %s"\n' "$identity" |
    curl --config - --silent --show-error --max-time 30 --header 'Content-Type: application/json' --data "$body" \
      --write-out '\n%{http_code}' "$service/runner/registration") || return 1
  status=${answer##*$'\n'}
  answer=${answer%$'\n'*}
  case $status in
    200) printf '%s' "$answer" ;;
    429 | 5??)
      say "$service answered $status$(detail "$answer")"
      return 1
      ;;
    *)
      say "$service refused with $status$(detail "$answer")"
      case $status in
        401 | 403)
          say "the service's log says why; mostly no entry of RUNNER_CONFIG for this VM and zone says \"register\","
          say "or runner-manager-url is not the service's CLOUD_RUN_SERVICE_URL, letter by letter"
          ;;
        404) say "check that the service is new enough to have /runner/registration" ;;
      esac
      return "$REFUSED"
      ;;
  esac
}

# What a refusal says, if it says something: never more than that.
detail() { printf '%s' "$1" | jq --raw-output '": " + .detail[:300]' 2>/dev/null || true; }

# A field of the answer, if it is there.
field() { printf '%s' "$1" | jq --raw-output "$2 // empty | strings" 2>/dev/null || true; }

configure() {
  local answer=$1 url token name labels group arguments
  url=$(field "$answer" .url)
  token=$(field "$answer" .token)
  if [[ -z $url || -z $token ]]; then
    say "the service's answer lacks url or token: is it a runner-manager?"
    return 1
  fi
  name=$(field "$answer" .name)
  name=${name:-$(setting runner-name "$(metadata instance/name)")} || return 1
  labels=$(field "$answer" '.labels | join(",")')
  labels=${labels:-$(setting runner-labels)} || return 1
  group=$(setting runner-group) || return 1
  arguments=(--unattended --replace --url "$url" --name "$name" --work _work)
  if [[ -n $labels ]]; then arguments+=(--labels "$labels"); fi
  if [[ -n $group ]]; then arguments+=(--runnergroup "$group"); fi
  # config.sh refuses while these are there. They are of no use any more.
  rm -f .runner .runner_migrated .credentials .credentials_migrated .credentials_rsaparams
  say "config.sh ${arguments[*]}"
  # The runner takes its token from the environment as well, and hides it from its own logs.
  ACTIONS_RUNNER_INPUT_TOKEN=$token ./config.sh "${arguments[@]}" 2>&1 | without "$token" >&2 || {
    say "config.sh failed"
    rm -f .runner .credentials .credentials_rsaparams
    return 1
  }
}

# Whatever a program writes, the token does not get through.
without() {
  local line
  while IFS= read -r line || [[ -n $line ]]; do printf '%s\n' "${line//"$1"/[token]}"; done
}

tell_how_by_hand() {
  local user name
  user=$(runner_user) || return 0
  name=$(metadata instance/name) || return 0
  say "not registered: $1. By hand, on this VM, with a token from"
  say "  gh api -X POST repos/OWNER/REPO/actions/runners/registration-token --jq .token"
  say "  sudo -u $user bash; cd $DIRECTORY; ./config.sh remove --local"
  say "  read -rs ACTIONS_RUNNER_INPUT_TOKEN; export ACTIONS_RUNNER_INPUT_TOKEN   # paste it: no list shows it"
  say "  ./config.sh --unattended --replace --url https://github.com/OWNER/REPO --name $name; exit"
  say "  sudo rm -f $STATE/unknown-to-github; sudo systemctl restart runner-vm"
}

# Runs it until it ends, or until the VM is shut down: then the runner is told, and given time to sign off.
run_runner() {
  local code=0 watcher i
  runner=
  stopping=false
  trap 'stopping=true; if [[ -n $runner ]]; then kill -TERM "$runner"; fi' TERM INT
  # run.sh hands a signal on only if asked to.
  export RUNNER_MANUALLY_TRAP_SIG=1
  exec 3> >(watch)
  watcher=$!
  ./run.sh >&3 2>&1 &
  runner=$!
  exec 3>&-
  # A signal may have come before there was a process to hand it to.
  if $stopping; then kill -TERM "$runner"; fi
  wait "$runner" || code=$?
  # The first wait ends with the signal, the second with the runner.
  if $stopping; then
    say "shutting down: waiting for the runner to sign off"
    wait "$runner" || code=$?
    say "the runner has signed off"
    return 0
  fi
  # What the runner said last decides what is done next.
  for ((i = 0; i < 50; i++)); do
    kill -0 "$watcher" 2>/dev/null || break
    sleep 0.1
  done
  say "the runner ended by itself with code $code; systemd starts it again"
  return 1
}

# Passes on what the runner says, and remembers what has to be mended: its exit code does not tell.
watch() {
  local line
  while IFS= read -r line; do
    printf '%s\n' "$line" >&2
    case $line in
      *"registration has been deleted from the server"* | *"no longer exists on the server"*)
        touch "$STATE/unknown-to-github"
        ;;
      *"is deprecated and cannot receive messages"*)
        touch "$STATE/outdated"
        ;;
    esac
  done
}

# -- prune ---------------------------------------------------------------------------------------------------------

# Caches are what the VM is for, so nothing goes while there is room, and the oldest goes first.
prune() {
  local directory keep_free step
  directory=$(runner_directory)
  keep_free=$(setting runner-keep-free 20)
  for step in prune_logs prune_images prune_work; do
    if has_room "$directory" "$keep_free"; then return 0; fi
    if pgrep --full 'Runner\.Worker' >/dev/null; then
      say "little room on the disk, but a job runs: later"
      return 0
    fi
    "$step" "$directory" || say "$step failed"
  done
  has_room "$directory" "$keep_free" ||
    say "less than $keep_free % of the disk are free, and nothing old is left to remove: enlarge it"
}

has_room() {
  local used
  used=$(df --output=pcent "$1" | tail -n 1 | tr -dc 0-9)
  ((100 - used >= $2))
}

prune_logs() {
  say "removing the runner's logs of more than a week ago"
  find "$1/_diag" -type f -mtime +7 -delete
}

prune_images() {
  if ! command -v docker >/dev/null; then return 0; fi
  say "removing images and containers that were not used for a week"
  docker system prune --all --force --filter until=168h >/dev/null
}

# A directory in which nothing changed for a month: checkouts, downloaded actions, tools.
prune_work() {
  local work
  for work in "$1"/_work/*/ "$1"/_work/_actions/*/ "$1"/_work/_tool/*/; do
    case $work in *"/_work/_"*"/"*"/"*) ;; *"/_work/_"*) continue ;; esac
    if [[ -d $work && -z $(find "$work" -mtime -30 -print -quit) ]]; then
      say "removing $work, unchanged for a month"
      rm -rf "$work"
    fi
  done
}

case ${1:-boot} in
  boot | prepare | run | prune) "${1:-boot}" ;;
  *) say "usage: runner-vm [boot|prepare|run|prune]" && exit 2 ;;
esac
