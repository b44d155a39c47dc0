"""ColD Fusion as a whole, through a real repository, on a tiny encoder."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from fusion_jax import trees
from fusion_jax.checkpoints import huggingface as hf
from fusion_jax.checkpoints.tensors import read_file
from fusion_jax.collaboration.repository import init_repository, open_repository
from fusion_jax.systems import cold_fusion
from fusion_jax.systems.cold_defaults import cold_config
from fusion_jax.systems.cold_outcome import GROUPS, METHODS
from fusion_jax.systems.cold_repository import OtherHistory
from fusion_jax.systems.cold_setting import prepare
from fusion_jax.systems.cold_tasks import contributors, folds_of
from fusion_jax.systems.cold_training import train_contributors
from fusion_jax.systems.workdir import ConfigChanged
from tests.small_models import LABELS, write_model, write_task

ROOT = Path(__file__).resolve().parents[2]
TASKS = ("film", "play", "song", "stars")
THREE = ("bad", "fine", "good")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Task folders, one of them with three labels and no test split; an encoder."""
    root = tmp_path_factory.mktemp("cold")
    write_model(root / "encoder")
    for name in TASKS[:3]:
        write_task(root / "tasks" / name)
    rows = [{"text": f"a film {w}", "label": w} for w in THREE] * 6
    write_task(
        root / "tasks" / "stars", labels=THREE, train=rows, dev=rows[:9], test=False
    )
    return root


def make_config(place, **changes):
    config = cold_config()
    config.encoder = str(place / "encoder")
    config.data = {"reader": "folders", "path": str(place / "tasks")}
    config.tasks = TASKS
    config.rounds, config.contributors = 2, 2
    config.folds, config.fold = 4, 0
    config.few_shot, config.tiny_rows = 4, 15
    config.max_length = 16
    for stage in (config.fit, config.finetune, config.few, config.multitask):
        stage.update({"epochs": 1, "batch_size": 4, "learning_rate": 1e-2})
    config.probe.head_epochs = 2
    config.update(changes)
    return config


@pytest.fixture(scope="module")
def finished(place):
    """Two rounds of one fold with both baselines."""
    return cold_fusion.run(make_config(place), place / "run")


def bodies(folder):
    """Every safetensors object of a repository."""
    return [read_file(file) for file in Path(folder).rglob("*.safetensors")]


def test_the_record_holds_every_base_method_and_group(finished):
    results = json.loads((finished.workdir / "results.json").read_text())
    assert results == finished.results
    assert tuple(results["methods"]) == METHODS
    groups = {name: entry["group"] for name, entry in results["tasks"].items()}
    [unseen] = [name for name in TASKS if groups[name] == "unseen"]
    assert results["target"] == "fold_0"
    for name, entry in results["methods"].items():
        assert 0 <= entry["test"] <= 1, name
        assert list(entry["unseen"]["tasks"]) == [unseen]
        assert set(entry["seen"]["tasks"]) == set(TASKS) - {unseen}
        assert (entry["few_shot"] is None) == name.endswith("_frozen")
        assert (entry["seen"]["gain"] is None) == name.startswith("base")
    assert [entry["round"] for entry in results["rounds"]] == [0, 1, 2]
    for entry in results["rounds"][1:]:
        assert len(entry["accepted"]) == 2 and unseen not in entry["contributors"]
        assert entry["scores"]["frozen"]["seen"] is not None
    counted = [entry["contributed"] for entry in results["tasks"].values()]
    assert sum(counted) == 4
    assert results["tasks"]["stars"]["rows"]["test"] == 9
    assert results["seconds"]["contributors"] > 0 and results["seconds"]["fuse"] > 0
    assert set(GROUPS) <= set(results["methods"]["cold"])


def test_what_is_tiny_is_left_out_of_the_second_average(finished):
    results = finished.results
    tiny = {name for name, entry in results["tasks"].items() if entry["tiny"]}
    assert tiny == set(TASKS[:3])
    for group in ("seen", "unseen"):
        entry = results["methods"]["cold"][group]
        large = [x for name, x in entry["tasks"].items() if name not in tiny]
        if large:
            assert entry["without_tiny"]["score"] == pytest.approx(np.mean(large))
        else:
            assert entry["without_tiny"] is None


def test_a_base_is_the_mean_of_the_bodies_that_it_names(finished):
    repository = open_repository(finished.workdir / "repository")
    for base in repository.history()[1:]:
        parts = [
            read_file(
                repository.fetch(repository.contribution(p.manifest).manifest.weights)
            )
            for p in base.parts
        ]
        assert [part.weight for part in base.parts] == [0.5, 0.5]
        fused = read_file(repository.fetch(base.weights))
        for name, leaf in fused.items():
            mean = np.mean([np.asarray(p[name], np.float64) for p in parts], axis=0)
            np.testing.assert_array_equal(leaf, mean.astype(leaf.dtype), err_msg=name)


def test_heads_stay_with_their_contributors(finished):
    """Tables that nobody trains are the base's; no name or shape of a head leaves."""
    repository = finished.workdir / "repository"
    files = bodies(repository)
    assert len(files) == 3 + 4
    encoder = hf.load(finished.workdir / "model")
    assert encoder.kind is None and "head" not in encoder.params
    for file in files:
        assert not [name for name in file if "classifier" in name or "head" in name]
        # The only leaf as long as a head of three labels: there are none of this width.
        assert not [name for name, x in file.items() if 3 in x.shape]
    heads = list((finished.workdir / "heads").rglob("*.safetensors"))
    assert len(heads) == 4
    assert all(
        set(read_file(head)) == {"head/classifier/kernel", "head/classifier/bias"}
        for head in heads
    )


def test_nothing_but_results_is_left_when_a_run_is_over(finished):
    assert not list((finished.workdir / "fits").rglob("*.*"))
    assert not list((finished.workdir / "evaluations" / "fits").glob("*"))
    page = (finished.workdir / "report.html").read_text()
    assert "Scores by round" in page and "Task by task" in page
    card = (finished.workdir / "model" / "README.md").read_text()
    assert finished.results["rounds"][-1]["base"] in card


def test_a_second_run_trains_nothing_and_says_the_same(finished, place):
    def files():
        return {
            f: f.stat().st_mtime_ns
            for f in (place / "run").rglob("*")
            if f.is_file() and "cache" not in f.parts
        }

    before = files()
    again = cold_fusion.run(make_config(place), place / "run")
    assert again.results == finished.results and files() == before
    # Only the report is lost: everything else is found by its content.
    (place / "run" / "results.json").unlink()
    third = cold_fusion.run(make_config(place), place / "run").results
    for part in ("methods", "rounds", "tasks"):
        assert third[part] == finished.results[part]
    with pytest.raises(ConfigChanged, match="contributors"):
        cold_fusion.run(make_config(place, contributors=3), place / "run")


@pytest.mark.parametrize("change", [{"seed": 1}, {"contributors": 3}, {"rounds": 1}])
def test_a_repository_that_another_run_filled_is_refused(change, finished, place):
    url = str(place / "run" / "repository")
    config = make_config(place, repository=url, baselines=(), **change)
    before = len(bodies(url))
    with pytest.raises(OtherHistory, match="was filled by another run"):
        cold_fusion.run(config, place / f"other-{next(iter(change))}")
    assert len(bodies(url)) == before


def test_what_another_config_left_waiting_is_not_fused(place, tmp_path):
    """A run that was stopped before its first fuse, then started with other rows."""
    repository = fused_once(place, tmp_path, rounds=0)
    setting = prepare(
        make_config(place, seed=7), 7, hf.load(place / "encoder"), tmp_path
    )
    train_contributors(
        setting,
        repository,
        repository.base(0),
        TASKS[:1],
        heads=tmp_path / "heads",
        fits=tmp_path / "fits",
    )
    url = str(tmp_path / "repository")
    with pytest.raises(OtherHistory, match=r"round 0: film/.* is not of this run"):
        cold_fusion.run(make_config(place, repository=url), tmp_path / "run")


def test_overwrite_starts_repositories_of_the_run_itself_anew(place, tmp_path):
    """Another seed, then another encoder: nothing of the run before is taken."""
    write_model(tmp_path / "other", seed=1)
    small = {"rounds": 1, "tasks": TASKS[:1], "folds": 0, "fold": -1}
    small |= {"baselines": ("one_shot",)}
    seen = set()
    for change in ({}, {"seed": 3}, {"encoder": str(tmp_path / "other")}):
        config = make_config(place, **small, **change)
        found = cold_fusion.run(config, tmp_path / "run", overwrite=True).results
        once = open_repository(tmp_path / "run" / "one_shot" / "repository")
        assert [len(base.parts) for base in once.history()] == [0, 1]
        seen |= {found["rounds"][1]["base"], once.base(1).weights.sha256}
        assert len(found["rounds"]) == 2
    assert len(seen) == 3  # a single fuse of one round is that round
    assert found["methods"]["multitask"]["test"] is None
    assert found["methods"]["cold"]["unseen"] is None


def test_a_run_that_is_killed_ends_with_the_same_bases(finished, place, tmp_path):
    """SIGKILL between the first contribution and the first fuse, then once more."""
    script = (
        "import sys, json\n"
        "from pathlib import Path\n"
        "from fusion_jax.systems import cold_fusion\n"
        "from tests.systems.test_cold_fusion import make_config\n"
        "place, workdir = map(Path, sys.argv[1:])\n"
        "cold_fusion.run(make_config(place, baselines=()), workdir)\n"
    )
    # What it would evaluate is there: it comes to the contributors at once.
    shutil.copytree(finished.workdir / "evaluations", tmp_path / "evaluations")
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(place), str(tmp_path)],
        env={**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"},
        stderr=subprocess.DEVNULL,
    )
    contributed = tmp_path / "repository" / "contributions"
    began = time.monotonic()
    while not list(contributed.rglob("manifest.json")):
        assert process.poll() is None and time.monotonic() - began < 120
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "results.json").exists()
    config = make_config(place, baselines=())
    resumed = cold_fusion.run(config, tmp_path).results
    for one, other in zip(resumed["rounds"], finished.results["rounds"], strict=True):
        assert one["base"] == other["base"]
        assert one["scores"] == other["scores"]


def fused_once(place, folder, **changes):
    """The base after one round, without any evaluation."""
    config = make_config(place, baselines=(), **changes)
    setting = prepare(config, 0, hf.load(config.encoder), folder)
    [fold] = folds_of(config, setting.names, 0)
    repository = init_repository(
        folder / "repository", config.encoder, cache=folder / "cache"
    )
    for round_ in range(config.rounds):
        names = contributors(fold.seen, config.contributors, round_, 0)
        cold_fusion.advance(setting, repository, round_, names, folder)
    return repository


def test_contributors_of_one_program_are_those_of_one_after_another(place, tmp_path):
    """Tasks of two and of three labels in one program."""
    options = {"folds": 0, "fold": -1, "rounds": 1, "tasks": ("film", "stars")}
    bases = [
        fused_once(place, tmp_path / str(together), together=together, **options)
        for together in (0, 2)
    ]
    one, other = (read_file(r.fetch(r.base(1).weights)) for r in bases)
    assert one.keys() == other.keys()
    for name, leaf in one.items():
        np.testing.assert_allclose(leaf, other[name], rtol=1e-4, atol=1e-5)


def test_a_kept_head_goes_on_where_it_was(place, tmp_path):
    options = {"folds": 0, "fold": -1, "contributors": 2, "rounds": 2}
    heads = {}
    for head in ("fresh", "kept"):
        repository = fused_once(
            place, tmp_path / head, head=head, tasks=TASKS[:2], **options
        )
        first = [found.manifest for found in repository.contributions(0)]
        second = [found.manifest for found in repository.contributions(1)]
        assert all("head" not in one.config for one in first)
        assert all(("head" in one.config) == (head == "kept") for one in second)
        file = tmp_path / head / "heads" / "000000" / "film.safetensors"
        heads[head] = read_file(file)
        mark = {m.task: m.config.get("head") for m in second}["film"]
        if head == "kept":
            assert mark == hf.hash_params(trees.unflatten(read_file(file)))
    for name in heads["fresh"]:
        np.testing.assert_array_equal(heads["fresh"][name], heads["kept"][name])


def test_every_fold_is_a_run_of_its_own(place, tmp_path):
    config = make_config(
        place,
        tasks=("film", "stars"),
        folds=2,
        fold=-1,
        rounds=1,
        baselines=("one_shot",),
        frozen_rounds=(0,),
    )
    found = cold_fusion.run(config, tmp_path).results
    assert [run["target"] for run in found["runs"]] == ["fold_0", "fold_1"]
    unseen = [set(run["methods"]["cold"]["unseen"]["tasks"]) for run in found["runs"]]
    assert sorted(unseen, key=str) == [{"film"}, {"stars"}]
    groups = found["groups"]["cold"]
    scores = [run["methods"]["cold"]["few_shot"]["score"] for run in found["runs"]]
    assert groups["few_shot"]["score"] == pytest.approx(np.mean(scores))
    assert groups["few_shot"]["spread"] == pytest.approx(np.std(scores, ddof=1))
    assert found["groups"]["multitask"]["seen"]["runs"] == 0
    # The plain base is evaluated once for both; and as all seen tasks
    # contribute to the only round, it is the single fuse.
    plain = list((tmp_path / "evaluations").glob("film-frozen-*.json"))
    assert len(plain) == 1 + 2
    for run in found["runs"]:
        one, other = (run["methods"][name]["test"] for name in ("cold", "one_shot"))
        assert one == other
    for name in ("fold_0", "fold_1"):
        assert (tmp_path / name / "seed_0" / "model" / "config.json").is_file()
    assert "Seen and unseen tasks" in (tmp_path / "report.html").read_text()


def test_bad_options_are_all_named_at_once(place, tmp_path):
    config = make_config(place, fold=9, head="mine", baselines=("two_shot",))
    config.probe.epochs = 3
    config.fuse.method = "meen"
    config.evaluate_rounds = (7,)
    with pytest.raises(ValueError) as told:
        cold_fusion.run(config, tmp_path)
    for part in (
        "fold: 9, and there are 4 folds",
        "head: 'mine'",
        "baselines: two_shot",
        "probe: trains the head alone",
        "unknown method 'meen'; did you mean mean?",
        "evaluate_rounds: [7]",
    ):
        assert part in str(told.value)
    assert not list(tmp_path.iterdir())


def test_tasks_that_cannot_take_part_are_named(place, tmp_path):
    for name in ("a b", "a_b"):
        write_task(tmp_path / "tasks" / name, labels=LABELS)
    config = make_config(place, tasks=(), folds=3, tiny=("cb",))
    config.data.path = str(tmp_path / "tasks")
    with pytest.raises(ValueError) as told:
        cold_fusion.run(config, tmp_path / "run")
    for part in ("folds: 3 for 2 tasks", "both called 'a_b'", "tiny: cb are no tasks"):
        assert part in str(told.value)


@pytest.mark.slow
def test_contributors_as_commands_make_the_bases_of_commands_whoever_runs_them(
    place, tmp_path
):
    """Processes here, and Ray's workers where it is installed: one hash."""
    backends = ["processes"]
    try:
        import ray  # noqa: F401
    except ModuleNotFoundError:
        pass
    else:
        backends.append("ray")
    hashes = []
    for backend in backends:
        config = make_config(
            place,
            backend=backend,
            workers=2,
            rounds=1,
            baselines=(),
            folds=0,
            fold=-1,
        )
        result = cold_fusion.run(config, tmp_path / backend)
        [_, base] = result.results["rounds"]
        assert len(base["accepted"]) == 2
        hashes.append(base["base"])
        models = list(
            (tmp_path / backend / "jobs" / "contributions" / "models").iterdir()
        )
        assert len(models) == 2
        # What they handed in is known for this run's when it is gone on with.
        (tmp_path / backend / "results.json").unlink()
        again = cold_fusion.run(config, tmp_path / backend).results
        assert again["rounds"] == result.results["rounds"]
    assert len(set(hashes)) == 1


def test_kept_heads_are_no_business_of_commands(place, tmp_path):
    config = make_config(place, backend="processes", head="kept")
    with pytest.raises(ValueError, match="'kept' goes with backend 'stacked'"):
        cold_fusion.run(config, tmp_path / "run")
    with pytest.raises(ValueError, match="not one of stacked, processes, ray"):
        cold_fusion.run(make_config(place, backend="slurm"), tmp_path / "run")
