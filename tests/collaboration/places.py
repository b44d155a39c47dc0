"""A tiny repository's base with honest contributions, screened."""

import numpy as np

from fusion_jax.collaboration.screening import Limits, early, screen
from tests.collaboration.bodies import (
    base_manifest,
    base_tensors,
    candidate,
    save,
    tuned,
)

LIMITS = Limits()


class Place:
    """A base and seven honest contributions."""

    def __init__(self, folder, dtype=np.float32):
        self.folder = folder
        self.start = base_tensors(0, dtype)
        self.file = save(folder / "base.safetensors", self.start)
        self.base = base_manifest(0, self.file)
        self.history = {0: self.base}
        sizes = (0.02, 0.025, 0.03, 0.03, 0.035, 0.04, 0.05)
        self.honest = [
            self.candidate(f"honest{k}", tuned(self.start, k, size))
            for k, size in enumerate(sizes)
        ]

    def candidate(self, name, tensors, **more):
        file = save(self.folder / f"{name}.safetensors", tensors)
        return candidate(name, file, self.base, **more)

    def screen(self, *others, honest=True, limits=LIMITS, round_=0, **more):
        """Verdicts of the whole screen."""
        candidates = [*(self.honest if honest else ()), *others]
        before = {x.name: early(x, self.history, round_, limits) for x in candidates}
        files = {0: self.file, **getattr(self, "files", {})}
        more.setdefault("before", before)
        return screen(candidates, files.__getitem__, limits, **more)


def failed(verdict):
    """Checks that failed."""
    return [x for x, said in verdict.checks.items() if said.startswith("failed")]
