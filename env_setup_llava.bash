#!/usr/bin/env bash
# Makes .venv, the one environment for all model families. Safe to run again: it does nothing when nothing changed.
#   bash env_setup_llava.bash            PYTHON=python3.12 bash env_setup_llava.bash
#   bash env_setup_llava.bash datasets bitsandbytes        (adds optional packages; arguments go to pip install)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
PATH=${PATH//"$PWD/.venv/bin:"/} # the interpreter outside, also where the environment is activated
python=${PYTHON:-python3}

install() {
    # Debian packs ensurepip apart; an environment made without it is filled by the pip outside.
    local pip=(.venv/bin/python -m pip)
    "${pip[@]}" --version >/dev/null 2>&1 || pip=("$python" -m pip --python .venv/bin/python)
    "${pip[@]}" install --quiet --disable-pip-version-check --no-compile "$@" # Python compiles what is imported
}

# What was installed last is kept beside the environment: a half-finished install is never taken for a whole one.
if [[ ! -x .venv/bin/python ]] || ! cmp -s requirements.txt .venv/installed.txt; then
    if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
        echo "error: $python is not Python 3.11 or newer; name one, such as PYTHON=python3.11 bash $0" >&2
        exit 2
    fi
    echo "Setting up .venv with $("$python" --version); the first time takes a few minutes."
    rm -f .venv/installed.txt
    "$python" -m venv .venv 2>/dev/null || "$python" -m venv --clear --without-pip .venv
    install --requirement requirements.txt
    cp requirements.txt .venv/installed.txt
fi
if (($#)); then
    install --constraint requirements.txt "$@"
fi
