"""The loss a model would have after fitting one temperature."""

import numpy as np

from fusion_jax.evaluation.readout import TEMPERATURES


def calibrate(losses: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Smallest loss over temperatures, and the temperature that gives it.

    min_t L(t), where t -> L is the parabola in log t through the smallest value on the
    grid `TEMPERATURES` and its two neighbours; at an end of the grid, the end's value.

    Args:
      losses: [..., len(TEMPERATURES)] mean losses.

    Returns:
      (loss [...], temperature [...]) float64; NaN where a loss is NaN.

    Reference: Guo et al., 2017, arXiv 1706.04599.
    """
    losses = np.asarray(losses, np.float64)
    if losses.shape[-1] != len(TEMPERATURES):
        raise ValueError(
            f"losses at {losses.shape[-1]} temperatures; expected "
            f"{len(TEMPERATURES)}, one for each of TEMPERATURES"
        )
    last = len(TEMPERATURES) - 1
    smallest = np.argmin(losses, axis=-1)
    inner = np.clip(smallest, 1, last - 1)

    def at(index: np.ndarray) -> np.ndarray:
        return np.take_along_axis(losses, index[..., None], axis=-1)[..., 0]

    left, middle, right = at(inner - 1), at(inner), at(inner + 1)
    bend = left - 2 * middle + right
    curved = (inner == smallest) & (bend > 0)
    bend = np.where(curved, bend, 1.0)
    shift = np.where(curved, 0.5 * (left - right) / bend, 0.0)
    loss = np.where(curved, middle - 0.125 * (right - left) ** 2 / bend, at(smallest))
    # A loss is never negative; far from convex curves the parabola could be.
    loss = np.maximum(loss, np.minimum(at(smallest), 0.0))
    grid = np.log(TEMPERATURES)
    temperature = np.exp(grid[smallest] + shift * (grid[1] - grid[0]))
    broken = np.isnan(losses).any(axis=-1)
    return np.where(broken, np.nan, loss), np.where(broken, np.nan, temperature)
