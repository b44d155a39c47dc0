import json
import os
from pathlib import Path

import pytest

from fusion_jax.data.feta.scene_order import (
    EPISODES,
    SEASON_TOTALS,
    Open,
    scene_name,
    scene_order,
)
from fusion_jax.data.feta.splits import SPLITS_FILE, read_splits, split_scenes

ROOT = Path(__file__).resolve().parents[2]
SHARED = Path(os.environ.get("FUSION_JAX_DATA") or ROOT.parent / "shared" / "data")


def lengths(fill):
    """Made-up episode lengths: each open group goes to its first episode but `fill`."""
    for season, episodes in enumerate(EPISODES, start=1):
        counts = []
        for entry in episodes:
            if isinstance(entry, Open):
                first = entry.total - fill * (entry.episodes - 1)
                counts += [first, *[fill] * (entry.episodes - 1)]
            else:
                counts.append(entry)
        yield (
            season,
            [
                scene_name(season, episode, scene + 1)
                for episode, count in enumerate(counts, start=1)
                for scene in range(count)
            ],
        )


def test_episodes_add_up_to_the_seasons():
    totals = tuple(
        sum(e.total if isinstance(e, Open) else e for e in season)
        for season in EPISODES
    )
    assert totals == SEASON_TOTALS
    assert sum(SEASON_TOTALS) == 3107


def test_without_transcripts_open_positions_stay_open():
    known = scene_order({})
    assert len(known.order) == 3107
    assert known.uncertain == 110
    assert not known.exact
    names = [scene for scene in known.order if scene]
    assert len(set(names)) == len(names)
    assert names == sorted(names)


def test_all_transcripts_give_the_exact_order():
    seasons = dict(lengths(fill=3))
    exact = scene_order(seasons)
    assert exact.exact
    assert exact.uncertain == 0
    assert list(exact.order) == [scene for s in sorted(seasons) for scene in seasons[s]]


def test_certain_positions_agree_with_any_exact_order():
    known = scene_order({})
    for fill in (2, 4):
        exact = scene_order(dict(lengths(fill)))
        for position, scene in enumerate(known.order):
            if scene is not None:
                assert exact.order[position] == scene


def test_a_transcript_closes_its_season_only():
    seasons = dict(lengths(fill=3))
    assert scene_order({9: seasons[9]}).uncertain == 110 - 46
    assert not scene_order({9: seasons[9]}).exact


def test_observed_scenes_close_a_group_that_they_fill():
    assert scene_order({}, [scene_name(1, 19, 9)]).uncertain == 110 - 9
    assert scene_order({}, [scene_name(1, 19, 8)]).uncertain == 110
    assert scene_order({}, [scene_name(1, 18, 10)]).uncertain == 110 - 2
    assert scene_order({}, ["", "another name"]).uncertain == 110


def test_a_transcript_of_another_length_is_refused():
    seasons = dict(lengths(fill=3))
    with pytest.raises(ValueError, match="season 3 has 347 scenes, not 348"):
        scene_order(seasons | {3: seasons[3][:-1]})


@pytest.mark.skipif(
    not (SHARED / SPLITS_FILE).is_file(),
    reason="no feta_friends_splits.json; set FUSION_JAX_DATA to its folder",
)
def test_reconstruction_agrees_with_the_reference_lists():
    reference = json.loads((SHARED / SPLITS_FILE).read_text())
    assert split_scenes(scene_order({}).order) == read_splits(SHARED / SPLITS_FILE)
    # What more is observed adds certain scenes and moves none.
    more = split_scenes(scene_order({}, [scene_name(1, 19, 9)]).order).to_json()
    for part, scenes in reference.items():
        extra = set(more[part]) - set(scenes)
        assert set(scenes) <= set(more[part])
        assert all(scene.startswith("s01_e19") for scene in extra)
