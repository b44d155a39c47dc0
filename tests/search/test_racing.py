"""Racing: who is clearly behind is not finished; nothing else changes."""

import numpy as np
import pytest

from fusion_jax.search.racing import race, split_rows

ROWS, TEMPERATURES = 80, 3


def population(gaps, rows=ROWS, seed=0):
    """Readouts of one candidate a gap: its mean loss above the first one's."""
    random = np.random.default_rng(seed)
    common = random.normal(size=rows)
    own = 0.1 * random.normal(size=(len(gaps), rows))
    loss = 5 + common + own + np.asarray(gaps)[:, None]
    tempered = loss[..., None] + np.array([0.3, 0.0, 0.5])[:TEMPERATURES]
    return {
        "loss": loss.astype(np.float32),
        "tempered": tempered.astype(np.float32),
        "row": np.broadcast_to(np.arange(rows), loss.shape),
    }


def heats_of(readouts, seed=0):
    """Heats whose evaluator looks up candidate number c[0]."""

    def part(rows):
        def evaluate(candidates):
            chosen = candidates[:, 0].astype(int)
            return {name: x[chosen][:, rows] for name, x in readouts.items()}

        return rows, evaluate

    return [part(rows) for rows in split_rows(readouts["loss"].shape[1], seed=seed)]


def run(readouts, **options):
    candidates = np.arange(len(readouts["loss"]), dtype=float)[:, None]
    return race(candidates, heats_of(readouts), mean_loss, **options)


def mean_loss(readouts):
    return readouts["loss"].mean(axis=1, dtype=np.float64)


@pytest.mark.parametrize("rows", [1, 2, 3, 7, 80])
def test_heats_hold_every_row_once(rows):
    heats = split_rows(rows)
    assert sorted(np.concatenate(heats).tolist()) == list(range(rows))
    assert all((np.diff(heat) > 0).all() for heat in heats)
    assert all(len(heat) for heat in heats)


def test_heats_are_drawn_by_the_seed():
    first, again, other = split_rows(40), split_rows(40), split_rows(40, seed=1)
    assert [h.tolist() for h in first] == [h.tolist() for h in again]
    assert [h.tolist() for h in first] != [h.tolist() for h in other]


@pytest.mark.parametrize("gaps", [[0.0, 2.0, 1.0, 3.0], [4.0, 1.0, 0.0, 1.0, 2.0]])
def test_clear_cases_keep_the_winner_and_cost_less(gaps):
    readouts = population(gaps)
    raced, whole = run(readouts), mean_loss(readouts)
    assert np.argmin(raced.fitness) == np.argmin(whole) == np.argmin(gaps)
    assert raced.finished.tolist() == [gap == 0 for gap in gaps]
    assert raced.rows < readouts["loss"].size
    # Who finished has its true fitness, who did not ranks behind in the same order.
    np.testing.assert_array_equal(raced.fitness[raced.finished], whole[raced.finished])
    assert np.argsort(raced.fitness, kind="stable")[0] == np.argmin(gaps)
    dropped = np.flatnonzero(~raced.finished)
    assert (raced.fitness[dropped] > raced.fitness[raced.finished].max()).all()
    by_fitness = dropped[np.argsort(raced.fitness[dropped])]
    by_loss = dropped[np.argsort(whole[dropped])]
    clear = np.diff(np.sort(np.asarray(gaps)[dropped])) > 0
    if clear.all():
        assert by_fitness.tolist() == by_loss.tolist()


@pytest.mark.parametrize("gaps", [[0.0, 9.0, 5.0], [0.0, 0.0, 0.0]])
def test_an_infinite_margin_drops_nobody(gaps):
    readouts = population(gaps)
    readouts["tempered"][2] = readouts["tempered"][0]  # a difference without an error
    raced = run(readouts, margin=np.inf)
    assert raced.finished.all()
    assert raced.rows == readouts["loss"].size
    np.testing.assert_array_equal(raced.fitness, mean_loss(readouts))


def test_candidates_that_are_equal_all_finish():
    readouts = population([0.0])
    same = {name: np.repeat(x, 3, axis=0) for name, x in readouts.items()}
    assert run(same, margin=0.0).finished.all()


@pytest.mark.parametrize("rows", [1, 2, 3, 4])
def test_a_heat_of_one_row_says_nothing_of_its_error_and_drops_nobody(rows):
    readouts = population([0.0, 50.0], rows=rows)
    raced = run(readouts)
    assert np.isfinite(raced.fitness).all()
    assert np.argmin(raced.fitness) == 0


def test_the_fitness_sees_all_rows_in_their_order():
    readouts = population([0.0, 0.0])
    seen = []

    def fitness(found):
        seen.append(found["row"])
        return mean_loss(found)

    race(np.array([[0.0], [1.0]]), heats_of(readouts, seed=3), fitness, margin=np.inf)
    np.testing.assert_array_equal(seen[0], readouts["row"])


def test_overconfidence_alone_drops_nobody():
    readouts = population([0.0, 0.0])
    # The same losses at another temperature: the plain loss is far higher.
    readouts["tempered"][1] = readouts["tempered"][1][:, [1, 2, 0]]
    readouts["loss"][1] += 100
    assert run(readouts).finished.all()


def test_a_loss_that_is_not_a_number_is_dropped():
    readouts = population([0.0, 0.0])
    readouts["tempered"][1] = np.nan
    raced = run(readouts)
    assert raced.finished.tolist() == [True, False]
    assert np.argmin(raced.fitness) == 0


def test_heats_of_unequal_width_are_padded_as_tags_are():
    readouts = population([0.0, 0.0], rows=4)
    heats = [
        (rows, lambda c, e=evaluate, w=width: e(c) | {"tags": np.ones((2, 1, w), int)})
        for width, (rows, evaluate) in zip(
            (3, 5, 4), one_row_heats(readouts), strict=True
        )
    ]
    seen = []
    race(
        np.array([[0.0], [1.0]]),
        heats,
        lambda found: seen.append(found["tags"]) or mean_loss(found),
    )
    assert seen[0].shape == (2, 3, 5)
    assert seen[0][0].tolist() == [[1, 1, 1, -1, -1], [1] * 5, [1, 1, 1, 1, -1]]


def one_row_heats(readouts):
    def part(row):
        rows = np.array([row])
        return rows, lambda c: {
            name: x[c[:, 0].astype(int)][:, rows] for name, x in readouts.items()
        }

    return [part(row) for row in range(3)]
