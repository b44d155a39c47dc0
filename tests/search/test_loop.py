"""The search loop: known optimum, reproducible, resumable, within budget."""

import numpy as np
import pytest

from fusion_jax.search import loop, soups, strategy
from fusion_jax.search.space import SPACES, around_base

K = 7
TARGET = np.random.default_rng(3).dirichlet(np.ones(K) * 2)


def quadratic(rows):
    return np.sum((np.asarray(rows, np.float64)[:, 0] - TARGET) ** 2, axis=-1)


def warm_points():
    return [row[None] for row in [soups.uniform(K), *soups.one_hot(K)]]


def run(**options):
    options = {
        "strategy": "CMA_ES",
        "budget": 100,
        "warm": warm_points(),
        "seed": 0,
        **options,
    }
    evaluate = options.pop("evaluate", quadratic)
    space = options.pop("space", SPACES["simplex"](K))
    return loop.search(evaluate, space, **options)


@pytest.mark.parametrize("name", ["CMA_ES", "CR_FM_NES"])
def test_a_quadratic_on_the_simplex_is_solved_in_100_evaluations(name):
    result = run(strategy=name)
    assert len(result.evaluations) <= 100
    assert quadratic(result.best()[0][None])[0] < 1e-2
    assert quadratic(result.mean[None])[0] < 1e-2


def test_the_best_is_never_worse_than_uniform_or_a_vertex():
    result = run(budget=28)
    best = quadratic(result.best()[0][None])[0]
    assert best <= min(quadratic(np.stack(warm_points())))


def test_one_seed_gives_one_history_and_another_seed_another():
    one, two, other = run(), run(), run(seed=1)
    assert one.evaluations == two.evaluations
    assert one.evaluations != other.evaluations


@pytest.mark.parametrize("budget", [18, 27, 28, 50, 100])
def test_the_budget_is_never_exceeded(budget):
    calls = []
    run(budget=budget, evaluate=lambda rows: calls.append(len(rows)) or quadratic(rows))
    assert sum(calls) <= budget


def test_a_budget_too_small_says_what_is_needed():
    with pytest.raises(ValueError, match="give at least 18"):
        run(budget=10)


@pytest.mark.parametrize("name", ["CMA_ES", "CR_FM_NES", "DifferentialEvolution"])
def test_a_search_killed_after_any_generation_ends_as_if_it_was_not(tmp_path, name):
    whole = run(strategy=name)
    for stop in (1, 3):
        state = tmp_path / f"{name}_{stop}.npz"

        class Killed(Exception):
            pass

        def after(result, stop=stop, Killed=Killed):
            if result.evaluations[-1]["generation"] >= stop:
                raise Killed

        with pytest.raises(Killed):
            run(strategy=name, state_file=state, on_generation=after)
        again = run(strategy=name, state_file=state)
        assert again.evaluations == whole.evaluations
        np.testing.assert_array_equal(again.mean, whole.mean)


def test_a_damaged_state_file_is_named(tmp_path):
    state = tmp_path / "search.npz"
    state.write_bytes(b"PK\x03\x04 cut short")
    with pytest.raises(ValueError, match=r"search\.npz: not a search state"):
        run(state_file=state)


@pytest.mark.parametrize("name", ["CMA_ES", "CR_FM_NES", "SNES"])
@pytest.mark.parametrize("value", [0.0, np.nan, np.inf])
def test_flat_and_nan_fitness_end_cleanly(name, value):
    result = run(strategy=name, evaluate=lambda rows: np.full(len(rows), value))
    assert np.isfinite(result.mean).all()
    np.testing.assert_allclose(result.mean.sum(), 1, rtol=1e-5)


def test_a_plateau_does_not_collapse_the_spread():
    flat = run(evaluate=lambda rows: np.zeros(len(rows)), budget=100)
    rows = np.asarray([e["coefficients"] for e in flat.evaluations[-9:]])
    assert rows.std(0).max() > 0.02


def test_ranks_are_a_permutation_with_nan_last():
    import jax

    ranks = strategy.ranks(np.array([0.3, np.nan, 0.1, 0.1]), jax.random.key(0))
    assert sorted(np.asarray(ranks).tolist()) == [0, 1, 2, 3]
    assert ranks[1] == 3
    assert ranks[0] == 2


def test_unknown_and_unsound_strategies_are_refused_with_the_known_ones():
    with pytest.raises(ValueError, match=r"'CMAES' is unknown.*CMA_ES"):
        run(strategy="CMAES")
    with pytest.raises(ValueError, match=r"xNES.*covariance"):
        run(strategy="xNES")


@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("name", sorted(SPACES))
def test_every_space_starts_at_the_uniform_soup(name, groups):
    space = SPACES[name](K, groups)
    rows = np.asarray(space.coefficients(space.start))
    assert rows.shape == (groups, K)
    np.testing.assert_allclose(rows, 1 / K, rtol=1e-5)


@pytest.mark.parametrize("name", ["simplex", "affine"])
def test_weights_sum_to_one_where_the_space_says_so(name):
    space = SPACES[name](K, 2)
    genomes = np.random.default_rng(0).normal(size=(5, space.dimension)) * 3
    rows = np.asarray(space.coefficients(genomes.astype(np.float32)))
    np.testing.assert_allclose(rows.sum(-1), 1, rtol=1e-5)
    if name == "simplex":
        assert (rows >= 0).all()


def test_the_base_takes_what_is_left_of_one():
    space = around_base(SPACES["box"](K))
    rows = np.asarray(space.coefficients(space.start))
    assert rows.shape == (1, K + 1)
    np.testing.assert_allclose(rows.sum(-1), 1, rtol=1e-5)
    wide = np.asarray(space.coefficients(np.full(K, 100.0, np.float32)))
    assert np.abs(wide[0, 1:]).max() <= 1.5
