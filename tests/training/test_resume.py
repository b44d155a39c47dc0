"""A fit that is killed, interrupted, finished or changed, and started again."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from fusion_jax.data.batches import TrainBatches
from fusion_jax.training.config import FitConfig
from fusion_jax.training.fit import fit

PROCESS = Path(__file__).parent / "process.py"
CONFIG = FitConfig(
    epochs=3, batch_size=4, learning_rate=0.05, buckets=(8, 16), save_every=2,
    save_seconds=0, log_every=2,
)  # fmt: skip


def start(*arguments):
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "1"}
    return subprocess.run(
        [sys.executable, str(PROCESS), *map(str, arguments)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_killed_in_every_phase_it_ends_with_the_same_bits(tmp_path):
    whole = start("none", tmp_path / "whole.npz")
    assert whole.returncode == 0, whole.stderr
    # Steps of the longer expert: 5 an epoch; the head phase is epoch 0. Each kill
    # strikes while the state of the step before is being written.
    for kill_at in (2, 5, 9, 14):
        killed = start(tmp_path / "run", tmp_path / "out.npz", "--kill_at", kill_at)
        assert killed.returncode == -signal.SIGKILL, killed.stderr
    last = start(tmp_path / "run", tmp_path / "resumed.npz")
    assert last.returncode == 0, last.stderr
    expected, found = (np.load(tmp_path / f"{name}.npz") for name in
                       ("whole", "resumed"))  # fmt: skip
    assert set(expected) == set(found)
    for name in expected:
        np.testing.assert_array_equal(found[name], expected[name], err_msg=name)
    lines = read_lines(tmp_path / "run")
    keys = [(line["expert"], line["position"], "train_loss" in line) for line in lines]
    assert len(set(keys)) == len(keys)
    assert {key for key in keys if key[2]} == {
        (f"expert_{k}", position, True) for k in (0, 1) for position in (5, 10, 15)
    }


class Interrupted:
    """Batches that raise at a step, once."""

    def __init__(self, source, step):
        self._source, self._step = source, step
        self.steps_per_epoch = source.steps_per_epoch

    def batch(self, step):
        if step == self._step:
            self._step = -1
            raise KeyboardInterrupt
        return self._source.batch(step)


def read_lines(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").open()]


@pytest.mark.parametrize("step", [1, 5, 10])
def test_interrupted_it_goes_on(
    model, params, splits, tmp_path, step, largest_difference
):
    source = TrainBatches(splits(20, 1), 4, seed=0, buckets=(8, 16))
    options = {"kind": "single_label", "progress": False}
    whole = fit(model, params, source, splits(12, 2), CONFIG, **options)
    train = Interrupted(source, step)
    with pytest.raises(KeyboardInterrupt):
        fit(model, params, train, splits(12, 2), CONFIG, workdir=tmp_path, **options)
    again = fit(
        model, params, train, splits(12, 2), CONFIG, workdir=tmp_path, **options
    )
    assert largest_difference(whole.params, again.params) == 0
    assert again.best_epoch == whole.best_epoch
    assert again.tokens == whole.tokens
    positions = [line["position"] for line in read_lines(tmp_path)]
    assert positions == sorted(positions)


def test_a_finished_fit_is_read_and_not_run(
    model, params, splits, tmp_path, largest_difference
):
    options = {"kind": "single_label", "progress": False, "workdir": tmp_path}
    source = TrainBatches(splits(20, 1), 4, seed=0, buckets=(8, 16))
    first = fit(model, params, source, splits(12, 2), CONFIG, **options)
    before = (tmp_path / "metrics.jsonl").read_text()
    train = Interrupted(source, 1)  # would raise if it were trained
    second = fit(model, params, train, splits(12, 2), CONFIG, **options)
    assert largest_difference(first.params, second.params) == 0
    assert second[1:] == first[1:]
    assert (tmp_path / "metrics.jsonl").read_text() == before
    assert not (tmp_path / "state" / "fit" / "steps").exists()


def test_the_state_of_another_fit_is_refused_with_what_differs(
    model, params, splits, tmp_path
):
    options = {"kind": "single_label", "progress": False, "workdir": tmp_path}
    train = Interrupted(TrainBatches(splits(20, 1), 4, seed=0, buckets=(8, 16)), 7)
    with pytest.raises(KeyboardInterrupt):
        fit(model, params, train, splits(12, 2), CONFIG, **options)
    other = TrainBatches(splits(24, 5), 4, seed=0, buckets=(8, 16))
    changed = FitConfig(**(CONFIG.to_json() | {"learning_rate": 0.1, "log_every": 7}))
    with pytest.raises(ValueError) as caught:
        fit(model, params, other, splits(12, 2), changed, **options)
    message = str(caught.value)
    assert "config/learning_rate: was 0.05, is 0.1" in message
    assert "steps_per_epoch: was (5,), is (6,)" in message
    assert "first_batch" in message
    assert "log_every" not in message


def test_other_starting_parameters_are_another_fit(model, params, splits, tmp_path):
    options = {"kind": "single_label", "progress": False, "workdir": tmp_path}
    fit(model, params, splits(20, 1), None, CONFIG, **options)
    params["head"]["classifier"]["bias"] += 1
    with pytest.raises(ValueError, match="start: was"):
        fit(model, params, splits(20, 1), None, CONFIG, **options)


def test_a_torn_last_line_is_dropped(model, params, splits, tmp_path):
    options = {"kind": "single_label", "progress": False, "workdir": tmp_path}
    (tmp_path / "metrics.jsonl").write_text('{"fit": "other", "x": 1}\n{"fit": "fi')
    fit(model, params, splits(20, 1), None, CONFIG, **options)
    lines = read_lines(tmp_path)
    assert lines[0] == {"fit": "other", "x": 1}
    assert all(line["fit"] == "fit" for line in lines[1:])
