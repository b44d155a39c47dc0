"""Fine-tunes: python launch/finetune.py --config=configs/finetune/NAME.py[:options].

Any field of the config can be changed: --config.fit.epochs=3. --config.peft.kind=lora
trains a module beside the frozen encoder. The same command goes on with a run that was
stopped.
"""

from absl import app, flags
from ml_collections import config_flags

from fusion_jax import runtime
from fusion_jax.cli.failures import explained
from fusion_jax.cli.scripts import start
from fusion_jax.cli.tables import finetune_places, finetune_table
from fusion_jax.systems import finetune

CONFIG = config_flags.DEFINE_config_file(
    "config", None, "Config file.", lock_config=True
)
WORKDIR = flags.DEFINE_string("workdir", "runs/finetune", "Where everything is left.")
OVERWRITE = flags.DEFINE_bool("overwrite", False, "Replace a run of another config.")


def main(argv: list[str]) -> None:
    """Runs and prints the scores."""
    if len(argv) > 1:
        raise app.UsageError(f"what is {argv[1]!r}? Options start with --")
    with explained():
        runtime.initialize()
        result = finetune.run(CONFIG.value, WORKDIR.value, overwrite=OVERWRITE.value)
    print(finetune_table(result.results))
    print(finetune_places(result))


if __name__ == "__main__":
    start(main)
