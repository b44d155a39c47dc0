"""Grams of linear layers' inputs and of the gradients at their outputs."""

import jax
import numpy as np
import pytest

from fusion_jax.data.batches import eval_batches, make_batch
from fusion_jax.evaluation.losses import loss_of
from fusion_jax.models import EncoderConfig, build_model
from fusion_jax.training import statistics
from fusion_jax.training.sharding import make_mesh
from fusion_jax.training.statistics import collect_grams
from fusion_jax.trees import flatten, map_with_names
from tests.training.conftest import VOCABULARY, make_split

needs_8_devices = pytest.mark.skipif(
    len(jax.devices()) < 8, reason="needs 8 devices; set JAX_NUM_CPU_DEVICES=8"
)

TYPES = {"bert": 2, "roberta": 1, "distilbert": 0}
ROWS = 13
QUERY = "encoder/layer_1/attention/query/kernel"


def build(kind="single_label", family="bert", **options):
    config = EncoderConfig(
        family, VOCABULARY, 16, 2, 4, 24, 24, TYPES[family], pad_token_id=0
    )
    model = build_model(config, kind, 3, **options)
    params = model.init(jax.random.key(1))

    # Far from the start, where all rows look alike and gradients vanish.
    def louder(name, x):
        moved = jax.random.normal(jax.random.key(len(name)), x.shape, x.dtype)
        return 8 * x if name.endswith("/kernel") else x + 0.3 * moved

    return model, map_with_names(louder, params)


def batches_of(split, tokens=64):
    return eval_batches(split, tokens_per_batch=tokens, buckets=(6, 9, 16))


def kind_batch(kind, seed=0, rows=8, length=10):
    """A batch of any kind, with padding tokens and two padding rows."""
    generator = np.random.default_rng(seed)
    lengths = np.where(np.arange(rows) % 3 == 1, 5, length)
    real = np.arange(length) < lengths[:, None]
    mask = np.ones(rows, np.float32)
    mask[-2:] = 0
    batch = {
        "input_ids": generator.integers(1, VOCABULARY, (rows, length), np.int32),
        "attention_mask": real.astype(np.int32),
        "mask": mask,
    }
    if kind == "token":
        tags = generator.integers(-1, 3, (rows, length), np.int32)
        tags[:, 1] = 2
        return batch | {"tags": np.where(real, tags, -1)}
    if kind == "span":
        context = real & (np.arange(length) > 0)
        start = np.where(np.arange(rows) == 1, -1, 1).astype(np.int32)
        return batch | {
            "context_mask": context.astype(np.int32),
            "start": start,
            "end": np.where(start < 0, -1, 3).astype(np.int32),
        }
    if kind == "choice":
        ids = np.where(real, generator.integers(-1, 3, (rows, length)), -1)
        ids[:, :3] = [0, 1, 2]
        return batch | {
            "choice_ids": ids.astype(np.int32),
            "choice_mask": np.ones((rows, 3), np.int32),
            "label": generator.integers(0, 3, rows, np.int32),
        }
    return batch | {"label": generator.integers(0, 3, rows, np.int32)}


def single_rows(batch):
    """Every real row by itself, cut to its own tokens."""
    for row in np.flatnonzero(batch["mask"] > 0):
        length = int(batch["attention_mask"][row].sum())
        whole = {n: x for n, x in batch.items() if n == "label_mask"}
        yield whole | {
            name: x[row : row + 1, :length]
            if x.shape[1:2] == batch["input_ids"].shape[1:]
            else x[row : row + 1]
            for name, x in batch.items()
            if name not in whole
        }


def reference(model, params, batches):
    """(input moments, outputs moments, counts) by kernel leaf: float64, row by row."""
    inputs, counts = {}, {}
    for batch in batches:
        for row in single_rows(batch):

            def record(name, x, y):
                x = np.asarray(x, np.float64).reshape(-1, x.shape[-1])
                x = np.append(x, np.ones((len(x), 1)), axis=1)
                inputs[name] = inputs.get(name, 0) + x.T @ x
                counts[name] = counts.get(name, 0) + len(x)

            model.apply(params, row, tap=record)
    return {name: m / counts[name] for name, m in inputs.items()}, counts


def output_reference(model, params, kind, batches):
    """The mean of g g^T by kernel leaf, from one gradient a row and layer."""

    def likelihood(moved, row):
        outputs = model.apply(params, row, tap=lambda name, x, y: y + moved[name])
        return -loss_of(kind)(outputs, row)[0]

    gradient = jax.jit(jax.grad(likelihood))
    sums, counts = {}, {}
    for batch in batches:
        for row in single_rows(batch):
            zeros = {}

            def record(name, x, y, zeros=zeros):
                zeros[name] = np.zeros(y.shape, np.float32)

            jax.eval_shape(lambda row=row, r=record: model.apply(params, row, tap=r))
            for name, g in gradient(zeros, row).items():
                g = np.asarray(g, np.float64).reshape(-1, g.shape[-1])
                sums[name] = sums.get(name, 0) + g.T @ g
                counts[name] = counts.get(name, 0) + len(g)
    return {name: m / counts[name] for name, m in sums.items()}


def close(actual, expected, tolerance=1e-5):
    """Equal to a share of the largest entry."""
    actual, expected = np.asarray(actual), np.asarray(expected)
    assert actual.shape == expected.shape
    scale = np.abs(expected).max()
    assert scale > 0
    np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance * scale)


def same(left, right, tolerance=1e-5):
    assert left.readers == right.readers
    assert left.counts == right.counts
    assert left.examples == right.examples
    for a, b in ((left.inputs, right.inputs), (left.outputs, right.outputs)):
        assert a.keys() == b.keys()
        for name in a:
            close(a[name], b[name], tolerance)


@pytest.mark.parametrize("every_token", [False, True])
@pytest.mark.parametrize("family", TYPES)
def test_grams_are_the_moments_of_the_unpadded_rows(family, every_token):
    model, params = build(family=family, every_token=every_token)
    batches = batches_of(make_split(ROWS, 5))
    assert any((b["mask"] == 0).any() for b in batches)
    found = collect_grams(model, params, batches)
    expected, counts = reference(model, params, batches)
    assert found.readers.keys() == expected.keys()
    for name, owner in found.readers.items():
        close(found.inputs[owner], expected[name])
        assert found.counts[owner] == counts[name]
        assert found.inputs[owner].dtype == np.float32
        assert found.inputs[owner][-1, -1] == 1
    assert found.examples == ROWS and not found.outputs
    tokens = sum(make_split(ROWS, 5).lengths)
    assert found.counts["encoder/layer_0/mlp/up"] == tokens
    last = found.counts[found.readers[QUERY]]
    assert last == (tokens if every_token else ROWS)
    # Every linear layer of the tree was seen.
    kernels = {name for name in flatten(params) if name.endswith("/kernel")}
    assert kernels == set(found.readers)


def test_layers_of_one_input_share_one_gram():
    batches = batches_of(make_split(ROWS, 5))
    model, params = build(every_token=True)
    readers = collect_grams(model, params, batches).readers
    for layer in ("layer_0", "layer_1"):
        owners = {
            readers[f"encoder/{layer}/attention/{name}/kernel"]
            for name in ("query", "key", "value")
        }
        assert owners == {f"encoder/{layer}/attention/query"}
    model, params = build(every_token=False)
    first = collect_grams(model, params, batches)
    key = first.readers["encoder/layer_1/attention/key/kernel"]
    value = first.readers["encoder/layer_1/attention/value/kernel"]
    assert key == value == "encoder/layer_1/attention/key"
    assert first.readers[QUERY] == "encoder/layer_1/attention/query"


def test_what_stands_in_the_padding_does_not_count():
    model, params = build(every_token=True)
    batches = batches_of(make_split(ROWS, 5))
    options = {"outputs": True, "kind": "single_label"}
    clean = collect_grams(model, params, batches, **options)
    generator = np.random.default_rng(0)
    dirty = []
    for batch in batches:
        ids = batch["input_ids"].copy()
        hidden = (batch["attention_mask"] == 0) | (batch["mask"] == 0)[:, None]
        ids[hidden] = generator.integers(1, VOCABULARY, int(hidden.sum()))
        label = np.where(batch["mask"] > 0, batch["label"], 1).astype(np.int32)
        dirty.append({**batch, "input_ids": ids, "label": label})
    assert any(
        (a["input_ids"] != b["input_ids"]).any()
        for a, b in zip(batches, dirty, strict=True)
    )
    same(collect_grams(model, params, dirty, **options), clean, 1e-6)


def test_order_and_size_of_batches_do_not_matter_and_passes_agree():
    model, params = build(every_token=True)
    split = make_split(ROWS, 5)
    options = {"outputs": True, "kind": "single_label"}
    first = collect_grams(model, params, batches_of(split), **options)
    misses = statistics._program.cache_info().misses
    again = collect_grams(model, params, batches_of(split), **options)
    for name in first.inputs:
        np.testing.assert_array_equal(first.inputs[name], again.inputs[name])
    for name in first.outputs:
        np.testing.assert_array_equal(first.outputs[name], again.outputs[name])
    assert statistics._program.cache_info().misses == misses
    turned = iter(batches_of(split)[::-1])
    same(collect_grams(model, params, turned, **options), first)
    whole = [make_batch(split, np.arange(ROWS), ROWS + 3, 16)]
    same(collect_grams(model, params, whole, **options), first)


@pytest.mark.parametrize("kind", ["single_label", "token", "span", "choice"])
def test_outputs_are_the_moments_of_each_rows_own_gradient(kind):
    model, params = build(kind, every_token=True)
    batches = [kind_batch(kind)]
    found = collect_grams(model, params, batches, outputs=True, kind=kind)
    inputs, counts = reference(model, params, batches)
    outputs = output_reference(model, params, kind, batches)
    assert found.outputs.keys() == found.readers.keys() == outputs.keys()
    assert found.examples == 6
    for name, owner in found.readers.items():
        close(found.inputs[owner], inputs[name])
        assert found.counts[owner] == counts[name]
    for name, expected in outputs.items():
        close(found.outputs[name], expected, 2e-5)


def test_gradients_at_the_classifier_are_label_minus_probability():
    model, params = build()
    batches = batches_of(make_split(ROWS, 5))
    found = collect_grams(
        model, params, batches, layers="head/.*", outputs=True, kind="single_label"
    )
    expected = 0
    apply = jax.jit(model.apply)
    for batch in batches:
        logits = np.asarray(apply(params, batch)["logits"], np.float64)
        p = np.exp(logits - logits.max(-1, keepdims=True))
        g = np.eye(3)[batch["label"]] - p / p.sum(-1, keepdims=True)
        g = g[batch["mask"] > 0]
        expected = expected + g.T @ g / ROWS
    assert list(found.readers) == ["head/classifier/kernel"]
    close(found.outputs["head/classifier/kernel"], expected)


@needs_8_devices
@pytest.mark.parametrize("shape", [(8, 1), (4, 2), (1, 2)])
def test_a_mesh_gives_what_one_device_gives(shape, monkeypatch):
    model, params = build()
    split = make_split(16, 5)
    batches = [make_batch(split, np.arange(s, s + 8), 8, 16) for s in (0, 8)]
    options = {"outputs": True, "kind": "single_label"}
    one = collect_grams(model, params, batches, **options)
    specs = {}
    fetch = statistics._fetch

    def spy(sums, mesh):
        for name, moment in sums["inputs"].items():
            specs["inputs", name] = tuple(moment.gram[0].sharding.spec)
        for name, panels in sums["outputs"].items():
            specs["outputs", name] = tuple(panels[0].sharding.spec)
        return fetch(sums, mesh)

    monkeypatch.setattr(statistics, "_fetch", spy)
    mesh = make_mesh(data=shape[0], model=shape[1])
    many = collect_grams(model, params, batches, mesh=mesh, **options)
    same(many, one)
    assert all(type(x) is np.ndarray for x in many.inputs.values())
    if shape[1] == 2:
        assert specs["inputs", "encoder/layer_0/mlp/up"][:1] == ("model",)
        assert specs["outputs", "encoder/layer_0/mlp/up/kernel"][:1] == ("model",)
        # Three classes over two devices lie whole.
        assert "model" not in specs["outputs", "head/classifier/kernel"]


def test_a_pattern_chooses_layers():
    model, params = build()
    batches = batches_of(make_split(ROWS, 5))
    some = collect_grams(model, params, batches, layers=r"encoder/layer_0/mlp/.*")
    assert set(some.readers) == {
        "encoder/layer_0/mlp/up/kernel",
        "encoder/layer_0/mlp/down/kernel",
    }
    whole = collect_grams(model, params, batches)
    for name in some.inputs:
        np.testing.assert_allclose(
            some.inputs[name], whole.inputs[name], rtol=1e-5, atol=1e-6
        )


def test_what_cannot_be_collected_is_named():
    model, params = build()
    batches = batches_of(make_split(ROWS, 5))
    with pytest.raises(ValueError, match="no batches"):
        collect_grams(model, params, [])
    with pytest.raises(ValueError, match=r"'nothing'.*encoder/layer_0/attention/query"):
        collect_grams(model, params, batches, layers="nothing")
    with pytest.raises(ValueError, match="pass kind="):
        collect_grams(model, params, batches, outputs=True)
    with pytest.raises(ValueError, match="no loss for kind 'poem'"):
        collect_grams(model, params, batches, outputs=True, kind="poem")
    empty = [{**b, "mask": np.zeros_like(b["mask"])} for b in batches]
    with pytest.raises(ValueError, match=r"no real token for .*layer_0.* 0 rows"):
        collect_grams(model, params, empty)

    def broken(name, x):
        return x * np.inf if name == "encoder/layer_1/mlp/up/kernel" else x

    with pytest.raises(ValueError, match=r"not finite: inputs of encoder/layer_1/mlp/"):
        collect_grams(model, map_with_names(broken, params), batches)
