"""What a fit says while it runs: lines in metrics.jsonl and a progress bar."""

import json
import math
import os
import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from fusion_jax import atomic
from fusion_jax.processes import is_first


class MetricsLog:
    """metrics.jsonl: one JSON object a line, none twice, also after a kill.

    Silent without a folder and on all processes but the first.
    """

    def __init__(self, folder: str | os.PathLike[str] | None):
        """Writes to `folder`/metrics.jsonl, made with the first line."""
        self._path: Path | None = None
        if folder is not None and is_first():
            self._path = Path(folder) / "metrics.jsonl"

    def write(self, lines: Sequence[Mapping[str, Any]]) -> None:
        """Appends lines; NaN and infinities become null."""
        if self._path is None:
            return
        texts = [
            json.dumps({name: _plain(value) for name, value in line.items()}) + "\n"
            for line in lines
        ]
        atomic.append_text(self._path, "".join(texts))

    def rewind(self, fit: str, experts: Collection[str], position: int) -> None:
        """Drops the lines of experts that lie after a position of their steps.

        A fit that goes on from a saved state writes them again. A last line that a
        kill has torn goes too; lines of other fits stay.

        Args:
          fit: value of 'fit' in the lines.
          experts: values of 'expert' in the lines.
          position: the largest 'position' that is kept.
        """
        if self._path is None or not self._path.exists():
            return
        kept = []
        for text in self._path.read_text().splitlines():
            try:
                line = json.loads(text)
            except json.JSONDecodeError:
                continue
            theirs = line.get("fit") == fit and line.get("expert") in experts
            if not theirs or line.get("position", 0) <= position:
                kept.append(text + "\n")
        atomic.write_text(self._path, "".join(kept))


class ProgressBar:
    """A bar over the steps of a fit; hidden where the output is no terminal."""

    def __init__(self, name: str, total: int, done: int, *, shown: bool):
        """Starts at `done` of `total` steps."""
        self._bar = tqdm(
            total=total,
            initial=done,
            desc=name,
            unit="step",
            mininterval=0.5,
            disable=None if shown and is_first() else True,
        )
        self._clock = time.monotonic()
        self._tokens = 0

    def step(self, tokens: int) -> None:
        """One step more, with so many tokens."""
        self._tokens += tokens
        self._bar.update()

    def rate(self) -> float:
        """Tokens a second since the last call."""
        now = time.monotonic()
        rate = self._tokens / max(now - self._clock, 1e-9)
        self._clock, self._tokens = now, 0
        return rate

    def say(self, **values: float) -> None:
        """Shows values behind the bar."""
        self._bar.set_postfix({name: f"{x:.4g}" for name, x in values.items()})

    def close(self) -> None:
        """Leaves the bar as it stands."""
        self._bar.close()


def _plain(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
