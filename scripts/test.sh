#!/usr/bin/env bash
# Sets up .venv, then checks style, shell scripts and types, then runs the tests.
#   scripts/test.sh [--fast | --parity] [PYTEST_FLAGS...]
#   --fast    leaves out the tests marked slow: under 3 minutes, for every commit
#   --parity  adds PyTorch and TRL, and the comparisons with them
set -euo pipefail
PARITY='' select='not parity'
case "${1:-}" in
  --fast) select='not parity and not slow' && shift ;;
  --parity) PARITY=1 select='' && shift ;;
esac
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
ruff check .
ruff format --check .
shellcheck scripts/*.sh tpu/*.sh .ci/run
pyright
# One file is one worker's: its tests share fixtures. tests/conftest.py puts the slow files first.
exec python -m pytest --numprocesses=logical --dist=loadfile --no-loadscope-reorder \
  -m "$select" "$@"
