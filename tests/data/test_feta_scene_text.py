from fusion_jax.data.feta.scene_text import SceneIndex, letters

GARDEN = "The gardener lost his ladder behind the greenhouse."
BOAT = "Our little boat has a hole beneath the rear bench!"


def make_index():
    index = SceneIndex()
    index.add("s01_e01_c01", GARDEN)
    index.add("s01_e01_c02", BOAT)
    index.add("s01_e01_c02", "@ent03 said that @ent01 painted the old harbour wall .")
    index.add("s02_e01_c01", GARDEN)
    return index


def test_letters_do_not_depend_on_tokenising():
    assert letters("I ca n't , Bob !") == letters("I can't, Bob!") == "icantbob"


def test_lines_are_found_by_their_words():
    index = make_index()
    assert index.shares(GARDEN, "s01") == {"s01_e01_c01": 1.0}
    assert index.shares("Nobody spoke of this.") == {}
    # A name that was made anonymous does not hide the rest.
    assert index.shares("Kim painted the old harbour wall.")["s01_e01_c02"] > 0.7


def test_a_dialogue_may_run_over_two_scenes():
    placed = make_index().place(["Hm?", GARDEN, "Yes.", BOAT, "No!"], "s01_e01")
    assert placed == ["s01_e01_c01", "s01_e01_c01", "", "s01_e01_c02", "s01_e01_c02"]


def test_a_short_line_follows_its_neighbours():
    placed = make_index().place([GARDEN, "What?", GARDEN], "s01")
    assert placed == ["s01_e01_c01"] * 3


def test_a_dialogue_of_an_unknown_scene_is_not_placed():
    lines = [
        GARDEN,
        "The violin teacher moved to another city.",
        "Somebody has eaten all of my breakfast.",
        "What?",
    ]
    assert make_index().place(lines, "s01") == [""] * 4
    assert make_index().place([], "s01") == []
    assert make_index().place(["What?"], "s01") == [""]
