"""Rows of a mergekit file with their parameters looked up: the plans of tensors."""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from fusion_jax.checkpoints.mergekit.methods import METHODS, Parameter
from fusion_jax.checkpoints.mergekit.parameters import value_of
from fusion_jax.checkpoints.mergekit.rows import Row
from fusion_jax.checkpoints.mergekit.translate import translate
from fusion_jax.checkpoints.mergekit.yaml import Path, Reading
from fusion_jax.checkpoints.plan import Source, TensorPlan


def tensor_plans(
    method: str, rows: Sequence[Row], reading: Reading
) -> tuple[TensorPlan, ...]:
    """Plans of all tensors.

    Args:
      method: mergekit's name.
      rows: of the output.
      reading: receives faults: parameters without a value, values that make no merge.
    """
    faults = _ByTensor(reading)
    _note_unused(method, rows, reading)
    plans = [_plan(method, row, faults) for row in rows]
    faults.report()
    return tuple(plan for plan in plans if plan is not None)


def _plan(method: str, row: Row, faults: "_ByTensor") -> TensorPlan | None:
    part = row.part
    sources = [
        Source(model.label, tensor)
        for model, tensor in zip(part.models, row.tensors, strict=True)
    ]
    apart = METHODS[method].base != "input"
    at = (
        [model.label for model in part.models].index(part.base.label)
        if (apart and part.base is not None)
        else None
    )
    base = None if at is None else sources[at]
    experts = [place for place in range(len(sources)) if place != at]
    infos = [
        model.info(tensor)
        for model, tensor in zip(part.models, row.tensors, strict=True)
    ]
    floating = {info.floating for info in infos}
    if floating == {False} or not experts:
        # Integer buffers are the same in every model; a base by itself is the result.
        return TensorPlan(row.name, "copy", (base or sources[0],), None, (1.0,))
    if len(floating) > 1:
        faults.add(
            part.path, "some inputs hold floating numbers, some do not", row.name
        )
        return None
    values = _values(method, row, experts, faults)
    if values is None:
        return None
    try:
        ours = translate(method, values, len(experts))
    except ValueError as error:
        faults.add(part.path, f"{method}: {error}", row.name)
        return None
    chosen = [sources[place] for place in experts]
    if ours.base_first:
        assert base is not None
        chosen, base = [base, *chosen], None
    return TensorPlan(
        row.name, ours.method, tuple(chosen), base, ours.coefficients, ours.options
    )


def _values(
    method: str, row: Row, experts: Sequence[int], faults: "_ByTensor"
) -> dict[str, Any] | None:
    part = row.part
    values: dict[str, Any] = {}
    whole = True
    for name, parameter in METHODS[method].parameters.items():

        def look(
            own: Sequence[Any],
            tensor: str,
            name: str = name,
            parameter: Parameter = parameter,
        ) -> Any:
            scopes = (*own, *part.scopes)
            return value_of(name, parameter, scopes, tensor, row.depth)

        if parameter.each == "file":
            values[name] = look((), row.name)
            missing = ["the merge"] if values[name] is None else []
        else:
            each = [look((part.own[k],), row.tensors[k]) for k in experts]
            values[name] = tuple(each)
            missing = [
                f"'{part.models[k].label}'"
                for k, value in zip(experts, each, strict=True)
                if value is None
            ]
        if missing and not parameter.optional:
            whole = False
            for whose in missing:
                faults.add(
                    part.path,
                    f"the required parameter {name} of {method} is missing for {whose}",
                    row.name,
                )
    return values if whole else None


def _note_unused(method: str, rows: Sequence[Row], reading: Reading) -> None:
    """Settings that have no say, which mergekit passes over in silence."""
    parameters = METHODS[method].parameters
    for part in {id(row.part): row.part for row in rows}.values():
        for scope in part.scopes:
            for name in scope:
                if name not in parameters:
                    reading.note((), f"{name} is no parameter of {method} (ignored)")
        for model, scope in zip(part.models, part.own, strict=True):
            for name in scope:
                if name not in parameters:
                    reading.note((), f"{name} is no parameter of {method} (ignored)")
                elif parameters[name].each == "file":
                    reading.note(
                        (),
                        f"{name} counts for all models alike; the one of "
                        f"'{model.label}' is ignored, as mergekit does",
                    )


class _ByTensor:
    """Faults that many tensors share, each said once."""

    def __init__(self, reading: Reading):
        self.reading = reading
        self.tensors: dict[tuple[Path, str], list[str]] = defaultdict(list)

    def add(self, path: Path, text: str, tensor: str) -> None:
        self.tensors[path, text].append(tensor)

    def report(self) -> None:
        for (path, text), tensors in self.tensors.items():
            more = f" and {len(tensors) - 3} more tensors" if len(tensors) > 3 else ""
            self.reading.fault(path, f"{text} (at {', '.join(tensors[:3])}{more})")
