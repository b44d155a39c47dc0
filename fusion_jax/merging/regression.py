"""RegMean of one linear layer on the host, in float64, for one alpha or several."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from fusion_jax.merging.host_means import (
    Array,
    Readable,
    read,
    shares,
    weighted_mean,
)
from fusion_jax.merging.layer_sums import LayerSums, Solved


class Regressed(NamedTuple):
    """A merged layer.

    Attributes:
      kernel: [in, out] float64.
      bias: [out] float64; None where the layer has none.
      solved: what `LayerSums` found.
    """

    kernel: np.ndarray
    bias: np.ndarray | None
    solved: Solved


def regress_layer(
    kernels: Sequence[Readable],
    biases: Sequence[Readable] | None,
    grams: Iterable[Readable],
    coefficients: Sequence[float] | Array,
    *,
    alpha: float = 0.9,
    ridge: float = 1e-6,
    bias: bool = False,
) -> Regressed:
    """RegMean of one layer in float64, one expert in memory at a time.

    Args:
      kernels: K kernels [in, out]; each is read twice.
      biases: K biases [out]; None where the layer has none.
      grams: K Grams [in, in] or extended; each is read once.
      coefficients: [K], not negative, their sum not zero. Only their ratios count.
      alpha: scale of the off-diagonal of Grams, in [0, 1].
      ridge: relative to the mean of the diagonal.
      bias: solve the bias together with the kernel; needs extended Grams. Without,
        biases are averaged.

    Returns:
      The merged layer.

    Raises:
      ValueError: see `LayerSums`; coefficients or numbers of arrays that do not fit.
    """
    found = regress_layer_for(
        (alpha,), kernels, biases, grams, coefficients, ridge=ridge, bias=bias
    )
    return found[alpha]


def regress_layer_for(
    alphas: Sequence[float],
    kernels: Sequence[Readable],
    biases: Sequence[Readable] | None,
    grams: Iterable[Readable],
    coefficients: Sequence[float] | Array,
    *,
    ridge: float = 1e-6,
    bias: bool = False,
) -> dict[float, Regressed]:
    """`regress_layer` for several alphas, all from the same sums.

    Returns:
      alpha -> the merged layer.
    """
    weights = shares(coefficients, len(kernels))
    if bias and biases is None:
        raise ValueError("bias=True: this layer has no bias; solve the kernel alone")
    mean = weighted_mean(kernels, weights)
    middle = None if biases is None else weighted_mean(biases, weights)
    if mean.ndim != 2:
        raise ValueError(f"a kernel of shape {mean.shape} is no matrix [in, out]")
    only = alphas[0] if len(alphas) == 1 else None
    sums = LayerSums(*mean.shape, bias=bias, alpha=only)
    for k, gram in zip(range(len(weights)), grams, strict=True):
        difference = read(kernels[k]).astype(np.float64)
        difference -= mean
        extra = None
        if bias and biases is not None and middle is not None:
            extra = read(biases[k]).astype(np.float64) - middle
        sums.add(weights[k], read(gram), difference, extra)
    found = {}
    for alpha in alphas:
        solved = sums.solve(alpha=alpha, ridge=ridge)
        # The last one needs no room of its own.
        kernel = np.add(mean, solved.kernel, out=mean if alpha == alphas[-1] else None)
        own = middle
        if middle is not None and solved.bias is not None:
            own = middle + solved.bias
        found[alpha] = Regressed(kernel, own, solved)
    return found
