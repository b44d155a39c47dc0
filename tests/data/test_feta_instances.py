import pytest

from fusion_jax.data.feta.instances import (
    Said,
    SpokenText,
    character_row,
    dialogue,
    emotion_row,
    meld_rows,
    personality_row,
    phrase,
    question_row,
    reading_row,
    relation_row,
    say,
    speaker_name,
)
from fusion_jax.data.feta.tasks import FETA_TASKS, RELATIONS, resolve_targets
from fusion_jax.data.feta.wording import Words
from fusion_jax.data.task import TaskError

EARLIER = [("Ann", "Where is it?"), ("", "(The lamp falls.)"), ("Bob Cy", "There!")]


def test_speakers_are_joined_and_notes_have_none():
    assert speaker_name(["Bob", "Cy"]) == "Bob Cy"
    assert speaker_name(["#NOTE#"]) == speaker_name([]) == ""
    assert say("", "(Silence.)") == "(Silence.)"
    assert dialogue(EARLIER) == "Ann: Where is it? (The lamp falls.) Bob Cy: There!"


def test_emotion_instance():
    row = emotion_row(
        "friends_emory_emotion", ("Ann", "Oh no."), EARLIER, "scared", "s01_e01_c01"
    )
    assert row == {
        "text": "Ann: Oh no.",
        "context": "Ann: Where is it? (The lamp falls.) Bob Cy: There!",
        "target": 6,
        "group": "s01_e01_c01",
    }
    first = emotion_row("friends_meld", ("", "Boo."), [], "fear", "")
    assert first == {"text": "Boo.", "target": 2, "group": ""}
    with pytest.raises(TaskError, match="unknown emotion 'glee'"):
        emotion_row("friends_meld", ("Ann", "Yes."), [], "glee", "")


def test_meld_lines_of_one_speaker_are_one_turn():
    lines = [
        Said(0, "Ann", "You came.", "joy", "a"),
        Said(1, "Ann", "Sit down.", "neutral", "a"),
        Said(2, "Bob", "No.", "neutral", "a"),
        Said(4, "Bob", "Never.", "anger", "a"),
        Said(5, "Bob", "Fine.", "neutral", "b"),
    ]
    rows = meld_rows(list(reversed(lines)))
    assert [row["text"] for row in rows] == [
        "Ann: You came. Sit down.",
        "Bob: No.",
        "Bob: Never.",
        "Bob: Fine.",
    ]
    labels = FETA_TASKS["friends_meld"].labels
    assert [labels[row["target"]] for row in rows] == [
        "joy",
        "neutral",
        "anger",
        "neutral",
    ]
    assert rows[1]["context"] == "Ann: You came. Sit down."
    assert [row["_number"] for row in rows] == [0, 2, 4, 5]


@pytest.mark.parametrize(
    "tokens, start, end, expected",
    [
        # Forward, at most four words, and on a tie.
        ("He lost my brown hat again", 2, 3, "my brown hat again"),
        ("I saw you", 1, 2, "saw you"),
        # Backward where that side has more words, up to and including the mention.
        ("Nobody ever gives it to you", 5, 6, "gives it to you"),
        # A mention that ends the utterance, with its mark.
        ("Did he call you ?", 3, 4, "Did he call you?"),
        ("Bob !", 0, 1, "Bob!"),
        # Two tokens of one name.
        ("Ask Ann Lee about him", 1, 3, "Ann Lee about him"),
    ],
)
def test_phrase(tokens, start, end, expected):
    assert phrase(Words.of(tokens.split()), start, end) == expected


def test_character_instance():
    words = Words.of("Is that your hat , Ross ?".split())
    row = character_row(
        words, "Ann", 2, 3, ["Ross Geller", "Monica Geller"], EARLIER, "s01_e01_c01"
    )
    assert row["text"] == "Who does 'your' refer to in the phrase 'your hat, Ross?'?"
    assert row["context"].endswith("Bob Cy: There! Ann: Is that your hat, Ross?")
    assert FETA_TASKS["friends_charid"].labels[row["target"]] == "ross"
    stranger = character_row(words, "Ann", 2, 3, ["A Waiter"], [], "s01_e01_c01")
    assert FETA_TASKS["friends_charid"].labels[stranger["target"]] == "other"


def test_reading_instance():
    row = reading_row(
        "@placeholder hides the cake .",
        "@ent01",
        ["@ent00", "@ent01"],
        [("@ent00", "Who ate it ?"), ("", "( @ent01 blushes . )")],
        "s01_e01_c02",
    )
    assert row["choices"] == ("@ent00", "@ent01")
    assert row["target"] == 1
    assert row["context"] == "@ent00: Who ate it ? ( @ent01 blushes . )"


def test_personality_and_relation_instances():
    row = personality_row("Ann", "Ann: Hi.", ["NEU", "CON"], "s01_e01_c01")
    assert row["target"] == (1, 4)
    turns = ["Speaker 1: I met Tom.", "Speaker 2: My boss?"]
    row = relation_row(
        "Speaker 2", "Tom", turns, ["per:subordinate", "per:alternate_names"], "d0"
    )
    assert row == {
        "text": "Speaker 2",
        "text_pair": "Tom",
        "context": "Speaker 1: I met Tom. Speaker 2: My boss?",
        "target": (5,),
        "group": "d0",
    }
    assert relation_row("a", "b", turns, ["gpe:births_in_place"], "d0") is None
    assert [
        RELATIONS.index(name)
        for name in (
            "per:place_of_birth",
            "per:alternate_names",
            "gpe:births_in_place",
            "org:students",
            "unanswerable",
        )
    ] == [18, 29, 33, 35, 36]


UTTERANCES = [
    {"uid": 0, "speakers": ["#NOTE#"], "utterance": "[ Ann 's kitchen . ]"},
    {"uid": 1, "speakers": ["Ann Lee"], "utterance": "I ca n't find the red pan ."},
    {"uid": 3, "speakers": ["Bob", "Cy"], "utterance": "It 's in the red pan box !"},
]
TURN_BEGINS = {0: "[Ann", 1: "Ann Lee:", 3: "Bob Cy:"}


@pytest.mark.parametrize(
    "answer, text",
    [
        # Second version: token span, or a speaker.
        (
            {
                "answer_text": "the red pan",
                "utterance_id": 1,
                "inner_start": 4,
                "inner_end": 6,
                "is_speaker": False,
            },
            "the red pan",
        ),
        (
            {
                "answer_text": "Ann Lee",
                "utterance_id": 1,
                "inner_start": -1,
                "inner_end": -1,
                "is_speaker": True,
            },
            "Ann Lee",
        ),
        # A span that is off: the text decides.
        (
            {
                "answer_text": "red pan box",
                "utterance_id": 3,
                "inner_start": 0,
                "inner_end": 1,
                "is_speaker": False,
            },
            "red pan box",
        ),
        # First version: text only.
        ({"answer_text": "Ann 's kitchen", "utterance_id": 0}, "Ann's kitchen"),
        ({"answer_text": "ca n't find", "utterance_id": 1}, "can't find"),
        ({"answer_text": "the red pan", "utterance_id": 3}, "the red pan"),
        ({"answer_text": "Ann_Lee", "utterance_id": 1}, "Ann Lee"),
    ],
)
def test_answers_stand_where_they_are_said(answer, text):
    scene = SpokenText(UTTERANCES)
    located = scene.locate(answer)
    assert located["text"] == text
    start = located["start"]
    assert start >= 0
    assert scene.text[start : start + len(text)] == text
    # In the turn that the annotation names, not where the words stand first.
    assert start >= scene.text.index(TURN_BEGINS[answer["utterance_id"]])


def test_an_answer_that_is_not_there_keeps_its_text():
    scene = SpokenText(UTTERANCES)
    for turn in (1, 2):
        lost = scene.locate({"answer_text": "a blue pot", "utterance_id": turn})
        assert lost == {"text": "a blue pot", "start": -1}


def test_question_instance_leaves_repeats_out():
    scene = SpokenText(UTTERANCES)
    assert scene.text == (
        "[Ann's kitchen.] Ann Lee: I can't find the red pan. "
        "Bob Cy: It's in the red pan box!"
    )
    answer = {"answer_text": "the red pan", "utterance_id": 1}
    row = question_row("What ca n't Ann find ?", scene, [answer, answer], "s01_e01_c01")
    assert row["text"] == "What can't Ann find?"
    assert row["target"] == ({"text": "the red pan", "start": 39},)


def test_words_keep_the_place_of_every_token():
    tokens = "You do n't wan na ( ever ) pay $ 5 , right ?".split()
    words = Words.of(tokens)
    assert words.text == "You don't wanna (ever) pay $5, right?"
    assert [words.text[a:b] for a, b in words.offsets] == tokens
    assert words.find(["ever", ")"]) == (6, 7)
    assert words.find(["never"]) is None
    assert words.find([]) is None


def test_targets_go_by_either_name():
    assert resolve_targets(None) == tuple(FETA_TASKS)
    assert resolve_targets(["question_answering", "friends_meld"]) == (
        "friends_qa",
        "friends_meld",
    )
    with pytest.raises(ValueError, match="unknown FETA-Friends task friends_x"):
        resolve_targets(["friends_x"])
