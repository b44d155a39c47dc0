"""A plan from a method, a base and models: what the command's flags say."""

import difflib
import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fusion_jax.checkpoints.lazy import LazyCheckpoint, open_checkpoint
from fusion_jax.checkpoints.leaves import COPY, numbers_and_words
from fusion_jax.checkpoints.plan import MergePlan, Source, TensorPlan
from fusion_jax.checkpoints.statistics_plan import check_given, with_statistics
from fusion_jax.checkpoints.tensors import CheckpointError
from fusion_jax.checkpoints.tied_heads import lend_heads
from fusion_jax.merging import MERGES
from fusion_jax.merging.combine import AGGREGATES, ELECTIONS

LINEAR = "linear"
"""The command's name of a weighted average whose weights are divided by their sum."""

_SHARES = frozenset({"density", "gamma", "epsilon", "select_topk", "ratio", "trim"})
# The first number of a layer, in names of PyTorch's files and of Flax.
_LAYER = r"(?:.*?[./_])?(?:layers?|h|blocks?)[._](\d+)[./].*"
_CHOICES = {"elect": ELECTIONS, "aggregate": AGGREGATES}
_NOT_OPTIONS = frozenset(
    {"stack", "coefficients", "base", "key", "groups", "statistics"}
)


def direct_plan(
    method: str,
    models: Sequence[Path],
    *,
    base: Path | None = None,
    weights: Sequence[float] | None = None,
    options: Mapping[str, Any] | None = None,
    dtype: str | None = None,
    statistics: Sequence[Path] | None = None,
) -> MergePlan:
    """A plan that treats every tensor alike.

    Args:
      method: 'linear' or a name of `MERGES`.
      models: K folders.
      base: folder of the pretrained model.
      weights: [K]; by default 1/K for averages and 1 for task vectors.
      options: of the method, by the names of its function; 'normalize' for linear.
      dtype: of the output.
      statistics: K files in the order of the models, for methods that read them;
        tensors without any are averaged.

    Raises:
      ValueError: an unknown method or option, a number of weights, models or files
        that does not fit, a base that is missing, a sum of zero that would be divided
        by.
      CheckpointError: models that cannot be merged, statistics that are not theirs;
        every mismatch is listed.
    """
    options = dict(options or {})
    record, name, weights, options, notes = _checked(method, models, weights, options)
    check_given(method, record, weights, options, statistics)
    if options.get("start") == "task_arithmetic" and base is None:
        raise ValueError(f"{method}: start=task_arithmetic needs --base")
    if "base" in record.needs and base is None:
        raise ValueError(f"{method}: needs --base, the pretrained model's folder")
    if base is not None and "base" not in record.needs | record.accepts:
        notes.append(f"{method} does not read --base; it gives config and tokenizer")
    labels = _labels(models)
    folders: dict[str, Path] = {} if base is None else {"base": Path(base)}
    folders |= dict(zip(labels, map(Path, models), strict=True))
    given = {label: open_checkpoint(folder) for label, folder in folders.items()}
    opened, lent = lend_heads(given)
    check_alike(opened)
    changes = {}
    if lent:
        changes["tie_word_embeddings"] = False
        tied = ", ".join(sorted({source.model for source in lent}))
        notes.append(
            f"{tied}: the head is the embedding, and other models have a head of "
            "their own; the output has one, no longer tied"
        )
    reads_base = base is not None and "base" in record.needs | record.accepts
    first = opened[labels[0]]

    def source(label: str, tensor: str) -> Source:
        return lent.get(Source(label, tensor), Source(label, tensor))

    tensors = []
    for tensor, info in first.tensors.items():
        if not info.floating:
            tensors.append(TensorPlan(tensor, COPY, (Source(labels[0], tensor),)))
            continue
        tensors.append(
            TensorPlan(
                name=tensor,
                method=name,
                sources=tuple(source(label, tensor) for label in labels),
                base=source("base", tensor) if reads_base else None,
                coefficients=tuple(weights),
                options=options,
            )
        )
    donor = "base" if base is not None else labels[0]
    plan = MergePlan(
        folders, tuple(tensors), donor, None, dtype, changes, notes=tuple(notes)
    )
    if statistics is None:
        return plan
    experts = {label: given[label] for label in labels}
    return with_statistics(plan, name, experts, statistics)


def flax_layout(method: str) -> dict[str, int]:
    """The option that says kernels are [in, out], for methods that ask."""
    name = "weighted_average" if method == LINEAR else method
    known = name in MERGES and inspect.signature(MERGES[name].function).parameters
    return {"input_axis": -2} if known and "input_axis" in known else {}


def averages(method: str) -> bool:
    """Whether the weights of a method are shares of a mean, by default 1/K.

    Task vectors are added whole, as in the papers; what has no base is a mean.
    """
    name = "weighted_average" if method == LINEAR else method
    return "base" not in MERGES[name].needs or name == "norm_clipped_mean"


def check_alike(models: Mapping[str, LazyCheckpoint]) -> None:
    """Refuses models with other tensors, shapes or integers; all mismatches at once."""
    (anchor, first), *others = models.items()
    found = []
    for label, model in others:
        missing = first.tensors.keys() - model.tensors.keys()
        extra = model.tensors.keys() - first.tensors.keys()
        found += [f"{t}: in {anchor}, missing in {label}" for t in sorted(missing)]
        found += [f"{t}: in {label}, missing in {anchor}" for t in sorted(extra)]
        for tensor in first.tensors.keys() & model.tensors.keys():
            a, b = first.tensors[tensor], model.tensors[tensor]
            if a.shape != b.shape:
                found.append(
                    f"{tensor}: shape {a.shape} in {anchor}, {b.shape} in {label}"
                )
            elif a.floating != b.floating:
                found.append(f"{tensor}: {a.dtype} in {anchor}, {b.dtype} in {label}")
            elif not a.floating and not np.array_equal(
                first.read(tensor), model.read(tensor)
            ):
                found.append(
                    f"{tensor}: integers that differ between {anchor} and {label}"
                )
    if found:
        kinds = {
            label: model.config().get("model_type") for label, model in models.items()
        }
        types = sorted({str(kind) for kind in kinds.values()})
        hint = (
            f" The models are of different architectures ({', '.join(types)})."
            if len(types) > 1
            else ""
        )
        lines = "\n  ".join(found[:40])
        more = f"\n  and {len(found) - 40} more" if len(found) > 40 else ""
        raise CheckpointError(
            f"{len(found)} tensors differ between models that must have one structure:"
            f"\n  {lines}{more}\n{hint} Merge models fine-tuned from one base; where "
            "only the vocabulary differs, use a recipe with tokenizer_source: union."
        )


def _checked(
    method: str,
    models: Sequence[Path],
    weights: Sequence[float] | None,
    options: dict[str, Any],
) -> tuple[Any, str, list[float], dict[str, Any], list[str]]:
    notes = []
    name = "weighted_average" if method == LINEAR else method
    if name not in MERGES:
        raise ValueError(f"--method: unknown method '{method}'{_near(method)}")
    record = MERGES[name]
    _refuse_functions(method, record.function)
    check_options(method, record, options)
    least, most = record.experts
    count = len(models)
    if count < least or (most is not None and count > most):
        wanted = (
            f"{least}" if most == least else f"{least} to {most or 'any number of'}"
        )
        raise ValueError(f"{method}: merges {wanted} models, {count} given")
    if weights is None:
        if name == "wise_ft":
            raise ValueError(
                "wise_ft: give --weights, the share of the model from 0 to 1"
            )
        weights = [1 / count if averages(name) else 1.0] * count
    for option, value in options.items():
        if isinstance(value, tuple) and len(value) != count:
            raise ValueError(
                f"--set {option}: {len(value)} values for {count} models; give one "
                "for all, or one for each"
            )
    if record.form is not None:  # a word that is none of its choices is told here
        record.form(**numbers_and_words(name, options)[1])
    weights = [float(w) for w in weights]
    if len(weights) != count:
        raise ValueError(
            f"--weights: {len(weights)} numbers for {count} models; give one for each"
        )
    bad = [w for w in weights if not np.isfinite(w)]
    if bad:
        raise ValueError(f"--weights: {bad} are no finite numbers")
    normalize = options.get("normalize", method == LINEAR)
    # Of the weights; what Fisher merging calls so is of its statistics.
    own = "statistics" in record.needs
    if not own and "normalize" in inspect.signature(record.function).parameters:
        options.pop("normalize", None)
        if normalize:
            if abs(sum(weights)) <= 1e-12 * sum(map(abs, weights)):
                raise ValueError(
                    f"--weights: {weights} sum to 0, and {method} divides by the sum; "
                    "change them, or pass --set normalize=false"
                )
            weights = [w / sum(weights) for w in weights]
    means = options.get("aggregate", _default(record.function, "aggregate")) == "mean"
    if means and min(weights) < 0:
        raise ValueError(
            f"--weights: {weights} of both signs; {method} with aggregate=mean divides "
            "by the sum of those who agree, which may then be near 0: pass "
            "--set aggregate=sum, or weights that are not negative"
        )
    # The card states every value, also those that nobody typed.
    resolved = {
        option: _default(record.function, option)
        for option in inspect.signature(record.function).parameters
        if option not in _NOT_OPTIONS | {"input_axis"}
        and (own or option != "normalize")
    }
    if "layer_pattern" in resolved:  # whose default is of this library's own names
        resolved["layer_pattern"] = _LAYER
    resolved = {k: v for k, v in resolved.items() if v is not None} | options
    return record, name, weights, resolved, notes


def _refuse_functions(method: str, function: Any) -> None:
    """Refuses methods with an option that no flag can say, such as a permutation."""
    missing = [
        name
        for name, parameter in inspect.signature(function).parameters.items()
        if name not in _NOT_OPTIONS and parameter.default is parameter.empty
    ]
    if missing:
        raise ValueError(
            f"{method}: needs {', '.join(missing)}, which only Python can say; call "
            f"fusion_jax.{method}"
        )


def check_options(method: str, record: Any, options: Mapping[str, Any]) -> None:
    """Refuses options that a method does not have, and values that do not fit.

    Args:
      method: as it was asked for.
      record: of the method.
      options: by name.

    Raises:
      ValueError: names the option, and the nearest one that there is.
    """
    known = [
        n
        for n in inspect.signature(record.function).parameters
        if n not in _NOT_OPTIONS
    ]
    for option, value in options.items():
        if option not in known and not (method == LINEAR and option == "normalize"):
            near = difflib.get_close_matches(option, known, 1)
            raise ValueError(
                f"--set {option}: {method} has no such option"
                + (f"; did you mean {near[0]}?" if near else "")
                + f" It has {', '.join(known) or 'none'}."
            )
        values = value if isinstance(value, tuple) else (value,)
        if option in _SHARES and any(
            not isinstance(v, int | float) or isinstance(v, bool) or not 0 <= v <= 1
            for v in values
        ):
            raise ValueError(
                f"--set {option}: {value} is no share; give a number from 0 to 1, "
                "not per cent"
            )
        default = _default(record.function, option)
        if isinstance(default, bool | str) and not isinstance(value, type(default)):
            raise ValueError(
                f"--set {option}: {value!r} given, like {default!r} wanted"
            )
        choices = _CHOICES.get(option, (value,))
        if value not in choices:
            raise ValueError(
                f"--set {option}: '{value}' is not one of {', '.join(choices)}"
            )
        if isinstance(default, float) and any(
            isinstance(v, str | bool) for v in values
        ):
            raise ValueError(f"--set {option}: {value!r} is no number")


def _default(function: Any, name: str) -> Any:
    parameter = inspect.signature(function).parameters.get(name)
    return None if parameter is None else parameter.default


def _near(method: str) -> str:
    near = difflib.get_close_matches(method, [LINEAR, *MERGES], 1, cutoff=0.5)
    meant = f"; did you mean {near[0]}?" if near else ";"
    return f"{meant} There are {', '.join(sorted([LINEAR, *MERGES]))}."


def _labels(models: Sequence[Path]) -> list[str]:
    """Folder names, made different where two are alike."""
    names = [Path(model).resolve().name for model in models]
    if len(set(names)) == len(names) and "base" not in names:
        return names
    return [f"{number}_{name}" for number, name in enumerate(names, start=1)]
