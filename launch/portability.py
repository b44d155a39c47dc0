"""Trains modules on origins, ports them to receivers, and tests them beside controls.

launch/portability.py --config=configs/portability/NAME.py --workdir=DIR, with
options behind a colon. Any field of the config can be changed: --config.seeds=3. The
same command goes on with a run that was stopped.
"""

from absl import app, flags
from ml_collections import config_flags

from fusion_jax import runtime
from fusion_jax.cli.failures import explained
from fusion_jax.cli.scripts import start
from fusion_jax.reports.tables import results_table, to_text
from fusion_jax.systems import portability

CONFIG = config_flags.DEFINE_config_file(
    "config", None, "Config file.", lock_config=True
)
WORKDIR = flags.DEFINE_string(
    "workdir", "runs/portability", "Where everything is left."
)
OVERWRITE = flags.DEFINE_bool("overwrite", False, "Replace a run of another config.")
SEEDS = flags.DEFINE_integer("seeds", None, "Short for --config.seeds.")


def main(argv: list[str]) -> None:
    """Runs and prints the table."""
    if len(argv) > 1:
        raise app.UsageError(f"what is {argv[1]!r}? Options start with --")
    config = CONFIG.value
    if SEEDS.value is not None:
        config.seeds = SEEDS.value
    with explained():
        runtime.initialize()
        result = portability.run(config, WORKDIR.value, overwrite=OVERWRITE.value)
    print(to_text(results_table(result.results)))
    print(f"\nreport: {result.workdir / 'report.html'}")


if __name__ == "__main__":
    start(main)
