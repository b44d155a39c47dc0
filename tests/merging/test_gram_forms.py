"""Packed, block diagonal, low-rank and noisy Grams."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fusion_jax.merging.gram_forms import (
    block_diagonal,
    low_rank,
    packed,
    unpacked,
    with_noise,
)

widths = st.integers(1, 9)
seeds = st.integers(0, 10_000)


def gram(width, seed=0, rows=None, extended=True):
    """Moments of inputs of very different sizes; singular with few rows."""
    random = np.random.default_rng(seed)
    x = random.normal(0.5, 1, (rows or 3 * width, width))
    x = x * 10.0 ** random.integers(-2, 2, width)
    if extended:
        x = np.append(x, np.ones((len(x), 1)), axis=1)
    return (x.T @ x / len(x)).astype(np.float32)


def smallest(m):
    """The smallest eigenvalue, as a share of the largest."""
    values = np.linalg.eigvalsh(np.asarray(m, np.float64))
    return values[0] / max(values[-1], 1e-30)


@given(widths, seeds)
def test_packing_comes_back_and_halves(width, seed):
    m = gram(width, seed)
    m = np.triu(m) + np.triu(m, 1).T
    v = packed(m)
    n = width + 1
    assert v.shape == (n * (n + 1) // 2,) and v.dtype == np.float32
    np.testing.assert_array_equal(unpacked(v, n), m)
    np.testing.assert_array_equal(v, m[np.triu_indices(n)])
    np.testing.assert_array_equal(packed(unpacked(v, n)), v)


def test_packing_goes_row_by_row():
    m = np.array([[1, 2, 3], [2, 4, 5], [3, 5, 6]])
    np.testing.assert_array_equal(packed(m), [1, 2, 3, 4, 5, 6])


@given(widths, seeds, st.integers(1, 12))
def test_blocks_of_an_extended_gram_are_uncorrelated_and_keep_their_means(
    width, seed, size
):
    m = gram(width, seed).astype(np.float64)
    found = block_diagonal(m, size)
    np.testing.assert_array_equal(found[-1], m[-1])
    np.testing.assert_array_equal(found[:, -1], m[:, -1])
    same = np.arange(width)[:, None] // size == np.arange(width) // size
    expected = np.where(same, m[:-1, :-1], np.outer(m[-1, :-1], m[-1, :-1]))
    np.testing.assert_allclose(found[:-1, :-1], expected, rtol=1e-12)
    assert smallest(found) > -1e-7  # those of float32, which `m` came from
    again = block_diagonal(found, size)
    np.testing.assert_array_equal(again, found)


def test_zeros_between_the_blocks_would_be_no_gram():
    # Two inputs that are always 1: the reason for what stands between the blocks.
    m = np.ones((3, 3))
    np.testing.assert_array_equal(block_diagonal(m, 1), m)
    m[0, 1] = m[1, 0] = 0
    assert smallest(m) < -0.1


def test_an_unnormalised_gram_has_the_same_blocks():
    m = gram(5, 3).astype(np.float64)
    np.testing.assert_allclose(
        block_diagonal(40 * m, 2), 40 * block_diagonal(m, 2), rtol=1e-12
    )


@given(widths, seeds, st.integers(1, 12))
def test_blocks_of_a_plain_gram_stand_alone(width, seed, size):
    m = gram(width, seed, extended=False)
    found = block_diagonal(m, size, extended=False)
    same = np.arange(width)[:, None] // size == np.arange(width) // size
    np.testing.assert_array_equal(found, np.where(same, m, 0))
    assert found.dtype == m.dtype
    assert smallest(found) > -1e-6


@given(widths, seeds, st.integers(0, 12))
def test_low_rank_keeps_the_diagonal_and_is_no_further_than_the_spectrum(
    width, seed, rank
):
    m = gram(width, seed)
    factor, diagonal = low_rank(m, rank)
    n = width + 1
    assert factor.shape == (n, min(rank, n)) and diagonal.shape == (n,)
    assert factor.dtype == diagonal.dtype == np.float32
    assert (diagonal >= 0).all()
    whole = factor.astype(np.float64) @ factor.T.astype(np.float64) + np.diag(diagonal)
    np.testing.assert_allclose(
        np.diag(whole), np.diag(m), rtol=1e-6, atol=1e-7 * np.max(m)
    )
    # The best of this rank is wrong by the eigenvalues it leaves; the diagonal helps.
    values = np.linalg.eigvalsh(m.astype(np.float64))[: max(n - rank, 0)]
    error = np.linalg.norm(whole - m)
    assert error <= np.linalg.norm(values) + 1e-6 * np.linalg.norm(m)


def test_low_rank_of_the_full_rank_and_of_none():
    m = gram(6, 1)
    factor, diagonal = low_rank(m, 7)
    np.testing.assert_allclose(factor @ factor.T, m, atol=1e-5 * m.max())
    assert diagonal.max() < 1e-5 * m.max()
    factor, diagonal = low_rank(m, 0)
    np.testing.assert_array_equal(diagonal, np.diag(m))
    # A Gram of two rows has rank two.
    m = gram(6, 1, rows=2)
    factor, diagonal = low_rank(m, 2)
    np.testing.assert_allclose(factor @ factor.T, m, atol=1e-5 * m.max())


@given(widths, seeds, st.floats(0, 3), st.booleans(), st.sampled_from([None, 2]))
def test_noise_leaves_a_gram_and_its_last_row(width, seed, scale, extended, rows):
    m = gram(width, seed, rows, extended)
    found = with_noise(m, scale, seed, extended=extended)
    assert found.dtype == np.float32 and found.shape == m.shape
    np.testing.assert_array_equal(found, found.T)
    assert smallest(found) > -1e-6
    if extended:
        np.testing.assert_array_equal(found[-1], m[-1])
        np.testing.assert_array_equal(found[:, -1], m[:, -1])
    np.testing.assert_array_equal(found, with_noise(m, scale, seed, extended=extended))


@given(widths, seeds, st.booleans())
def test_no_noise_changes_nothing(width, seed, extended):
    m = gram(width, seed, extended=extended)
    found = with_noise(m, 0.0, seed, extended=extended)
    np.testing.assert_allclose(found, m, rtol=1e-5, atol=1e-6 * m.max())


@pytest.mark.parametrize("extended", [True, False])
def test_noise_has_the_deviation_it_is_asked_for(extended):
    # Far from singular: nothing is projected away, and the noise itself shows.
    width, scale = 60, 0.01
    m = np.diag(np.linspace(1, 3, width + extended)).astype(np.float64)
    m[-1, -1] = 1
    found = with_noise(m, scale, 4, extended=extended).astype(np.float64)
    plain = slice(0, width)
    noise = (found - m)[plain, plain]
    expected = scale * np.mean(np.diag(m)[plain])
    above = noise[np.triu_indices(width)]
    assert abs(above.std() / expected - 1) < 0.05
    assert abs(above.mean()) < 4 * expected / np.sqrt(len(above))
    other = with_noise(m, scale, 5, extended=extended)
    assert np.abs(found - other).max() > expected


def test_the_projection_is_the_nearest_gram():
    # Of a diagonal matrix plus noise: no other Gram tried is nearer to the noisy one.
    m = gram(5, 2, rows=2, extended=False).astype(np.float64)
    random = np.random.Generator(np.random.PCG64(9))
    draw = random.normal(0.0, 0.5 * np.trace(m) / 5, (5, 5))
    noisy = m + np.triu(draw) + np.triu(draw, 1).T
    found = with_noise(m, 0.5, 9, extended=False).astype(np.float64)
    # Optimality of a projection on a cone: what was cut is orthogonal to what is left,
    # and has no positive part.
    cut = noisy - found
    assert abs(np.sum(cut * found)) < 1e-5 * np.linalg.norm(noisy) ** 2
    assert np.linalg.eigvalsh(cut)[-1] < 1e-5 * np.linalg.norm(noisy)
    assert np.linalg.eigvalsh(cut)[0] < -1e-2 * np.linalg.norm(noisy)


def test_what_is_no_gram_is_refused():
    for form in (
        packed,
        lambda m: block_diagonal(m, 2),
        lambda m: low_rank(m, 2),
        lambda m: with_noise(m, 1.0, 0),
    ):
        with pytest.raises(ValueError, match=r"\[n, n\]; this has shape \(2, 3\)"):
            form(np.zeros((2, 3)))
        with pytest.raises(ValueError, match="not symmetric"):
            form(np.array([[1.0, 0.0], [1.0, 1.0]]))
        with pytest.raises(ValueError, match="not finite"):
            form(np.array([[1.0, np.nan], [np.nan, 1.0]]))
    with pytest.raises(ValueError, match=r"n=3 has 6 entries; .*\(5,\)"):
        unpacked(np.zeros(5), 3)
    with pytest.raises(ValueError, match="size=0"):
        block_diagonal(np.eye(3), 0)
    with pytest.raises(ValueError, match="rank=-1"):
        low_rank(np.eye(3), -1)
    for scale in (-1.0, np.nan, np.inf):
        with pytest.raises(ValueError, match="scale="):
            with_noise(np.eye(3), scale, 0)
