#!/usr/bin/env bash
# Calls the embedded cloud with gcloud, as an operator does: run.sh sets the environment.
set -euo pipefail

work=$1
export CLOUDSDK_CONFIG="$work/gcloud" CLOUDSDK_CORE_DISABLE_PROMPTS=1 CLOUDSDK_CORE_PROJECT=$GCP_PROJECT_ID
export CLOUDSDK_CORE_DISABLE_USAGE_REPORTING=true CLOUDSDK_COMPONENT_MANAGER_DISABLE_UPDATE_CHECK=true
export CLOUDSDK_API_ENDPOINT_OVERRIDES_COMPUTE="$COMPUTE_API_URL/compute/v1/"
export CLOUDSDK_API_ENDPOINT_OVERRIDES_CLOUDTASKS="$CLOUD_TASKS_API_URL/"
export CLOUDSDK_AUTH_ACCESS_TOKEN_FILE="$work/access-token"
rm -rf "$CLOUDSDK_CONFIG"
mkdir -p "$CLOUDSDK_CONFIG"

zone=(--zone asia-northeast1-a)
location=(--location "$CLOUD_TASK_LOCATION")
queue=$CLOUD_TASK_QUEUE_NAME

# is EXPECTED COMMAND…: the command succeeds and prints this.
is() {
  local expected=$1 printed
  shift
  printed=$("$@" 2>"$work/gcloud.err") || { echo "FAILED: $*" >&2; cat "$work/gcloud.err" >&2; exit 1; }
  if [ "$printed" != "$expected" ]; then
    echo "FAILED: $*: it printed '$printed', not '$expected'" >&2
    exit 1
  fi
  echo "ok: $*"
}
status=(gcloud compute instances describe runner-1 "${zone[@]}" --format 'value(status)')

is TERMINATED "${status[@]}"
is $'gpu-1\nrunner-1' gcloud compute instances list --format 'value(name)' --sort-by name
# It waits until the operation is done.
is '' gcloud compute instances start runner-1 "${zone[@]}" --quiet --format none
is RUNNING "${status[@]}"
label=(gcloud compute instances describe runner-1 "${zone[@]}" --format 'value(labels.runner-manager-hold)')
is '' gcloud compute instances add-labels runner-1 "${zone[@]}" --labels runner-manager-hold=debugging --format none
is debugging "${label[@]}"
is '' gcloud compute instances remove-labels runner-1 "${zone[@]}" --labels runner-manager-hold --format none
is '' "${label[@]}"
is '' gcloud compute instances stop runner-1 "${zone[@]}" --quiet --format none
is TERMINATED "${status[@]}"
is $'setLabels\nsetLabels\nstart\nstop' gcloud compute operations list --zones "${zone[1]}" \
  --format 'value(operationType)' --sort-by operationType

is RUNNING gcloud tasks queues describe "$queue" "${location[@]}" --format 'value(state)'
is '' gcloud tasks create-http-task by-gcloud --queue "$queue" "${location[@]}" --url https://service.example/ \
  --method POST --body-content '{}' --schedule-time "$(date -u -d "+1 hour" +%FT%TZ)" --format none
is by-gcloud gcloud tasks list --queue "$queue" "${location[@]}" --format 'value(name.basename())'
