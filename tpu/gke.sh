#!/usr/bin/env bash
# Runs a command on every host of TPU slices of kubectl's current GKE cluster: fills in jobset.yaml
# and applies it.
#   tpu/gke.sh --name=NAME --image=IMAGE --topology=v5e:4x4 [--slices=N] [--spot] -- COMMAND...
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
require name image topology
hardware
((${#command[@]})) || fail "the command is missing; append -- aesthetic-jax train --config=..."
[[ "$name" =~ ^[a-z]([a-z0-9-]{0,38}[a-z0-9])?$ ]] ||
  fail "--name=$name: give up to 40 of a-z, 0-9 and -, a letter first"
[[ "$image" =~ ^[A-Za-z0-9._/:@-]+$ ]] || fail "--image=$image: give the name of a container image"

# shellcheck disable=SC2034 # jobset.yaml uses these
chips_per_host=4 max_restarts=$((max_failures - 1))
# shellcheck disable=SC2034
spot_selector="${spot:+cloud.google.com/gke-spot: \"true\"}"
if ((chips <= 8)) && [[ "$topology" = v[56]e:* ]]; then chips_per_host="$chips"; fi # one host
hosts=$((chips / chips_per_host))
((slices == 1 || hosts > 1)) ||
  fail "--slices=$slices: GKE connects only slices of several hosts, and $topology has one host"
command_json=''
for word in "${command[@]}"; do
  word="${word//\\/\\\\}"
  word="${word//\"/\\\"}"
  word="${word//$'\n'/\\n}"
  command_json+=", \"${word//\$(/\$\$(}\"" # Kubernetes expands $(NAME), and reads $$( as $(
done
command_json="[${command_json#, }]"

manifest="$(<"$tpu/jobset.yaml")"
for field in name max_restarts slices hosts gke_accelerator shape spot_selector image \
  chips_per_host command_json; do
  manifest="${manifest//"\${$field}"/"${!field}"}"
done
if [ -n "$dry_run" ]; then
  printf '%s\n' "kubectl apply --filename=- <<'END_OF_JOBSET'" "$manifest" END_OF_JOBSET
else
  kubectl apply --filename=- <<<"$manifest"
fi
