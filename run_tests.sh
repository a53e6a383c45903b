#!/usr/bin/env bash
# Sets up what is missing, then runs the linter and the tests. Arguments go to pytest: bash run_tests.sh -k rollout
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
bash env_setup_llava.bash
.venv/bin/python -m ruff check --quiet .
# One thread per worker: two workers with two threads each would only get in each other's way.
OMP_NUM_THREADS=1 .venv/bin/python -m pytest -n 2 --dist loadfile "$@"
