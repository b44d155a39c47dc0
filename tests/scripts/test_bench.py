"""The measurements run, on tiny sizes, and compare what is equal."""

import functools
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from fusion_jax.data.encoded import Encoded
from fusion_jax.evaluation.objectives import OBJECTIVES
from tests.small_models import write_model, write_task

ROOT = Path(__file__).resolve().parents[2]
BENCH = ROOT / "scripts" / "bench"
WITH_TORCH = importlib.util.find_spec("torch") is not None


@functools.cache  # flags are defined once in a process
def script(name):
    """A script of the folder, as a module."""
    spec = importlib.util.spec_from_file_location(f"bench_{name}", BENCH / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def measured(name, encoder, *arguments):
    """What a script prints as JSON, run as a command on a tiny encoder."""
    sizes = ["--encoder", encoder, "--max-length", "32", "--repeats", "1"]
    torch = [] if WITH_TORCH else ["--no-torch"]
    done = subprocess.run(
        [sys.executable, BENCH / f"{name}.py", *sizes, *torch, *arguments],
        # Installed or not, it is this checkout that is measured.
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture
def encoder(tmp_path):
    return write_model(tmp_path / "encoder")


def rows_of_lengths(*lengths):
    """Single-label rows of so many tokens."""
    count = len(lengths)
    return Encoded(
        task_name="film",
        kind="single_label",
        num_labels=2,
        pad_token_id=0,
        labels=("bad", "good"),
        unscored=(),
        decision="",
        columns={"input_ids": [np.full(n, 7, np.int32) for n in lengths]},
        targets={"label": np.zeros(count, np.int32)},
        lengths=np.array(lengths, np.int32),
        items=np.arange(count),
        references=[0] * count,
    )


def test_plain_batches_hold_each_row_once_at_the_width_of_the_longest():
    lengths = (3, 9, 4, 12, 5, 6, 7)
    batches = script("finetune").PlainBatches(rows_of_lengths(*lengths), 3)
    assert batches.steps_per_epoch == 2
    seen = [batches.batch(step) for step in range(2)]
    rows = np.concatenate([batch["index"] for batch in seen])
    assert len(set(rows.tolist())) == 6 and set(rows) <= set(range(7))
    for batch in seen:
        longest = max(lengths[row] for row in batch["index"])
        assert batch["input_ids"].shape == (3, longest)
        assert batch["mask"].all()
    np.testing.assert_array_equal(batches.batch(2)["index"], seen[0]["index"])


def test_a_side_is_timed_without_its_first_run_and_counts_real_tokens():
    module = script("finetune")
    plain = module.PlainBatches(rows_of_lengths(2, 8, 4, 4), 2)
    calls = []
    side = module.Side(plain, lambda: calls.append(1) or 0.5)
    options = module.argparse.Namespace(repeats=3, steps=2)
    found = module.measure(options, {"one": side})["one"]
    assert len(calls) == 4 and len(found["seconds"]) == 3
    assert found["tokens"] == 18
    widths = [plain.batch(step)["input_ids"].shape[1] for step in range(2)]
    assert found["padded_tokens"] == 2 * sum(widths)
    assert found["mean_loss"] == 0.5


def test_fewer_rows_than_a_batch_are_refused(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["finetune.py", "--rows", "8"])
    with pytest.raises(SystemExit, match="2"):
        script("finetune").parse()
    assert "--rows 8 fills no batch of 16" in capsys.readouterr().err


@pytest.mark.slow
def test_finetune_gives_speeds_and_ratios(encoder):
    record = measured("finetune", encoder, "--steps", "3", "--rows", "48")
    sides = record["sides"]
    for side in sides.values():
        assert side["tokens"] <= side["padded_tokens"]
        assert side["tokens_per_second"] > 0
    assert record["seconds_to_first_step"].keys() == {"empty_cache", "filled_cache"}
    if not WITH_TORCH:
        return
    assert len(record["ratios"]) == 4
    # Like for like means: the same steps from the same weights on the same rows.
    for name in ("torch", "torch_fused"):
        assert sides[name]["tokens"] == sides["like_for_like"]["tokens"]
        assert sides[name]["mean_loss"] == pytest.approx(
            sides["like_for_like"]["mean_loss"], abs=1e-5
        )


@pytest.mark.slow
def test_population_gives_candidates_a_second_and_ratios(encoder):
    record = measured(
        *("population", encoder, "--rows", "24", "--experts", "3"),
        *("--candidates", "4", "--torch-candidates", "2"),
    )
    assert record["like_for_like"]["per_second"] > 0
    assert 0 < record["everything_on"]["raced_rows_share"] <= 1
    assert len(record.get("ratios", ())) == (3 if WITH_TORCH else 0)


@pytest.mark.slow
def test_modules_give_candidates_a_second_and_ratios(encoder):
    sizes = "--modules 2 --rank 2 --candidates 4 --torch-candidates 2 --rows 24"
    record = measured("peft", encoder, *sizes.split())
    for name in ("exact_padded", "leaves_buckets"):
        assert record[name]["per_second"] > 0
    if WITH_TORCH:
        assert len(record["ratios"]) == 4
        for loop in ("cat", "lorahub"):
            assert record[f"torch_{loop}_padded"]["largest_difference"] < 1e-4


@pytest.mark.slow
def test_runs_of_a_grid_are_the_same_batched_and_one_by_one(encoder):
    sizes = "--layers 0 --steps 0 1 2 --rows 32 --test-rows 16 --runs 3 --processes 3"
    done = subprocess.run(
        [
            sys.executable,
            BENCH / "portability_grid.py",
            *("--encoder", encoder, "--max-length", "32"),
            *sizes.split(),
        ],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout)
    assert record["grid"]["runs"] == 24
    assert record["largest_difference_of_scores"] == 0
    sides = record["sides"]
    assert (
        sides["batched"]["runs_per_hour"] > sides["one run at a time"]["runs_per_hour"]
    )
    assert len(record["ratios"]) == 3


def test_a_folder_without_experts_is_refused(tmp_path, encoder):
    done = subprocess.run(
        [sys.executable, BENCH / "population.py", "--encoder", encoder, "--no-torch",
         "--max-length", "32", "--run", tmp_path / "nothing"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )  # fmt: skip
    assert done.returncode == 1
    assert "nothing holds 0 experts of emotion" in done.stderr


def test_objectives_are_measured_once_a_target(tmp_path, encoder):
    for name in ("film", "play", "song"):
        write_task(tmp_path / "tasks" / name)
    config = f"{ROOT}/configs/dfwe/local.py:data={tmp_path / 'tasks'},smoke"
    command = [
        sys.executable, BENCH / "objectives.py", f"--workdir={tmp_path / 'run'}",
        f"--config={config},encoder={encoder},target=film+play", "--pool=12",
    ]  # fmt: skip

    def table():
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    printed = table()
    lines = (tmp_path / "run" / "objectives.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    assert [record["target"] for record in records] == ["film", "play"]
    for record in records:
        assert record["pool"] == 12
        assert set(record["objectives"]) == set(OBJECTIVES) - {"auto"}
    assert "| metric_calibrated | 2 |" in printed
    assert table() == printed
    assert len((tmp_path / "run" / "objectives.jsonl").read_text().splitlines()) == 2


def test_ranks_share_their_mean_and_constants_do_not_correlate():
    module = script("objectives")
    ranks = module.ranks(np.array([3.0, 1.0, 3.0, 2.0]))
    np.testing.assert_allclose(ranks, [2.5, 0.0, 2.5, 1.0])
    assert module.correlation(ranks, 7 - 2 * ranks) == pytest.approx(-1)
    assert module.correlation(ranks, np.ones(4)) == 0


def test_an_objective_that_knows_the_test_scores_is_the_best_there_is():
    on_test = np.random.default_rng(0).random(40)
    measures = script("objectives").measures
    right, wrong = measures(-on_test, on_test), measures(on_test, on_test)
    assert right["rank"] == pytest.approx(1) and wrong["rank"] == pytest.approx(-1)
    assert right["best"] == pytest.approx(on_test.max() - on_test.mean())
    assert wrong["best"] == pytest.approx(on_test.min() - on_test.mean())
    top = np.sort(on_test)[-4:].mean() - on_test.mean()
    assert right["tenth"] == pytest.approx(top)
