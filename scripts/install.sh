#!/usr/bin/env bash
# Makes .venv with the package for one kind of device, and the quickstart's encoder.
#
#   bash scripts/install.sh             CPU
#   bash scripts/install.sh cuda13      NVIDIA GPUs
#   bash scripts/install.sh tpu         Google TPUs
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

extra="${1:-}"
case "$extra" in
  "" | cuda13 | tpu) ;;
  *) fail "knows cuda13, tpu, or nothing for a CPU, got '$extra'" ;;
esac

if [ -z "${PYTHON:-}" ] && ! (choose_python >/dev/null 2>&1); then
  # Images of TPU machines may carry an older Python: uv brings one without root.
  say "no Python 3.11 or newer here: getting 3.12 through uv"
  python3 -m pip install --user --quiet uv
  python3 -m uv python install 3.12
  PYTHON="$(python3 -m uv python find 3.12)"
fi
make_environment
install_once package setup.py -- --editable ".${extra:+[$extra]}" || exit 1
install_encoder || exit 1
