#!/usr/bin/env bash
# What happens on a worker; setup.sh and run.sh call it there. It stands in ~/aesthetic_jax/COMMIT/tpu.
#   worker.sh install               makes .venv beside it, and this commit the current one
#   worker.sh run ATTEMPT COMMAND...  runs a command in the current commit, waits for its end, exits with its code
#   worker.sh stop                  ends it: SIGTERM, then waits
set -euo pipefail
home="$HOME/aesthetic_jax" script="$(realpath "$0")"
mkdir -p "$home/run"

install() {
  cd "$(dirname "$script")/.."
  PATH="$HOME/.local/bin:$PATH"
  if [ ! -e .venv/installed ]; then
    rm -rf .venv
    command -v uv >/dev/null || curl -LsSf https://astral.sh/uv/install.sh | sh # brings a Python where the machine's is too old
    uv venv --quiet --python=3.12 .venv
    uv pip install --quiet --python=.venv/bin/python '.[tpu]'
    touch .venv/installed
  fi
  ln -sfn "$PWD" "$home/current"
}

# The lock on `busy` is the run: the command and its children inherit it, so that it is free when all of them have ended.
run() { # ATTEMPT COMMAND...
  local attempt="$1" words code
  shift
  printf -v words '%q ' "$@"
  cd "$home/run"
  exec 9>>busy
  if ! flock --timeout=2 9; then
    [ "$(cat words)" = "$words" ] || {
      echo "$(hostname): busy with: $(cat words); end that with tpu/run.sh --stop first" >&2
      exit 2
    }
  elif [ "$(cat attempt 2>/dev/null)" != "$attempt" ]; then
    rm -f code
    echo "$attempt" >attempt
    echo "$words" >words
    # A session of its own and no file of the connection's: it goes on when that breaks.
    setsid --fork bash "$script" job "$@" </dev/null >log 2>&1
  fi
  exec 9>&-
  flock busy true
  code="$(cat code 2>/dev/null || echo 1)"
  if [ "$code" -ne 0 ]; then
    echo "$(hostname): exit code $code; the end of its log:" >&2
    tail -n 20 log >&2
  fi
  exit "$code"
}

job() { # COMMAND...
  local code=0
  cd "$(readlink "$home/current")"
  export AESTHETIC_JAX_COMMIT="${PWD##*/}" PATH="$PWD/.venv/bin:$PATH"
  "$@" &
  echo $! >"$home/run/pid"
  wait $! || code=$?
  echo "$code" >"$home/run/code"
}

stop() {
  cd "$home/run"
  flock --nonblock busy true && return
  kill -TERM "$(cat pid)" || true
  flock busy true
}

"$@"
