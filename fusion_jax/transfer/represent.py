"""All that measures read of the tasks of a study, computed once a task."""

import os
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from fusion_jax.checkpoints.huggingface import Checkpoint
from fusion_jax.transfer.corpora import Corpora, Corpus
from fusion_jax.transfer.moments import Moments, moments_of
from fusion_jax.transfer.states import Layers, text_states
from fusion_jax.transfer.terms import (
    count_terms,
    distribution,
    inverse_document_frequency,
    presence,
    vocabulary,
)

TERM_READS = ("terms", "presence", "tfidf")
STATE_READS = ("sample", "moments")


class Represented(NamedTuple):
    """N tasks as measures read them.

    Attributes:
      names: of the tasks, in the order of the leading axis of every read.
      reads: 'terms', 'presence' and 'tfidf' [N, V]; with an encoder 'sample' [N, n, D]
        and 'moments', a `Moments` of [N, ...].
      seconds: name -> seconds of its representation; 0.0 of what was kept on disk is
        the reading of the file.
      left_out: name -> why, of tasks that are in no read.
      cached: names of tasks whose states were kept on disk.
    """

    names: tuple[str, ...]
    reads: Mapping[str, Any]
    seconds: Mapping[str, float]
    left_out: Mapping[str, str]
    cached: tuple[str, ...]


def represent(
    corpora: Corpora,
    encoder: Checkpoint | None = None,
    *,
    layers: Layers = "last",
    cache: str | os.PathLike[str] | None = None,
    size: int = 10_000,
) -> Represented:
    """Represents the tasks of a study.

    Args:
      corpora: of `read_corpora`, with the encoder's tokenizer.
      encoder: of `checkpoints.huggingface.load`; None = term distributions alone.
      layers: whose states are read: 'last', 'all', or a layer's number.
      cache: folder that states of texts are kept in.
      size: terms of the study's vocabulary, at most.

    Returns:
      What measures read. A task whose vectors are not finite is left out of all reads
      and named.

    Raises:
      ValueError: fewer than two tasks are left; there is no such layer.
      CheckpointError: a file of the cache is damaged, or of something else.
    """
    seconds: dict[str, float] = {}
    left_out = dict(corpora.left_out)
    samples: dict[str, np.ndarray] = {}
    moments: dict[str, Moments] = {}
    cached: list[str] = []
    kept: list[Corpus] = []
    for corpus in corpora.kept:
        begun = time.perf_counter()
        if encoder is not None:
            states, there = text_states(
                corpus.inputs, encoder, layers=layers, cache=cache
            )
            try:
                moments[corpus.name] = _moments(states)
            except ValueError as error:
                left_out[corpus.name] = str(error)
                continue
            samples[corpus.name] = states
            if there:
                cached.append(corpus.name)
        kept.append(corpus)
        seconds[corpus.name] = time.perf_counter() - begun
    if len(kept) < 2:
        told = "\n  ".join(f"{name}: {why}" for name, why in left_out.items())
        raise ValueError(
            f"{len(kept)} tasks can be represented; two are needed\n {told}"
        )
    reads = _term_reads(kept, corpora.budget, size, seconds)
    if encoder is not None:
        reads["sample"] = np.stack([samples[corpus.name] for corpus in kept])
        reads["moments"] = jax.tree.map(
            lambda *x: np.stack(x), *(moments[corpus.name] for corpus in kept)
        )
    return Represented(
        tuple(corpus.name for corpus in kept), reads, seconds, left_out, tuple(cached)
    )


def _moments(states: np.ndarray) -> Moments:
    found = moments_of(states)
    if not np.trace(found.covariance) > 0:
        raise ValueError(f"all {len(states)} texts have one vector; look at the texts")
    return found


def _term_reads(
    kept: list[Corpus], budget: int, size: int, seconds: dict[str, float]
) -> dict[str, Any]:
    """Term distributions over one vocabulary; what each task took is added."""
    begun = time.perf_counter()
    texts = [[ids.tolist() for ids in corpus.terms] for corpus in kept]
    counts = [count_terms(of_task, budget) for of_task in texts]
    terms = vocabulary(counts, size)
    weights = inverse_document_frequency((ids for one in texts for ids in one), terms)
    # The mean of a task's tf-idf vectors has the direction of their sum.
    frequency = np.array([[c.get(term, 0) for term in terms] for c in counts], float)
    reads = {
        "terms": np.stack([distribution(one, terms) for one in counts]),
        "presence": np.stack([presence(one, terms) for one in counts]),
        "tfidf": frequency * weights,
    }
    share = (time.perf_counter() - begun) / len(kept)
    for corpus in kept:
        seconds[corpus.name] += share
    return reads
