import numpy as np
import pytest

from fusion_jax.reports.drawing import spread_labels


@pytest.mark.parametrize("gap", [0.05, 0.2])
def test_labels_keep_their_order_and_distance(gap):
    values = np.array([0.1, 0.9, 0.11, 0.12, 0.5])
    placed = spread_labels(values, gap)
    assert np.argsort(placed).tolist() == np.argsort(values).tolist()
    assert np.diff(np.sort(placed)).min() >= gap - 1e-12
    assert spread_labels([0.0, 1.0], gap).tolist() == [0.0, 1.0]
