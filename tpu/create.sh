#!/usr/bin/env bash
# Asks for TPU slices and waits until they are there. What is active is left alone; what is suspended or failed is asked for anew.
#   tpu/create.sh --name=NAME --zone=ZONE --topology=v5e:4x4 [--slices=N] [--spot | --reserved]
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
need name zone topology
hardware

words=(gcloud compute tpus queued-resources create "$name" --accelerator-type="$accelerator"
  --runtime-version="${runtime:-$image_of_chip}")
if ((slices > 1)); then words+=(--node-count="$slices" --node-prefix="$name"); else words+=(--node-id="$name"); fi
words+=(${spot:+--spot} ${reserved:+--reserved} ${create_flags[@]+"${create_flags[@]}"} "${where[@]}")
if [ -n "$dry_run" ]; then
  call "${words[@]}"
  state # again and again, until it says ACTIVE
  exit
fi

asked='' before=''
while true; do
  now="$(state)"
  [ "$now" = "$before" ] || say "$name: $now"
  case "$now" in
    ACTIVE) exit ;;
    NONE)
      "${words[@]}"
      asked=1 ;;
    FAILED | SUSPENDED)
      if [ -n "$asked" ] && [ "$now" = FAILED ]; then
        gcloud compute tpus queued-resources describe "$name" "${where[@]}" --format="value(state.failedData.error.message)" >&2
        exit 1
      fi
      "$tpu/delete.sh" "${given[@]}" ;;
    *) sleep "$poll" ;;
  esac
  before="$now"
done
