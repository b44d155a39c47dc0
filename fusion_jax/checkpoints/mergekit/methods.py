"""mergekit's methods as a table: which inputs and parameters each one takes."""

from collections.abc import Mapping
from typing import Any, NamedTuple

REQUIRED = None
"""Default of a parameter that has none."""


class Parameter(NamedTuple):
    """A parameter of a method.

    Attributes:
      kind: float, int or bool.
      default: its value where the file gives none; REQUIRED for none.
      each: 'expert' (one for each input but the base), 'input' (one for each), or
        'file' (one for all; a model's own `parameters` are not asked).
      optional: without a value the method goes on with None.
    """

    kind: type
    default: Any
    each: str = "file"
    optional: bool = False


class Method(NamedTuple):
    """A method of mergekit's.

    Attributes:
      parameters: by name.
      base: 'required', 'optional', or 'input': it counts as one more input.
      inputs: least and most, the base counted with them unless it is optional; None for
        no most.
    """

    parameters: Mapping[str, Parameter]
    base: str
    inputs: tuple[int, int | None] = (1, None)


def _task(*, rescale: bool = False, normalize: bool = False, **more: Parameter):
    """A method of sparse task vectors."""
    parameters = {
        "weight": Parameter(float, REQUIRED, "expert"),
        "density": Parameter(float, 1.0, "expert"),
        "lambda": Parameter(float, 1.0),
        "normalize": Parameter(bool, normalize),
        "rescale": Parameter(bool, rescale),
        "int8_mask": Parameter(bool, False),
        **more,
    }
    return Method(parameters, "required")


_EPSILON = Parameter(float, 0.15, "expert")
_GAMMA = Parameter(float, 0.01, "expert")

METHODS: dict[str, Method] = {
    "linear": Method(
        {
            "weight": Parameter(float, REQUIRED, "input"),
            "normalize": Parameter(bool, True),
        },
        "input",
    ),
    "slerp": Method({"t": Parameter(float, REQUIRED)}, "required", (2, 2)),
    "nuslerp": Method(
        {
            "weight": Parameter(float, REQUIRED, "expert"),
            "nuslerp_row_wise": Parameter(bool, False),
            "nuslerp_flatten": Parameter(bool, True),
        },
        "optional",
        (2, 2),
    ),
    "multislerp": Method(
        {
            "weight": Parameter(float, REQUIRED, "expert"),
            "normalize_weights": Parameter(bool, True),
            "eps": Parameter(float, 1e-8),
        },
        "optional",
    ),
    "karcher": Method(
        {"max_iter": Parameter(int, 10), "tol": Parameter(float, 1e-5)}, "input"
    ),
    "model_stock": Method(
        {"filter_wise": Parameter(bool, False)}, "required", (3, None)
    ),
    "task_arithmetic": _task(),
    "ties": _task(normalize=True),
    "dare_linear": _task(rescale=True),
    "dare_ties": _task(rescale=True),
    "breadcrumbs": _task(gamma=_GAMMA),
    "breadcrumbs_ties": _task(gamma=_GAMMA),
    "della": _task(rescale=True, normalize=True, epsilon=_EPSILON),
    "della_linear": _task(rescale=True, epsilon=_EPSILON),
    "sce": Method(
        {
            "select_topk": Parameter(float, 1.0),
            "int8_mask": Parameter(bool, False),
        },
        "required",
    ),
    "ram": Method({"epsilon": Parameter(float, 1e-5)}, "required"),
    "ramplus_tl": Method(
        {
            "r": Parameter(float, 0.1),
            "alpha": Parameter(float, 0.2),
            "epsilon": Parameter(float, 1e-5),
        },
        "required",
    ),
    "nearswap": Method({"t": Parameter(float, REQUIRED)}, "required", (2, 2)),
    "arcee_fusion": Method({}, "required", (2, 2)),
    "passthrough": Method(
        {"scale": Parameter(float, None, "input", optional=True)}, "input", (1, 1)
    ),
}

NAMES: dict[str, type] = {
    name: parameter.kind
    for method in METHODS.values()
    for name, parameter in method.parameters.items()
}
"""Every parameter of any method; files carry settings over from one to the next."""
