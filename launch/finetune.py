"""Fine-tunes: python launch/finetune.py --config=configs/finetune/NAME.py[:options].

Any field of the config can be changed: --config.fit.epochs=3. --config.peft.kind=lora
trains a module beside the frozen encoder. The same command goes on with a run that was
stopped.
"""

from fusion_jax.cli.scripts import launch_system
from fusion_jax.cli.tables import finetune_table
from fusion_jax.systems import finetune

if __name__ == "__main__":
    launch_system(finetune, "runs/finetune", seeds=False, table=finetune_table)
