#!/usr/bin/env bash
# Runs a launch script on every worker of a TPU VM or pod slice, with one command.
#
#   bash launch/tpu_pod.sh --name TPU --zone ZONE [options] SCRIPT [ARGUMENTS...]
#
#   SCRIPT          a script of launch/ without .py: dfwe, finetune
#   ARGUMENTS       go to it as they are
#   --project P     the Google Cloud project (default: the one gcloud is set to)
#   --no-copy       the workers have this checkout and its environment already
#   --dry-run       prints the commands, runs none
#
# What is copied is the last commit. Run the same command again to continue a run.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

fail() {
  printf 'tpu_pod.sh: %s\n' "$1" >&2
  exit 2
}

# $1 as one word of a shell command, in quotes only where it needs them.
quoted() {
  case "$1" in
    "" | *[!A-Za-z0-9_@%+=:,./-]*) printf "'%s'" "${1//\'/\'\\\'\'}" ;;
    *) printf '%s' "$1" ;;
  esac
}

joined() {
  local word line=""
  for word in "$@"; do line="$line $(quoted "$word")"; done
  printf '%s' "${line# }"
}

run() {
  printf '%s\n' "$(joined "$@")"
  [ -n "$dry_run" ] || "$@"
}

on_all_workers() {
  run gcloud compute tpus tpu-vm ssh "$name" "${place[@]}" --command="$1"
}

name="" zone="" project="" copy=yes dry_run=""
while [ $# -gt 0 ]; do
  case "$1" in
    --name | --zone | --project)
      [ $# -ge 2 ] || fail "$1 wants a value"
      printf -v "${1#--}" '%s' "$2"
      shift
      ;;
    --name=*) name="${1#*=}" ;;
    --zone=*) zone="${1#*=}" ;;
    --project=*) project="${1#*=}" ;;
    --no-copy) copy="" ;;
    --dry-run) dry_run=yes ;;
    -h | --help)
      sed -n '2,/^set /{/^#/s/^# \{0,1\}//p;}' "${BASH_SOURCE[0]}"
      exit 0
      ;;
    -*) fail "unknown option $1 (options of SCRIPT come after its name)" ;;
    *) break ;;
  esac
  shift
done
[ -n "$name" ] || fail "--name wants the name of the TPU VM"
[ -n "$zone" ] || fail "--zone wants its zone, us-central2-b say"
[ $# -ge 1 ] || fail "name the script of launch/ to run, dfwe say"
script="launch/$1.py"
[ -f "$script" ] || fail "there is no $script"
shift
[ -n "$dry_run" ] || command -v gcloud >/dev/null ||
  fail "gcloud is not installed here; --dry-run prints what it would be asked"

place=(--zone="$zone" --worker=all)
[ -z "$project" ] || place+=(--project="$project")

if [ -n "$copy" ]; then
  archive=.cache/launch/fusion_jax.tar.gz
  [ -n "$dry_run" ] || mkdir -p "${archive%/*}"
  run git archive --format=tar.gz --output="$archive" HEAD
  run gcloud compute tpus tpu-vm scp "$archive" "$name:fusion_jax.tar.gz" "${place[@]}"
  # Old code goes, the environment and the runs stay.
  on_all_workers "mkdir -p fusion_jax && cd fusion_jax && rm -rf fusion_jax configs launch scripts && tar -xzf ../fusion_jax.tar.gz && bash scripts/install.sh tpu"
fi
on_all_workers "cd fusion_jax && . launch/env/tpu.sh && exec env FUSION_JAX_DISTRIBUTED=1 .venv/bin/python $(joined "$script" "$@")"
