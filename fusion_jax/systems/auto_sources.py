"""DFWE's sources by name, or the k that are nearest to the target: 'auto:k'."""

import logging
from collections.abc import Mapping, Sequence

from fusion_jax.checkpoints import huggingface as hf
from fusion_jax.config import Config
from fusion_jax.data import Task
from fusion_jax.systems.source_choice import rank_sources
from fusion_jax.systems.tasks import cut

logger = logging.getLogger(__name__)

_AUTO = "auto:"


def auto_count(sources: Sequence[str]) -> int | None:
    """K of ('auto:k',); None where sources are names.

    Raises:
      ValueError: k is no number from 1 on, or names stand beside it.
    """
    asked = [name for name in sources if name.startswith(_AUTO)]
    if not asked:
        return None
    count = asked[0].removeprefix(_AUTO)
    if len(sources) > 1 or not count.isdecimal() or int(count) < 1:
        raise ValueError(
            f"sources: {'+'.join(sources)}; write auto:k alone, with k from 1 on, or "
            "the names of sources"
        )
    return int(count)


def source_names(
    config: Config,
    tasks: Mapping[str, Task],
    target: str,
    encoder: hf.Checkpoint,
    seed: int,
) -> tuple[str, ...]:
    """The names of a target's sources.

    Args:
      config: of DFWE: `sources`, `shots`.
      tasks: all that were read.
      target: its name; no source of itself.
      encoder: whose tokenizer reads the texts.
      seed: of draws.
    """
    others = [name for name in tasks if name != target]
    count = auto_count(config.sources)
    if count is None:
        named = tuple(config.sources) or tuple(tasks)
        return tuple(name for name in named if name != target)
    # Of the target nothing is read but what its training will see.
    seen = cut(tasks[target], shots=config.shots, max_test_rows=0, seed=seed)
    choice = rank_sources(
        seen,
        [tasks[name] for name in others],
        encoder=encoder,
        max_length=config.max_length,
        seed=seed,
    )
    for name, why in choice.left_out.items():
        logger.warning("%s is left out of the sources: %s", name, why)
    chosen = choice.sources[:count]
    logger.info("sources of %s by %s: %s", target, choice.order, ", ".join(chosen))
    return chosen
