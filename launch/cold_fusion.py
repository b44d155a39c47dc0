"""Simulates ColD Fusion: contributors evolve one base through a weight repository.

launch/cold_fusion.py --config=configs/cold_fusion/NAME.py --workdir=DIR, with options
behind a colon. Any field of the config can be changed: --config.rounds=3. The same
command goes on with a run that was stopped.
"""

from fusion_jax.cli.scripts import launch_system
from fusion_jax.systems import cold_fusion

if __name__ == "__main__":
    launch_system(cold_fusion, "runs/cold_fusion")
