#!/usr/bin/env bash
# Sets up what is missing, then runs the linter and the tests. Arguments go to pytest: bash run_tests.sh -k rollout
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
bash env_setup_llava.bash
# The report pages are tested in a real browser. Without one their tests are skipped, and say so.
if ! command -v chromium chromium-browser google-chrome >/dev/null && [[ $(id -u) == 0 ]] && command -v apt-get >/dev/null; then
    echo "Installing chromium by apt-get, for the tests of the report pages."
    { apt-get update && apt-get install --yes --no-install-recommends chromium; } >/dev/null 2>&1 ||
        echo "note: chromium could not be installed; the tests of report pages are skipped" >&2
fi
.venv/bin/python -m ruff check --quiet .
# One thread per worker: two workers with two threads each would only get in each other's way.
OMP_NUM_THREADS=1 .venv/bin/python -m pytest -n 2 --dist loadfile "$@"
