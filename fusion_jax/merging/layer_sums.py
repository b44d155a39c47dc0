"""Sums over the owners of one linear layer in float64, and their solution."""

from typing import NamedTuple

import numpy as np

from fusion_jax.merging.host_means import Array
from fusion_jax.merging.semidefinite import solve

CHOLESKY = "cholesky"
CONJUGATE_GRADIENT = "conjugate gradient"

_ROWS = 1024  # of a Gram that are brought to float64 at a time


class Solved(NamedTuple):
    """The solution of one layer, and what a report says of it.

    Attributes:
      kernel: [in, out] float64, to be added to the mean of the kernels.
      bias: [out] float64, to be added to the mean of the biases; None where the layer
        was solved without it.
      how: 'cholesky' or 'conjugate gradient'.
      dead: inputs that were never active; their rows of `kernel` are exactly 0.
      condition: estimate of the condition number (1-norm) of the system without its
        dead rows; infinite where it could not be factorised.
      loss: sum_k c_k tr((W - W_k)^T G~_k (W - W_k)) of the solution, with c as given.
    """

    kernel: np.ndarray
    bias: np.ndarray | None
    how: str
    dead: int
    condition: float
    loss: float


class LayerSums:
    """Running sums of one linear layer, for any number of experts and any alpha.

    A1 = sum_k c_k G_k,  B1 = sum_k c_k G_k D_k,  B0 = sum_k c_k diag(G_k) D_k
    with D_k = W_k - M, M the mean of the kernels by c. Differences keep every digit of
    equal experts and of dead inputs. With `bias` the unknown is [W; b]: a row of ones
    is one more input, D_k has one more row and G_k must be extended.

    The state is [in, in] and twice [in, out] in float64, however many experts there
    are. Where alpha is known beforehand, alpha B1 + (1 - alpha) B0 is one sum.
    """

    def __init__(
        self,
        width_in: int,
        width_out: int,
        *,
        bias: bool = False,
        alpha: float | None = None,
    ) -> None:
        """Sums of nothing.

        Args:
          width_in: inputs of the layer, without the one of the bias.
          width_out: outputs.
          bias: solve the bias together with the kernel.
          alpha: the only one to solve for; None keeps the sums of all.
        """
        self._shape = (width_in, width_out)
        self._bias = bias
        size = width_in + bias
        self._matrix = np.zeros((size, size))
        self._full = np.zeros((size, width_out))
        self._alpha = alpha
        # Shares of G whole and of its diagonal alone in what is added, and where to.
        self._scales = (1.0, 1.0) if alpha is None else (alpha, 1 - alpha)
        free = alpha is None
        self._diagonal = np.zeros((size, width_out)) if free else self._full
        # sum_k c_k tr(D_k^T G D_k), with these shares.
        self._squares = [0.0, 0.0]
        self._unit = 0.0

    @property
    def nbytes(self) -> int:
        """Bytes of the sums."""
        both = self._full.nbytes * (2 if self._alpha is None else 1)
        return self._matrix.nbytes + both

    def add(
        self,
        weight: float,
        gram: Array,
        kernel_difference: Array,
        bias_difference: Array | None = None,
    ) -> None:
        """Adds one expert.

        Args:
          weight: c_k, not negative.
          gram: G_k, [in, in], or extended by the mean of the inputs and 1 to
            [in + 1, in + 1]; float32 or float64, symmetric.
          kernel_difference: W_k - M, [in, out].
          bias_difference: [out]; read where the bias is solved, and needed there.

        Raises:
          ValueError: a shape that does not fit, a number that is not finite, a negative
            weight or diagonal. The sums are then as they were.
        """
        gram = np.asarray(gram)
        if gram.dtype not in (np.float32, np.float64):
            gram = gram.astype(np.float32)
        difference = np.asarray(kernel_difference, np.float64)
        extra = None
        if self._bias and bias_difference is not None:
            extra = np.asarray(bias_difference, np.float64)
        faults = self._faults(weight, gram, difference, extra)
        if faults:
            raise ValueError("regression of a layer: " + "; ".join(faults))
        if weight == 0:
            return
        size = len(self._matrix)
        gram = gram[:size, :size]
        if extra is not None:
            difference = np.concatenate([difference, extra[None]])
        self._unit = max(self._unit, float(np.finfo(gram.dtype).eps))
        weighted = weight * difference
        whole, alone = self._scales
        for start in range(0, size, _ROWS):
            rows = slice(start, start + _ROWS)
            part = gram[rows].astype(np.float64)
            product = part @ weighted
            if whole != 1:
                product *= whole
            self._full[rows] += product
            self._squares[0] += float(np.vdot(difference[rows], product))
            part *= weight
            self._matrix[rows] += part
        weighted *= alone * gram.diagonal().astype(np.float64)[:, None]
        self._diagonal += weighted
        self._squares[1] += float(np.vdot(difference, weighted))

    def solve(self, *, alpha: float, ridge: float) -> Solved:
        """The minimum for one alpha; may be called again for others.

        (A + r I) X = alpha B1 + (1 - alpha) B0
        A = alpha A1 + (1 - alpha) diag(A1),  r = ridge * trace(A) / n

        The ridge pulls towards the mean, and the row of the bias, where there is one,
        like every other: n and the trace count it. Inputs that were never active stay
        at the mean. Where A is singular to the rounding of the Grams, at most 100
        iterations of conjugate gradients from the mean, preconditioned by the diagonal,
        take the place of the factorisation: of all minima they find the one that is
        nearest to the mean, rows weighted by diag(A). The ridge is never raised.

        Args:
          alpha: scale of the off-diagonal of Grams, in [0, 1].
          ridge: relative to the mean of the diagonal, not negative.

        Raises:
          ValueError: alpha or ridge out of range; the sums are of another alpha.

        Reference: Jin et al. 2023, arXiv:2212.09849.
        """
        if self._alpha not in (None, alpha):
            raise ValueError(f"alpha {alpha}: these sums are of {self._alpha} alone")
        if not 0 <= alpha <= 1:
            raise ValueError(f"alpha {alpha} is not in [0, 1]")
        if not (ridge >= 0 and np.isfinite(ridge)):
            raise ValueError(f"ridge {ridge} is negative or not finite")
        mean = self._matrix.diagonal().mean() or 1.0
        # In units of the mean of the diagonal: Grams of any size are one problem.
        free = self._alpha is None
        whole, alone = (alpha, 1 - alpha) if free else (1.0, 1.0)
        right = np.multiply(self._full, whole / mean, order="F")
        if free:
            right += self._diagonal * (alone / mean)
        found = solve(self._matrix, right, mean, alpha, ridge, unit=self._unit)
        x = found.x
        loss = whole * self._squares[0] + alone * self._squares[1]
        # tr(X^T A X) - 2 tr(X^T B), where A X = B - r X - residual.
        loss -= mean * (_product(x, right) + ridge * _product(x, x))
        if found.residual is not None:
            loss -= mean * _product(x, found.residual)
        width = self._shape[0]
        return Solved(
            kernel=np.ascontiguousarray(x[:width]),
            bias=x[width].copy() if self._bias else None,
            how=CHOLESKY if found.residual is None else CONJUGATE_GRADIENT,
            dead=int((self._matrix.diagonal()[:width] == 0).sum()),
            condition=found.condition,
            loss=max(float(loss), 0.0),
        )

    def _faults(
        self,
        weight: float,
        gram: np.ndarray,
        difference: np.ndarray,
        extra: np.ndarray | None,
    ) -> list[str]:
        width, outputs = self._shape
        sizes = (width + 1,) if self._bias else (width, width + 1)
        faults = []
        if not (weight >= 0 and np.isfinite(weight)):
            faults.append(f"weight {weight} is negative or not finite")
        if gram.shape not in [(n, n) for n in sizes]:
            wanted = " or ".join(str((n, n)) for n in sizes)
            faults.append(f"the Gram is {gram.shape}, {wanted} is needed")
        elif not _finite(gram):
            faults.append("the Gram holds numbers that are not finite")
        elif (gram.diagonal() < 0).any():
            faults.append("the Gram has a negative diagonal")
        if difference.shape != (width, outputs):
            faults.append(f"the kernel is {difference.shape}, not {(width, outputs)}")
        elif not _finite(difference):
            faults.append("the kernel holds numbers that are not finite")
        if self._bias and extra is None:
            faults.append("no bias is given, and it is to be solved")
        elif extra is not None and extra.shape != (outputs,):
            faults.append(f"the bias is {extra.shape}, not {(outputs,)}")
        elif extra is not None and not _finite(extra):
            faults.append("the bias holds numbers that are not finite")
        return faults


def _product(x: np.ndarray, y: np.ndarray) -> float:
    """<x, y> of matrices in Fortran order, of which `vdot` would make copies."""
    return float(np.vdot(x.T, y.T))


def _finite(x: np.ndarray) -> bool:
    return all(np.isfinite(x[i : i + _ROWS]).all() for i in range(0, len(x), _ROWS))
