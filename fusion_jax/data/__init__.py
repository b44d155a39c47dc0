"""Tasks: readers, the synthetic generator, tokenisation and batches."""

from fusion_jax.data.folder import load_task, write_task
from fusion_jax.data.task import KINDS, Task, TaskError, few_shot, split_off_dev

__all__ = [
    "KINDS",
    "Task",
    "TaskError",
    "few_shot",
    "load_task",
    "split_off_dev",
    "write_task",
]
