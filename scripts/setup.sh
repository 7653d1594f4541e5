# Sourced by the other scripts: makes .venv with the package and the extras named in $EXTRAS, and puts it on the PATH.
cd "$(dirname "${BASH_SOURCE[0]}")/.."
if [ ! -x .venv/bin/python ]; then
  for python in python3 python3.13 python3.12 python3.11; do
    if "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then break; fi
    python=
  done
  [ -n "$python" ] || { echo "Python 3.11 or newer is needed and none was found" >&2; exit 2; }
  "$python" -m venv .venv
fi
wanted="$(cat pyproject.toml) ${EXTRAS:-}"
if [ "$(cat .venv/installed 2>/dev/null)" != "$wanted" ]; then
  case "${EXTRAS:-}" in *parity*) .venv/bin/pip install --quiet torch==2.13.0 ;; esac # alone and first: the CPU build
  .venv/bin/pip install --quiet -e ".${EXTRAS:+[$EXTRAS]}"
  printf '%s' "$wanted" >.venv/installed
fi
PATH="$PWD/.venv/bin:$PATH"
