#!/usr/bin/env bash
# Make the project's Python environment: tools/venv.sh DIRECTORY
# Needs root only where Debian's python3-venv is missing, and says so.
set -euo pipefail
cd "$(dirname "$0")/.."
venv=$1

python=$(command -v python3 || true)
if [ -z "$python" ] || ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
    echo "sglang-ops needs Python 3.11 or newer; found: $("${python:-python3}" --version 2>&1 || true)." >&2
    exit 7
fi
if ! "$python" -c 'import ensurepip' 2>/dev/null; then
    echo "Installing python3-venv (root: apt-get) ..." >&2
    sudo=$([ "$(id -u)" -eq 0 ] || echo sudo)
    $sudo apt-get update -qq
    $sudo env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends python3-venv >/dev/null
fi
[ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
echo "Installing sglang-ops and what it is tested with into $venv ..." >&2
"$venv/bin/python" -m pip install -qq --disable-pip-version-check --editable '.[demo,dev,mlflow]'
