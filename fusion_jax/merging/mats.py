"""MaTS: the kernel that matches each expert where its task's loss is sensitive."""

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from fusion_jax import trees
from fusion_jax.merging.combine import contract, moved
from fusion_jax.merging.form import Block, Facts, Form, Options
from fusion_jax.merging.in_memory import require_base, run
from fusion_jax.merging.kronecker import correction, factors
from fusion_jax.merging.record import Merge
from fusion_jax.types import Coefficients, Key, Params, ParamStack

STARTS = ("average", "task_arithmetic")


def mats(
    stack: ParamStack,
    coefficients: Coefficients,
    *,
    statistics: Mapping[str, Params],
    base: Params | None = None,
    key: Key | None = None,
    groups: trees.Rules[int] | None = None,
    start: str = "average",
    scale: jax.Array | float = 0.3,
    iterations: int = 100,
    alpha: jax.Array | float = 1.0,
    input_axis: int = -2,
) -> Params:
    """Solves for each kernel in the metric of its inputs and of its output gradients.

    sum_k c_k G~_k W O~_k = sum_k c_k G~_k W_k O~_k,  W [in, out]
    G~ = alpha G + (1 - alpha) diag(G), O~ likewise

    G_k is the second moment of the layer's inputs, O_k that of the loss's gradient at
    its output: together they are a Kronecker factor of the Fisher. With O_k = I this
    is RegMean. The system of in * out unknowns is never built: conjugate gradients
    begin at a start W_0 and stop after `iterations` steps, or where the residual is
    1e-7 of the first one (1e-12 in float64). Stopping early from a good start is the
    regulariser: what the system does not see stays as it was, and what it hardly sees
    nearly so.

    Starts: 'average' is the mean of W_k by c. 'task_arithmetic' is
    theta_0 + scale * K * sum_k c_k (theta_k - theta_0) / sum_k c_k; with equal
    coefficients that is the paper's sum of task vectors times `scale` (0.3 there).

    Args:
      stack: tree of [K, ...].
      coefficients: [K], [G, K] with `groups`, or a tree of [K]; not negative, their sum
        not zero. Only their ratios count.
      statistics: 'inputs': kernel leaf -> [K, in, in], or [K, in + 1, in + 1] with a
        last row and column for a constant input, which are not used; 'outputs': kernel
        leaf -> [K, out, out]; flat or as trees. Only the ratios between experts of a
        leaf count, not the unit. Leaves without are averaged by c. A kernel of more
        axes is a matrix whose leading axes (trailing ones, with input_axis=-1) multiply
        to `in`.
      base: tree of [...], of the start 'task_arithmetic' alone.
      key: not used.
      groups: ordered (regular expression, row of coefficients) rules.
      start: of `STARTS`.
      scale: of the task vectors at the start 'task_arithmetic'.
      iterations: at most so many steps; an int, not traced.
      alpha: scale of the off-diagonal of both Grams, in [0, 1].
      input_axis: -2 in Flax kernels [in, out], -1 in PyTorch's [out, in].

    Returns:
      Tree of [...], dtypes of `stack`, computed in float32. There is no reverse-mode
      derivative: `jax.grad` refuses the loop.

    Raises:
      ValueError: an unknown start or no base for it; iterations or alpha out of range;
        statistics of no leaf, or that do not fit their leaf; coefficients that do not
        fit.
      TreeMismatch: the base has another structure than the experts.

    Reference: Tam, Bansal & Raffel 2023, arXiv:2312.04339.
    """
    del key
    if isinstance(alpha, int | float) and not 0 <= alpha <= 1:
        raise ValueError(f"mats: alpha {alpha} is not in [0, 1]")
    form = mats_form(start=start, iterations=iterations, input_axis=input_axis)
    return run(
        form,
        stack,
        coefficients,
        base=require_base(base, "mats") if start == "task_arithmetic" else None,
        groups=groups,
        options={"scale": scale, "alpha": alpha},
        statistics=_by_leaf(trees.flatten(stack), statistics, input_axis),
    )


def mats_form(
    *, start: str = "average", iterations: int = 100, input_axis: int = -2
) -> Form:
    """The form of `mats`; statistics of a leaf are {'inputs': ..., 'outputs': ...}."""
    if start not in STARTS:
        raise ValueError(f"mats: start '{start}' is not one of {', '.join(STARTS)}")
    if iterations < 0:
        raise ValueError(f"mats: {iterations} iterations; give 0 or more")
    if input_axis not in (-2, -1):
        raise ValueError(f"input_axis: {input_axis} is not -2 or -1")

    def apply(block: Block, facts: Facts, options: Options) -> jax.Array:
        del facts
        dtype = block.experts.dtype
        row = block.coefficients.astype(dtype)
        row = row / jnp.sum(row)
        mean = contract(row, block.experts)
        if block.statistics is None:
            return mean
        inputs = jnp.asarray(block.statistics["inputs"]).astype(dtype)
        outputs = jnp.asarray(block.statistics["outputs"]).astype(dtype)
        fault = _fault(block.experts.shape, inputs.shape, outputs.shape, input_axis)
        if fault:
            raise ValueError(f"mats: {block.name or 'a kernel'}: {fault}")
        prior = mean
        if start == "task_arithmetic":
            prior = moved(
                block, len(row) * contract(row, block.deltas), options["scale"]
            )
        # Differences to the start: equal experts and unseen inputs keep every digit.
        gaps, width = block.experts - prior, outputs.shape[1]
        if input_axis == -2:
            gaps = gaps.reshape(len(row), -1, width)
        else:
            gaps = jnp.swapaxes(gaps.reshape(len(row), width, -1), 1, 2)
        size = gaps.shape[1]
        left, right = factors(row, inputs[:, :size, :size], outputs, options["alpha"])
        found = correction(left, right, gaps, iterations)
        return prior + (found if input_axis == -2 else found.T).reshape(prior.shape)

    return Form(apply, unit="leaf", input_axis=input_axis)


def _by_leaf(
    leaves: dict[str, jax.Array], statistics: Mapping[str, Params], input_axis: int
) -> dict[str, Any]:
    """{'inputs', 'outputs'} of each leaf that has both; a ValueError names the rest."""
    odd = sorted(statistics.keys() ^ {"inputs", "outputs"})
    if odd:
        raise ValueError(
            "mats: statistics must hold the trees 'inputs' and 'outputs'; missing or "
            f"unknown: {', '.join(odd)}"
        )
    inputs = trees.flatten(statistics["inputs"])
    outputs = trees.flatten(statistics["outputs"])
    # Grams that reach no kernel would make this the plain average without a word.
    faults = [] if inputs or outputs else ["no Grams are given; use weighted_average"]
    for name in inputs.keys() | outputs.keys():
        if name not in leaves:
            faults.append(f"{name}: no such leaf in the stack")
        elif name not in inputs or name not in outputs:
            lacking = "outputs" if name in inputs else "inputs"
            faults.append(f"{name}: no Gram among '{lacking}'")
        else:
            shapes = [jnp.shape(x) for x in (leaves[name], inputs[name], outputs[name])]
            fault = _fault(*shapes, input_axis)
            faults += [f"{name}: {fault}"] if fault else []
    if faults:
        lines = "\n  ".join(sorted(faults)[:40])
        raise ValueError(
            "mats: statistics must be Grams [K, in, in] of inputs and [K, out, out] of "
            f"output gradients for each kernel:\n  {lines}"
        )
    return {n: {"inputs": inputs[n], "outputs": outputs[n]} for n in inputs}


def _fault(
    experts: tuple[int, ...],
    inputs: tuple[int, ...],
    outputs: tuple[int, ...],
    input_axis: int,
) -> str:
    """What is wrong with the Grams of experts [K, ...]; empty if nothing is."""
    count, *shape = experts
    for grams in (inputs, outputs):
        if len(grams) != 3 or grams[0] != count or grams[1] != grams[2]:
            return f"Grams of shape {grams} for {count} experts; give [{count}, n, n]"
    axes = shape if input_axis == -2 else shape[::-1]
    for split in range(1, len(axes)):
        wide, out = math.prod(axes[:split]), math.prod(axes[split:])
        if inputs[1] in (wide, wide + 1) and outputs[1] == out:
            return ""
    return f"Grams of shape {inputs} and {outputs} do not fit a kernel of shape " + str(
        tuple(shape)
    )


RECORDS: dict[str, Merge] = {
    "mats": Merge(
        function=mats,
        form=mats_form,
        needs=frozenset({"statistics"}),
        accepts=frozenset({"base"}),
        promises=frozenset(
            {"one_hot", "equal_experts", "permutation", "scale_free", "shift"}
        ),
        differentiable=False,
        reference="Tam, Bansal & Raffel 2023, arXiv:2312.04339",
    ),
}
