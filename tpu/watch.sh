#!/usr/bin/env bash
# Prints the state of a queued resource and follows the log of one worker; by default of worker 0
# of slice 0, whose process writes the metrics.
#   tpu/watch.sh --name=NAME --zone=ZONE [--slices=N] [--slice=I] [--worker=I]
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
require name zone
state
call gcloud compute tpus tpu-vm ssh "${nodes[slice]}" --worker="$worker" "${location[@]}" \
  --command="tail -n 50 -F aesthetic_jax/run/log"
