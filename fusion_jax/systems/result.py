"""What a system's run gives back, and how long its stages took."""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from fusion_jax.runtime import release_freed_memory
from fusion_jax.types import Params

logger = logging.getLogger(__name__)


class Result(NamedTuple):
    """What a run gives back.

    Attributes:
      results: the content of results.json.
      workdir: where it stands, with report.html and, for one run, model/.
      params: of the model; None for several runs.
    """

    results: dict[str, Any]
    workdir: Path
    params: Params | None


@contextmanager
def timed(seconds: dict[str, float], stage: str) -> Iterator[None]:
    """Writes the seconds of the block into `seconds[stage]`, and logs them."""
    begun = time.perf_counter()
    yield
    release_freed_memory()
    seconds[stage] = round(time.perf_counter() - begun, 2)
    logger.info("%s: %.1f s", stage, seconds[stage])
