"""Ranks sources for every target by cheap divergences, and tunes the pairs kept.

launch/task_selection.py --config=configs/task_selection/NAME.py --workdir=DIR, with
options behind a colon. Any field of the config can be changed: --config.keep=0.4. The
same command goes on with a run that was stopped.
"""

from fusion_jax.cli.scripts import launch_system
from fusion_jax.reports.selection_tables import told
from fusion_jax.systems import task_selection

if __name__ == "__main__":
    launch_system(task_selection, "runs/task_selection", seeds=False, table=told)
