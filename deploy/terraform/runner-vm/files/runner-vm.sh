#!/bin/bash
# A VM that is a GitHub Actions runner: its start-up script, its service and its housekeeping, in one file.
#
#   runner-vm [boot]     root, at each start of the VM: installs this file and its units, mounts the disk, starts both
#   runner-vm prepare    root, before each start of the service: packages, the owner's scripts, the runner's program
#   runner-vm register   root, after that: registers the runner if GitHub does not know it
#   runner-vm run        the runner's user: runs the runner
#   runner-vm prune      root, before each start of the runner and hourly: makes room on the disks while no job runs
#
# Settings are attributes in the VM's metadata, all optional: runner-manager-url, runner-repository, runner-name,
# runner-labels, runner-default-labels, runner-group, runner-version, runner-sha256, runner-user, runner-directory,
# runner-packages, runner-keep-free, runner-pre-install, runner-post-install, runner-hook-job-started,
# runner-hook-job-completed, runner-proxy, runner-no-proxy, runner-ca-certificates, runner-ops-agent,
# runner-block-metadata.
#
# Jobs run as the runner's user, so root trusts nothing that this user can write: root works in $OWN, and changes in the
# user's directories are made as the user.
#
# The registration token lives in this process and in the environment of config.sh: never on a disk, in a log or in
# a list of processes. So no here-documents around it, which bash may keep in files, and no arguments of programs.
set -euo pipefail

ROOT=${RUNNER_VM_ROOT:-}
STATE=${RUNNER_VM_STATE:-$ROOT/run/runner-vm}
METADATA=${RUNNER_VM_METADATA:-http://metadata.google.internal}
GITHUB=${RUNNER_VM_GITHUB:-https://github.com}
GITHUB_API=${RUNNER_VM_GITHUB_API:-https://api.github.com}
OPS_AGENT=${RUNNER_VM_OPS_AGENT:-https://dl.google.com/cloudagents/add-google-cloud-ops-agent-repo.sh}
# The home of the runner's user: on the data disk, if there is one.
BASE=$ROOT/var/lib/runner
# Root's own, on the boot disk: stamps, and programs that root runs.
OWN=$ROOT/var/lib/runner-vm
INSTALLED=$ROOT/usr/local/sbin/runner-vm

# Seconds that a step waits for something that may come by itself. After that systemd starts the service again.
PATIENCE=${RUNNER_VM_PATIENCE:-300}
# The pause after a refusal: an operator has to act first.
REFUSED_PAUSE=600
# GitHub gives no jobs to a runner that has missed an update for 30 days, so one that slept long is renewed first.
RENEW_AFTER_DAYS=20

# Seconds that making room may delay the runner: a job may be waiting for it.
PRUNE_SECONDS=180

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

# Runs a command with the rights of the runner's user. RUNNER_USER is set by each of root's commands.
as_user() {
  if [[ $(id --user --name) == "$RUNNER_USER" ]]; then
    "$@"
  else
    runuser --user "$RUNNER_USER" -- env "HOME=$(getent passwd "$RUNNER_USER" | cut -d : -f 6)" "$@"
  fi
}

# The proxy for everything but the metadata server.
use_proxy() {
  local proxy without
  proxy=$(setting runner-proxy) || return 1
  if [[ -z $proxy ]]; then return 0; fi
  without=$(setting runner-no-proxy) || return 1
  export http_proxy=$proxy https_proxy=$proxy
  export no_proxy="localhost,127.0.0.1,169.254.169.254,metadata.google.internal${without:+,$without}"
}

# -- boot ----------------------------------------------------------------------------------------------------------

boot() {
  local user spot stop_seconds=85
  command -v curl >/dev/null || patiently "curl" apt_get curl
  mkdir -p "$(dirname "$INSTALLED")" "$ROOT"/etc/{systemd/system,apt/apt.conf.d,needrestart/conf.d} "$BASE"
  # The old file may be running: it is replaced, not written over.
  install -m 755 "$0" "$INSTALLED.new"
  mv "$INSTALLED.new" "$INSTALLED"
  # The system's own updates hold the lock for minutes after a boot.
  printf 'DPkg::Lock::Timeout "300";\n' >"$ROOT/etc/apt/apt.conf.d/90runner-vm"
  # After an update of a library, needrestart restarts the services that use it. This one may be running a job.
  # shellcheck disable=SC2016 # Perl's variable
  printf '%s\n' '$nrconf{override_rc}{qr(^runner-vm\.service$)} = 0;' >"$ROOT/etc/needrestart/conf.d/runner-vm.conf"
  mount_data_disk
  user=$(runner_user)
  id "$user" >/dev/null 2>&1 || useradd --home-dir "$BASE" --no-create-home --shell /bin/bash "$user"
  # A data disk may come from a VM on which the user had another number.
  [[ $(stat --format %U "$BASE") == "$user" ]] || chown --recursive --no-dereference "$user:" "$BASE"
  # Compute Engine takes the power away 90 s after it asked for a shutdown, and from a Spot VM after 30 s.
  spot=$(patiently "the metadata server" metadata instance/scheduling/preemptible)
  if [[ $spot == TRUE ]]; then stop_seconds=25; fi
  write_units "$user" "$stop_seconds"
  systemctl daemon-reload
  # Not enabled: at the next boot this script, perhaps a newer one, starts them again.
  systemctl start --no-block runner-vm.service runner-vm-prune.timer
  say "started; its log: sudo journalctl --unit runner-vm"
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
  # Docker is to outlive the runner's jobs. The system's updates wait until the packages are installed. Most VMs are not
  # up long enough for the timer to find them idle, so room is made before the runner takes a job as well.
  cat >"$units/runner-vm.service" <<UNIT
[Unit]
Description=GitHub Actions runner
Wants=network-online.target
After=network-online.target docker.service
Before=apt-daily.service apt-daily-upgrade.service
StartLimitIntervalSec=0

[Service]
User=$1
RuntimeDirectory=runner-vm
RuntimeDirectoryPreserve=yes
EnvironmentFile=-$OWN/environment
ExecStartPre=+$INSTALLED prepare
ExecStartPre=+$INSTALLED register
ExecStartPre=-+/usr/bin/timeout --kill-after=10 $PRUNE_SECONDS $INSTALLED prune
ExecStart=$INSTALLED run
Restart=always
RestartSec=5
KillMode=mixed
TimeoutStartSec=1h
TimeoutStopSec=$2
StandardOutput=journal+console
StandardError=journal+console
UNIT
  cat >"$units/runner-vm-prune.service" <<UNIT
[Unit]
Description=Make room on the GitHub Actions runner's disks

[Service]
Type=oneshot
ExecStart=$INSTALLED prune
UNIT
  cat >"$units/runner-vm-prune.timer" <<UNIT
[Unit]
Description=Make room on the GitHub Actions runner's disks

[Timer]
OnActiveSec=10min
OnUnitActiveSec=1h
UNIT
}

# -- prepare -------------------------------------------------------------------------------------------------------

prepare() {
  local directory text
  RUNNER_USER=$(runner_user)
  directory=$(runner_directory)
  mkdir -p "$OWN"
  use_proxy
  PATIENCE=60 patiently "dpkg" finish_packages || say "going on with packages that dpkg could not configure"
  trust_certificates
  text=$(setting runner-pre-install)
  patiently "userdata_pre_install" provision pre-install "$text" || return 1
  patiently "packages" install_packages
  block_metadata
  if getent group docker >/dev/null; then usermod --append --groups docker "$RUNNER_USER"; fi
  if ! as_user mkdir -p "$directory"; then
    say "$RUNNER_USER cannot create $directory: create it, and make $RUNNER_USER its owner"
    return 1
  fi
  install_runner "$directory" || return 1
  install_dependencies
  install_ops_agent
  write_hooks
  write_environment "$directory"
  text=$(setting runner-post-install)
  patiently "userdata_post_install" provision post-install "$text" || return 1
}

# Installs what this script needs and what the VM's owner asked for; what is there already costs nothing.
install_packages() {
  local wanted asked package missing=()
  asked=$(setting runner-packages) || return 1
  read -ra wanted <<<"ca-certificates curl git jq tar ${asked//,/ }"
  if [[ $(setting runner-block-metadata) == true ]]; then wanted+=(nftables); fi
  for package in "${wanted[@]}"; do
    dpkg-query --show --showformat '${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || missing+=("$package")
  done
  if ((${#missing[@]} == 0)); then return 0; fi
  say "installing ${missing[*]}"
  apt_get "${missing[@]}"
}

# A stop of the VM in the middle of an installation leaves packages half configured. Then apt refuses to do anything, until
# dpkg has been told to finish.
finish_packages() {
  local journal=${DPKG_ADMINDIR:-/var/lib/dpkg}/updates
  if [[ -z $(dpkg --audit 2>/dev/null) && -z $(ls "$journal" 2>/dev/null) ]]; then return 0; fi
  say "dpkg was interrupted: finishing its work"
  DEBIAN_FRONTEND=noninteractive dpkg --force-confdef --force-confold --configure --pending >&2
}

apt_get() {
  finish_packages || say "dpkg did not finish: trying apt"
  apt-get update --quiet --quiet &&
    DEBIAN_FRONTEND=noninteractive apt-get install --quiet --quiet --yes --no-install-recommends "$@"
}

# Writes a file of root's at once, or not at all.
write() {
  cat >"$2.new" && chmod "$1" "$2.new" && mv "$2.new" "$2"
}

# Certificates of authorities that the network's proxy needs, one in each file, as update-ca-certificates wants them.
trust_certificates() {
  local pem directory=$ROOT/usr/local/share/ca-certificates/runner-vm
  pem=$(setting runner-ca-certificates) || return 1
  if [[ $pem == "$(cat "$OWN/ca-certificates.pem" 2>/dev/null)" ]]; then return 0; fi
  rm -rf "$directory" && mkdir -p "$directory"
  pem=${pem:+$pem$'\n'}
  printf '%s' "$pem" | awk -v prefix="$directory/" '/-----BEGIN/ { n++ } n { print > (prefix n ".crt") }'
  update-ca-certificates >/dev/null || return 1
  printf '%s' "$pem" | write 644 "$OWN/ca-certificates.pem"
}

# Runs a script of the VM's owner as root: once on each boot disk, and again when it changes.
provision() {
  local name=$1 text=$2 sum
  if [[ -z $text ]]; then return 0; fi
  [[ $text == '#!'* ]] || text=$'#!/bin/bash\n'$text
  sum=$(printf '%s' "$text" | sha256sum)
  if [[ $(cat "$OWN/$name.done" 2>/dev/null) == "$sum" ]]; then return 0; fi
  say "running userdata_${name/-/_}"
  printf '%s\n' "$text" | write 700 "$OWN/$name"
  (cd / && "$OWN/$name") >&2 || return 1
  printf '%s\n' "$sum" >"$OWN/$name.done"
}

# Keeps jobs from the metadata server, which would give them the VM's identity. Name resolution, port 53, stays. It is
# rejected, not dropped: with OS Login each look-up of a user asks that server, and must not hang. A job that may use
# Docker or sudo can act as root and get around it.
block_metadata() {
  local blocked uid
  uid=$(id --user "$RUNNER_USER") || return 1
  blocked=$(setting runner-block-metadata) || return 1
  if [[ $blocked != true ]]; then
    if [[ -e $OWN/metadata.nft ]]; then nft delete table inet runner_vm 2>/dev/null || true; fi
    rm -f "$OWN/metadata.nft"
    return 0
  fi
  write 644 "$OWN/metadata.nft" <<RULES
table inet runner_vm
delete table inet runner_vm
table inet runner_vm {
  chain output {
    type filter hook output priority 0; policy accept;
    meta skuid $uid ip daddr 169.254.169.254 tcp dport != 53 reject with tcp reset
    meta skuid $uid ip6 daddr fd20:ce::254 tcp dport != 53 reject with tcp reset
  }
  chain forward {
    type filter hook forward priority 0; policy accept;
    ip daddr 169.254.169.254 tcp dport != 53 reject with tcp reset
    ip6 daddr fd20:ce::254 tcp dport != 53 reject with tcp reset
  }
}
RULES
  nft --file "$OWN/metadata.nft"
}

# The runner's hooks: root's files, which jobs cannot change.
write_hooks() {
  local started completed
  started=$(setting runner-hook-job-started) || return 1
  completed=$(setting runner-hook-job-completed) || return 1
  write_hook started "$started"
  write_hook completed "$completed"
}

write_hook() {
  local file=$OWN/job-$1.sh text=$2
  if [[ -z $text ]]; then rm -f "$file" && return 0; fi
  [[ $text == '#!'* ]] || text=$'#!/bin/bash\n'$text
  printf '%s\n' "$text" | write 755 "$file"
}

# The environment of the runner and of its jobs: they cannot ask the metadata server.
write_environment() {
  {
    assign RUNNER_VM_DIRECTORY "$1"
    if [[ -n ${https_proxy:-} ]]; then
      assign http_proxy "$http_proxy"
      assign https_proxy "$https_proxy"
      assign no_proxy "$no_proxy"
    fi
    # Actions that run on Node.js do not read the system's certificates.
    if [[ -s $OWN/ca-certificates.pem ]]; then assign NODE_EXTRA_CA_CERTS "$OWN/ca-certificates.pem"; fi
    if [[ -e $OWN/job-started.sh ]]; then assign ACTIONS_RUNNER_HOOK_JOB_STARTED "$OWN/job-started.sh"; fi
    if [[ -e $OWN/job-completed.sh ]]; then assign ACTIONS_RUNNER_HOOK_JOB_COMPLETED "$OWN/job-completed.sh"; fi
  } | write 644 "$OWN/environment"
}

# A line of a file that systemd reads as EnvironmentFile.
assign() {
  local value=${2//\\/\\\\}
  printf '%s="%s"\n' "$1" "${value//\"/\\\"}"
}

# Sends the journal, and with it the runner's log, to Cloud Logging.
install_ops_agent() {
  local wanted config=$ROOT/etc/google-cloud-ops-agent/config.yaml
  wanted=$(setting runner-ops-agent) || return 1
  if [[ $wanted != true || -e $OWN/ops-agent.done ]]; then return 0; fi
  PATIENCE=60 patiently "the Ops Agent" fetch_ops_agent || {
    say "going on without the Ops Agent; the next start tries again"
    return 0
  }
  mkdir -p "$(dirname "$config")"
  write 644 "$config" <<CONFIG
logging:
  receivers:
    journal:
      type: systemd_journald
  service:
    pipelines:
      default_pipeline:
        receivers: [journal]
CONFIG
  systemctl restart google-cloud-ops-agent || return 0
  touch "$OWN/ops-agent.done"
}

fetch_ops_agent() {
  curl --silent --show-error --fail --location --max-time 60 "$OPS_AGENT" | write 700 "$OWN/ops-agent.sh" || return 1
  bash "$OWN/ops-agent.sh" --also-install >/dev/null
}

# Installs the runner's program if there is none, if another version is pinned, or if it could be too old for GitHub.
install_runner() {
  local directory=$1 wanted stamp=$OWN/version release version
  wanted=$(setting runner-version latest) || return 1
  if as_user test -x "$directory/bin/Runner.Listener" && [[ ! -e $OWN/installing ]]; then
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
  if [[ ! -e $OWN/installing && $(cat "$stamp" 2>/dev/null) == "$version" ]] &&
    as_user test -x "$directory/bin/Runner.Listener"; then
    touch "$stamp"
  else
    patiently "the runner's program" fetch_runner "$directory" "$version" "${release#* }" || return 1
    printf '%s\n' "$version" >"$stamp"
    rm -f "$OWN/installing"
    say "installed runner $version"
  fi
  as_user rm -rf "$STATE/outdated"
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

# Unpacks the archive among root's own files, and has the user copy it.
fetch_runner() {
  local directory=$1 version=$2 sha256=$3 archive=$OWN/archive unpacked=$OWN/unpacked
  curl --silent --show-error --fail --location --max-time 600 --output "$archive" \
    "$GITHUB/actions/runner/releases/download/v$version/actions-runner-$(platform)-$version.tar.gz" || return 1
  if ! echo "$sha256  $archive" | sha256sum --check --status; then
    say "the archive of runner $version does not have the checksum $sha256: not installed"
    rm -f "$archive"
    return "$REFUSED"
  fi
  rm -rf "$unpacked" && mkdir "$unpacked" || return 1
  tar --extract --gzip --no-same-owner --file "$archive" --directory "$unpacked" || return 1
  install -m 755 "$unpacked/bin/installdependencies.sh" "$OWN/installdependencies.sh" || return 1
  touch "$OWN/installing"
  # A runner that has updated itself has links there, to directories of its version.
  # shellcheck disable=SC2016 # the inner shell's arguments
  as_user bash -c 'cd "$1" && rm -rf bin bin.* externals externals.* && cp --recursive --remove-destination "$2/." .' \
    copy "$directory" "$unpacked" || return 1
  rm -rf "$archive" "$unpacked"
}

# Installs the libraries that the runner needs. The boot disk has them or not, whatever the data disk has.
install_dependencies() {
  local sum
  sum=$(sha256sum <"$OWN/installdependencies.sh") || return 0
  if [[ $(cat "$OWN/dependencies" 2>/dev/null) == "$sum" ]]; then return 0; fi
  if ! patiently "the runner's dependencies" run_installdependencies; then
    say "some of the runner's dependencies were not installed; the next start tries again"
    return 0
  fi
  printf '%s\n' "$sum" >"$OWN/dependencies"
}

run_installdependencies() { DEBIAN_FRONTEND=noninteractive "$OWN/installdependencies.sh" >/dev/null; }

# -- register ------------------------------------------------------------------------------------------------------

# As root, since the VM's identity is for this alone.
register() {
  local code=0
  RUNNER_USER=$(runner_user)
  DIRECTORY=$(runner_directory)
  use_proxy
  if as_user test -e "$DIRECTORY/.runner" && [[ ! -e $STATE/unknown-to-github ]]; then return 0; fi
  ask_and_configure || code=$?
  # A signal ends the pause: the VM may be asked to stop meanwhile.
  case $code in
    0) ;;
    "$REFUSED") pause "$REFUSED_PAUSE" && return 1 ;;
    *) return 1 ;;
  esac
}

# Sleeps so that a signal ends it at once.
pause() {
  trap 'exit 0' TERM INT
  sleep "$1" &
  wait $!
  trap - TERM INT
}

# Gets a registration token from the service and registers the runner anew, under its old name.
ask_and_configure() {
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
  as_user rm -rf "$STATE/unknown-to-github"
  say "registered"
}

# Each registration of this boot waits longer than the one before: something else may be wrong with it.
slow_down() {
  local count file=$ROOT/run/runner-vm.registrations
  count=$(cat "$file" 2>/dev/null || echo 0)
  echo $((count + 1)) >"$file"
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
      # The service gives a reason. Without one, Cloud Run answered in its place.
      if [[ $status == 40[34] && -z $(field "$answer" .detail) ]]; then
        say "$service answered $status without a reason: the service is not there yet, or Cloud Run still refuses callers"
        return 1
      fi
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

# The reason that a refusal gives, cut short.
detail() { printf '%s' "$1" | jq --raw-output '": " + .detail[:300]' 2>/dev/null || true; }

# A field of the answer, if it is there.
field() { printf '%s' "$1" | jq --raw-output "$2 // empty | strings" 2>/dev/null || true; }

configure() {
  local answer=$1 url token name labels default_labels group arguments
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
  default_labels=$(setting runner-default-labels true) || return 1
  group=$(setting runner-group) || return 1
  arguments=(--unattended --replace --url "$url" --name "$name" --work _work)
  if [[ -n $labels ]]; then arguments+=(--labels "$labels"); fi
  if [[ $default_labels == false ]]; then arguments+=(--no-default-labels); fi
  if [[ -n $group ]]; then arguments+=(--runnergroup "$group"); fi
  forget_registration
  say "config.sh ${arguments[*]}"
  # The runner takes its token from the environment as well, and hides it from its own logs.
  (cd "$DIRECTORY" && ACTIONS_RUNNER_INPUT_TOKEN=$token as_user ./config.sh "${arguments[@]}") 2>&1 |
    without "$token" >&2 || {
    say "config.sh failed"
    forget_registration
    return 1
  }
}

# config.sh refuses while these files are there. They are of no use now.
forget_registration() {
  as_user rm -f "$DIRECTORY/.runner" "$DIRECTORY/.runner_migrated" "$DIRECTORY/.credentials" \
    "$DIRECTORY/.credentials_migrated" "$DIRECTORY/.credentials_rsaparams"
}

# Copies a program's output, and hides the token.
without() {
  local line
  while IFS= read -r line || [[ -n $line ]]; do printf '%s\n' "${line//"$1"/[token]}"; done
}

tell_how_by_hand() {
  local name
  name=$(metadata instance/name) || return 0
  say "not registered: $1. By hand, on this VM, with a token from"
  say "  gh api -X POST repos/OWNER/REPO/actions/runners/registration-token --jq .token"
  say "  sudo -u $RUNNER_USER bash; cd $DIRECTORY; ./config.sh remove --local"
  say "  read -rs ACTIONS_RUNNER_INPUT_TOKEN; export ACTIONS_RUNNER_INPUT_TOKEN   # paste it: no list shows it"
  say "  ./config.sh --unattended --replace --url https://github.com/OWNER/REPO --name $name; exit"
  say "  sudo rm -f $STATE/unknown-to-github; sudo systemctl restart runner-vm"
}

# -- run -----------------------------------------------------------------------------------------------------------

run() {
  if [[ -z ${RUNNER_VM_DIRECTORY:-} ]]; then
    say "runner-vm run is for systemd: sudo systemctl restart runner-vm"
    return 2
  fi
  cd "$RUNNER_VM_DIRECTORY"
  run_runner
}

# Runs the runner until it ends, or until the VM is shut down: then the runner gets a signal, and time to sign off.
run_runner() {
  local code=0 watcher i
  runner=
  stopping=false
  trap 'stopping=true; if [[ -n $runner ]]; then kill -TERM "$runner"; fi' TERM INT
  # run.sh hands a signal on only if asked to.
  export RUNNER_MANUALLY_TRAP_SIG=1
  exec 3> >(watch)
  watcher=$!
  # The shell has background processes ignore SIGINT, and the runner respects that: it would never sign off.
  env --default-signal=INT,QUIT ./run.sh >&3 2>&1 &
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
  # The runner's last lines decide about the next step.
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

# Caches are what the VM is for, so nothing goes while there is room, and the oldest goes first. Each file system is
# judged by itself: the runner's directory may be on the data disk, Docker's is on the boot disk.
prune() {
  local directory images keep_free place
  RUNNER_USER=$(runner_user)
  directory=$(runner_directory)
  images=$(docker_directory)
  keep_free=$(setting runner-keep-free 20)
  make_room prune_logs "$directory" "$keep_free" &&
    make_room prune_old_images "$images" "$keep_free" &&
    make_room prune_images "$images" "$keep_free" &&
    make_room prune_work "$directory" "$keep_free" || return 0
  for place in "$directory" "$images"; do
    has_room "$place" "$keep_free" ||
      say "less than $keep_free % of the disk of $place are free, and nothing old is left to remove: enlarge it"
  done
}

# Does one step if its disk is full. Fails if a job runs: everything waits until it is over.
make_room() {
  local step=$1 place=$2 keep_free=$3
  if has_room "$place" "$keep_free"; then return 0; fi
  if pgrep --full 'Runner\.Worker' >/dev/null; then
    say "little room on the disk of $place, but a job runs: later"
    return 1
  fi
  "$step" "$place" || say "$step failed"
}

# The directory of Docker's images; nothing without Docker.
docker_directory() {
  if command -v docker >/dev/null; then docker info --format '{{.DockerRootDir}}' 2>/dev/null || true; fi
}

has_room() {
  local used
  if [[ -z $1 ]]; then return 0; fi
  used=$(df --output=pcent "$1" | tail -n 1 | tr -dc 0-9)
  ((100 - used >= $2))
}

prune_logs() {
  say "removing the runner's logs of more than a week ago"
  as_user find "$1/_diag" -type f -mtime +7 -delete
}

# Docker does not know when an image was last used. Its filter is about when the image was built, or the container created.
prune_old_images() {
  say "removing stopped containers, and unused images that were built more than a week ago"
  docker system prune --all --force --filter until=168h >/dev/null
}

prune_images() {
  say "removing stopped containers and all unused images"
  docker system prune --all --force >/dev/null
}

# Removes directories in which nothing changed for a month: checkouts, downloaded actions, tools. A link that a job left
# there is no directory.
prune_work() {
  local work new
  {
    as_user find "$1/_work" -mindepth 1 -maxdepth 1 -type d ! -name '_*' -print0
    as_user find "$1/_work/_actions" "$1/_work/_tool" -mindepth 1 -maxdepth 1 -type d -print0
  } 2>/dev/null |
    while IFS= read -r -d '' work; do
      new=$(as_user find "$work" -mtime -30 -print -quit) || continue
      if [[ -z $new ]]; then
        say "removing $work, unchanged for a month"
        as_user rm -rf "$work" || say "$work was not removed: files in it belong to another user"
      fi
    done
}

case ${1:-boot} in
  boot | prepare | register | run | prune) "${1:-boot}" ;;
  *) say "usage: runner-vm [boot|prepare|register|run|prune]" && exit 2 ;;
esac
