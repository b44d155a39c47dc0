"""Merges models of several owners without their data, and tests the result.

launch/dataless_fusion.py --config=configs/dataless_fusion/NAME.py --workdir=DIR, with
options behind a colon. Any field of the config can be changed: --config.seeds=3. The
same command goes on with a run that was stopped.
"""

from fusion_jax.cli.scripts import launch_system
from fusion_jax.systems import dataless_fusion

if __name__ == "__main__":
    launch_system(dataless_fusion, "runs/dataless_fusion")
