#!/bin/sh
# Asks PyPI whether the oldest versions that this package takes have known vulnerabilities.
# usage: [PYTHON=python3] tools/audit.sh VENV
# One that cannot be asked about fails the audit: nothing heard is not nothing known.
set -eu
cd "$(dirname "$0")/.."

floors=$(mktemp)
trap 'rm -f "$floors"' EXIT
{
    sed -n 's/ *#.*//; s/>=/==/p' requirements.txt
    sed -n "s/^ *'[a-z]*': \['\([^']*\)>=\([^']*\)'\],$/\1==\2/p" setup.py
} > "$floors"

[ -x "$1/bin/pip-audit" ] || {
    "${PYTHON:-python3}" -m venv "$1"
    "$1/bin/pip" install --quiet 'pip-audit>=2.10'
}
"$1/bin/pip-audit" --strict --disable-pip --no-deps --progress-spinner off --requirement "$floors"
