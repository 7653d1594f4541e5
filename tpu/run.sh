#!/usr/bin/env bash
# Runs a command on every worker and waits for its end; its exit code is the command's. It goes on where the connection breaks or
# this script is ended; the same call then waits for it again, and another command is refused until --stop has ended the first.
#   tpu/run.sh --name=NAME --zone=ZONE [--slices=N] -- aesthetic-jax train --config=...
#   tpu/run.sh --name=NAME --zone=ZONE [--slices=N] --stop
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
need name zone
trap 'kill $(jobs -p) 2>/dev/null || true' EXIT
if [ -n "$stop" ]; then
  everywhere ssh --command="bash aesthetic_jax/current/tpu/worker.sh stop"
else
  ((${#command[@]})) || fail "no command; write it behind --, such as -- aesthetic-jax train --config=..."
  attempt="$(date +%s)-$$" # gcloud runs a command again when its connection breaks: by this a worker knows that it is the same
  everywhere ssh --command="bash aesthetic_jax/current/tpu/worker.sh run $attempt $(quote "${command[@]}")"
fi
