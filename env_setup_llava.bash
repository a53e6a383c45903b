#!/usr/bin/env bash
# Makes .venv, the one environment for all model families. Safe to run again: it does nothing when nothing changed.
#   bash env_setup_llava.bash            PYTHON=python3.12 bash env_setup_llava.bash
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

# What was installed last is kept beside the environment: a half-finished install is never taken for a whole one.
if [[ -x .venv/bin/python ]] && cmp -s requirements.txt .venv/installed.txt; then
    exit 0
fi

python=${PYTHON:-python3}
if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
    echo "error: $python is not Python 3.11 or newer; name one, such as PYTHON=python3.11 bash $0" >&2
    exit 2
fi
echo "Setting up .venv with $("$python" --version); the first time takes a few minutes."
rm -f .venv/installed.txt
# Debian packs ensurepip apart, and without it a plain `venv` fails: then the pip that is there fills it from outside.
if "$python" -m venv .venv 2>/dev/null; then
    pip=(.venv/bin/python -m pip)
else
    "$python" -m venv --clear --without-pip .venv
    pip=("$python" -m pip --python .venv/bin/python)
fi
"${pip[@]}" install --quiet --disable-pip-version-check --requirement requirements.txt
cp requirements.txt .venv/installed.txt
