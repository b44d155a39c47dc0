"""Model folders in, one model folder out: whole, resumed, and the same every time."""

import json
import os
import re
import signal
import struct
import subprocess
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from fusion_jax import MERGES
from fusion_jax.atomic import WriteFailed
from fusion_jax.checkpoints import staging as module
from fusion_jax.checkpoints.direct_plan import direct_plan
from fusion_jax.checkpoints.lazy import open_checkpoint
from fusion_jax.checkpoints.merge import merge
from fusion_jax.checkpoints.run_merge import dry_run, run_merge
from fusion_jax.checkpoints.tensors import CheckpointError, read_weights
from tests.checkpoints.folders import IDS, SHAPES, digests, tensors_of, write_folder

ROOT = Path(__file__).resolve().parents[2]
WEIGHTS = "model.safetensors"


@pytest.fixture
def place(tmp_path):
    """A base and three models in float32; model b in shards."""
    write_folder(tmp_path / "origin", tensors_of(0))
    for seed, name in enumerate("abc", start=1):
        write_folder(tmp_path / name, tensors_of(seed), shards=3 if name == "b" else 1)
    return tmp_path


def plan_of(place, method="ties", names: Sequence[str] = "abc", **more):
    given = {"base": place / "origin"} if "base" in MERGES[method].needs else {}
    return direct_plan(method, [place / n for n in names], **given, **more)


def weights(folder):
    return {name: array for name, (array, _) in read_weights(folder).items()}


def expected(method, **options):
    experts = [tensors_of(seed) for seed in (1, 2, 3)]
    given: dict[str, Any] = {"base": {n: tensors_of(0)[n] for n in SHAPES}}
    if "key" in MERGES[method].needs:
        given["key"] = jax.random.key(5)
    if "base" not in MERGES[method].needs:
        given = {}
    stack = {n: np.stack([e[n] for e in experts]) for n in SHAPES}
    row = np.array([0.5, 0.3, 0.2], np.float32)
    merged = MERGES[method].function(jax.device_put(stack), row, **given, **options)
    return merged if isinstance(merged, dict) else merged[0]


@pytest.mark.parametrize("method", ["ties", "weighted_average", "dare", "emr"])
def test_the_output_is_what_the_function_gives_in_memory(place, method):
    plan = plan_of(place, method, weights=[0.5, 0.3, 0.2])
    before = digests(place)
    done = merge(plan, place / "out", seed=5)
    assert done.resumed == 0
    found = load_file(place / "out" / WEIGHTS)
    np.testing.assert_array_equal(found.pop("position_ids"), IDS)
    assert found.keys() == SHAPES.keys()
    for name, values in expected(method).items():
        np.testing.assert_allclose(found[name], values, rtol=1e-5, atol=2e-6)
        norm = np.linalg.norm(found[name].astype(np.float64))
        assert done.norms[name] == pytest.approx(norm, rel=1e-5)
    after = digests(place)
    assert {n: h for n, h in after.items() if not n.startswith("out/")} == before
    for label, files in done.hashes.items():
        folder = "origin" if label == "base" else label
        assert files == {f: before[f"{folder}/{f}"] for f in files} and files
    assert not [path for path in place.iterdir() if path.name.startswith(".")]


def test_a_bound_on_files_makes_shards_with_an_index(place):
    plan = plan_of(place)
    merge(plan, place / "one")
    merge(plan, place / "many", shard_bytes=200)
    index = json.loads((place / "many" / "model.safetensors.index.json").read_text())
    files = sorted(set(index["weight_map"].values()))
    assert len(files) > 2 and files[0] == f"model-00001-of-{len(files):05d}.safetensors"
    found: dict[str, np.ndarray] = {}
    for file in files:
        part = load_file(place / "many" / file)
        assert len(part) == 1 or sum(x.nbytes for x in part.values()) <= 200
        assert all(index["weight_map"][name] == file for name in part)
        found |= part
    whole = load_file(place / "one" / WEIGHTS)
    assert index["metadata"]["total_size"] == sum(x.nbytes for x in whole.values())
    assert found.keys() == whole.keys()
    for name, values in whole.items():
        np.testing.assert_array_equal(found[name], values)


def test_bfloat16_and_mixed_dtypes_keep_integers_and_take_the_dtype_asked_for(
    tmp_path,
):
    half = ml_dtypes.bfloat16
    write_folder(tmp_path / "a", tensors_of(1, half))
    write_folder(tmp_path / "b", tensors_of(2, half))
    write_folder(tmp_path / "c", tensors_of(3, np.float16))
    for names, dtype, kind in (
        ("ab", None, half),
        ("abc", None, np.float32),
        ("abc", "float16", np.float16),
    ):
        models = [tmp_path / name for name in names]
        plan = direct_plan("weighted_average", models, dtype=dtype)
        out = tmp_path / f"{names}-{dtype}"
        merge(plan, out)
        size = sum(info.num_bytes for info in open_checkpoint(out).tensors.values())
        assert dry_run(plan).record["bytes_out"] == size
        found = weights(out)
        assert found["position_ids"].dtype == np.int64
        sources = [weights(model) for model in models]
        for name in SHAPES:
            mean = np.mean([s[name].astype(np.float64) for s in sources], axis=0)
            assert found[name].dtype == kind
            np.testing.assert_allclose(
                found[name].astype(np.float64),
                mean.astype(kind).astype(np.float64),
                rtol=2**-8,
            )
    for dtype in ("int64", "bf16"):
        plan = direct_plan("weighted_average", [tmp_path / "a"], dtype=dtype)
        with pytest.raises(CheckpointError, match=f"dtype '{dtype}' is not one of"):
            merge(plan, tmp_path / "no")
    assert not (tmp_path / "no").exists()


def test_two_runs_give_the_same_bytes_whatever_the_order_of_tensors(place):
    plan = plan_of(place, "dare_ties", options={"density": 0.5})
    merge(plan, place / "one", seed=3)
    merge(plan, place / "two", seed=3)
    assert digests(place / "one") == digests(place / "two")
    merge(replace(plan, tensors=plan.tensors[::-1]), place / "reversed", seed=3)
    merge(plan, place / "other", seed=4)
    one, other = weights(place / "one"), weights(place / "other")
    backwards = weights(place / "reversed")
    for name, values in one.items():
        np.testing.assert_array_equal(backwards[name], values)
    assert any(not np.array_equal(other[name], one[name]) for name in one)


def test_a_tensor_without_elements_is_kept(tmp_path):
    empty = {"empty": np.zeros((0, 6), np.float32)}
    for seed, name in enumerate("ab"):
        write_folder(tmp_path / name, tensors_of(seed) | empty)
    for method in ("weighted_average", "slerp"):
        merge(plan_of(tmp_path, method, "ab"), tmp_path / method)
        assert load_file(tmp_path / method / WEIGHTS)["empty"].shape == (0, 6)


KILLED = """
    import os, signal, sys
    from pathlib import Path
    from fusion_jax.checkpoints import merge as module, staging
    from fusion_jax.checkpoints.direct_plan import direct_plan

    place, synced, killed = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    staging._SYNC_BYTES = staging._SYNC_SECONDS = synced
    seen = []

    def progress(name, count):
        seen.append(name)
        if len(seen) == killed:
            os.kill(os.getpid(), signal.SIGKILL)

    plan = direct_plan(
        "ties", [place / n for n in "abc"], base=place / "origin",
        options={"density": 0.5},
    )
    module.merge(plan, place / "out", shard_bytes=300, progress=progress)
"""


def python(script, *arguments):
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), *map(str, arguments)],
        capture_output=True,
        text=True,
        env={**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)},
    )


@pytest.mark.parametrize("synced, resumed", [(0, 3), (10**9, 0)])
def test_a_killed_merge_leaves_no_output_and_goes_on(place, synced, resumed):
    killed = python(KILLED, place, synced, 3)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert not (place / "out").exists() and (place / ".out.merging").is_dir()
    plan = plan_of(place, options={"density": 0.5})
    written = []
    done = merge(
        plan,
        place / "out",
        shard_bytes=300,
        progress=lambda name, count: written.append(name),
    )
    assert done.resumed == resumed
    assert len(written) == len(plan.tensors) - resumed
    assert done.norms.keys() == {tensor.name for tensor in plan.tensors}
    assert not (place / ".out.merging").exists()
    whole = merge(plan, place / "whole", shard_bytes=300)
    assert digests(place / "out") == digests(place / "whole")
    assert done.norms == whole.norms


class Stopped(Exception):
    pass


def stopped_after(count):
    seen = []

    def progress(name, num_bytes):
        seen.append(name)
        if len(seen) == count:
            raise Stopped

    return progress


@pytest.mark.parametrize("changed", ["plan", "seed", "source"])
def test_another_merge_does_not_go_on_with_what_is_there(place, monkeypatch, changed):
    monkeypatch.setattr(module, "_SYNC_BYTES", 0)
    plan = plan_of(place, "dare")
    with pytest.raises(Stopped):
        merge(plan, place / "out", progress=stopped_after(4))
    assert not (place / "out").exists()
    if changed == "plan":
        plan = plan_of(place, "dare", weights=[1, 2, 3])
    elif changed == "source":
        save_file(tensors_of(9), place / "a" / WEIGHTS)
    seed = 1 if changed == "seed" else 0
    assert merge(plan, place / "out", seed=seed).resumed == 0
    merge(plan, place / "anew", seed=seed)
    assert digests(place / "out") == digests(place / "anew")


def test_a_shard_that_went_missing_is_written_again(place, monkeypatch):
    monkeypatch.setattr(module, "_SYNC_BYTES", 0)
    plan = plan_of(place)
    with pytest.raises(Stopped):
        merge(plan, place / "out", shard_bytes=300, progress=stopped_after(5))
    sorted((place / ".out.merging").glob("*.safetensors"))[0].unlink()
    assert 0 < merge(plan, place / "out", shard_bytes=300).resumed < 5
    merge(plan, place / "whole", shard_bytes=300)
    assert digests(place / "out") == digests(place / "whole")


def test_two_processes_do_not_merge_to_one_output(place):
    plan = plan_of(place)

    def second(name, num_bytes):
        with pytest.raises(FileExistsError, match="another process is merging"):
            merge(plan, place / "out")

    merge(plan, place / "out", progress=second)
    assert (place / "out" / WEIGHTS).is_file()


def test_a_line_that_a_crash_cut_is_done_again(place, monkeypatch):
    monkeypatch.setattr(module, "_SYNC_BYTES", 0)
    plan = plan_of(place)
    with pytest.raises(Stopped):
        merge(plan, place / "out", progress=stopped_after(4))
    record = place / ".out.merging" / "done.txt"
    record.write_text(record.read_text()[:-5])
    assert merge(plan, place / "out").resumed == 3
    merge(plan, place / "anew")
    assert digests(place / "out") == digests(place / "anew")


def test_an_output_is_replaced_only_when_told(place):
    out = place / "out"
    out.mkdir()
    (out / "mine.txt").write_text("kept")
    plan = plan_of(place)
    with pytest.raises(FileExistsError, match="choose another folder, or pass --over"):
        merge(plan, out)
    assert [file.name for file in out.iterdir()] == ["mine.txt"]
    merge(plan, out, overwrite=True)
    assert [file.name for file in out.iterdir()] == [WEIGHTS]
    for holder in (place / "a", place):
        with pytest.raises(FileExistsError, match="holds the model '"):
            merge(plan, holder, overwrite=True)
    (place / "file").write_text("")
    with pytest.raises(FileExistsError, match="is a file"):
        merge(plan, place / "file", overwrite=True)


def test_nan_is_named_with_model_tensor_and_count(place):
    bad = tensors_of(1)
    bad["embed.weight"][:2, :3] = [np.nan, np.inf, -np.inf]
    bad["scale"][:] = np.nan
    save_file(bad, place / "a" / WEIGHTS)
    plan = plan_of(place, "weighted_average")
    with pytest.raises(CheckpointError) as refused:
        merge(plan, place / "out")
    said = str(refused.value)
    assert "2 tensors of the sources hold NaN or infinity" in said
    assert "a: embed.weight (6 of 72)" in said and "a: scale (1 of 1)" in said
    assert not (place / "out").exists() and not (place / ".out.merging").exists()
    done = merge(plan, place / "out", allow_nonfinite=True)
    found = load_file(place / "out" / WEIGHTS)
    assert np.isnan(found["scale"]).all()
    assert np.isfinite(found["embed.weight"]).sum() == 66
    assert not np.isfinite(done.norms["scale"])


def test_an_output_too_large_for_its_dtype_is_refused(place):
    plan = plan_of(place, "weighted_average", weights=[1e6] * 3, dtype="float16")
    with pytest.raises(CheckpointError, match=r"too large for their dtype.*wider"):
        merge(plan, place / "out")
    assert not (place / "out").exists()


def test_what_a_method_refuses_leaves_nothing(place):
    plan = plan_of(place, "ties")
    wrong = [replace(t, options={**t.options, "elect": "all"}) for t in plan.tensors]
    with pytest.raises(ValueError, match="'all' is not one of"):
        merge(replace(plan, tensors=tuple(wrong)), place / "out")
    assert not (place / "out").exists() and not (place / ".out.merging").exists()


FULL = """
    import resource, sys
    from pathlib import Path
    from fusion_jax.checkpoints.direct_plan import direct_plan
    from fusion_jax.checkpoints.run_merge import run_merge

    place, limit = Path(sys.argv[1]), int(sys.argv[2])
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    plan = direct_plan("weighted_average", [place / n for n in "abc"])
    run_merge(plan, place / "out")
"""


# One that the weights do not fit in, and one that only merge.json does not.
@pytest.mark.parametrize("limit", [1_000, 2_500])
def test_a_full_disk_is_told_and_leaves_nothing(place, limit):
    before = digests(place)
    done = python(FULL, place, limit)
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert "WriteFailed" in last and f"the disk is full while writing {place}" in last
    assert digests(place) == before
    assert sorted(path.name for path in place.iterdir()) == ["a", "b", "c", "origin"]


def test_a_folder_that_may_not_be_written_is_told(place, monkeypatch):
    def refused(*arguments, **more):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", refused)
    with pytest.raises(WriteFailed, match=r"no permission to write .*out"):
        merge(plan_of(place), place / "out")


def test_a_truncated_shard_is_told(place):
    file = place / "b" / "model-00002-of-00003.safetensors"
    file.write_bytes(file.read_bytes()[:-3])
    with pytest.raises(CheckpointError, match=r"00002-of-00003.* is truncated"):
        plan_of(place)


def test_a_header_longer_than_the_file_is_told(place):
    (place / "a" / WEIGHTS).write_bytes(struct.pack("<Q", 2**40) + b"{}")
    with pytest.raises(CheckpointError, match="its header says 1099511627776 bytes"):
        plan_of(place)


def test_a_shard_that_is_missing_is_told(place):
    (place / "b" / "model-00003-of-00003.safetensors").unlink()
    with pytest.raises(CheckpointError, match="not there: model-00003-of-00003"):
        plan_of(place)


def test_all_differences_between_models_are_listed_at_once(place):
    other = tensors_of(4)
    other["embed.weight"] = other["embed.weight"][:10]
    other["layers.0.attention.weight"] = other["layers.0.attention.weight"].T[:5]
    del other["layers.1.attention.bias"]
    other["head.weight"] = np.ones((2, 6), np.float32)
    other["position_ids"] = IDS + 1
    write_folder(place / "other", other, config={"model_type": "large"})
    with pytest.raises(CheckpointError) as refused:
        plan_of(place, names=("a", "b", "other"))
    said = str(refused.value)
    for line in (
        "5 tensors differ",
        "embed.weight: shape (12, 6) in base, (10, 6) in other",
        "layers.0.attention.weight: shape (6, 6) in base, (5, 6) in other",
        "layers.1.attention.bias: in base, missing in other",
        "head.weight: in other, missing in base",
        "position_ids: integers that differ between base and other",
        "different architectures (large, tiny)",
    ):
        assert line in said, said


def test_a_kernel_of_integers_in_one_model_alone_is_told(place):
    other = tensors_of(4)
    other["scale"] = np.ones(1, np.int8)
    write_folder(place / "quantised", other)
    with pytest.raises(CheckpointError, match="scale: float32 in base, int8 in quant"):
        plan_of(place, names=("a", "quantised"))


@pytest.mark.parametrize(
    "name, number",
    [
        ("model.layers.3.mlp.up_proj.weight", "3"),
        ("bert.encoder.layer.11.output.dense.bias", "11"),
        ("transformer.h.2.attn.c_attn.weight", "2"),
        ("h.2.attn.c_attn.weight", "2"),
        ("encoder.block.4.layer.1.DenseReluDense.wi.weight", "4"),
        ("encoder/layer_5/kernel", "5"),
        ("embed.weight", None),
        ("classifier.0.weight", None),
    ],
)
def test_layers_are_known_by_the_names_of_files(place, name, number):
    tensors = {tensor.name: tensor for tensor in plan_of(place, "lines").tensors}
    found = re.fullmatch(tensors["scale"].options["layer_pattern"], name)
    assert (found and found[1]) == number


def test_lines_weighs_deeper_layers_more(place):
    plan = plan_of(place, "lines", "a", options={"alpha": 0.0, "beta": 1.0})
    merge(plan, place / "out")
    found, base = load_file(place / "out" / WEIGHTS), tensors_of(0)
    np.testing.assert_array_equal(
        found["layers.0.attention.weight"], base["layers.0.attention.weight"]
    )
    np.testing.assert_allclose(
        found["layers.1.attention.weight"],
        tensors_of(1)["layers.1.attention.weight"],
        rtol=1e-6,
    )


def test_the_folder_is_a_model_with_its_history(place):
    tokenizer = place / "origin" / "tokenizer.json"
    tokenizer.write_text("{}")
    plan = plan_of(place, weights=[0.5, 0.3, 0.2], options={"density": 0.5})
    plan = replace(plan, out_dtype="bfloat16")
    run_merge(plan, place / "out", command="fusion-jax merge --method ties")
    out = place / "out"
    assert sorted(file.name for file in out.iterdir()) == [
        "README.md",
        "config.json",
        "merge.json",
        WEIGHTS,
        "tokenizer.json",
    ]
    config = json.loads((out / "config.json").read_text())
    assert config == {"model_type": "tiny", "torch_dtype": "bfloat16"}
    record = json.loads((out / "merge.json").read_text())
    assert record["seed"] is None and record["out_dtype"] == "bfloat16"
    assert record["tensors"].keys() == {*SHAPES, "position_ids"}
    scale = record["tensors"]["scale"]
    assert scale["options"]["density"] == 0.5
    assert scale["options"]["trim_scope"] == "model"
    assert scale["coefficients"] == [0.5, 0.3, 0.2]
    assert record["tensors"]["position_ids"]["method"] == "copy"
    card = (out / "README.md").read_text()
    for label, source in record["sources"].items():
        for digest in source["sha256"].values():
            assert digest in card, label
    for file in ("README.md", "merge.json", "config.json"):
        assert str(place) not in (out / file).read_text()
