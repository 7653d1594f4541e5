# shellcheck shell=bash disable=SC2034 # the scripts that source this file use the variables
# Flags of the scripts in tpu/ (each script uses those that it needs):
#   --name=NAME        the queued resource; its slices are NAME, or NAME-0, NAME-1, ... if several
#   --zone=ZONE        zone of the TPUs
#   --project=PROJECT  project (gcloud's default project)
#   --slices=N         slices of the queued resource (1)
#   --topology=T       chips of a slice, as JAX names them: v5e:4x4, v6e:8x8, v5p:2x2x4, v4:2x2x2
#   --spot, --reserved kind of capacity (on demand)
#   --runtime=VERSION  image of the machines (the one for the topology)
#   --create_flag=FLAG another flag for `queued-resources create`, such as --network=NET; repeatable
#   --ref=REF          commit to install (HEAD); uncommitted changes are not copied
#   --workdir=gs://DIR run to fetch
#   --to=DIR           where to copy the run
#   --checkpoints      copy its checkpoints too
#   --slice=I          slice whose log to watch (0)
#   --worker=I         worker whose log to watch (0)
#   --stop             stop the running command: SIGTERM, then wait
#   --image=IMAGE      container image of a GKE job
#   --max_failures=N   failures other than preemptions before giving up (3)
#   --poll=SECONDS     time between two checks of a queued resource (30)
#   --dry_run          print the commands and run none
#   -- COMMAND...      command to run on every worker
set -euo pipefail

fail() { # MESSAGE: bad input; one line and exit code 2
  echo "tpu/${0##*/}: error: $*" >&2
  exit 2
}
log() { echo "$(date -u +%FT%TZ) tpu/${0##*/}: $*" >&2; }

((BASH_VERSINFO[0] * 100 + BASH_VERSINFO[1] >= 404)) ||
  fail "this is bash $BASH_VERSION; install bash 4.4 or newer"
tpu="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
name='' zone='' project='' slices=1 topology='' spot='' reserved='' runtime='' create_flags=()
ref=HEAD workdir='' to='' checkpoints='' slice=0 worker=0 stop='' image='' max_failures=3 poll=30
dry_run='' command=()
flags=() # as given, to pass on to other scripts
while (($#)); do
  case "$1" in
    --name=?*) name="${1#*=}" ;;
    --zone=?*) zone="${1#*=}" ;;
    --project=?*) project="${1#*=}" ;;
    --slices=?*) slices="${1#*=}" ;;
    --topology=?*) topology="${1#*=}" ;;
    --spot) spot=1 ;;
    --reserved) reserved=1 ;;
    --runtime=?*) runtime="${1#*=}" ;;
    --create_flag=?*) create_flags+=("${1#*=}") ;;
    --ref=?*) ref="${1#*=}" ;;
    --workdir=?*) workdir="${1#*=}" ;;
    --to=?*) to="${1#*=}" ;;
    --checkpoints) checkpoints=1 ;;
    --slice=?*) slice="${1#*=}" ;;
    --worker=?*) worker="${1#*=}" ;;
    --stop) stop=1 ;;
    --image=?*) image="${1#*=}" ;;
    --max_failures=?*) max_failures="${1#*=}" ;;
    --poll=?*) poll="${1#*=}" ;;
    --dry_run) dry_run=1 ;;
    --help)
      for file in "$0" "$tpu/common.sh"; do sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$file"; done
      exit ;;
    --)
      command=("${@:2}")
      break ;;
    *) fail "unknown flag '$1'; --help lists the flags, and a command goes after --" ;;
  esac
  flags+=("$1")
  shift
done

require() { # NAMES...: fails if one of these flags is missing
  local flag
  for flag; do
    [ -n "${!flag}" ] || fail "--$flag is missing; --help lists the flags"
  done
}
for flag in slices slice worker max_failures poll; do
  [[ "${!flag}" =~ ^(0|[1-9][0-9]{0,5})$ ]] || fail "--$flag=${!flag}: give a whole number"
done
((slices && max_failures)) || fail "--slices and --max_failures: give at least 1"
((slice < slices)) || fail "--slice=$slice: there are $slices slices; give a number from 0"
[ -z "$spot" ] || [ -z "$reserved" ] || fail "--spot and --reserved: give only one of them"

location=(--zone="$zone" ${project:+--project="$project"} --quiet)
nodes=("$name")
for ((i = 0; i < slices && slices > 1; i++)); do nodes[i]="$name-$i"; done

quote() { # WORDS...: prints them quoted for a shell
  local word line=''
  for word; do
    [[ "$word" =~ ^[A-Za-z0-9_@%+=:,./-]+$ ]] || word="${word@Q}"
    line+=" $word"
  done
  echo "${line# }"
}

call() { # WORDS...: runs a command; only prints it with --dry_run
  if [ -n "$dry_run" ]; then quote "$@"; else "$@"; fi
}

# Slice by slice instead of `queued-resources ssh --node=all`, which skips a slice that it can't
# reach and reports success.
on_all_workers() { # ssh|scp WORDS...: on every worker of every slice in parallel
  # Returns 2 or 75 if any slice does, else the first failure.
  local verb="$1" node job code worst=0 words jobs=()
  shift
  for node in "${nodes[@]}"; do
    words=("$node" --ssh-flag="-o ServerAliveInterval=30 -o ConnectTimeout=20" "$@")
    [ "$verb" = ssh ] || words=("$@" "$node:")
    words=(gcloud compute tpus tpu-vm "$verb" "${words[@]}" --worker=all "${location[@]}")
    if [ -n "$dry_run" ]; then
      quote "${words[@]}"
    else
      "${words[@]}" </dev/null &
      jobs+=($!)
    fi
  done
  for job in ${jobs[@]+"${jobs[@]}"}; do
    code=0
    wait "$job" || code=$?
    if ((worst == 0 || code == 2 || (code == 75 && worst != 2))); then worst=$code; fi
  done
  return "$worst"
}

state() { # prints the queued resource's state, NONE if it doesn't exist; tries five times
  local answer i words=(gcloud compute tpus queued-resources describe "$name" "${location[@]}"
    --format="value(state.state)")
  if [ -n "$dry_run" ]; then
    quote "${words[@]}"
    return
  fi
  for ((i = 0; i < 5; i++)); do
    # gcloud may print notes around the state.
    if answer="$("${words[@]}" 2>&1)" && grep -m1 -xE '[A-Z_]+' <<<"$answer"; then return; fi
    case "$answer" in *NOT_FOUND* | *"was not found"*)
      echo NONE
      return ;;
    esac
    echo "$answer" >&2
    sleep "$poll"
  done
  return 1
}

hardware() { # sets Google's names for the chips of --topology
  local flat='1x1|2x2|2x4|4x4|4x8|8x8|8x16|16x16'
  local deep='2x2x1|2x2x2|2x2x4|2x4x4|4x4x4|4x4x8|4x8x8|8x8x8|8x8x16|8x16x16|16x16x16'
  [[ "$topology" =~ ^(v5e|v6e):($flat)$ || "$topology" =~ ^(v4|v5p):($deep)$ ]] ||
    fail "--topology=$topology: give v5e or v6e with one of $flat," \
      "or v4 or v5p with one of $deep, such as v5e:4x4"
  shape="${BASH_REMATCH[2]}"
  chips=$((${shape//x/*}))
  case "${BASH_REMATCH[1]}" in # Google counts v4 and v5p in cores, two per chip
    v4)
      accelerator="v4-$((2 * chips))" default_runtime="tpu-ubuntu2204-base"
      gke_accelerator="tpu-v4-podslice" ;;
    v5e)
      accelerator="v5litepod-$chips" default_runtime="v2-alpha-tpuv5-lite"
      gke_accelerator="tpu-v5-lite-podslice" ;;
    v5p)
      accelerator="v5p-$((2 * chips))" default_runtime="v2-alpha-tpuv5"
      gke_accelerator="tpu-v5p-slice" ;;
    v6e)
      accelerator="v6e-$chips" default_runtime="v2-alpha-tpuv6e"
      gke_accelerator="tpu-v6e-slice" ;;
  esac
}
