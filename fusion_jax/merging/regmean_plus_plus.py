"""RegMean stage by stage: each stage reads what the merged stages below it give."""

import functools
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fusion_jax import trees
from fusion_jax.merging.host_means import rounded_mean, shares
from fusion_jax.merging.layer_inputs import mean_moment
from fusion_jax.merging.stage_layer import StageLayer
from fusion_jax.merging.stage_step import stage_step
from fusion_jax.types import Batch, Coefficients, Params, Stage

MergeRest = Callable[
    [tuple[str, ...], Mapping[str, list[np.ndarray]]], Mapping[str, Any]
]
"""`(leaf names, name -> the K experts' leaves) -> name -> merged leaf`."""

Report = dict[str, dict[str, Any]]


def regress_stages(
    stages: Sequence[Stage],
    experts: Sequence[Params],
    batches: Sequence[Sequence[Batch]],
    coefficients: Coefficients | Sequence[float] | np.ndarray,
    *,
    alpha: float = 0.9,
    ridge: float = 1e-6,
    biases: bool = False,
    cascade: bool = True,
    layers: str = ".*",
    merge_rest: MergeRest | None = None,
) -> tuple[Params, Report]:
    """Merges K experts stage by stage from their own data: RegMean++, or RegMean.

    h_k = embed(x_k), with the averaged embeddings
    for each stage f, bottom to top:
      G_k of every linear layer of expert k's own f on h_k; f* from G_k and f_k
      h_k <- f*(h_k)                       cascade: RegMean++
      h_k <- f_k(h_k)                      otherwise: RegMean, embeddings its own too

    Kernels are those of `layer_sums.LayerSums`, in float64 on the host, from Grams in
    float32 that are the mean over each expert's real tokens. Without the cascade this
    is `regmean` of all Grams, of which never more than one stage's are held. The device
    holds the hidden states of all batches of all experts and the leaves of one stage.
    The stage 'embed', leaves that no layer was regressed for and those that no stage
    owns are averaged. A leaf that two stages own is merged in the first.

    Args:
      stages: of the model, in order; see `types.Stage`.
      experts: K trees of one structure.
      batches: for each expert its batches, from its own data: 'attention_mask' [B, T]
        and perhaps 'mask' [B] say what is real.
      coefficients: [K], not negative, their sum not zero. Only their ratios count.
      alpha: scale of the off-diagonal of Grams, in [0, 1].
      ridge: relative to the mean of the diagonal.
      biases: solve each kernel 'x/kernel' together with 'x/bias'.
      cascade: RegMean++; False is RegMean.
      layers: regular expression; kernel leaves that match in full are regressed.
      merge_rest: given what a stage owns besides (and what no stage owns) in the place
        of the average; leaves that it does not return are averaged.

    Returns:
      (the merged tree in numpy, dtypes of the experts; leaf -> report). A report's
      'how' is 'regressed', 'averaged', 'merge_rest', or 'first expert' for leaves that
      are not floating. Regressed leaves have 'solver', 'condition', 'loss' (c of sum
      one), 'dead' and 'tokens' [K] besides.

    Raises:
      ValueError: numbers of experts, batches or coefficients that do not fit; alpha or
        ridge out of range; an expert without a real token; no layer to regress.
      TreeMismatch: experts of different structures.

    Reference: Nguyen et al. 2025, arXiv:2508.03121; Jin et al. 2023,
    arXiv:2212.09849.
    """
    count = len(experts)
    sizes = [len(own) for own in batches]
    if not count or len(sizes) != count or 0 in sizes:
        raise ValueError(
            f"{count} experts and lists of {sizes} batches: give each expert one list "
            "of at least one batch"
        )
    if not 0 <= alpha <= 1 or not 0 <= ridge < np.inf:
        raise ValueError(f"alpha {alpha} must be in [0, 1], ridge {ridge} not below 0")
    weights = shares(np.asarray(coefficients), count)
    trees.check_same_structure(experts, [f"expert {k}" for k in range(count)])
    flat = [trees.flatten(expert) for expert in experts]
    hidden: list[list[Any]] = [[None] * size for size in sizes]
    merged: dict[str, np.ndarray] = {}
    report: Report = {}
    for stage in stages:
        owned = [name for name in flat[0] if re.fullmatch(stage.owns, name)]
        own = [{name: leaves[name] for name in owned} for leaves in flat]
        last = stage is stages[-1]
        if stage.name != "embed":
            make = functools.partial(
                StageLayer, experts=own, weights=weights, alpha=alpha, biases=biases
            )
            moves = not cascade and not last
            measured = _measured(stage, own, batches, hidden, layers, make, moves)
            while measured:
                # One after the other: sums that are solved are dropped.
                layer = measured.pop(0)
                if layer.name not in merged:
                    leaves, said = layer.solve(ridge)
                    merged |= leaves
                    report |= dict.fromkeys(leaves, said)
        elif not cascade:
            for k in range(count):
                _advance(stage, own[k], batches[k], hidden[k])
        rest = [name for name in owned if name not in merged]
        _merge_rest(rest, flat, weights, merge_rest, merged, report)
        if cascade and not last:
            whole = {name: jnp.asarray(merged[name]) for name in owned}
            for k in range(count):
                _advance(stage, whole, batches[k], hidden[k])
    rest = [name for name in flat[0] if name not in merged]
    _merge_rest(rest, flat, weights, merge_rest, merged, report)
    if not any(said["how"] == "regressed" for said in report.values()):
        raise ValueError(
            f"no kernel that a stage runs matches layers={layers!r}: this would be the "
            "plain average; use weighted_average"
        )
    tree = trees.unflatten({name: merged[name] for name in flat[0]})
    return tree, {name: report[name] for name in flat[0]}


def _advance(
    stage: Stage, leaves: Mapping[str, Any], batches: Sequence[Batch], states: list[Any]
) -> None:
    """One expert's hidden states, batch by batch, through a stage."""
    params = _own(stage, leaves)
    forward = jax.jit(stage.body or stage.apply)
    for i, batch in enumerate(batches):
        states[i] = forward(params, states[i], batch)


def _own(stage: Stage, leaves: Mapping[str, Any]) -> Params:
    """What the stage is given: all it owns, or the subtree of its body."""
    start = len(stage.prefix) + 1 if stage.body else 0
    return trees.unflatten({name[start:]: jnp.asarray(x) for name, x in leaves.items()})


def _measured(
    stage: Stage,
    experts: list[dict[str, Any]],
    batches: Sequence[Sequence[Batch]],
    hidden: list[list[Any]],
    pattern: str,
    make: Callable[[str], StageLayer],
    moves: bool,
) -> list[StageLayer]:
    """The sums of the stage's layers; moves `hidden` on to the experts' own outputs."""
    step = stage_step(stage.body or stage.apply, moves)
    place = f"{stage.prefix}/" if stage.body else ""
    layers: dict[str, StageLayer] = {}
    for k, (own, states, data) in enumerate(zip(experts, hidden, batches, strict=True)):
        params = _own(stage, own)
        sums = step.nothing(params, states[0], data[0])
        for i, batch in enumerate(data):
            sums, output = step.add(sums, params, states[i], batch)
            if moves:
                states[i] = output
        readers: dict[str, list[str]] = {}
        for read, owner in step.readers.items():
            if re.fullmatch(pattern, place + read):
                readers.setdefault(owner, []).append(place + read)
        # One Gram on the host at a time; of the other experts only the sums stay.
        for owner, names in readers.items():
            moment = sums.pop(owner)
            tokens = int(moment.count)
            gram = mean_moment(moment) if tokens else None
            for name in names:
                if name not in own:
                    raise ValueError(
                        f"{name}: stage '{stage.name}' runs this kernel, and the "
                        "experts have no such leaf among those it owns, "
                        f"'{stage.owns}'"
                    )
                if name not in layers:
                    layers[name] = make(name)
                layers[name].add(k, gram, tokens)
    return list(layers.values())


def _merge_rest(
    names: list[str],
    flat: list[dict[str, Any]],
    weights: np.ndarray,
    merge_rest: MergeRest | None,
    merged: dict[str, np.ndarray],
    report: Report,
) -> None:
    """Fills in the leaves that are not regressed."""
    given: Mapping[str, Any] = {}
    if merge_rest is not None and names:
        stacks = {name: [np.asarray(own[name]) for own in flat] for name in names}
        given = merge_rest(tuple(names), stacks)
    for name in names:
        first = flat[0][name]
        if name in given:
            merged[name] = np.asarray(given[name]).astype(first.dtype)
            report[name] = {"how": "merge_rest"}
        elif jnp.issubdtype(first.dtype, jnp.floating):
            merged[name] = rounded_mean([own[name] for own in flat], weights)
            report[name] = {"how": "averaged"}
        else:
            merged[name] = np.asarray(first)
            report[name] = {"how": "first expert"}
