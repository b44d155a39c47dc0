"""What all runs of a portability study share: hosts, data, problems."""

import dataclasses
import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import numpy as np

from fusion_jax.checkpoints import huggingface as hf
from fusion_jax.checkpoints.module_file import about_host
from fusion_jax.config import Config
from fusion_jax.data import Task
from fusion_jax.data.tokenise import load_tokenizer
from fusion_jax.peft.config import PeftConfig
from fusion_jax.peft.port_host import Host
from fusion_jax.systems.experts import head_key
from fusion_jax.systems.portability_grid import combinations_of
from fusion_jax.systems.portability_hosts import load_hosts
from fusion_jax.systems.portability_leaks import unseen_items
from fusion_jax.systems.problem import Problem, make_problem, starting_params
from fusion_jax.systems.tasks import read_tasks, sized
from fusion_jax.types import Params

HEAD = r"head/.*"

DRAWN = 0
"""Seed of what a checkpoint lacks of an encoder: a host is one in all cells."""


@dataclass
class Setting:
    """Hosts and data of a study; what is worked out once is kept.

    Attributes:
      config: of the system.
      folder: of the run.
      hosts: name -> pretrained model.
      tokenizers: name -> its tokenizer.
      origins: task -> rows that origins learn from.
      receivers: task -> rows that receivers learn from and are tested on.
    """

    config: Config
    folder: Path
    hosts: dict[str, hf.Checkpoint]
    tokenizers: dict[str, Any] = field(repr=False)
    origins: dict[str, Task]
    receivers: dict[str, Task]
    _kept: dict[Any, Any] = field(default_factory=dict, repr=False)

    def problem(self, host: str, task: str, *, receiver: bool) -> Problem:
        """A task for a host, with the rows of origins or of receivers."""
        tasks = self.receivers if receiver else self.origins
        return self.once(
            ("problem", host, task, receiver),
            lambda: make_problem(
                tasks[task],
                self.hosts[host],
                self.tokenizers[host],
                max_length=self.config.max_length,
                dtype=self.config.dtype,
            ),
        )

    def whole(self, host: str, task: str, seed: int) -> Params:
        """A host with the head that a task and a seed draw."""
        problem = self.problem(host, task, receiver=True)
        encoder = self.once(
            ("encoder", host),
            lambda: {
                "encoder": hf.attach_encoder(
                    problem.model, self.hosts[host].params, jax.random.key(DRAWN)
                )["encoder"]
            },
        )
        return starting_params(problem, encoder, encoder, head_key(task, seed))

    def host(self, name: str) -> Host:
        """A host as porting sees it, without states."""

        def made() -> Host:
            found = self.hosts[name]
            whole = self.whole(name, next(iter(self.receivers)), 0)
            return Host(
                {"encoder": whole["encoder"]},
                found.config.num_layers,
                found.config.num_heads,
                about_host(found, name),
            )

        return self.once(("host", name), made)

    def unseen(self, origin: str, receiver: str) -> np.ndarray:
        """Test items of the receiver's data that the origin's has not, [items]."""
        return self.once(
            ("unseen", origin, receiver),
            lambda: unseen_items(self.origins[origin], self.receivers[receiver]),
        )

    def learning_rate(self, technique: str) -> float:
        """The technique's."""
        return float(self.config.techniques[technique]["learning_rate"])

    def once(self, key: Any, make: Callable[[], Any]) -> Any:
        """What `make` gives, worked out at the first call with a key."""
        if key not in self._kept:
            self._kept[key] = make()
        return self._kept[key]


def make_setting(config: Config, folder: Path) -> Setting:
    """Loads the hosts and draws the rows.

    Raises:
      FileNotFoundError, TaskError, CheckpointError: as the readers say.
      ValueError: hosts that would be made of tasks of the study.
    """
    tasks = read_tasks(config.data, tuple(config.tasks), config.seed)
    _refuse_own_tasks(config, tuple(tasks))
    hosts = load_hosts(config, folder)
    cut = functools.partial(
        sized,
        max_dev_rows=config.max_dev_rows,
        max_test_rows=config.max_test_rows,
        seed=config.seed,
    )
    return Setting(
        config,
        folder,
        hosts,
        {name: load_tokenizer(host.path) for name, host in hosts.items()},
        {name: cut(task, rows=config.shots) for name, task in tasks.items()},
        {name: cut(task, rows=config.receiver_shots) for name, task in tasks.items()},
    )


def _refuse_own_tasks(config: Config, tasks: tuple[str, ...]) -> None:
    """A host that has learned a task says nothing of modules that are to bring it."""
    combined = combinations_of(config, tasks)
    studied = {name for combination in combined for name in combination}
    wrong = [
        f"made.{name}.tasks: {', '.join(own)} of the study's tasks, whose test rows "
        "modules are judged on; name others, or leave them out of the combinations"
        for name in config.made
        if (own := [task for task in config.made[name]["tasks"] if task in studied])
    ]
    if wrong:
        raise ValueError("portability:\n  " + "\n  ".join(wrong))


def peft_config(config: Config, technique: str) -> PeftConfig:
    """A technique's `PeftConfig`; the head is trained with it and belongs to it.

    Raises:
      ValueError: options that it does not know or that make no sense.
    """
    options = PeftConfig.from_json(config.techniques[technique]["peft"].to_dict())
    return dataclasses.replace(options, replaces=(*options.replaces, HEAD))
