#!/usr/bin/env bash
# Runs on a worker, from ~/aesthetic_jax/COMMIT/tpu; setup.sh and run.sh call it there.
#   worker.sh install                 makes .venv for this commit and makes it the current commit
#   worker.sh run ATTEMPT COMMAND...  runs a command in the current commit; exits with its exit code
#   worker.sh stop                    sends SIGTERM to the command and waits for its end
set -euo pipefail
home="$HOME/aesthetic_jax" script="$(realpath "$0")"
mkdir -p "$home/run"

install() {
  cd "$(dirname "$script")/.."
  PATH="$HOME/.local/bin:$PATH"
  if [ ! -e .venv/installed ]; then
    rm -rf .venv
    # uv brings a Python where the machine's is too old.
    command -v uv >/dev/null || curl -LsSf https://astral.sh/uv/install.sh | sh
    uv venv --quiet --python=3.12 .venv
    uv pip install --quiet --python=.venv/bin/python --require-hashes \
      --requirement=requirements.lock --requirement=tpu/requirements-tpu.lock
    uv pip install --quiet --python=.venv/bin/python --no-deps .
    touch .venv/installed
  fi
  ln -sfn "$PWD" "$home/current"
}

# A run holds the lock on the file `busy`: the command and its children inherit it, so that it is
# free once all of them have ended.
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
    # In a session of its own, without the connection's files: it survives a broken connection.
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
