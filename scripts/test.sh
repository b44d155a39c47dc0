#!/usr/bin/env bash
# Makes .venv, installs the package with its test extra and runs the tests.
#
#   bash scripts/test.sh                          all but the slow ones
#   bash scripts/test.sh tests/merging -m slow    any arguments of pytest
#   PYTHON=python3.13 bash scripts/test.sh        chooses the interpreter
#   TEST_WORKERS=8 bash scripts/test.sh           more than two processes
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

make_environment
install_once test setup.py -- --editable '.[test]' || exit 1
cd "$ROOT"
# The processes share what they compile, and a second run finds it.
export JAX_COMPILATION_CACHE_DIR="${JAX_COMPILATION_CACHE_DIR:-$ROOT/.cache/jax}"
export JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS="${JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS:-0.3}"
# A file goes to one process: what its tests share is made and compiled once.
exec "$VENV/bin/python" -m pytest -n "${TEST_WORKERS:-2}" --dist loadfile --durations=25 "$@"
