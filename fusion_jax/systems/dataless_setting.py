"""What all groups of one seed of a dataless fusion share."""

from dataclasses import dataclass, field
from pathlib import Path

from fusion_jax.checkpoints import huggingface as hf
from fusion_jax.config import Config
from fusion_jax.evaluation.scoring import Scores
from fusion_jax.systems.dataless_members import Member
from fusion_jax.systems.judge import Judge


@dataclass
class Setting:
    """Owners, what scores them, and the scores of their own models.

    Attributes:
      config: of the system.
      seed: of the run.
      encoder: theta_0.
      folder: of trained models, which are found again by their content.
      members: task -> owner.
      judges: task -> scorer, of unseen tasks too.
    """

    config: Config
    seed: int
    encoder: hf.Checkpoint
    folder: Path
    members: dict[str, Member] = field(default_factory=dict)
    judges: dict[str, Judge] = field(default_factory=dict)
    _own: dict[tuple[str, str, str], Scores] = field(default_factory=dict, repr=False)

    @property
    def shared_labels(self) -> bool:
        """Whether all tasks have one label space."""
        return self.config.labels == "shared"

    def own_scores(self, owner: str, task: str, split: str) -> Scores:
        """Scores of an owner's own model on a split of a task, worked out once."""
        key = owner, task, split
        if key not in self._own:
            params = self.members[owner].params
            self._own[key] = self.judges[task].scores(params, split)
        return self._own[key]
