"""Symmetric semi-definite systems solved by Cholesky, however singular they are."""

import math

import jax
import jax.numpy as jnp
from jax.scipy.linalg import cho_solve


def correction(
    matrix: jax.Array, residual: jax.Array, ridge: jax.Array | float
) -> jax.Array:
    """What to add to a prior P, so that (A + r I) (P + x) = B + r P.

    (A + r I) x = B - A P,  r = ridge * trace(A) / n

    The ridge pulls towards the prior, not towards zero. A row and column of zeros (an
    input that was never active) gives exactly x = 0. Where the system is singular to
    rounding, the ridge is raised to the root of the rounding unit: that leaves
    directions that A does not see at the prior, and errs as little in those it sees.

    Args:
      matrix: A, [n, n], symmetric and positive semi-definite.
      residual: B - A P, [n, m]; in the range of A but for rounding.
      ridge: relative to the mean of the diagonal, not negative; may be traced.

    Returns:
      x, [n, m] in the dtype of `matrix`; 0 where A is 0 or no ridge up to 1 helps.
      Derivatives are those of the system that was solved.
    """
    size = matrix.shape[0]
    mean = jnp.trace(matrix) / size
    mean = jnp.where(mean > 0, mean, 1)
    scaled = matrix / mean
    dead = jnp.diagonal(scaled) == 0
    scaled = scaled + jnp.diag((dead + ridge).astype(matrix.dtype))
    factor, more, solved = _factor(jax.lax.stop_gradient(scaled))
    # Nothing solvable (mixed signs of coefficients): the identity in its place keeps
    # derivatives finite, and the answer is the prior.
    eye = jnp.eye(size, dtype=matrix.dtype)
    system = jnp.where(solved, scaled + more * eye, eye)
    factor = jnp.where(solved, factor, eye)
    right = jnp.where(solved & ~dead[:, None], residual / mean, 0)
    # The derivative of the factorisation is not needed: that of the solution follows
    # from the system, and the search for a ridge stays outside.
    return jax.lax.custom_linear_solve(
        lambda x: jnp.matmul(system, x, precision="highest"),
        right,
        lambda _, b: cho_solve((factor, True), b),
        symmetric=True,
    )


def _factor(matrix: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(lower factor, what was added to the diagonal for it, success)."""
    unit = float(jnp.finfo(matrix.dtype).eps)
    diagonal = jnp.diagonal(matrix)
    # A pivot is what is left of an entry of the diagonal; this little is noise.
    noise = 32 * math.sqrt(len(matrix)) * unit
    eye = jnp.eye(len(matrix), dtype=matrix.dtype)
    first = jnp.zeros((), matrix.dtype)

    def failed(state: tuple[jax.Array, jax.Array]) -> jax.Array:
        factor, more = state
        sound = (jnp.diagonal(factor) ** 2 > noise * diagonal).all()  # False for NaN
        return ~sound & (more < 1)

    def again(state: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        more = jnp.maximum(10 * state[1], math.sqrt(unit))
        return jnp.linalg.cholesky(matrix + more * eye), more

    factor, more = jax.lax.while_loop(
        failed, again, (jnp.linalg.cholesky(matrix), first)
    )
    return factor, more, jnp.isfinite(factor).all()
