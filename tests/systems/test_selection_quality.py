"""What orders are worth and what they save, on tables that are known."""

import numpy as np
import pytest
from scipy.stats import spearmanr
from sklearn.metrics import ndcg_score

from fusion_jax.systems.selection_ledger import account
from fusion_jax.systems.selection_measures import Measured
from fusion_jax.systems.selection_quality import judge_orders
from fusion_jax.transfer.ranking import kept, ranks

NAMES = tuple("abcdefg")
N = len(NAMES)


@pytest.fixture(scope="module")
def tables():
    random = np.random.default_rng(3)
    scores = random.uniform(0.4, 0.9, (N, N))
    noisy = -scores + random.normal(0, 0.1, (N, N))
    return scores, {"noisy": noisy, "perfect": -scores, "worst": scores}


@pytest.fixture(scope="module")
def judged(tables):
    scores, distances = tables
    ranked = {name: ranks(table, NAMES) for name, table in distances.items()}
    measured = Measured(NAMES, distances, ranked, {}, {}, 0, 0)
    return judge_orders(measured, scores, np.zeros((N, N)), "noisy")


def test_the_numbers_are_those_of_scipy_and_scikit_learn(tables, judged):
    scores, distances = tables
    rho, regret, gain = [], [], []
    for t in range(N):
        sources = [s for s in range(N) if s != t]
        near, score = -distances["noisy"][sources, t], scores[sources, t]
        rho.append(spearmanr(near, score)[0])
        regret.append((score.max() - score[near.argmax()]) / score.max())
        order = np.argsort(np.argsort(near))
        gain.append(ndcg_score([score - score.min()], [order]))
    found = judged["noisy"]
    assert found["spearman"]["mean"] == pytest.approx(np.mean(rho))
    assert found["spearman"]["sd"] == pytest.approx(np.std(rho, ddof=1))
    assert found["spearman"]["min"] == pytest.approx(np.min(rho))
    assert list(found["spearman"]["targets"].values()) == pytest.approx(rho)
    assert found["regret"]["1"] == pytest.approx(np.mean(regret))
    assert found["ndcg"] == pytest.approx(np.mean(gain))


def test_the_best_order_loses_nothing_and_the_worst_is_found_last(judged):
    best, worst = judged["perfect"], judged["worst"]
    assert best["spearman"]["min"] == pytest.approx(1)
    assert best["regret"]["1"] == 0 and best["ndcg"] == pytest.approx(1)
    assert best["without_loss"]["keep"] == 0.05
    assert worst["spearman"]["mean"] == pytest.approx(-1)
    assert worst["without_loss"]["keep"] > 0.8


def test_chance_is_near_zero_and_every_control_is_there(judged):
    assert abs(judged["random"]["spearman"]["mean"]) < 0.05
    assert {"own_score", "mean_elsewhere", "confidence", "learned"} <= set(judged)
    # The combiner sees one measure that is the score itself.
    assert judged["learned"]["spearman"]["mean"] > 0.9


def test_a_control_has_no_part_in_what_is_learned(tables):
    scores, distances = tables
    ranked = {name: ranks(table, NAMES) for name, table in distances.items()}

    def learned(names, controls=()):
        some = {name: distances[name] for name in names}
        measured = Measured(NAMES, some, ranked, {}, {}, 0, 0, controls)
        return judge_orders(measured, scores, np.zeros((N, N)), "noisy")["learned"]

    alone = learned(["noisy"])
    assert learned(["noisy", "perfect"], ("perfect",)) == alone
    assert learned(["noisy", "perfect"]) != alone


def test_orders_that_ignore_the_target_put_one_source_first_everywhere(tables, judged):
    scores = tables[0]
    best = int(np.argmax(np.diag(scores)))
    second = int(np.argsort(np.diag(scores))[-2])
    first = [scores[best if t != best else second, t] for t in range(N)]
    assert judged["own_score"]["first"] == pytest.approx(np.mean(first))


def test_accounts_add_seconds_as_they_say():
    training = np.array([10.0, 20.0, 30.0])
    scoring = np.full((3, 3), 2.0)
    of_pair = np.repeat(training[:, None], 3, axis=1)
    chosen = np.zeros((3, 3), bool)
    chosen[0, 1] = chosen[0, 2] = chosen[1, 0] = True
    found = account(chosen, 5.0, training, scoring, of_pair)
    # Nobody keeps the third source.
    assert found["per_source"]["all"] == 60 + 6 * 2
    assert found["per_source"]["kept"] == 5 + 30 + 3 * 2
    assert found["per_pair"]["all"] == 2 * 60 + 6 * 2
    assert found["per_pair"]["kept"] == 5 + (10 + 10 + 20) + 3 * 2
    for one in found.values():
        assert one["saved"] == pytest.approx(1 - one["kept"] / one["all"])


def test_a_source_is_trained_if_one_target_keeps_it():
    """All ranks alike, a circle of nearest: no training is saved at any fraction."""
    places = np.arange(5)
    far = (places[None] - places[:, None]) % 5
    chosen = kept(ranks(far, tuple("abcde")), 0.25)
    assert chosen.sum() == 5 and chosen.any(axis=1).all()
    zero = np.zeros((5, 5))
    found = account(chosen, 0.0, np.ones(5), zero, np.ones((5, 5)))
    assert found["per_source"]["saved"] == 0
    assert found["per_pair"]["saved"] == pytest.approx(0.75)
