"""Symmetric semi-definite systems solved by Cholesky, however singular they are."""

import jax
import jax.numpy as jnp
from jax.scipy.linalg import cho_solve


def correction(
    matrix: jax.Array, residual: jax.Array, ridge: jax.Array | float
) -> jax.Array:
    """What to add to a prior P, so that (A + r I) (P + x) = B + r P.

    (A + r I) x = B - A P,  r = ridge * trace(A) / n

    The ridge pulls towards the prior, not towards zero. A row and column of zeros (an
    input that was never active) gives exactly x = 0. Where rounding leaves the system
    indefinite, the ridge grows by tens until the factorisation succeeds.

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
    scaled = scaled + jnp.diag(dead.astype(matrix.dtype))
    factor, used, solved = _factor(jax.lax.stop_gradient(scaled), ridge)
    eye = jnp.eye(size, dtype=matrix.dtype)
    # Nothing solvable (mixed signs of coefficients): the identity in its place keeps
    # derivatives finite, and the answer is the prior.
    system = jnp.where(solved, scaled + used * eye, eye)
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


def _factor(
    matrix: jax.Array, ridge: jax.Array | float
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(lower factor, ridge, success) with the least ridge * 10^i that succeeds."""
    dtype = matrix.dtype
    eye = jnp.eye(matrix.shape[0], dtype=dtype)
    least = float(jnp.finfo(dtype).eps)

    def attempt(used: jax.Array) -> tuple[jax.Array, jax.Array]:
        return jnp.linalg.cholesky(matrix + used * eye), used

    def failed(state: tuple[jax.Array, jax.Array]) -> jax.Array:
        factor, used = state
        return ~jnp.isfinite(factor).all() & (used < 1)

    first = jax.lax.stop_gradient(jnp.asarray(ridge, dtype))
    factor, used = jax.lax.while_loop(
        failed,
        lambda state: attempt(jnp.maximum(10 * state[1], least)),
        attempt(first),
    )
    return factor, used, jnp.isfinite(factor).all()
