# shellcheck shell=bash
# Sourced by the other scripts: makes .venv with the locked packages and this package, and puts it
# on the PATH. PARITY=1 adds PyTorch and TRL.
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit
if [ ! -x .venv/bin/python ]; then
  for python in python3 python3.13 python3.12 python3.11; do
    if "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then break; fi
    python=
  done
  [ -n "$python" ] || { echo "Python 3.11 or newer is needed and none was found" >&2; exit 2; }
  "$python" -m venv .venv
fi
PATH="$PWD/.venv/bin:$PATH"

changed() { ! cmp --silent "$1" ".venv/${1##*/}"; } # FILE: since .venv was made from it
if changed requirements.lock; then
  pip install --quiet --require-hashes --requirement=requirements.lock
  cp requirements.lock .venv
fi
if [ -n "${PARITY:-}" ] && changed scripts/requirements-parity.lock; then
  pip install --quiet torch==2.13.0 # alone and first, so that pip may take a CPU build
  pip install --quiet --no-deps --require-hashes --requirement=scripts/requirements-parity.lock
  cp scripts/requirements-parity.lock .venv
fi
if changed pyproject.toml; then
  pip install --quiet --no-deps --editable=.
  cp pyproject.toml .venv
fi
