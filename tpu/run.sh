#!/usr/bin/env bash
# Runs a command on every worker, waits for it and exits with its code. The command keeps running
# when the connection breaks or this script is interrupted; the same call then waits for it again.
# Another command is refused until the first has ended or --stop has stopped it.
#   tpu/run.sh --name=NAME --zone=ZONE [--slices=N] -- aesthetic-jax train --config=...
#   tpu/run.sh --name=NAME --zone=ZONE [--slices=N] --stop
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
require name zone
trap 'kill $(jobs -p) 2>/dev/null || true' EXIT
if [ -n "$stop" ]; then
  on_all_workers ssh --command="bash aesthetic_jax/current/tpu/worker.sh stop"
else
  ((${#command[@]})) || fail "the command is missing; append -- aesthetic-jax train --config=..."
  # gcloud repeats a command when its connection breaks; the worker knows the repetition by this.
  attempt="$(date +%s)-$$"
  quoted="$(quote "${command[@]}")"
  on_all_workers ssh --command="bash aesthetic_jax/current/tpu/worker.sh run $attempt $quoted"
fi
