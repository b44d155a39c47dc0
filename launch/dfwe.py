"""Runs DFWE: launch/dfwe.py --config=configs/dfwe/NAME.py[:options] --workdir=DIR.

Any field of the config can be changed: --config.search.budget=64. The same command
goes on with a run that was stopped.
"""

from fusion_jax.cli.scripts import launch_system
from fusion_jax.systems import dfwe

if __name__ == "__main__":
    launch_system(dfwe, "runs/dfwe")
