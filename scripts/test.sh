#!/usr/bin/env bash
# Sets up .venv, checks the style and runs the tests. --parity adds PyTorch and TRL and the comparisons with them.
set -euo pipefail
EXTRAS=test
select=(-m "not parity")
if [ "${1:-}" = --parity ]; then
  EXTRAS=test,parity
  select=()
  shift
fi
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
ruff check .
ruff format --check .
exec python -m pytest -n auto --dist loadfile "${select[@]}" "$@"
