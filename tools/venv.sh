#!/bin/sh
# Puts this checkout and some of its extras into a virtual environment, made if it is not there.
# usage: [PYTHON=python3] tools/venv.sh DIRECTORY EXTRAS
set -eu

venv=$1
extras=$2
export PYTHON="${PYTHON:-python3}"
cd "$(dirname "$0")/.."

if ! "$PYTHON" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))'; then
    echo "heat-liveness needs Python 3.11, 3.12 or 3.13; name one: make PYTHON=python3.12 ..." >&2
    exit 1
fi
# A directory without pip was left by an attempt without python3-venv.
if ! [ -x "$venv/bin/pip" ]; then
    tools/packages.sh python3-venv
    "$PYTHON" -m venv --clear "$venv"
fi
echo "Installing heat-liveness[$extras] into $venv." >&2
"$venv/bin/pip" install --quiet --disable-pip-version-check --editable ".[$extras]"
