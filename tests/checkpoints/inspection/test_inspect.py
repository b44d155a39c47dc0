import json
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from fusion_jax.checkpoints.inspection import inspect as module
from fusion_jax.checkpoints.inspection.advice import advice
from fusion_jax.checkpoints.inspection.groups import layers_of
from fusion_jax.checkpoints.inspection.inspect import inspect, labels_of
from fusion_jax.checkpoints.inspection.sums import nothing, sums_of
from fusion_jax.checkpoints.tensors import CheckpointError

SHAPES = {
    "embeddings.word.weight": (11, 4),
    "encoder.layer.0.attention.weight": (4, 4),
    "encoder.layer.0.norm.bias": (4,),
    "encoder.layer.1.attention.weight": (4, 4),
    "encoder.layer.10.attention.weight": (4, 4),
    "final_norm.weight": (4,),
    "classifier.0.weight": (3, 4),
    "scale": (),
}
LAYERS = ["embeddings", "layer 0", "layer 1", "layer 10", "norm", "head", "other"]


def draw(seed, scale=1.0, dtype: Any = np.float32, around=None):
    generator = np.random.default_rng(seed)
    return {
        name: (
            scale * generator.standard_normal(shape)
            + (0 if around is None else np.asarray(around[name], np.float64))
        ).astype(dtype)
        for name, shape in SHAPES.items()
    }


def write(folder, tensors, shards=1):
    """A model folder: one file, or shards with their index."""
    folder.mkdir(parents=True)
    tensors = {name: np.asarray(array) for name, array in tensors.items()}
    if shards == 1:
        save_file(tensors, folder / "model.safetensors")
        return folder
    names = list(tensors)
    weight_map = {}
    for shard in range(shards):
        file = f"model-{shard + 1:05}-of-{shards:05}.safetensors"
        save_file({n: tensors[n] for n in names[shard::shards]}, folder / file)
        weight_map |= dict.fromkeys(names[shard::shards], file)
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def reference(models, base, names):
    """The numbers of one group, by loops over whole float64 vectors."""

    def flat(tensors):
        return np.concatenate([np.ravel(tensors[n]).astype(np.float64) for n in names])

    weights = [flat(m) for m in models]
    root = flat(base) if base is not None else sum(weights) / len(weights)
    deltas = [w - root for w in weights]
    norms = [np.sqrt(np.sum(d * d)) for d in deltas]
    found = {
        "norms": norms,
        "reference_norms": np.sqrt(np.sum(root * root)),
        "relative": [n / np.sqrt(np.sum(root * root)) for n in norms],
        "zeros": [np.mean(d == 0) for d in deltas],
        "largest": [np.max(np.abs(d)) for d in deltas],
        "cosines": [],
        "weight_cosines": [],
        "agreement": [],
    }
    for i in range(len(models)):
        for j in range(i + 1, len(models)):
            a, b, v, w = deltas[i], deltas[j], weights[i], weights[j]
            found["cosines"].append(np.sum(a * b) / (norms[i] * norms[j]))
            found["weight_cosines"].append(
                np.sum(v * w) / np.sqrt(np.sum(v * v) * np.sum(w * w))
            )
            moved = (a != 0) & (b != 0)
            found["agreement"].append(np.mean((a > 0)[moved] == (b > 0)[moved]))
    moved = np.all([d != 0 for d in deltas], axis=0)
    signs = np.array([d > 0 for d in deltas])[:, moved]
    found["agreement_all"] = np.mean(np.all(signs == signs[0], axis=0))
    return found


def assert_equals_reference(inspection, models, base):
    groups = layers_of(list(SHAPES))
    for g, group in enumerate(inspection.groups):
        names = [n for n in SHAPES if group in ("total", groups[n], n)]
        for field, expected in reference(models, base, names).items():
            np.testing.assert_allclose(
                getattr(inspection, field)[g],
                expected,
                rtol=1e-9,
                atol=1e-12,
                err_msg=f"{group} {field}",
            )


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16, np.float16])
@pytest.mark.parametrize("with_base", [True, False])
def test_numbers_equal_a_float64_reference(tmp_path, dtype, with_base, monkeypatch):
    monkeypatch.setattr(module, "CHUNK", 7)  # several chunks a tensor, one not full
    base = draw(0, dtype=dtype)
    models = [draw(k, 0.1 * k, dtype, base) for k in (1, 2, 3)]
    models[1]["embeddings.word.weight"][:5] = base["embeddings.word.weight"][:5]
    folders = [write(tmp_path / f"m{k}", m, k + 1) for k, m in enumerate(models)]
    root = write(tmp_path / "base", base, 2) if with_base else None
    found = inspect(folders, root)
    assert list(found.groups) == [*LAYERS, "total"]
    assert found.findings == []
    assert_equals_reference(found, models, base if with_base else None)


def test_each_tensor_can_be_a_row(tmp_path):
    base, model = draw(0), draw(1)
    found = inspect(
        [write(tmp_path / "m", model)], write(tmp_path / "b", base), by="tensor"
    )
    assert set(found.groups) == {*SHAPES, "total"}
    assert found.elements.tolist() == [
        *(np.prod(SHAPES[n], dtype=int) for n in found.groups[:-1]),
        sum(np.prod(s, dtype=int) for s in SHAPES.values()),
    ]
    assert found.cosines.shape == (len(SHAPES) + 1, 0)
    assert np.isnan(found.agreement_all).all()


def test_numbers_do_not_depend_on_chunks_or_threads(tmp_path, monkeypatch):
    folders = [write(tmp_path / f"{k}", draw(k)) for k in range(2)]
    whole = inspect(folders, threads=1).record()
    monkeypatch.setattr(module, "CHUNK", 5)
    for threads in (1, 3):
        pieces = inspect(folders, threads=threads).record()
        for one, other in zip(whole["groups"], pieces["groups"], strict=True):
            for name, facts in one["models"].items():
                assert other["models"][name] == pytest.approx(facts, rel=1e-12)


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_sums_of_two_runs_are_the_sums_of_both(data):
    count = data.draw(st.integers(1, 3))
    size = data.draw(st.integers(2, 20))
    cut = data.draw(st.integers(1, size - 1))
    values = st.sampled_from([-1.5, -1.0, 0.0, 0.25, 1.0, 3.0])
    rows = np.array(
        [[data.draw(values) for _ in range(size)] for _ in range(count + 1)], "f4"
    )
    base = rows[count] if data.draw(st.booleans()) else None

    def part(start, stop):
        return sums_of(
            list(rows[:count, start:stop]), None if base is None else base[start:stop]
        )

    both, whole = nothing(count) + part(0, cut) + part(cut, size), part(0, size)
    for field in vars(whole):
        np.testing.assert_allclose(getattr(both, field), getattr(whole, field))


def test_all_faults_are_found_at_once_and_the_rest_is_compared(tmp_path):
    base = draw(0) | {"ids": np.arange(5), "quantised": np.zeros(3, np.int8)}
    one, other = dict(base), dict(base)
    del one["scale"]
    other["extra.weight"] = np.ones(2, np.float32)
    one["classifier.0.weight"] = np.ones((5, 4), np.float32)
    one["final_norm.weight"] = one["final_norm.weight"].astype(ml_dtypes.bfloat16)
    other["ids"] = np.array([0, 1, 9, 9, 4])
    one["quantised"] = np.zeros(3, np.float32)
    broken = base["encoder.layer.0.norm.bias"].copy()
    broken[:2] = np.nan, np.inf
    other["encoder.layer.0.norm.bias"] = broken
    found = inspect(
        [write(tmp_path / "one", one), write(tmp_path / "other", other)],
        write(tmp_path / "base", base),
    )
    told = {(f.kind, f.tensor): f.detail for f in found.findings}
    assert told == {
        ("missing", "scale"): "in other, the base, not in one",
        ("missing", "extra.weight"): "in other, not in one, the base",
        ("shape", "classifier.0.weight"): "one [5, 4], other [3, 4], the base [3, 4]",
        ("dtype", "final_norm.weight"): (
            "one bfloat16, other float32, the base float32"
        ),
        ("dtype", "quantised"): "one float32, other int8, the base int8",
        ("integer", "ids"): "of 5 entries, other than in one: other in 2",
        ("not finite", "encoder.layer.0.norm.bias"): (
            "NaN or infinity, of 4 entries: other 2; left out"
        ),
    }
    assert found.tensors == len(SHAPES) - 3
    assert np.isfinite(found.norms).all()


def test_the_name_of_a_wrapper_is_seen_through(tmp_path):
    base, model = draw(0), draw(1)
    wrapped = {f"bert.{name}": array for name, array in model.items()}
    bare = inspect([write(tmp_path / "m", model)], write(tmp_path / "b", base))
    found = inspect([write(tmp_path / "w", wrapped)], tmp_path / "b")
    np.testing.assert_array_equal(found.norms, bare.norms)
    (finding,) = found.findings
    assert finding.kind == "prefix" and "'bert.'" in finding.detail


@pytest.mark.parametrize(
    "name, group",
    [
        ("model.embed_tokens.weight", "embeddings"),
        ("transformer.wte.weight", "embeddings"),
        ("bert.embeddings.LayerNorm.weight", "embeddings"),
        ("transformer.h.3.ln_1.weight", "layer 3"),
        ("model.layers.12.mlp.experts.5.w1.weight", "layer 12"),
        ("features.7.conv.weight", "layer 7"),
        ("model.norm.weight", "norm"),
        ("transformer.ln_f.bias", "norm"),
        ("lm_head.weight", "head"),
        ("embed_out.weight", "head"),
        ("classifier.2.bias", "head"),
        ("bert.pooler.dense.weight", "head"),
        ("multihead_mixer.weight", "other"),
        ("0.weight", "other"),
    ],
)
def test_a_tensor_is_put_into_a_layer_by_its_name(name, group):
    assert layers_of([name]) == {name: group}


def test_stacks_are_told_apart_and_layers_are_in_order():
    names = [
        "lm_head.weight",
        "decoder.block.0.weight",
        "encoder.block.10.weight",
        "encoder.block.2.weight",
        "shared.weight",
    ]
    assert list(layers_of(names).values()) == [
        "embeddings",
        "decoder.block 0",
        "encoder.block 2",
        "encoder.block 10",
        "head",
    ]


def test_models_are_called_by_what_tells_their_folders_apart(tmp_path):
    folders = [tmp_path / "a/model", tmp_path / "b/model"]
    assert labels_of(folders) == ["a/model", "b/model"]
    assert labels_of([folders[0]]) == ["model"]
    assert labels_of([folders[0]] * 2) == ["model", "model (2)"]


def lines(inspection):
    return "\n".join(advice(inspection))


def test_what_stands_out_is_said_with_its_number(tmp_path):
    base = draw(0)
    small = {n: (a + 0.001 * np.sign(a)).astype("f4") for n, a in base.items()}
    large = {n: (a + 0.012 * np.sign(a)).astype("f4") for n, a in base.items()}
    back = {n: (a - 0.012 * np.sign(a)).astype("f4") for n, a in base.items()}
    folders = {
        name: write(tmp_path / name, tensors)
        for name, tensors in {
            "base": base,
            "small": small,
            "same": small,
            "large": large,
            "back": back,
            "stranger": draw(5),
        }.items()
    }
    root = folders["base"]

    def said(*names, base=root):
        return lines(inspect([folders[name] for name in names], base))

    assert "small and same are identical" in said("small", "same")
    assert "base is identical to the base: its task vector is zero" in said("base")
    assert "large is 12 times as long as that of small" in said("small", "large")
    assert "small and large point the same way (cosine 1.000)" in said("small", "large")
    assert "large and back pull apart (cosine -1.00)" in said("large", "back")
    assert (
        "stranger does not seem to come from this base: the relative norm of its "
        in (said("small", "stranger"))
    )
    assert "slerp will do what linear does" in said("small", "large", base=None)
    assert "do not seem to share a base" in said("small", "stranger", base=None)
    assert said("large") == ""
    assert said("small", "same", base=None).splitlines() == [
        "small and same are identical in all that was compared"
    ]


def test_without_a_base_the_cosines_are_said_to_be_forced(tmp_path):
    folders = [write(tmp_path / f"{k}", draw(k)) for k in range(2)]
    found = inspect(folders)
    np.testing.assert_allclose(found.cosines, -1)
    assert found.reference == "mean of the models"
    assert "cosines of -1.00 are what any 2 models" in lines(found)


def test_frozen_layers_and_rounded_changes_are_said(tmp_path):
    base = draw(0, dtype=ml_dtypes.bfloat16)
    model = dict(base)
    moved = base["encoder.layer.0.attention.weight"].copy()
    moved[0] *= ml_dtypes.bfloat16(1.5)
    model["encoder.layer.0.attention.weight"] = moved
    said = lines(
        inspect([write(tmp_path / "m", model)], write(tmp_path / "base", base))
    )
    assert "6 of 7 groups are equal to the base in every model: embeddings" in said
    assert "80 % of the delta of m is exactly zero" in said


def test_undefined_numbers_are_null_in_the_record(tmp_path):
    base = draw(0)
    folders = [write(tmp_path / name, base) for name in ("a", "b")]
    record = inspect(folders, write(tmp_path / "base", base)).record()
    pair = record["groups"][-1]["pairs"][0]
    assert (pair["cosine"], pair["sign_agreement"]) == (None, None)
    assert pair["weight_cosine"] == pytest.approx(1)
    assert record["identical"] == [["a", "b"]]
    json.dumps(record, allow_nan=False)


def test_what_cannot_be_compared_is_refused_with_a_reason(tmp_path):
    model = write(tmp_path / "m", draw(0))
    other = write(tmp_path / "other", {"h.0.weight": np.ones(3, np.float32)})
    with pytest.raises(
        CheckpointError, match=r"no tensor can be compared.*h\.0\.weight"
    ):
        inspect([model, other])
    broken = write(tmp_path / "broken", {"h.0.weight": np.full(3, np.nan, np.float32)})
    with pytest.raises(CheckpointError, match="not finite"):
        inspect([other, broken])
    with pytest.raises(CheckpointError, match="nowhere is not there"):
        inspect([model, tmp_path / "nowhere"])
    with pytest.raises(ValueError, match="give a base or a second model"):
        inspect([model])
    with pytest.raises(ValueError, match="neither 'layer' nor 'tensor'"):
        inspect([model, other], by="row")
