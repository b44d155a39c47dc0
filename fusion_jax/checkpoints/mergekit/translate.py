"""mergekit's methods and their parameters in terms of the merges of this package."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

Values = Mapping[str, Any]
"""Parameters at one tensor: numbers, or tuples with one for each input."""

_ZERO = 1e-6  # of a sum of weights, relative to the sum of their sizes


class Ours(NamedTuple):
    """A merge of this package.

    Attributes:
      method: of `MERGES`, or 'copy'.
      coefficients: [K].
      options: of the method.
      base_first: the base is the first expert and not the base.
    """

    method: str
    coefficients: tuple[float, ...]
    options: Mapping[str, Any]
    base_first: bool = False


def translate(method: str, values: Values, num_inputs: int) -> Ours:
    """The merge that a method of mergekit's means at one tensor.

    Args:
      method: mergekit's name.
      values: of all its parameters.
      num_inputs: K, without the base where the method sets it apart.

    Raises:
      ValueError: the values make no merge; the message does not name the tensor.
    """
    return _TRANSLATIONS[method](values, num_inputs)


def _linear(values: Values, num_inputs: int) -> Ours:
    del num_inputs
    weights = values["weight"]
    return Ours(
        "weighted_average", _shares(weights) if values["normalize"] else weights, {}
    )


def _passthrough(values: Values, num_inputs: int) -> Ours:
    del num_inputs
    (scale,) = values["scale"]
    if scale is None or scale == 1:
        return Ours("copy", (1.0,), {})
    return Ours("weighted_average", (scale,), {})


def _slerp(values: Values, num_inputs: int) -> Ours:
    del num_inputs
    return Ours("slerp", (1 - values["t"], values["t"]), {}, base_first=True)


def _nuslerp(values: Values, num_inputs: int) -> Ours:
    del num_inputs
    first, second = values["weight"]
    total = first + second
    share = 0.5 if abs(total) < _ZERO else second / total
    # mergekit's names are the other way round: its row_wise takes columns of the files.
    rows = "column" if values["nuslerp_row_wise"] else "row"
    options = {
        "vectors": "leaf" if values["nuslerp_flatten"] else rows,
        "input_axis": -1,
    }
    return Ours("nuslerp", (1 - share, share), options)


def _multislerp(values: Values, num_inputs: int) -> Ours:
    del num_inputs
    weights = values["weight"]
    if min(weights) < 0:
        raise ValueError(f"a negative weight {min(weights):g}, which has no direction")
    weights = _shares(weights) if values["normalize_weights"] else weights
    return Ours("multislerp", weights, {})


def _karcher(values: Values, num_inputs: int) -> Ours:
    # Ours takes all its steps, so that a tolerance has no say.
    return Ours("karcher", _uniform(num_inputs), {"max_iter": values["max_iter"]})


def _model_stock(values: Values, num_inputs: int) -> Ours:
    options = {"filter_wise": values["filter_wise"], "input_axis": -1}
    return Ours("model_stock", _uniform(num_inputs), options)


def _task_arithmetic(values: Values, num_inputs: int) -> Ours:
    del num_inputs
    weights = values["weight"]
    weights = _shares(weights) if values["normalize"] else weights
    return Ours("task_arithmetic", weights, {"scale": values["lambda"]})


def _ties(values: Values, num_inputs: int) -> Ours:
    del num_inputs
    _no_rescale(values)
    return _elected(
        "ties", values, {"density": _densities(values), "trim_scope": "tensor"}
    )


def _dare_linear(values: Values, num_inputs: int) -> Ours:
    del num_inputs
    return _plain("dare", values, _random(values))


def _dare_ties(values: Values, num_inputs: int) -> Ours:
    del num_inputs
    return _elected("dare_ties", values, _random(values))


def _della(values: Values, num_inputs: int) -> Ours:
    del num_inputs
    return _elected("della", values, _ranked(values))


def _della_linear(values: Values, num_inputs: int) -> Ours:
    del num_inputs
    return _plain("della_linear", values, _ranked(values))


def _breadcrumbs(values: Values, num_inputs: int) -> Ours:
    del num_inputs
    return _plain("breadcrumbs", values, _middle(values))


def _breadcrumbs_ties(values: Values, num_inputs: int) -> Ours:
    del num_inputs
    return _elected("breadcrumbs_ties", values, _middle(values))


def _sce(values: Values, num_inputs: int) -> Ours:
    share = min(max(values["select_topk"], 0.0), 1.0)
    return Ours("sce", _uniform(num_inputs), {"select_topk": share})


def _ram(values: Values, num_inputs: int) -> Ours:
    return Ours("ram", (1.0,) * num_inputs, {"epsilon": values["epsilon"]})


def _ram_plus(values: Values, num_inputs: int) -> Ours:
    options = {
        "epsilon": values["epsilon"],
        "boost": values["r"],
        "limit": values["alpha"],
    }
    return Ours("ram_plus", (1.0,) * num_inputs, options)


def _nearswap(values: Values, num_inputs: int) -> Ours:
    return Ours("nearswap", (1.0,) * num_inputs, {"t": values["t"]})


def _arcee_fusion(values: Values, num_inputs: int) -> Ours:
    del values
    return Ours("arcee_fusion", (1.0,) * num_inputs, {"input_axis": -1})


_TRANSLATIONS: dict[str, Callable[[Values, int], Ours]] = {
    "linear": _linear,
    "slerp": _slerp,
    "nuslerp": _nuslerp,
    "multislerp": _multislerp,
    "karcher": _karcher,
    "model_stock": _model_stock,
    "task_arithmetic": _task_arithmetic,
    "ties": _ties,
    "dare_linear": _dare_linear,
    "dare_ties": _dare_ties,
    "breadcrumbs": _breadcrumbs,
    "breadcrumbs_ties": _breadcrumbs_ties,
    "della": _della,
    "della_linear": _della_linear,
    "sce": _sce,
    "ram": _ram,
    "ramplus_tl": _ram_plus,
    "nearswap": _nearswap,
    "arcee_fusion": _arcee_fusion,
    "passthrough": _passthrough,
}


def _elected(method: str, values: Values, options: Mapping[str, Any]) -> Ours:
    """Signs elected by weight; a mean over those who agree where it is asked for."""
    weights, mean = values["weight"], values["normalize"]
    if mean and min(weights) < 0:
        raise ValueError(
            f"normalize: true with a negative weight {min(weights):g}, where the "
            "weights of those who agree may cancel; set normalize: false"
        )
    options = {
        **options,
        "scale": values["lambda"],
        "elect": "weighted",
        "aggregate": "mean" if mean else "sum",
    }
    return Ours(method, weights, options)


def _plain(method: str, values: Values, options: Mapping[str, Any]) -> Ours:
    """A weighted sum; normalised weights make it a mean, dropped entries counted."""
    weights = values["weight"]
    weights = _shares(weights) if values["normalize"] else weights
    fixed = {"scale": values["lambda"], "elect": "none", "aggregate": "sum"}
    return Ours(method, weights, {**options, **fixed})


def _random(values: Values) -> dict[str, Any]:
    return {
        "density": _densities(values),
        "rescale": "inverse" if values["rescale"] else "none",
        # mergekit drops entries of vectors too.
        "exempt_vectors": False,
    }


def _ranked(values: Values) -> dict[str, Any]:
    densities = _densities(values)
    for density, epsilon in zip(densities, values["epsilon"], strict=True):
        least, most = density - abs(epsilon), density + abs(epsilon)
        if 0 < density < 1 and not (least > 0 and most < 1):
            raise ValueError(
                f"density {density:g} with epsilon {epsilon:g} gives probabilities "
                f"of {least:g} to {most:g}, which have to lie between 0 and 1"
            )
    return {**_random(values), "epsilon": values["epsilon"], "input_axis": -1}


def _middle(values: Values) -> dict[str, Any]:
    _no_rescale(values)
    densities = _densities(values)
    # Everything is kept at a density of 1, the largest entries too.
    gammas = tuple(
        gamma if density < 1 else 0.0
        for density, gamma in zip(densities, values["gamma"], strict=True)
    )
    return {"density": densities, "gamma": gammas}


def _no_rescale(values: Values) -> None:
    densities = _densities(values)
    if values["rescale"] and any(0 < density < 1 for density in densities):
        raise ValueError(
            "rescale: true after trimming by size is not supported; set rescale: false "
            "and raise lambda"
        )


def _densities(values: Values) -> tuple[float, ...]:
    return tuple(min(max(density, 0.0), 1.0) for density in values["density"])


def _shares(weights: tuple[float, ...]) -> tuple[float, ...]:
    total = sum(weights)
    if abs(total) <= _ZERO * sum(map(abs, weights)):
        raise ValueError(
            f"the weights {', '.join(f'{w:g}' for w in weights)} sum to 0 and cannot "
            "be normalised; change them, or set normalize: false"
        )
    return tuple(weight / total for weight in weights)


def _uniform(num_inputs: int) -> tuple[float, ...]:
    return (1 / num_inputs,) * num_inputs
