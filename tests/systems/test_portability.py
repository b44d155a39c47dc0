"""The portability study as a whole, on tiny hosts and hand-written task folders."""

import json
import shutil
from dataclasses import replace

import jax
import numpy as np
import pytest

from fusion_jax import trees
from fusion_jax.checkpoints import huggingface as hf
from fusion_jax.checkpoints.module_file import (
    WEIGHTS,
    OtherHost,
    about_host,
    load_module,
    save_module,
)
from fusion_jax.checkpoints.tensors import CheckpointError, write_file
from fusion_jax.peft.module import Module, init_module
from fusion_jax.reports.tables import results_table, to_text
from fusion_jax.systems import portability
from fusion_jax.systems.judge import Judge
from fusion_jax.systems.portability_defaults import portability_config
from fusion_jax.systems.portability_given import given_module
from fusion_jax.systems.portability_grid import Origin
from fusion_jax.systems.portability_hosts import load_hosts
from fusion_jax.systems.portability_lanes import lane_leaves
from fusion_jax.systems.portability_leaks import of_items
from fusion_jax.systems.portability_origins import Trained
from fusion_jax.systems.portability_setting import peft_config
from fusion_jax.systems.workdir import ConfigChanged
from tests.small_models import LABELS, sentences, write_model, write_task

FIELDS = (
    "technique",
    "origin",
    "receiver",
    "origin_data",
    "receiver_data",
    "init",
    "steps",
    "seed",
    "score",
)


def others(noun):
    """Rows that are in no training split."""
    words = ("good", "bad", "great", "dull", "fine", "poor", "so good", "so bad")
    return [
        {"text": f"we saw a {word} {noun}", "label": LABELS[1 - n % 2]}
        for n, word in enumerate(words)
    ]


def put_test_rows(folder, rows):
    lines = (json.dumps(row) + "\n" for row in rows)
    (folder / "test.jsonl").write_text("".join(lines))


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Two task folders that share rows, one of hosts, and an encoder of two layers."""
    root = tmp_path_factory.mktemp("portability")
    write_model(root / "encoder")
    put_test_rows(write_task(root / "tasks" / "film", test=False), others("film"))
    # Four test rows of this one are training rows of the other, in capitals.
    seen = [{**row, "text": row["text"].upper() + "!"} for row in sentences(4)]
    play = write_task(root / "tasks" / "play", test=False)
    put_test_rows(play, [*seen, *others("play")[:4]])
    write_task(root / "tasks" / "book", test=False)
    return root


def make_config(place, **changes):
    config = portability_config()
    config.hosts.one = str(place / "encoder")
    config.made.half = {"base": "one", "layers": (0,), "tasks": ("book",)}
    config.made.twin = {"base": "one", "layers": (1, 0), "tasks": ()}
    config.pairs = ("one:twin", "one:half")
    config.data = {"reader": "folders", "path": str(place / "tasks")}
    config.tasks = ("film", "play")
    config.combinations = ("film:film", "film:play")
    config.techniques = {
        "lora": {"peft": {"kind": "lora", "rank": 2}, "learning_rate": 1e-2},
    }
    config.inits = ("ported", "scratch", "permuted")
    config.steps = (0, 2, 3)
    config.max_length = 16
    for stage in (config.fit, config.receive, config.make):
        stage.update({"epochs": 1, "batch_size": 4})
    config.update(changes)
    # Only hosts that a pair names: they are made anew in every folder.
    used = {host for pair in config.pairs for host in pair.split(":")}
    for name in set(config.made) - used - {"twin"}:
        del config.made[name]
    return config


@pytest.fixture(scope="module")
def finished(place):
    return portability.run(make_config(place), place / "run")


def test_results_hold_a_row_a_run_of_the_whole_grid(finished):
    results = json.loads((finished.workdir / "results.json").read_text())
    rows = results["runs"]
    assert len(rows) == 1 * 2 * 2 * 3 * 3
    assert all(set(FIELDS) <= set(row) for row in rows)
    keys = {tuple(row[name] for name in FIELDS[:-1]) for row in rows}
    assert len(keys) == len(rows)
    assert all(0 <= row["score"] <= 1 for row in rows)
    assert all(low <= high for low, high in (row["interval"] for row in rows))
    assert {row["method"] for row in rows if row["receiver"] == "twin"} == {"copy"}
    assert {row["method"] for row in rows if row["receiver"] == "half"} == {"skip"}
    assert results["summary"]["runs"] == len(rows)


def test_rows_that_the_origin_learned_from_are_left_out_and_counted(finished):
    results = finished.results
    leaks = {
        (one["origin_data"], one["receiver_data"]): one for one in results["leaks"]
    }
    crossed = leaks["film", "play"]
    assert (crossed["left_out"], crossed["of"]) == (4, 8)
    for row in results["runs"]:
        if row["receiver_data"] == "play":
            assert (row["items"], row["left_out"]) == (4, 4)
    text = (finished.workdir / "report.html").read_text()
    assert "film &gt; play" in text and "4 of 8" in text


def test_zero_shot_of_a_module_that_adds_nothing_is_the_bare_host(finished):
    """LoRA from scratch, before training: the origin's head on the bare receiver."""
    config = make_config(finished.workdir.parent)
    setting = portability.make_setting(config, finished.workdir)
    cells = portability.cells_of(config, tuple(setting.receivers))
    cell = next(c for c in cells if (c.host, c.task) == ("twin", "film"))
    trained = portability.origin_modules(setting, portability.origins_of([cell]))
    (module,) = (one.module for one in trained.values())
    problem = setting.problem("twin", "film", receiver=True)
    params = {
        **setting.whole("twin", "film", 0),
        "head": module.params["head"],
    }
    scores = Judge(problem, 2048).scores(params, "test")
    unseen = setting.unseen("film", "film")
    (row,) = (
        row
        for row in finished.results["runs"]
        if (row["receiver"], row["receiver_data"]) == ("twin", "film")
        and (row["init"], row["steps"]) == ("scratch", 0)
    )
    assert row["score"] == of_items(scores, unseen).mean


def test_ported_leaves_are_the_origins_where_shapes_agree(finished):
    config = make_config(finished.workdir.parent)
    setting = portability.make_setting(config, finished.workdir)
    cells = portability.cells_of(config, tuple(setting.receivers))
    cell = next(c for c in cells if (c.host, c.task) == ("twin", "film"))
    trained = portability.origin_modules(setting, portability.origins_of([cell]))
    starts = dict(
        zip((lane.init for lane in cell.lanes), lane_leaves(setting, cell, trained),
            strict=True)
    )  # fmt: skip
    (module,) = (one.module for one in trained.values())
    mine = trees.flatten(module.params)
    for name, leaf in trees.flatten(starts["ported"]).items():
        np.testing.assert_array_equal(leaf, mine[name])
    for init in ("scratch", "permuted"):
        other = trees.flatten(starts[init])
        assert other.keys() == mine.keys()
        for name in mine:
            same = np.array_equal(other[name], mine[name])
            # Every init has the origin's head.
            assert same == name.startswith("head/"), (init, name)


def test_a_fresh_head_is_the_same_for_every_init(finished):
    config = make_config(finished.workdir.parent, head="fresh")
    setting = portability.make_setting(config, finished.workdir)
    cells = portability.cells_of(config, tuple(setting.receivers))
    cell = next(c for c in cells if (c.host, c.task) == ("half", "film"))
    trained = portability.origin_modules(setting, portability.origins_of([cell]))
    starts = lane_leaves(setting, cell, trained)
    heads = [np.asarray(start["head"]["classifier"]["kernel"]) for start in starts]
    (module,) = (one.module for one in trained.values())
    assert not np.array_equal(heads[0], module.params["head"]["classifier"]["kernel"])
    for head in heads[1:]:
        np.testing.assert_array_equal(head, heads[0])


def test_frozen_hosts_stay_and_steps_on_the_way_are_shorter_trainings(place, finished):
    """Scores at 2 of 3 steps are those of a study that ends after 2."""
    before = hf.load(place / "encoder").sha256
    config = make_config(
        place, steps=(2,), pairs=("one:twin",), combinations=("film:film",)
    )
    short = portability.run(config, place / "short")
    assert hf.load(place / "encoder").sha256 == before
    wanted = {
        row["init"]: row["score"]
        for row in finished.results["runs"]
        if (row["receiver"], row["receiver_data"], row["steps"]) == ("twin", "film", 2)
    }
    assert {row["init"]: row["score"] for row in short.results["runs"]} == wanted


def test_a_study_that_was_stopped_goes_on_with_the_cells_that_are_left(
    place, finished, monkeypatch
):
    copy = place / "stopped"
    shutil.copytree(finished.workdir, copy)
    (copy / "results.json").unlink()
    lost = sorted((copy / "cells").glob("*.json"))[0]
    lost.unlink()
    times = {file.name: file.stat().st_mtime_ns for file in copy.rglob("*.safetensors")}
    again = portability.run(make_config(place), copy)
    assert again.results["runs"] == finished.results["runs"]
    assert again.results["summary"] == finished.results["summary"]
    assert lost.is_file()
    kept = {file.name: file.stat().st_mtime_ns for file in copy.rglob("*.safetensors")}
    assert kept == times, "hosts or modules were made anew"
    # Finished, it is only read.
    monkeypatch.setattr(portability, "make_setting", None)
    assert portability.run(make_config(place), copy).results == again.results
    with pytest.raises(ConfigChanged, match=r"config\.head: 'ported' there, 'fresh'"):
        portability.run(make_config(place, head="fresh"), copy)


def test_the_table_and_the_report_name_every_technique_and_init(finished):
    text = to_text(results_table(finished.results))
    assert "lora, ported" in text and "lora, from scratch" in text
    assert "zero-shot" in text and "3 steps" in text
    page = (finished.workdir / "report.html").read_text()
    assert page.count("<svg") >= 2 and "hosts of other sizes" in page
    assert "<script src" not in page and "http" not in page.split("</style>")[0]


def test_modules_that_exist_are_taken_and_held_against_the_host(place, finished):
    (folder,) = (finished.workdir / "modules").iterdir()
    given = place / "given"
    module = load_module(folder)
    save_module(given, module)
    name = "lora:one:film:0"
    changes = {"pairs": ("one:twin",), "combinations": ("film:film",), "steps": (0,)}
    config = make_config(place, modules=(f"{name}={given}",), **changes)
    found = portability.run(config, place / "with")
    assert not (place / "with" / "modules").exists(), "it was trained all the same"
    (wanted,) = (
        row["score"]
        for row in finished.results["runs"]
        if (row["receiver"], row["receiver_data"]) == ("twin", "film")
        and (row["init"], row["steps"]) == ("ported", 0)
    )
    assert [r["score"] for r in found.results["runs"] if r["init"] == "ported"] == [
        wanted
    ]

    def run(workdir, **more):
        portability.run(make_config(place, **changes, **more), place / workdir)

    strange = module._replace(host={**module.host, "sha256": "0" * 64})
    save_module(place / "strange", strange)
    strangers = (f"{name}={place / 'strange'}",)
    with pytest.warns(OtherHost, match="this one has other weights"):
        run("w1", modules=strangers)
    with pytest.raises(CheckpointError, match="take a module of this host"):
        run("w2", modules=strangers, strict_host=True)
    cut = dict(trees.flatten(module.params))
    gone = next(iter(cut))
    del cut[gone]
    shutil.copytree(given, place / "cut")
    write_file(place / "cut" / WEIGHTS, {k: np.asarray(v) for k, v in cut.items()})
    with pytest.raises(CheckpointError, match=f"{gone}: missing"):
        run("w3", modules=(f"{name}={place / 'cut'}",))
    pickled = place / "pickled"
    pickled.mkdir()
    (pickled / "adapter_model.bin").write_bytes(b"\x80\x04.")
    with pytest.raises(CheckpointError, match="opening a pickle"):
        run("w4", modules=(f"{name}={pickled}",))
    with pytest.raises(ValueError, match="'lora:one:play:0' is no origin of the grid"):
        run("w5", modules=(f"lora:one:play:0={given}",))


def test_every_fault_of_a_config_is_told_at_once(place):
    config = make_config(
        place,
        head="old",
        inits=("ported", "copied"),
        steps=(-1,),
        pairs=("one:three",),
        seeds=0,
    )
    config.techniques.lora.peft.rank = 0
    config.receive.schedule = "linear"
    with pytest.raises(ValueError) as caught:
        portability.run(config, place / "wrong")
    told = str(caught.value)
    for part in (
        "head: 'old' is not one of ported, fresh",
        "inits: copied; there are ported, scratch",
        "steps: [-1]",
        "three is not among the hosts (one, twin)",
        "seeds: 0; at least 1",
        "techniques.lora: PeftConfig: rank = 0",
        "receive: a schedule or warm-up",
    ):
        assert part in told
    assert not (place / "wrong").exists()


def test_a_host_ported_to_itself_by_its_hidden_states_gives_the_module_back(
    place, finished
):
    config = make_config(place, pairs=("one:one",), combinations=("film:film",))
    config.port.method = "correlation"
    setting = portability.make_setting(config, finished.workdir)
    (cell,) = portability.cells_of(config, tuple(setting.receivers))
    trained = portability.origin_modules(setting, portability.origins_of([cell]))
    start = lane_leaves(setting, cell, trained)[0]
    ((_, (module, _)),) = trained.items()
    for name, leaf in trees.flatten(module.params).items():
        np.testing.assert_array_equal(trees.flatten(start)[name], leaf)


@pytest.mark.filterwarnings("ignore:the checkpoint lacks")
@pytest.mark.filterwarnings("error::fusion_jax.checkpoints.module_file.OtherHost")
def test_a_host_without_a_pooler_is_one_in_all_cells(place):
    full = hf.load(place / "encoder")
    own = {name: x for name, x in full.params["encoder"].items() if name != "pooler"}
    bare = place / "bare"
    hf.save(bare, {"encoder": own}, full.config, kind=None, tokenizer_from=full.path)
    config = make_config(
        place, pairs=("bare:bare",), combinations=("film:film",), strict_host=True
    )
    config.hosts = {"bare": str(bare)}
    config.made = {}
    setting = portability.make_setting(config, place / "poolers")
    one, other = (setting.whole("bare", *way) for way in (("film", 0), ("play", 1)))
    ours, theirs = trees.flatten(one), trees.flatten(other)
    assert "encoder/pooler/kernel" in ours and set(ours) == set(theirs)
    for name in ours:
        same = np.array_equal(ours[name], theirs[name])
        assert same == (name != "head/classifier/kernel"), name
    # A module knows the checkpoint, not what was drawn beside it.
    about = dict(setting.host("bare").record)
    assert about == about_host(setting.hosts["bare"], "bare")
    peft = peft_config(config, "lora")
    module = init_module(peft, one, jax.random.key(0), about=about)
    given = save_module(place / "of_bare", module)
    given_module(setting, Origin("lora", "bare", "film", 0), str(given))


def test_a_made_host_is_named_by_the_rows_that_it_learns(place, tmp_path):
    data = {"reader": "folders", "path": str(tmp_path / "tasks")}
    shutil.copytree(place / "tasks", tmp_path / "tasks")
    config = make_config(place, pairs=("one:half",), data=data)
    first = load_hosts(config, tmp_path)["half"].path
    assert load_hosts(config, tmp_path)["half"].path == first
    # The same path, other rows.
    write_task(tmp_path / "tasks" / "book", test=False, train=others("book"))
    assert load_hosts(config, tmp_path)["half"].path != first
    # Other paths, the same rows.
    shutil.copytree(place / "tasks", tmp_path / "copy")
    config.data.path = str(tmp_path / "copy")
    assert load_hosts(config, tmp_path)["half"].path == first


def test_a_host_made_of_a_task_of_the_study_is_refused(place):
    config = make_config(place)
    config.made.half.tasks = ("book", "play")
    config.made.twin.tasks = ("film",)
    with pytest.raises(ValueError) as caught:
        portability.run(config, place / "known")
    assert "made.half.tasks: play of the study" in str(caught.value)
    assert "made.twin.tasks: film of the study" in str(caught.value)
    assert not (place / "known" / "hosts").exists()


def test_a_cell_is_named_by_its_metrics_and_the_rows_left_out(place):
    config = make_config(place, pairs=("one:twin",), combinations=("film:play",))
    setting = portability.make_setting(config, place / "names")
    (cell,) = portability.cells_of(config, tuple(setting.receivers))
    trained = {
        origin: Trained(Module(peft_config(config, "lora"), {}, {}), "given")
        for origin in portability.origins_of([cell])
    }
    names = [portability.cell_file(setting, cell, trained).name]
    task = setting.receivers["play"]
    setting.receivers["play"] = replace(task, metrics=("macro_f1",))
    setting._kept.clear()
    names.append(portability.cell_file(setting, cell, trained).name)
    # The receiver's rows stay; the origin has learned from one more of them.
    film = setting.origins["film"]
    more = (*film.rows("train"), task.rows("test")[-1])
    setting.origins["film"] = replace(film, splits={**film.splits, "train": more})
    setting._kept.clear()
    names.append(portability.cell_file(setting, cell, trained).name)
    assert len(set(names)) == 3


def test_what_a_receiver_has_no_place_for_is_told_before_any_training(place):
    config = make_config(place, pairs=("one:half",), combinations=("film:film",))
    for name, part in (("second", "query"), ("other", "value")):
        peft = {"kind": "lora", "rank": 2, "targets": (f".*layer_1/.*/{part}",)}
        config.techniques[name] = {"peft": peft, "learning_rate": 1e-2}
    with pytest.raises(ValueError) as caught:
        portability.run(config, place / "placeless")
    for name in ("second", "other"):
        assert f"{name}, on half: " in str(caught.value)
    assert "lora, on half" not in str(caught.value)
    assert not (place / "placeless" / "modules").exists()


def test_a_technique_that_cannot_be_ported_is_told_before_any_training(place):
    config = make_config(place, pairs=("one:twin",), combinations=("film:film",))
    config.techniques.ia3 = {"peft": {"kind": "ia3"}, "learning_rate": 1e-2}
    config.port.method = "subspace"
    with pytest.raises(ValueError, match=r"ia3, one:twin: .*one factor a dimension"):
        portability.run(config, place / "unported")
    assert not (place / "unported" / "modules").exists()
