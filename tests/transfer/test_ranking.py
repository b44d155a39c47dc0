"""Orders of sources, how they are judged, and what pruning loses."""

import numpy as np
import pytest
import scipy.stats
from sklearn.metrics import ndcg_score

from fusion_jax.transfer.quality import (
    ndcg,
    pruning_curve,
    random_ranks,
    regret,
    spearman,
    without_loss,
)
from fusion_jax.transfer.ranking import fused_ranks, kept, learned_distances, ranks

RANDOM = np.random.default_rng(0)
COUNT = 7
NAMES = [f"task_{i}" for i in range(COUNT)]
SCORES = RANDOM.uniform(0.4, 0.9, (COUNT, COUNT))
OTHERS = [[s for s in range(COUNT) if s != t] for t in range(COUNT)]


def test_ranks_order_the_sources_of_each_target_and_leave_itself_out():
    distances = RANDOM.normal(size=(COUNT, COUNT))
    found = ranks(distances, NAMES)
    assert (np.diag(found) == 0).all()
    for t, sources in enumerate(OTHERS):
        expected = scipy.stats.rankdata(distances[sources, t])
        assert found[sources, t].tolist() == expected.tolist()


def test_ties_go_by_name_and_infinity_comes_last():
    names = ["b", "a", "c", "d"]
    distances = np.ones((4, 4))
    distances[0, 3] = np.inf
    assert ranks(distances, names)[:, 3].tolist() == [3, 1, 2, 0]


def test_a_pair_without_a_distance_is_named():
    distances = np.zeros((3, 3))
    distances[2, 0] = np.nan
    with pytest.raises(ValueError, match="1 pairs have no distance: z for x"):
        ranks(distances, ["x", "y", "z"])
    with pytest.raises(ValueError, match=r"\(3, 3\) for 2 tasks"):
        ranks(np.zeros((3, 3)), ["x", "y"])


def test_rank_fusion_is_its_sum_and_of_one_measure_that_measure():
    tables = {name: RANDOM.normal(size=(COUNT, COUNT)) for name in "abc"}
    single = {"a": tables["a"]}
    assert (fused_ranks(single, NAMES) == ranks(tables["a"], NAMES)).all()
    votes = sum(1 / (60 + ranks(table, NAMES)) for table in tables.values())
    assert (fused_ranks(tables, NAMES) == ranks(-votes, NAMES)).all()


@pytest.mark.parametrize("keep,count", [(1.0, 6), (0.5, 3), (0.51, 4), (0.01, 1)])
def test_the_best_fraction_is_kept_for_each_target(keep, count):
    chosen = kept(ranks(-SCORES, NAMES), keep)
    assert (chosen.sum(axis=0) == count).all()
    assert not np.diag(chosen).any()


@pytest.mark.parametrize("keep", [0, -1, 1.5])
def test_a_fraction_that_is_none_is_refused(keep):
    with pytest.raises(ValueError, match="up to 1"):
        kept(ranks(-SCORES, NAMES), keep)


def test_the_ideal_order_loses_nothing_and_the_opposite_everything():
    best, worst = ranks(-SCORES, NAMES), ranks(SCORES, NAMES)
    np.testing.assert_allclose(spearman(best, SCORES), 1)
    np.testing.assert_allclose(spearman(worst, SCORES), -1)
    np.testing.assert_allclose(ndcg(best, SCORES), 1)
    assert (regret(best, SCORES, 1) == 0).all()
    assert (regret(worst, SCORES, COUNT - 1) == 0).all()
    assert (regret(worst, SCORES, 1) > 0).all()


def test_measures_of_an_order_are_those_of_the_libraries():
    distances = RANDOM.normal(size=(COUNT, COUNT))
    found = ranks(distances, NAMES)
    rho, gain = spearman(found, SCORES), ndcg(found, SCORES)
    for t, sources in enumerate(OTHERS):
        expected = scipy.stats.spearmanr(-distances[sources, t], SCORES[sources, t])
        assert rho[t] == pytest.approx(expected.statistic)
        gains = SCORES[sources, t] - SCORES[sources, t].min()
        reference = ndcg_score([gains], [-found[sources, t].astype(float)])
        assert gain[t] == pytest.approx(reference)


def test_orders_by_chance_tell_nothing_on_average():
    rho = [spearman(one, SCORES).mean() for one in random_ranks(COUNT, 200)]
    assert abs(np.mean(rho)) < 0.05


def test_equal_scores_have_no_order():
    flat = np.ones((COUNT, COUNT))
    assert np.isnan(spearman(ranks(SCORES, NAMES), flat)).all()
    assert np.isnan(ndcg(ranks(SCORES, NAMES), flat)).all()


def test_a_pruning_curve_tells_what_is_lost_and_saved():
    fractions = [0.2, 0.5, 1.0]
    best = pruning_curve(ranks(-SCORES, NAMES), SCORES, fractions)
    assert [point.survival for point in best] == [1, 1, 1]
    assert [point.pairs for point in best] == pytest.approx([2 / 6, 3 / 6, 1])
    assert without_loss(best) == best[0]
    worst = pruning_curve(ranks(SCORES, NAMES), SCORES, fractions)
    assert worst[0].survival == 0 and worst[0].regret > 0
    assert worst[-1].survival == 1 and worst[-1].regret == 0
    assert without_loss(worst) == worst[-1]
    assert without_loss(worst[:1]) is None


def test_a_learned_combination_finds_what_counts_and_is_blind_to_its_target():
    good = -SCORES + 0.02 * RANDOM.normal(size=SCORES.shape)
    tables = {"good": good, "noise": RANDOM.normal(size=SCORES.shape)}
    found = learned_distances(tables, SCORES, NAMES)
    assert spearman(ranks(found, NAMES), SCORES).mean() > 0.9
    # What target 0 scored, and what it gave as a source, does not reach its column.
    spoiled = SCORES.copy()
    spoiled[:, 0] = RANDOM.uniform(size=COUNT)
    # Row 0 shifts the standardised column of others; so it is left as it is.
    np.testing.assert_allclose(
        learned_distances(tables, spoiled, NAMES)[:, 0], found[:, 0]
    )


def test_too_few_pairs_are_refused():
    tables = {str(i): RANDOM.normal(size=(3, 3)) for i in range(4)}
    with pytest.raises(ValueError, match="try more pairs"):
        learned_distances(tables, RANDOM.uniform(size=(3, 3)), ["a", "b", "c"])
