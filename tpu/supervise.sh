#!/usr/bin/env bash
# Creates slices, sets them up and runs a command on every worker until it is done, without a person: what is preempted is created
# again, and the same command, which resumes from its workdir, started again. Run it where it can stay, in tmux on a small machine.
#   tpu/supervise.sh --name=NAME --zone=ZONE --topology=v5e:4x4 --spot [--slices=N] -- aesthetic-jax train --config=...
# Exit codes: 0 the command is done, 1 given up, 2 the input needs mending (the command's own exit code 2 counts as that).
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
need name zone topology
hardware
((${#command[@]})) || fail "no command; write it behind --, such as -- aesthetic-jax train --config=..."
running=''

attempt() {
  running=''
  "$tpu/create.sh" "${given[@]}" && "$tpu/setup.sh" "${given[@]}" && running=1 &&
    "$tpu/run.sh" "${given[@]}" -- "${command[@]}"
}
node_state() { call gcloud compute tpus tpu-vm describe "$1" "${where[@]}" --format="value(state)"; }
taken() { # whether the machines were taken away: the queued resource says so, or one of its slices
  local node
  case "$now" in SUSPEND*) return 0 ;; ACTIVE) ;; *) return 1 ;; esac
  for node in "${nodes[@]}"; do
    case "$(node_state "$node" || true)" in
      '' | READY) ;;
      *) return 0 ;;
    esac
  done
  return 1
}
give_up() { # EXIT_CODE WHY
  say "gave up on $name: $2; if it is still there it costs money: tpu/delete.sh"
  exit "$1"
}

if [ -n "$dry_run" ]; then
  attempt
  # What an exit code other than 0 adds, before all of it comes again.
  state
  for node in "${nodes[@]}"; do node_state "$node"; done
  exec "$tpu/delete.sh" "${given[@]}"
fi
failures=0 counted=0 preemptions=0 # counted: 1 if the attempt before was a failure
while true; do
  code=0
  attempt || code=$?
  [ "$code" -ne 0 ] || exit 0
  [ "$code" -ne 2 ] || give_up 2 "its input needs mending, the lines above say how"
  sleep "$poll" # what took the machines away needs a moment to show
  now="$(state)" || now=UNKNOWN
  if taken; then
    # Where the command didn't even start, they were gone before, and what was counted then was this preemption.
    [ -n "$running" ] || failures=$((failures - counted))
    counted=0 preemptions=$((preemptions + 1))
    say "$name: preempted for the ${preemptions}. time; creating it again"
    "$tpu/delete.sh" "${given[@]}" || true # while it is still being suspended this fails, and create.sh waits and does it
  elif [ -n "$running" ] && [ "$now" = NONE ]; then
    give_up 1 "someone deleted it while the command ran"
  elif [ "$code" -eq 75 ]; then
    counted=0
    say "$name: the command can go on from its checkpoint; starting it again"
  else
    counted=1 failures=$((failures + 1))
    ((failures < max_failures)) || give_up 1 "$failures failures that were no preemptions, the last with exit code $code"
    say "$name: failure $failures of $max_failures, exit code $code; trying again"
  fi
done
