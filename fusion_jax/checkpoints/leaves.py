"""From a plan's tensor to the arrays that a form is given."""

import inspect
import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from fusion_jax.checkpoints.lazy import LazyCheckpoint
from fusion_jax.checkpoints.pieces import Leaf
from fusion_jax.checkpoints.plan import Source, TensorPlan
from fusion_jax.checkpoints.statistics_file import LazyStatistics
from fusion_jax.checkpoints.streaming import Streamer
from fusion_jax.merging import MERGES

COPY = "copy"
"""The method of tensors that are taken over from one source, unchanged."""

_CONV1D = re.compile(r".*\b(c_attn|c_proj|c_fc|q_attn)\.weight")
# Whose kernels are stored [in, out], as Flax has them.
_CONV1D_MODELS = frozenset({"gpt2", "openai-gpt", "imagegpt", "decision_transformer"})

Align = Callable[[str, Mapping[str, np.ndarray]], Mapping[str, np.ndarray]]
"""(tensor of the output, label -> rows of a model) -> rows of one vocabulary."""


def numbers_and_words(method: str, options: Mapping[str, Any]) -> tuple[dict, dict]:
    """Options of a method as (numbers, which may be traced; words and flags).

    Numbers that are not given are the function's defaults; a tuple is one for each
    expert.
    """
    record = MERGES[method]
    assert record.form is not None
    words = set(inspect.signature(record.form).parameters)
    numbers: dict[str, Any] = {}
    for name, parameter in inspect.signature(record.function).parameters.items():
        if parameter.default is inspect.Parameter.empty or name in (
            *("base", "key", "groups", "statistics"),
            *words,
        ):
            continue
        value = options.get(name, parameter.default)
        if value is not None:
            value = np.asarray(value, np.float64) if isinstance(value, tuple) else value
        numbers[name] = value
    return numbers, {k: v for k, v in options.items() if k in words}


class Streamers:
    """One compiled form for each method and choice of words."""

    def __init__(self, *, seed: int) -> None:
        """Prepares nothing yet."""
        self._seed = seed
        self._known: dict[Any, Streamer] = {}

    def of(self, plan: TensorPlan, model_type: str = "") -> Streamer:
        """The streamer of a tensor's method."""
        record = MERGES[plan.method]
        assert record.form is not None
        _, words = numbers_and_words(plan.method, plan.options)
        takes_axis = "input_axis" in inspect.signature(record.form).parameters
        if takes_axis and "input_axis" not in words:
            stored_as_flax = model_type in _CONV1D_MODELS and _CONV1D.fullmatch(
                plan.name
            )
            words["input_axis"] = -2 if stored_as_flax else -1
        static = (plan.method, tuple(sorted(words.items())))
        if static not in self._known:
            self._known[static] = Streamer(
                record.form(**words), seed=self._seed, draws="key" in record.needs
            )
        return self._known[static]


def read_leaf(
    plan: TensorPlan,
    models: Mapping[str, LazyCheckpoint],
    *,
    dtype: np.dtype | None = None,
    align: Align | None = None,
    statistics: Mapping[str, LazyStatistics] | None = None,
) -> Leaf:
    """The arrays of a tensor, as they lie in the files where nothing asks for more.

    Args:
      plan: of the tensor.
      models: by label.
      dtype: that sources are rounded to first.
      align: brings rows into the order of one vocabulary; for tensors that have one.
      statistics: by label of the experts, for methods that read them.
    """
    sources = {*plan.sources, *([plan.base] if plan.base else [])}
    arrays: dict[Source, np.ndarray] = {
        source: models[source.model].read(source.tensor) for source in sources
    }
    if align is not None:
        by_model = {source.model: array for source, array in arrays.items()}
        aligned = align(plan.name, by_model)
        arrays = {source: aligned[source.model] for source in arrays}
    if dtype is not None:
        arrays = {
            source: x if x.dtype == dtype else x.astype(dtype)
            for source, x in arrays.items()
        }
    numbers: Mapping[str, Any] = {}
    if plan.method != COPY and MERGES[plan.method].form is not None:
        numbers, _ = numbers_and_words(plan.method, plan.options)
    return Leaf(
        name=plan.name,
        experts=tuple(arrays[source] for source in plan.sources),
        base=arrays[plan.base] if plan.base else None,
        coefficients=np.asarray(plan.coefficients, np.float64),
        options=numbers,
        statistics=_statistics(plan, statistics or {}),
    )


def _statistics(plan: TensorPlan, given: Mapping[str, LazyStatistics]) -> Any:
    """What the form of a method reads beside the experts; None where it reads none."""
    if plan.method == COPY or "statistics" not in MERGES[plan.method].needs:
        return None
    files = [given[source.model] for source in plan.sources]
    if plan.method == "fisher":
        return tuple(file.fisher(plan.name) for file in files)
    return {
        "inputs": np.stack([file.gram(plan.name) for file in files]),
        "outputs": np.stack([file.output(plan.name) for file in files]),
    }
