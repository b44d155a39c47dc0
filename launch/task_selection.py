"""Ranks sources for every target by cheap divergences, and tunes the pairs kept.

launch/task_selection.py --config=configs/task_selection/NAME.py --workdir=DIR, with
options behind a colon. Any field of the config can be changed: --config.keep=0.4. The
same command goes on with a run that was stopped.
"""

from absl import app, flags
from ml_collections import config_flags

from fusion_jax import runtime
from fusion_jax.cli.failures import explained
from fusion_jax.cli.scripts import start
from fusion_jax.reports.selection_tables import told
from fusion_jax.systems import task_selection

CONFIG = config_flags.DEFINE_config_file(
    "config", None, "Config file.", lock_config=True
)
WORKDIR = flags.DEFINE_string(
    "workdir", "runs/task_selection", "Where everything is left."
)
OVERWRITE = flags.DEFINE_bool("overwrite", False, "Replace a run of another config.")


def main(argv: list[str]) -> None:
    """Runs and prints the table."""
    if len(argv) > 1:
        raise app.UsageError(f"what is {argv[1]!r}? Options start with --")
    with explained():
        runtime.initialize()
        result = task_selection.run(
            CONFIG.value, WORKDIR.value, overwrite=OVERWRITE.value
        )
    print(told(result.results))
    print(f"\nreport: {result.workdir / 'report.html'}")


if __name__ == "__main__":
    start(main)
