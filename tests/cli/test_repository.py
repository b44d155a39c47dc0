"""fusion-jax repository, from init to export, as a person types it."""

import json

import pytest

from fusion_jax.checkpoints import huggingface as hf
from fusion_jax.checkpoints.lazy import read_header


@pytest.fixture(scope="module")
def round_one(place, tmp_path_factory):
    """A repository after a round, made by the commands themselves."""
    from fusion_jax.cli.main import main

    root = tmp_path_factory.mktemp("round")
    url, cache = str(root / "repository"), str(root / "cache")
    steps = [
        ("init", url, "--base", str(place / "encoder")),
        (
            *(
                "contribute",
                url,
                "--data",
                str(place / "opinion"),
                "--max-length",
                "16",
            ),
            *("--workdir", str(root / "work"), "--contributor", "ada"),
            *("--set", "epochs=1", "--set", "batch_size=4", "--licence", "CC0"),
            *("--statistics", "gram", "--examples", "8"),
        ),
        ("fuse", url),
    ]
    for step in steps:
        assert main(["repository", *step, "--cache", cache]) == 0
    return root


def test_a_round_from_init_to_export(round_one, command):
    url, cache = round_one / "repository", round_one / "cache"
    code, out, _ = command("repository", "status", url, "--cache", cache, "--json")
    found = json.loads(out)
    assert code == 0 and found["round"] == 1 and not found["waiting"]
    [part] = found["bases"][1]["parts"]
    assert part["contributor"] == "ada" and part["task"] == "opinion"
    assert 0 <= part["scores"]["dev"] <= 1
    code, out, _ = command(
        *("repository", "export", url, "--cache", cache, "--out", round_one / "base")
    )
    assert code == 0 and "base 1" in out
    assert hf.load(round_one / "base").kind is None
    assert "CC0" in (round_one / "base" / "README.md").read_text()


def test_the_model_with_its_head_stays_with_the_contributor(round_one):
    [model] = (round_one / "work" / "models").iterdir()
    assert hf.load(model, kind="single_label").labels == ("negative", "positive")
    uploads = list((round_one / "repository").rglob("*.safetensors"))
    assert len(uploads) == 4
    for file in uploads:
        assert not [name for name in read_header(file) if "classifier" in name]


def test_statistics_that_were_handed_in_serve_a_round_of_regmean(
    round_one, command, place, tmp_path
):
    url, cache = tmp_path / "group", tmp_path / "cache"
    assert command("repository", "init", url, "--base", place / "encoder")[0] == 0
    for seed in (0, 1):
        code, _, error = command(
            *("repository", "contribute", url, "--data", place / "opinion"),
            *("--max-length", "16", "--seed", seed, "--cache", cache),
            *("--workdir", tmp_path / "work", "--set", "epochs=1"),
            *("--set", "batch_size=4", "--statistics", "gram", "--examples", "8"),
        )
        assert code == 0, error
    code, out, error = command(
        *("repository", "fuse", url, "--cache", cache, "--method", "regmean", "--json")
    )
    assert code == 0, error
    assert json.loads(out)["round"] == 1


def test_status_writes_a_page_that_loads_nothing(round_one, command, tmp_path):
    page = tmp_path / "rounds.html"
    code, out, _ = command(
        *("repository", "status", round_one / "repository"),
        *("--cache", round_one / "cache", "--report", page),
    )
    text = page.read_text()
    assert code == 0 and "base 1" in out and "ada" in text
    assert "http://" not in text.replace("http://www.w3.org", "")


def test_many_tasks_are_printed_for_a_scheduler(round_one, command, place):
    code, out, _ = command(
        *("repository", "contribute", "s3://bucket/group", "--data", place),
        *("--tasks", "opinion+other", "--backend", "slurm", "--workers", "3"),
    )
    assert code == 0
    assert "--array=0-1%3" in out and "--task other" in out and "s3://bucket" in out


@pytest.mark.parametrize(
    "words,code,message",
    [
        (("status", "NOWHERE"), 1, "is no weight repository"),
        (("fuse", "HERE"), 1, "0 contributions that can be fused"),
        (("fuse", "HERE", "--method", "tis"), 1, "did you mean ties"),
        (("fuse", "HERE", "--round", "1"), 2, "--round and --without go together"),
        (("fuse", "HERE", "--round", "1", "--without", "bo"), 1, "it has some of ada"),
        (("fuse", "HERE", "--limit", "size=3"), 2, "max_relative_norm"),
        (("fuse", "HERE", "--quorum", "0"), 1, "at least 1"),
        (("export", "HERE", "--round", "7", "--out", "x"), 1, "there is no base 7"),
        (("contribute", "HERE", "--data", "NOWHERE"), 1, "NOWHERE"),
        (
            ("contribute", "HERE", "--data", "D", "--tasks", "a+b", "--task", "a"),
            2,
            "each task is its own contributor",
        ),
        (("status", "ftp://x/y"), 1, "ftp"),
        (
            ("contribute", "HERE", "--data", "TASK", "--recipe", "BAD"),
            1,
            "epoch; options",
        ),
        (("contribute", "HERE", "--data", "TASK", "--contributor", "a/b"), 1, "'a/b'"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(
    round_one, command, place, tmp_path, words, code, message
):
    known = {
        "HERE": str(round_one / "repository"),
        "NOWHERE": str(tmp_path / "NOWHERE"),
        "TASK": str(place / "opinion"),
        "BAD": str(tmp_path / "recipe.json"),
    }
    (tmp_path / "recipe.json").write_text('{"epoch": 3}')
    typed = [known.get(word, word) for word in words]
    found, _, error = command("repository", *typed, "--cache", round_one / "cache")
    assert found == code and message in error
    assert "Traceback" not in error
