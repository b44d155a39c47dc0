"""Trains modules on origins, ports them to receivers, and tests them beside controls.

launch/portability.py --config=configs/portability/NAME.py --workdir=DIR, with
options behind a colon. Any field of the config can be changed: --config.seeds=3. The
same command goes on with a run that was stopped.
"""

from fusion_jax.cli.scripts import launch_system
from fusion_jax.systems import portability

if __name__ == "__main__":
    launch_system(portability, "runs/portability")
