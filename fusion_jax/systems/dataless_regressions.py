"""Dataless fusion by regression on the owners' statistics: RegMean, RegMean++, MaTS."""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fusion_jax import trees
from fusion_jax.config import Config
from fusion_jax.merging.layer_inputs import Grams
from fusion_jax.merging.mats import mats as merge_mats
from fusion_jax.merging.regmean_plus_plus import regress_stages
from fusion_jax.merging.regression import regress_layer_for
from fusion_jax.systems.dataless_given import (
    Fusion,
    Leaves,
    Variant,
    flat,
    host,
    mean_of,
)
from fusion_jax.systems.dataless_members import statistics_model
from fusion_jax.types import Params

_ENCODER = "encoder/"


def regmean(fusion: Fusion) -> Iterator[Variant]:
    """Kernels regressed on the members' inputs; a variant for each alpha."""
    options = fusion.options
    averaged = fusion.averaged
    grams = [member.grams for member in fusion.members]
    names = [name for name in averaged if all(name in g.readers for g in grams)]
    encoders = list(fusion.encoders.values())
    found: dict[float, Leaves] = {alpha: dict(averaged) for alpha in options.alphas}
    for name in names:
        kernels = [leaves[name] for leaves in encoders]
        for alpha, kernel in _regressed(
            kernels, [_gram(g, name) for g in grams], fusion.coefficients, options
        ).items():
            found[alpha][name] = kernel
    layers = {name: "regressed" if name in names else "averaged" for name in averaged}
    for alpha, leaves in found.items():
        yield Variant(
            {"alpha": alpha},
            trees.unflatten(leaves),
            _regmean_head(fusion, alpha),
            layers,
        )


def regmean_plus_plus(fusion: Fusion) -> Iterator[Variant]:
    """RegMean layer by layer, on inputs from the layers merged already."""
    options, first = fusion.options, fusion.members[0]
    model = statistics_model(first.problem, first.architecture, options.dtype)
    # Heads stay outside: tasks may have different ones, and labels their own owners.
    blank = jax.tree.map(
        lambda x: np.zeros(x.shape, x.dtype),
        jax.eval_shape(model.init, jax.random.key(0))["head"],
    )
    experts = [
        {"encoder": trees.unflatten(leaves)["encoder"], "head": blank}
        for leaves in fusion.encoders.values()
    ]
    batches = [
        member.batches(options.statistics.cascade_examples) for member in fusion.members
    ]
    for alpha in options.cascade_alphas:
        merged, report = regress_stages(
            model.stages,
            experts,
            batches,
            fusion.coefficients,
            alpha=alpha,
            ridge=options.ridge,
            layers=r"encoder/.*",
        )
        layers = {
            name: entry["how"]
            for name, entry in report.items()
            if name.startswith(_ENCODER)
        }
        head = _regmean_head(fusion, alpha)
        yield Variant({"alpha": alpha}, {"encoder": merged["encoder"]}, head, layers)


def mats(fusion: Fusion) -> Iterator[Variant]:
    """Kernels matched by inputs and output gradients, from task arithmetic on."""
    options = fusion.options
    averaged = fusion.averaged
    curvature = [member.curvature for member in fusion.members]
    names = [name for name in averaged if all(name in c.outputs for c in curvature)]
    layers = {name: "regressed" if name in names else "averaged" for name in averaged}
    for alpha in options.mats_alphas:
        leaves = dict(averaged)
        for name in names:
            kernels = [own[name] for own in fusion.encoders.values()]
            leaves[name] = np.asarray(
                _mats(options.mats_iterations)(
                    np.stack(kernels),
                    fusion.base_leaves[name],
                    jnp.asarray(fusion.coefficients, jnp.float32),
                    np.stack([_gram(c, name)[:-1, :-1] for c in curvature]),
                    np.stack([np.asarray(c.outputs[name]) for c in curvature]),
                    options.mats_scale,
                    alpha,
                )
            )
        yield Variant(
            {"alpha": alpha}, trees.unflatten(leaves), fusion.average_head, layers
        )


def _regmean_head(fusion: Fusion, alpha: float) -> Params | None:
    def merge(stack: Params, row: Any, indices: Sequence[int]) -> Params:
        merged = flat(mean_of(stack, row, indices))
        own = [fusion.members[i].grams for i in indices]
        for name, kernels in host(stack).items():
            leaf = f"head/{name}"
            if all(leaf in grams.readers for grams in own):
                grams = [_gram(g, leaf) for g in own]
                options = fusion.options
                solved = _regressed(list(kernels), grams, row, options, (alpha,))
                merged[name] = solved[alpha]
        return trees.unflatten(merged)

    return fusion.merge_heads(merge)


def _regressed(
    kernels: Sequence[np.ndarray],
    grams: Sequence[np.ndarray],
    coefficients: Any,
    options: Config,
    alphas: Sequence[float] | None = None,
) -> dict[float, np.ndarray]:
    """Alpha -> kernel: three sums serve every alpha."""
    found = regress_layer_for(
        options.alphas if alphas is None else alphas,
        kernels,
        None,
        grams,
        coefficients,
        ridge=options.ridge,
    )
    dtype = kernels[0].dtype
    return {alpha: layer.kernel.astype(dtype) for alpha, layer in found.items()}


def _gram(grams: Grams, kernel: str) -> np.ndarray:
    return np.asarray(grams.inputs[grams.readers[kernel]])


@functools.lru_cache(maxsize=8)
def _mats(iterations: int) -> Callable[..., jax.Array]:
    """One kernel at a time under one name: layers of one shape share a program."""

    def run(kernels, base, row, inputs, outputs, scale, alpha):
        return merge_mats(
            {"kernel": kernels},
            row,
            statistics={"inputs": {"kernel": inputs}, "outputs": {"kernel": outputs}},
            base={"kernel": base},
            start="task_arithmetic",
            scale=scale,
            iterations=iterations,
            alpha=alpha,
        )["kernel"]

    return jax.jit(run)
