#!/usr/bin/env bash
# Requests TPU slices and waits until they are active. Leaves an active queued resource as it is;
# replaces a suspended or failed one.
#   tpu/create.sh --name=NAME --zone=ZONE --topology=v5e:4x4 [--slices=N] [--spot | --reserved]
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
require name zone topology
hardware

words=(gcloud compute tpus queued-resources create "$name" --accelerator-type="$accelerator"
  --runtime-version="${runtime:-$default_runtime}")
if ((slices > 1)); then
  words+=(--node-count="$slices" --node-prefix="$name")
else
  words+=(--node-id="$name")
fi
words+=(${spot:+--spot} ${reserved:+--reserved})
words+=(${create_flags[@]+"${create_flags[@]}"} "${location[@]}")
if [ -n "$dry_run" ]; then
  call "${words[@]}"
  state # repeated until it prints ACTIVE
  exit
fi

requested='' last=''
while true; do
  current="$(state)"
  [ "$current" = "$last" ] || log "$name: $current"
  case "$current" in
    ACTIVE) exit ;;
    NONE)
      "${words[@]}"
      requested=1 ;;
    FAILED | SUSPENDED)
      if [ -n "$requested" ] && [ "$current" = FAILED ]; then
        gcloud compute tpus queued-resources describe "$name" "${location[@]}" \
          --format="value(state.failedData.error.message)" >&2
        exit 1
      fi
      "$tpu/delete.sh" "${flags[@]}" ;;
    *) sleep "$poll" ;;
  esac
  last="$current"
done
