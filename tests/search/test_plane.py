"""The plane through three experts, held against all parameters in float64."""

import jax.numpy as jnp
import numpy as np
import pytest

from fusion_jax.search.plane import gram, make_plane, project

K = 5
CORNERS = (3, 0, 4)


@pytest.fixture(scope="module")
def stack():
    """Experts far from zero and near each other, as fine-tunes are."""
    random = np.random.default_rng(0)
    shapes = {"kernel": (6, 5), "bias": (7,)}
    return {
        name: jnp.asarray(
            10 + random.normal(size=shape) + 0.1 * random.normal(size=(K, *shape)),
            jnp.float32,
        )
        for name, shape in shapes.items()
    }


@pytest.fixture(scope="module")
def flat(stack):
    """[K, D] float64."""
    return np.concatenate(
        [np.asarray(x, np.float64).reshape(K, -1) for x in stack.values()], axis=1
    )


def test_the_grid_holds_the_corners_and_a_margin():
    plane = make_plane(CORNERS, K, resolution=7, margin=0.25)
    assert plane.points.shape == (49, 2) and plane.coefficients.shape == (49, K)
    assert (plane.points.min(), plane.points.max()) == (-0.25, 1.25)
    np.testing.assert_allclose(plane.coefficients.sum(axis=1), 1, atol=1e-6)
    for corner, place in zip(CORNERS, ([0, 0], [1, 0], [0, 1]), strict=True):
        [row] = np.flatnonzero(np.isclose(plane.points, place).all(axis=1))
        np.testing.assert_allclose(plane.coefficients[row], np.eye(K)[corner])


def test_points_of_the_plane_are_projected_to_their_own_coordinates(stack):
    plane = make_plane(CORNERS, K, resolution=5)
    found = project(plane.coefficients, gram(stack), CORNERS)
    np.testing.assert_allclose(found, plane.points, atol=1e-5)


def test_the_products_are_those_of_the_differences_to_the_first(stack, flat):
    moved = flat - flat[0]
    np.testing.assert_allclose(gram(stack), moved @ moved.T, rtol=1e-4, atol=1e-5)


def test_any_point_is_projected_to_the_nearest_by_least_squares(stack, flat):
    weights = np.random.default_rng(1).dirichlet(np.ones(K), size=6)
    i, j, k = CORNERS
    axes = np.stack([flat[j] - flat[i], flat[k] - flat[i]], axis=1)
    expected = [
        np.linalg.lstsq(axes, row @ flat - flat[i], rcond=None)[0] for row in weights
    ]
    found = project(weights, gram(stack), CORNERS)
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_experts_on_one_line_still_give_a_point(stack):
    line = {name: x.at[CORNERS[2]].set(x[CORNERS[1]]) for name, x in stack.items()}
    found = project(np.eye(K)[list(CORNERS[:1])], gram(line), CORNERS)
    np.testing.assert_allclose(found, [[0, 0]], atol=1e-6)
