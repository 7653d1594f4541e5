#!/usr/bin/env bash
# Creates slices, sets them up and runs a command on every worker until it is done, unattended.
# Recreates preempted slices and restarts the command, which resumes from its workdir. Run it where
# it can stay, for example in tmux on a small machine.
#   tpu/supervise.sh --name=NAME --zone=ZONE --topology=v5e:4x4 --spot [--slices=N] -- COMMAND...
# Exit codes: 0 the command is done; 1 gave up; 2 the input needs mending (also where the command
# exits with 2).
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
require name zone topology
hardware
((${#command[@]})) || fail "the command is missing; append -- aesthetic-jax train --config=..."
started='' # whether this attempt came as far as the command

attempt() {
  started=''
  "$tpu/create.sh" "${flags[@]}" && "$tpu/setup.sh" "${flags[@]}" && started=1 &&
    "$tpu/run.sh" "${flags[@]}" -- "${command[@]}"
}
node_state() {
  call gcloud compute tpus tpu-vm describe "$1" "${location[@]}" --format="value(state)"
}
preempted() { # whether the queued resource or one of its slices says so
  local node
  case "$current" in SUSPEND*) return 0 ;; ACTIVE) ;; *) return 1 ;; esac
  for node in "${nodes[@]}"; do
    case "$(node_state "$node" || true)" in
      '' | READY) ;;
      *) return 0 ;;
    esac
  done
  return 1
}
give_up() { # EXIT_CODE REASON
  log "gave up on $name: $2; if it still exists it costs money: tpu/delete.sh deletes it"
  exit "$1"
}

if [ -n "$dry_run" ]; then
  attempt
  # After an exit code other than 0 these follow, and then everything again.
  state
  for node in "${nodes[@]}"; do node_state "$node"; done
  exec "$tpu/delete.sh" "${flags[@]}"
fi
failures=0 preemptions=0
counted=0 # 1 if the previous attempt counted as a failure
while true; do
  code=0
  attempt || code=$?
  [ "$code" -ne 0 ] || exit 0
  [ "$code" -ne 2 ] || give_up 2 "the input needs mending, see the lines above"
  sleep "$poll" # a preemption takes a moment to show
  current="$(state)" || current=UNKNOWN
  if preempted; then
    # If the command didn't start, the slices were gone before: the failure just counted was this
    # preemption.
    [ -n "$started" ] || failures=$((failures - counted))
    counted=0 preemptions=$((preemptions + 1))
    log "$name: preemption $preemptions; recreating it"
    # Fails while the queued resource is being suspended; create.sh then waits and deletes it.
    "$tpu/delete.sh" "${flags[@]}" || true
  elif [ -n "$started" ] && [ "$current" = NONE ]; then
    give_up 1 "someone deleted it while the command ran"
  elif [ "$code" -eq 75 ]; then
    counted=0
    log "$name: the command can resume from its checkpoint; restarting it"
  else
    counted=1 failures=$((failures + 1))
    ((failures < max_failures)) ||
      give_up 1 "$failures failures other than preemptions, the last with exit code $code"
    log "$name: failure $failures of $max_failures, exit code $code; retrying"
  fi
done
