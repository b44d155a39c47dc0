"""fusion-jax select and task-selection, on a tiny encoder."""

import json

import pytest

from fusion_jax.systems.selection_defaults import DEFAULT_MEASURE
from fusion_jax.systems.selection_study import study_line
from fusion_jax.transfer.ranking import KEEP
from tests.small_models import write_model
from tests.systems.selection_tasks import DOMAINS, write_domains, write_rows


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """An encoder and four task folders of two domains."""
    root = tmp_path_factory.mktemp("select")
    write_model(root / "encoder")
    write_domains(root / "tasks")
    return root


def arguments(folder, target, *more):
    sources = [folder / "tasks" / name for name in DOMAINS if name != target]
    given = ("--target", folder / "tasks" / target, "--sources", *sources)
    common = ("--encoder", folder / "encoder", "--max-length", 16)
    return ("select", *given, *common, *more)


@pytest.mark.parametrize("target, near", [("a1", "a2"), ("b2", "b1")])
def test_the_domain_of_the_same_words_comes_first(target, near, folder, command):
    code, out, _ = command(*arguments(folder, target, "--json", "--keep", "0.4"))
    found = json.loads(out)
    assert code == 0 and found["order"] == DEFAULT_MEASURE
    assert [entry["rank"] for entry in found["sources"]] == [1, 2, 3]
    assert found["sources"][0]["source"] == near
    assert [entry["kept"] for entry in found["sources"]] == [True, True, False]
    far = [entry["distances"][DEFAULT_MEASURE] for entry in found["sources"]]
    assert far == sorted(far) and 0 < far[0] < far[2]


def test_without_a_study_no_gain_is_told(folder, command):
    code, out, _ = command(*arguments(folder, "a1"))
    assert code == 0 and "not known without --study" in out
    record = json.loads(command(*arguments(folder, "a1", "--json"))[1])
    assert record["study"] is None
    assert {entry["expected_gain"] for entry in record["sources"]} == {None}


def test_the_fraction_without_an_option_is_the_package_s(folder, command):
    found = json.loads(command(*arguments(folder, "a1", "--json"))[1])
    assert found["keep"] == KEEP


def test_several_measures_rank_together_and_states_are_read(folder, command):
    measures = ("--measure", "mmd", "--measure", "vocabulary_overlap")
    _, out, _ = command(*arguments(folder, "b1", "--json", *measures))
    found = json.loads(out)
    assert found["order"] == "fusion"
    assert set(found["sources"][0]["distances"]) == {"mmd", "vocabulary_overlap"}
    assert found["sources"][0]["source"] == "b2"


def test_gains_are_the_line_of_a_study(folder, command, tmp_path):
    """Pairs whose gain falls by 0.1 a rank have a line without spread."""
    pairs = [
        {
            "source": f"s{rank}",
            "target": target,
            "ranks": {DEFAULT_MEASURE: rank},
            "zero_shot": height - 0.1 * rank,
        }
        for target, height in (("t", 0.9), ("u", 0.7))
        for rank in (1, 2, 3)
    ]
    study = {
        "system": "task_selection",
        "measures": {DEFAULT_MEASURE: {}},
        "metric": "accuracy",
        "pairs": pairs,
    }
    (tmp_path / "results.json").write_text(json.dumps(study))
    more = ("--json", "--study", tmp_path)
    found = json.loads(command(*arguments(folder, "a1", *more))[1])
    gains = [entry["expected_gain"] for entry in found["sources"]]
    assert gains == pytest.approx([0.1, 0, -0.1], abs=1e-9)
    assert found["study"]["pairs"] == 6
    assert found["study"]["spread"] == pytest.approx(0, abs=1e-9)
    code, _, told = command(
        *arguments(folder, "a1", "--study", tmp_path, "--measure", "kl")
    )
    assert code == 1 and f"no order 'kl'; it has {DEFAULT_MEASURE}" in told


def test_the_fusion_of_a_study_is_of_the_measures_asked_for(tmp_path):
    """Two measures put sources as they score; the study's own fusion does not."""
    names = ["s", "t", "u", "v"]
    near = [[abs(s - t) for t in range(4)] for s in range(4)]
    far = [[-x for x in row] for row in near]
    pairs = [
        {
            "source": names[s],
            "target": names[t],
            "ranks": {name: 1 for name in ("kl", "mmd", "cosine", "fusion")},
            "zero_shot": 0.9 - 0.1 * near[s][t],
        }
        for s in range(4)
        for t in range(4)
        if s != t
    ]
    study = {
        "system": "task_selection",
        "measures": {"kl": {}},
        "metric": "accuracy",
        "pairs": pairs,
        "names": names,
        "distances": {"kl": near, "mmd": near, "cosine": far},
    }
    (tmp_path / "results.json").write_text(json.dumps(study))
    assert study_line(tmp_path, "fusion", ("kl", "mmd")).slope < -0.1
    assert study_line(tmp_path, "fusion", ("cosine", "cosine")).slope > 0.1
    with pytest.raises(ValueError, match=r"no renyi for a fusion of kl, renyi; it has"):
        study_line(tmp_path, "fusion", ("kl", "renyi"))


def test_sources_that_cannot_be_ranked_are_named(folder, command, tmp_path):
    write_domains(tmp_path)
    write_rows(tmp_path / "a2", "train", [{"text": "good", "label": "positive"}] * 9)
    (tmp_path / "b1" / "train.jsonl").write_bytes(b'{"text": "caf\xe9", "label": "x"}')
    sources = [tmp_path / name for name in ("a2", "b1", "b2")]
    given = ("--target", tmp_path / "a1", "--sources", *sources)
    common = ("--encoder", folder / "encoder", "--max-length", 16, "--json")
    code, out, _ = command("select", *given, *common)
    found = json.loads(out)
    assert code == 0 and [e["source"] for e in found["sources"]] == ["b2"]
    assert set(found["left_out"]) == {"a2", "b1"}
    assert "one class" in found["left_out"]["a2"]


def test_what_cannot_be_done_is_said(folder, command, tmp_path):
    code, _, told = command(*arguments(folder, "a1", "--measure", "jensen"))
    assert code == 2 and "jensen unknown; there are kl" in told
    code, _, told = command(*arguments(folder, "a1", "--keep", "0"))
    assert code == 2 and "--keep: 0.0" in told
    code, _, told = command(*arguments(folder, "a1", "--study", tmp_path))
    assert code == 1 and "results.json" in told
    tasks = folder / "tasks"
    given = ("--target", tasks / "a1", "--sources", tasks / "a1", tasks / "b1")
    code, _, told = command("select", *given, "--encoder", folder / "encoder")
    assert code == 1 and "a1 is the target" in told


def test_the_run_prints_its_table_and_is_a_study(folder, command, tmp_path):
    run = ("task-selection", "--data", folder / "tasks", "--workdir", tmp_path / "run")
    options = ("--encoder", folder / "encoder", "--max-length", 16, "--shots", 16)
    small = ("--measures", "jensen_shannon", "--set", "fit.epochs=1")
    code, out, _ = command(*run, *options, *small)
    assert code == 0 and out.startswith("order") and "random order" in out
    assert "Jensen-Shannon keeps" in out
    again = command(*run, *options, *small, "--json")
    assert json.loads(again[1])["order"] == "jensen_shannon"
    study = ("--json", "--study", tmp_path / "run", "--measure", "jensen_shannon")
    found = json.loads(command(*arguments(folder, "a1", *study))[1])
    assert found["study"]["pairs"] == 12
