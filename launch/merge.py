"""Merges checkpoints: python launch/merge.py --method=ties --base=DIR --models=A,B.

Lists are written with commas: --models=A,B,C --weights=0.3,0.3,0.4, and
--set=NAME=VALUE may be given several times. --config=FILE.yml runs a mergekit file
instead. The same command goes on with a merge that was stopped.
"""

from absl import app, flags

from fusion_jax.cli.main import main as command
from fusion_jax.cli.scripts import start

CONFIG = flags.DEFINE_string("config", None, "A mergekit file.")
METHOD = flags.DEFINE_string("method", None, "linear, ties, slerp, ...")
BASE = flags.DEFINE_string("base", None, "Folder of the pretrained model.")
MODELS = flags.DEFINE_list("models", [], "Folders to merge.")
WEIGHTS = flags.DEFINE_list("weights", [], "One number a model, as given.")
STATISTICS = flags.DEFINE_list("statistics", [], "One file a model, if it needs one.")
SET = flags.DEFINE_multi_string("set", [], "NAME=VALUE, an option of the method.")
OUT = flags.DEFINE_string("out", None, "Folder of the merged model.")
DTYPE = flags.DEFINE_string("dtype", None, "Of the output: float32, bfloat16, ...")
SEED = flags.DEFINE_integer("seed", 0, "Of random masks.")
DRY_RUN = flags.DEFINE_bool(
    "dry_run", False, "Print the plan and its memory, and stop."
)
OVERWRITE = flags.DEFINE_bool("overwrite", False, "Replace a folder that is there.")


def main(argv: list[str]) -> int:
    """Runs `fusion-jax merge` with these flags."""
    if len(argv) > 1:
        raise app.UsageError(f"what is {argv[1]!r}? Options start with --")
    words = ["merge", f"--seed={SEED.value}"]
    for flag in (METHOD, BASE, OUT, DTYPE):
        if flag.value:
            words.append(f"--{flag.name}={flag.value}")
    for flag in (MODELS, WEIGHTS, STATISTICS):
        if flag.value:
            words += [f"--{flag.name}", *flag.value]
    words += [f"--set={setting}" for setting in SET.value]
    words += ["--dry-run"] * DRY_RUN.value + ["--overwrite"] * OVERWRITE.value
    return command([*words, *(["--", CONFIG.value] if CONFIG.value else [])])


if __name__ == "__main__":
    start(main, config_required=False)
