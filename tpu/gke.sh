#!/usr/bin/env bash
# Runs a command on every host of TPU slices of the GKE cluster that kubectl speaks to: fills in jobset.yaml and applies it.
#   tpu/gke.sh --name=NAME --image=IMAGE --topology=v5e:4x4 [--slices=N] [--spot] -- aesthetic-jax train --workdir=gs://...
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
need name image topology
hardware
((${#command[@]})) || fail "no command; write it behind --, such as -- aesthetic-jax train --config=..."
[[ "$name" =~ ^[a-z]([a-z0-9-]{0,38}[a-z0-9])?$ ]] || fail "--name=$name: give up to 40 of a-z, 0-9 and -"
[[ "$image" =~ ^[A-Za-z0-9._/:@-]+$ ]] || fail "--image=$image: is no name of an image"

# shellcheck disable=SC2034 # these are for the manifest
chips_per_host=4 spot_selector="${spot:+cloud.google.com/gke-spot: \"true\"}" max_restarts=$((max_failures - 1))
if ((chips <= 8)) && [[ "$topology" = v[56]e:* ]]; then chips_per_host="$chips"; fi # one host with all of them
hosts=$((chips / chips_per_host))
((slices == 1 || hosts > 1)) || fail "--slices=$slices: GKE joins slices of several hosts only, $topology has one"
command_json=''
for word in "${command[@]}"; do
  word="${word//\\/\\\\}"
  word="${word//\"/\\\"}"
  word="${word//$'\n'/\\n}"
  command_json+=", \"${word//\$(/\$\$(}\"" # Kubernetes reads $(NAME) as a variable, and $$( as $(
done
command_json="[${command_json#, }]"

manifest="$(<"$tpu/jobset.yaml")"
for field in name max_restarts slices hosts gke_accelerator shape spot_selector image chips_per_host command_json; do
  manifest="${manifest//"\${$field}"/"${!field}"}"
done
if [ -n "$dry_run" ]; then
  printf '%s\n' "kubectl apply --filename=- <<'END_OF_JOBSET'" "$manifest" END_OF_JOBSET
else
  kubectl apply --filename=- <<<"$manifest"
fi
