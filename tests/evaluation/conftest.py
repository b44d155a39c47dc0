"""Hand-written encoded splits: what scoring reads of a task, without a tokeniser."""

import numpy as np
import pytest

from fusion_jax.data.encoded import Encoded


@pytest.fixture
def make_encoded():
    """Builds an `Encoded` from gold answers; token columns only where they matter."""

    def make(kind, references, *, num_labels=0, labels=(), **changes):
        rows = len(changes.get("items", references))
        fields = dict(
            task_name="toy",
            kind=kind,
            num_labels=num_labels or len(labels),
            columns={},
            targets={},
            lengths=np.ones(rows, np.int32),
            items=np.arange(rows),
            references=list(references),
            token_words=[],
            offsets=[],
            texts=[],
            labels=tuple(labels) or tuple(f"label_{c}" for c in range(num_labels)),
            unscored=(),
            decision="",
        )
        return Encoded(**(fields | changes))

    return make


@pytest.fixture
def generator():
    """One numpy generator a test, always the same."""
    return np.random.Generator(np.random.PCG64(7))
