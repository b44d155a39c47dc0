"""RegMean: the kernel whose outputs are nearest to those of every expert."""

import math
import re

import jax
import jax.numpy as jnp

from fusion_jax import trees
from fusion_jax.merging.coefficients import per_leaf
from fusion_jax.merging.combine import contract
from fusion_jax.merging.form import Block, Facts, Form, Options
from fusion_jax.merging.in_memory import run
from fusion_jax.merging.record import Merge
from fusion_jax.merging.ridge import correction
from fusion_jax.types import Coefficients, Key, Params, ParamStack


def regmean(
    stack: ParamStack,
    coefficients: Coefficients,
    *,
    statistics: Params,
    base: Params | None = None,
    key: Key | None = None,
    groups: trees.Rules[int] | None = None,
    alpha: jax.Array | float = 0.9,
    ridge: jax.Array | float = 1e-6,
    input_axis: int = -2,
    biases: bool = False,
) -> Params:
    """Regresses each kernel on the inputs that its layer sees in every expert.

    minimise over W  sum_k c_k tr((W - W_k)^T G~_k (W - W_k))
    G~_k = alpha G_k + (1 - alpha) diag(G_k),  G_k = X_k^T X_k
    (A + r I) W = sum_k c_k G~_k W_k + r M
    with A = sum_k c_k G~_k, r = ridge * trace(A) / in, and M the mean of W_k by c.

    The default alpha is that of most of the paper's models; 1 is the plain
    least-squares fit, 0 a mean of rows weighted by diag(G_k). Good values range from
    0.1 (large decoders, T5) to 1: choose on data that is not the test set. The ridge
    pulls towards the mean, so inputs that were never active are averaged. Grams should
    be divided by their number of tokens, or else more data is a larger weight.

    An extended Gram is that of [x; 1]: the last row and column are the sums of x and
    the number of tokens, divided as the rest. With `biases` it gives kernel and bias
    together, as one matrix [W; b] whose last input is 1, which n and the trace of the
    ridge count; otherwise its last row and column are not read.

    Args:
      stack: tree of [K, ...].
      coefficients: [K], [G, K] with `groups`, or a tree of [K]; not negative, their sum
        not zero. Only their ratios count.
      statistics: Grams, name of kernel leaf -> [K, in, in] or extended
        [K, in + 1, in + 1], flat or as a tree; leaves without one are averaged by c. A
        kernel of more axes is a matrix whose leading axes (trailing ones, with
        input_axis=-1) multiply to `in`.
      base: not used.
      key: not used.
      groups: ordered (regular expression, row of coefficients) rules.
      alpha: scale of the off-diagonal of Grams, in [0, 1].
      ridge: relative to the mean of the diagonal.
      input_axis: -2 in Flax kernels [in, out], -1 in PyTorch's [out, in].
      biases: solve each kernel that has an extended Gram together with its bias:
        'x/kernel' with 'x/bias', 'x.weight' with 'x.bias'. The coefficients are those
        of the kernel. Other biases are averaged.

    Returns:
      Tree of [...], dtypes of `stack`, computed in float32; a system of condition
      number C is solved to about C * 1e-7.

    Raises:
      ValueError: Grams of no leaf, or that do not fit their leaf; alpha not in [0, 1];
        coefficients that do not fit; `biases` where no kernel has both a bias and an
        extended Gram.

    Reference: Jin et al. 2023, arXiv:2212.09849.
    """
    del base, key
    if isinstance(alpha, int | float) and not 0 <= alpha <= 1:
        raise ValueError(f"regmean: alpha {alpha} is not in [0, 1]")
    grams = trees.flatten(statistics)
    leaves = trees.flatten(stack)
    _check(leaves, grams, input_axis)
    pairs = _pairs(leaves, grams, input_axis) if biases else {}
    rows = per_leaf(stack, coefficients, groups)
    joined = {name: x for name, x in leaves.items() if name not in pairs.values()}
    for name, bias in pairs.items():
        joined[name] = _append(leaves[name], leaves[bias], grams[name], input_axis)
    merged = trees.flatten(
        run(
            regmean_form(input_axis=input_axis),
            joined,
            {name: rows[name] for name in joined},
            options={"alpha": alpha, "ridge": ridge},
            statistics=grams,
        )
    )
    for name, bias in pairs.items():
        both = merged[name] if input_axis == -2 else merged[name].T
        kernel = both[:-1] if input_axis == -2 else both[:-1].T
        for leaf, value in ((name, kernel), (bias, both[-1])):
            x = leaves[leaf]
            merged[leaf] = value.reshape(x.shape[1:]).astype(x.dtype)
    return trees.unflatten({name: merged[name] for name in leaves})


def regmean_form(*, input_axis: int = -2) -> Form:
    """The form of `regmean`."""
    if input_axis not in (-2, -1):
        raise ValueError(f"input_axis: {input_axis} is not -2 or -1")

    def apply(block: Block, facts: Facts, options: Options) -> jax.Array:
        del facts
        row = block.coefficients.astype(block.experts.dtype)
        row = row / jnp.sum(row)
        mean = contract(row, block.experts)
        if block.statistics is None:
            return mean
        grams = jnp.asarray(block.statistics).astype(block.experts.dtype)
        split = _split(block.shape, grams.shape[-1], input_axis)
        if split is None:
            grams = grams[:, :-1, :-1]
            split = _split(block.shape, grams.shape[-1], input_axis)
        if split is None:
            size = tuple(block.statistics.shape)
            raise ValueError(_misfit(block.name, block.shape, size))
        # Differences to the mean: equal experts and dead inputs keep every digit.
        weighted = (block.experts - mean) * row.reshape(-1, *[1] * mean.ndim)
        weighted = _as_matrices(weighted, split, input_axis)
        alpha = options["alpha"]
        diagonals = jnp.diagonal(grams, axis1=1, axis2=2)
        matrix = alpha * contract(row, grams) + (1 - alpha) * jnp.diag(
            contract(row, diagonals)
        )
        residual = alpha * jnp.einsum(
            "kij,kjo->io", grams, weighted, precision="highest"
        ) + (1 - alpha) * jnp.sum(diagonals[:, :, None] * weighted, axis=0)
        found = correction(matrix, residual, options["ridge"])
        return mean + (found if input_axis == -2 else found.T).reshape(mean.shape)

    return Form(apply, unit="leaf", input_axis=input_axis)


def _split(shape: tuple[int, ...], size: int, input_axis: int) -> int | None:
    """Where the axes of inputs end ([in..., out...]) or begin ([out..., in...])."""
    for split in range(1, len(shape)):
        inputs = shape[:split] if input_axis == -2 else shape[-split:]
        if math.prod(inputs) == size:
            return split if input_axis == -2 else len(shape) - split
    return None


def _extended(shape: tuple[int, ...], size: int, input_axis: int) -> bool:
    """Whether a Gram of this size has one input more than the kernel: the 1."""
    return (
        _split(shape, size, input_axis) is None
        and _split(shape, size - 1, input_axis) is not None
    )


def _pairs(
    leaves: dict[str, jax.Array], grams: dict[str, jax.Array], input_axis: int
) -> dict[str, str]:
    """Kernel -> bias of the layers that are solved with their bias."""
    found = {}
    for name, gram in grams.items():
        bias = re.sub(r"(^|[./])(kernel|weight)$", r"\1bias", name)
        shape = leaves[name].shape[1:]
        if (
            bias != name
            and bias in leaves
            and _extended(shape, gram.shape[-1], input_axis)
        ):
            found[name] = bias
    if not found:
        raise ValueError(
            "regmean: biases=True, and no kernel has both a bias beside it and an "
            "extended Gram [K, in + 1, in + 1]; collect those, or leave biases=False"
        )
    return found


def _append(
    kernels: jax.Array, biases: jax.Array, grams: jax.Array, input_axis: int
) -> jax.Array:
    """[K, in + 1, out] float32, or [K, out, in + 1]: the bias is the last input's."""
    split = _split(kernels.shape[1:], grams.shape[-1] - 1, input_axis)
    assert split is not None
    matrices = _as_matrices(kernels.astype(jnp.float32), split, input_axis)
    last = biases.astype(jnp.float32).reshape(len(biases), 1, -1)
    both = jnp.concatenate([matrices, last], axis=1)
    return both if input_axis == -2 else jnp.swapaxes(both, 1, 2)


def _as_matrices(x: jax.Array, split: int, input_axis: int) -> jax.Array:
    """[K, ...] -> [K, in, out]."""
    x = x.reshape(len(x), math.prod(x.shape[1 : 1 + split]), -1)
    return x if input_axis == -2 else jnp.swapaxes(x, 1, 2)


def _misfit(name: str, shape: tuple[int, ...], gram: tuple[int, ...]) -> str:
    return f"{name}: Grams of shape {gram} do not fit a kernel of shape {shape}"


def _check(
    leaves: dict[str, jax.Array], grams: dict[str, jax.Array], input_axis: int
) -> None:
    # Grams that reach no kernel would make this the plain average without a word.
    faults = [] if grams else ["no Grams are given; use weighted_average"]
    for name, gram in grams.items():
        shape = jnp.shape(gram)
        if name not in leaves:
            faults.append(f"{name}: no such leaf in the stack")
        elif (
            len(shape) != 3
            or shape[0] != len(leaves[name])
            or shape[1] != shape[2]
            or (
                _split(leaves[name].shape[1:], shape[2], input_axis) is None
                and not _extended(leaves[name].shape[1:], shape[2], input_axis)
            )
        ):
            faults.append(_misfit(name, leaves[name].shape[1:], shape))
    if faults:
        lines = "\n  ".join(sorted(faults)[:40])
        raise ValueError(
            f"regmean: statistics must be one Gram a kernel, [K, in, in] or "
            f"[K, in + 1, in + 1]:\n  {lines}"
        )


RECORDS: dict[str, Merge] = {
    "regmean": Merge(
        function=regmean,
        form=regmean_form,
        needs=frozenset({"statistics"}),
        promises=frozenset(
            {"one_hot", "equal_experts", "permutation", "scale_free", "shift"}
        ),
        reference="Jin et al. 2023, arXiv:2212.09849",
    ),
}
