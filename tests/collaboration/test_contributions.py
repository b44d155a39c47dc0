"""Late and clipped contributions against float64 by numpy."""

import numpy as np
import pytest

from fusion_jax.collaboration.fusing import FuseOptions
from tests.collaboration.bodies import member, save, scaled, tuned
from tests.collaboration.fuses import MEAN, fused, mean_of, round_of, wide


def test_late_contributions_are_discounted_ways_from_their_own_bases(tmp_path):
    base, now, files, tensors = round_of(tmp_path, 2)
    old = [tuned(now, 50, 0.2), tuned(now, 51, 0.3)]
    late = [tuned(old[0], 60), tuned(old[1], 61)]
    members = [member(files[0]), member(files[1])]
    for k, age in enumerate((1, 3)):
        file = save(tmp_path / f"late{k}.safetensors", late[k])
        own = save(tmp_path / f"old{k}.safetensors", old[k])
        members.append(member(file, age=age, own_base=own))
    options = FuseOptions(discount=0.5, server_rate=0.9)
    found, made = fused(base, members, options, tmp_path)
    votes = np.array([1, 1, 1 / 1.5, 1 / 2.5])
    for name, values in wide(now).items():
        ways = [x[name].astype(np.float64) - values for x in tensors]
        ways += [
            a[name].astype(np.float64) - b[name].astype(np.float64)
            for a, b in zip(late, old, strict=True)
        ]
        step = np.tensordot(votes / votes.sum(), np.array(ways), 1)
        np.testing.assert_allclose(found[name], values + 0.9 * step, rtol=1e-7)
    for one, vote in zip(members, votes, strict=True):
        assert made.weights[one.sha256] == pytest.approx(vote / votes.sum())
    assert sum(made.weights.values()) == pytest.approx(1)


def test_clipping_shortens_the_long_and_leaves_the_others(tmp_path):
    base, start, files, tensors = round_of(tmp_path, 5)
    tensors[2] = scaled(start, tensors[2], 100)
    save(files[2], tensors[2])
    members = [member(x) for x in files]
    ways = [{n: x - wide(start)[n] for n, x in wide(one).items()} for one in tensors]
    norms = [np.sqrt(sum((x**2).sum() for x in way.values())) for way in ways]
    limit = 1.5 * np.median(norms)
    found, made = fused(base, members, FuseOptions(clip=1.5), tmp_path)
    for name, values in wide(start).items():
        step = sum(
            way[name] * min(1, limit / norm)
            for way, norm in zip(ways, norms, strict=True)
        )
        np.testing.assert_allclose(found[name], values + step / 5, rtol=1e-6, atol=1e-8)
    assert made.clipped == {members[2].sha256: pytest.approx(limit / norms[2])}
    # Where nobody is long, nothing changes, not a bit.
    _, with_clip = fused(base, members[:2], FuseOptions(clip=5), tmp_path)
    _, without = fused(base, members[:2], MEAN, tmp_path)
    assert with_clip.sha256 == without.sha256


def test_an_attacker_of_a_hundred_times_ruins_the_mean_but_not_with_clipping(tmp_path):
    base, start, files, tensors = round_of(tmp_path, 5)
    honest = {n: mean_of([x[n] for x in tensors[1:]]) for n in wide(start)}
    save(files[0], scaled(start, tensors[0], 100))
    members = [member(x) for x in files]

    def away(options):
        found, _ = fused(base, members, options, tmp_path)
        return np.sqrt(sum(((found[n] - x) ** 2).sum() for n, x in honest.items()))

    one_way = np.sqrt(
        sum(((tensors[1][n] - x) ** 2).sum() for n, x in wide(start).items())
    )
    assert away(MEAN) > 10 * one_way
    assert away(FuseOptions(clip=1)) < one_way
    assert away(FuseOptions("coordinate_median")) < one_way
