#!/usr/bin/env bash
# Makes .venv, installs the package and the encoder, and merges a first model: DFWE on
# generated dialogue tasks. A second run with the same arguments only prints the result.
#
#   bash scripts/quickstart.sh                one seed of the tasks
#   bash scripts/quickstart.sh --seeds 5      five
#   bash scripts/quickstart.sh --workdir DIR  where the results go (default: runs/)
#   bash scripts/quickstart.sh --config.search.budget=32    any flag of launch/dfwe.py
#
# The last lines it prints say where the report and the model lie.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

seeds="" workdir=""
flags=(--config="$ROOT/configs/dfwe/quickstart.py")
while [ $# -gt 0 ]; do
  case "$1" in
    --seeds | --workdir)
      [ $# -ge 2 ] || fail "$1 wants a value"
      if [ "$1" = --seeds ]; then seeds="$2"; else workdir="$2"; fi
      shift
      ;;
    --seeds=*) seeds="${1#*=}" ;;
    --workdir=*) workdir="${1#*=}" ;;
    -h | --help)
      sed -n '2,/^set /{/^#/s/^# \{0,1\}//p;}' "${BASH_SOURCE[0]}"
      exit 0
      ;;
    *) flags+=("$1") ;;
  esac
  shift
done
case "$seeds" in
  *[!0-9]* | 0) fail "--seeds wants a number from 1, got '$seeds'" ;;
esac
[ -z "$seeds" ] || flags+=(--config.seeds="$seeds")
# One folder for one number of seeds: a run refuses a folder of another configuration.
workdir="${workdir:-$ROOT/runs/quickstart${seeds:+_$seeds}}"

make_environment
install_once package setup.py -- --editable . || exit 1
install_encoder || exit 1

# Compiled programs are kept in the checkout, so that a second run starts at once.
export FUSION_JAX_CACHE_DIR="${FUSION_JAX_CACHE_DIR:-$ROOT/.cache/jax}"
exec "$VENV/bin/python" "$ROOT/launch/dfwe.py" "${flags[@]}" --workdir="$workdir"
