import numpy as np
import pytest

from fusion_jax.peft.factors import (
    Factors,
    concatenated,
    of_dense,
    singular,
    truncated,
)


def update(rows=7, columns=5, rank=3, seed=0):
    random = np.random.default_rng(seed)
    return Factors(
        random.normal(size=(rows, rank)), random.normal(size=(rank, columns))
    )


def test_a_concatenation_is_the_weighted_sum_of_updates_of_any_ranks():
    parts = [update(rank=2, seed=1), update(rank=3, seed=2)]
    joined = concatenated(parts, [0.7, -1.3])
    expected = 0.7 * parts[0].a @ parts[0].b - 1.3 * parts[1].a @ parts[1].b
    assert joined.rank == 5
    np.testing.assert_allclose(joined.a @ joined.b, expected, atol=1e-14)


@pytest.mark.parametrize("shape", [(7, 5, 3), (5, 7, 3), (4, 6, 9), (6, 4, 9)])
def test_singular_values_are_those_of_the_product(shape):
    one = update(*shape)
    left, values, right = singular(one)
    expected = np.linalg.svd(one.a @ one.b, compute_uv=False)
    size = min(len(values), len(expected))
    np.testing.assert_allclose(values[:size], expected[:size], atol=1e-12)
    np.testing.assert_allclose(left * values @ right, one.a @ one.b, atol=1e-12)


@pytest.mark.parametrize("rank", [1, 2, 3, 4])
def test_a_truncation_is_the_nearest_matrix_of_its_rank_and_says_what_it_lost(rank):
    one = update(8, 6, 4)
    dense = one.a @ one.b
    u, s, v = np.linalg.svd(dense)
    expected = u[:, :rank] * s[:rank] @ v[:rank]
    cut, lost = truncated(one, rank=rank)
    assert cut.rank == rank
    np.testing.assert_allclose(cut.a @ cut.b, expected, atol=1e-12)
    error = np.linalg.norm(expected - dense) / np.linalg.norm(dense)
    assert lost == pytest.approx(error, abs=1e-12)


def test_an_energy_keeps_the_least_rank_that_has_it():
    values = np.array([4.0, 2.0, 1.0, 0.5])
    one = Factors(np.diag(values), np.eye(4))
    squares = values**2 / np.sum(values**2)
    for energy, rank in ((0.5, 1), (squares[0] + squares[1], 2), (0.98, 3), (1.0, 4)):
        assert truncated(one, energy=energy)[0].rank == rank, energy
    assert truncated(one, energy=0.98, rank=2)[0].rank == 2


def test_directions_that_are_there_twice_are_counted_once():
    one = update(9, 8, 2)
    twice = concatenated([one, one], [0.5, 0.5])
    cut, lost = truncated(twice)
    assert cut.rank == 2 and lost < 1e-7
    np.testing.assert_allclose(cut.a @ cut.b, one.a @ one.b, atol=1e-12)


def test_no_update_stays_none():
    cut, lost = truncated(Factors(np.zeros((4, 2)), np.ones((2, 3))))
    assert cut.rank == 1 and lost == 0.0 and not (cut.a @ cut.b).any()


def test_no_matrix_of_the_layer_is_formed():
    # 300,000 x 300,000 numbers would be 670 GiB.
    random = np.random.default_rng(0)
    wide = Factors(random.normal(size=(300_000, 3)), random.normal(size=(3, 300_000)))
    cut, _ = truncated(concatenated([wide, wide], [1.0, 1.0]), rank=2)
    assert cut.a.shape == (300_000, 2) and cut.b.shape == (2, 300_000)


@pytest.mark.parametrize("shape", [(3, 5), (5, 3)])
def test_a_dense_update_is_factors_too(shape):
    dense = np.random.default_rng(0).normal(size=shape)
    one = of_dense(dense)
    assert one.rank == 3
    np.testing.assert_array_equal(one.a @ one.b, dense)
