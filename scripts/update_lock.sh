#!/usr/bin/env bash
# Rewrites the lock files from pyproject.toml. Pins that still fit stay as they are.
#   scripts/update_lock.sh [--upgrade | --upgrade-package=NAME]...   newest versions: of all, of one
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
pip install --quiet uv

lock() { # FILE EXTRA FLAGS...: pins the dependencies and one extra, for every Python from 3.11
  uv pip compile --quiet --universal --python-version=3.11 --generate-hashes --no-annotate \
    --no-emit-index-url --no-emit-find-links --custom-compile-command=scripts/update_lock.sh \
    pyproject.toml --extra="$2" --output-file="$1" "${@:3}"
  sed -i '/^$/,$d' "$1" # uv's list of the packages that it left out
}

lock requirements.lock test "$@"
mapfile -t common < <(sed -nE 's/^([a-z0-9-]+)==.*/--no-emit-package=\1/p' requirements.lock)
lock tpu/requirements-tpu.lock tpu "$@" --constraint=requirements.lock "${common[@]}"
# Without torch, which setup.sh installs by itself: its dependencies include every CUDA library.
lock scripts/requirements-parity.lock parity "$@" --constraint=requirements.lock "${common[@]}" \
  --override=<(echo "torch; python_version < '3'")
