"""Pieces of files give what whole trees in memory give."""

import inspect
import itertools
import tracemalloc
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from fusion_jax.checkpoints import pieces, streaming
from fusion_jax.checkpoints.in_process import merge_arrays
from fusion_jax.checkpoints.leaves import Streamers, numbers_and_words
from fusion_jax.checkpoints.pieces import Leaf
from fusion_jax.checkpoints.plan import Source, TensorPlan
from fusion_jax.checkpoints.streaming import Streamer
from fusion_jax.merging import MERGES
from fusion_jax.merging.form import Form, Select, Threshold

SHAPES = {
    "layers.0.attention.weight": (24, 10),
    "layers.0.bias": (20,),
    "layers.1.convolution.weight": (3, 4, 9),
    "layers.1.scale": (1,),
}
OPTIONS = {"lines": {"layer_pattern": r".*layers\.(\d+)\..*"}}
MORE = [
    ("ties", {"trim_scope": "tensor", "elect": "weighted", "density": 0.5}),
    ("ties", {"aggregate": "sum", "density": 0.3}),
    ("dare", {"density": 0.6, "exempt_vectors": False}),
    ("della", {"density": 0.6, "epsilon": 0.3, "exempt_vectors": False}),
    ("model_stock", {"filter_wise": True}),
    ("nuslerp", {"vectors": "row"}),
    ("sce", {"select_topk": 0.4}),
    ("ties", {"density": (0.2, 0.9, 0.5)}),
    ("fisher", {"normalize": "model"}),
    ("mats", {"start": "task_arithmetic", "iterations": 4, "alpha": 0.5}),
]
SPECTRAL = ("tsv_m", "iso_c", "iso_cts", "knots", "wudi")
MATRICES = {
    "layers.0.attention.weight": (24, 10),
    "layers.1.convolution.weight": (3, 36),
}
STREAMED = [
    *[
        (name, OPTIONS.get(name, {}))
        for name, record in MERGES.items()
        if record.form is not None
    ],
    *MORE,
]


@pytest.fixture
def small_pieces(monkeypatch):
    monkeypatch.setattr(pieces, "PIECE", 64)
    monkeypatch.setattr(pieces, "_SMALL", 16)


def model(seed, dtype: Any = np.float32):
    random = np.random.default_rng(seed)
    return {n: random.normal(size=s).astype(dtype) for n, s in SHAPES.items()}


def statistics_of(method, count) -> dict[str, Any]:
    """Statistics of `count` models by leaf, as a leaf of the streaming has them."""
    random = np.random.default_rng(9)

    def grams(size):
        x = random.normal(size=(count, 3 * size, size))
        return np.einsum("kni,knj->kij", x, x).astype(np.float32)

    if method == "fisher":
        return {
            name: tuple(
                (10.0 ** random.uniform(-9, 0, shape)).astype(np.float32)
                for _ in range(count)
            )
            for name, shape in SHAPES.items()
        }
    if method == "regmean":
        return {name: grams(width) for name, (_, width) in MATRICES.items()}
    if method == "mats":
        return {
            name: {"inputs": grams(width), "outputs": 1e-16 * grams(out)}
            for name, (out, width) in MATRICES.items()
        }
    return {}


def streamed(experts, method, coefficients, base=None, options=None):
    """What a merge of files does, in a fresh streamer, leaves in another order."""
    record = MERGES[method]
    statistics = statistics_of(method, len(experts))
    anchor = base if "base" in record.needs | record.accepts else None
    numbers, _ = numbers_and_words(method, options or {})
    streamers, leaves = Streamers(seed=0), []
    for name in reversed(experts[0]):
        leaves.append(
            Leaf(
                name=name,
                experts=tuple(expert[name] for expert in experts),
                base=None if anchor is None else anchor[name],
                coefficients=np.asarray(coefficients, np.float64),
                options=numbers,
                statistics=statistics.get(name),
            )
        )
    plan = TensorPlan("", method, (Source("", ""),), options=options or {})
    streamer = streamers.of(plan)
    if streamer.form.scope == "model":
        facts = streamer.facts(leaves)
    else:
        facts = [streamer.facts([leaf])[0] for leaf in leaves]
    merged = {}
    for leaf, known in zip(leaves, facts, strict=True):
        parts = list(streamer.merged(leaf, known, leaf.experts[0].dtype))
        starts = [start for start, _ in parts]
        lengths = [len(values) for _, values in parts]
        assert starts == [0, *itertools.accumulate(lengths)][:-1]
        merged[leaf.name] = np.concatenate([v for _, v in parts]).reshape(leaf.shape)
    return merged


def in_memory(experts, method, coefficients, base=None, options=None):
    record = MERGES[method]
    given = {
        name: np.asarray(value) if isinstance(value, tuple) else value
        for name, value in (options or {}).items()
    }
    if base is not None and "base" in record.needs | record.accepts:
        given["base"] = base
    if "key" in record.needs:
        given["key"] = jax.random.key(0)
    if "input_axis" in inspect.signature(record.function).parameters:
        given["input_axis"] = -1
    stack = {name: np.stack([e[name] for e in experts]) for name in experts[0]}
    arrays = {n: given.pop(n) for n in ("base", "key") if n in given}
    if "statistics" in record.needs:
        leaves = statistics_of(method, len(experts))
        arrays["statistics"] = leaves
        if method == "fisher":
            arrays["statistics"] = {name: np.stack(x) for name, x in leaves.items()}
        if method == "mats":
            arrays["statistics"] = {
                side: {name: x[side] for name, x in leaves.items()}
                for side in ("inputs", "outputs")
            }
    # Compiled whole: piece by piece its operations would be compiled one by one.
    merged = jax.jit(lambda s, c, a: record.function(s, c, **a, **given))(
        stack, np.asarray(coefficients, np.float32), arrays
    )
    return merged if isinstance(merged, dict) else merged[0]


def count_of(method):
    least, most = MERGES[method].experts
    return min(max(least, 3), most or 3)


@pytest.mark.parametrize(
    "method, options", STREAMED, ids=[f"{m}-{'-'.join(o)}" for m, o in STREAMED]
)
def test_pieces_give_what_whole_leaves_give(small_pieces, method, options):
    count = count_of(method)
    experts, base = [model(seed) for seed in range(1, count + 1)], model(0)
    row = np.array([0.5, 0.3, 0.2])[:count]
    found = streamed(experts, method, row, base, options)
    expected = in_memory(experts, method, row, base, options)
    assert found.keys() == expected.keys()
    for name in found:
        # What float32 loses where a base is added back is relative to the base; a
        # decomposition of float32 loses more.
        atol = 1e-4 if method in SPECTRAL else 2e-6
        np.testing.assert_allclose(
            found[name], expected[name], rtol=1e-5, atol=atol, err_msg=name
        )
    different = [not np.array_equal(found[n], experts[0][n]) for n in found]
    assert any(different) or method in ("wise_ft", "krum")


@pytest.mark.parametrize("normalize", ["none", "model", "tensor"])
def test_fisher_in_pieces_is_that_in_memory_to_the_last_digits(small_pieces, normalize):
    experts, options = [model(seed) for seed in (1, 2, 3)], {"normalize": normalize}
    row = [0.5, 0.3, 0.2]
    found = streamed(experts, "fisher", row, options=options)
    expected = in_memory(experts, "fisher", row, options=options)
    for name in found:
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-6, atol=1e-6)
        mean = sum(c * x[name] for c, x in zip(row, experts, strict=True))
        # One entry in units of itself says nothing.
        alone = normalize == "tensor" and mean.size == 1
        assert (np.abs(found[name] - mean).max() < 0.1) == alone, name


def larger_half(unit):
    """The mean by statistics where they are among the larger half, else 0."""

    def total(block, facts, options):
        return jnp.sum(jnp.asarray(block.statistics), axis=0)[None]

    def apply(block, facts, options):
        line: Threshold = facts["line"]
        kept = total(block, facts, options)[0] > line.value[0]
        return jnp.where(
            kept, jnp.mean(block.experts * jnp.asarray(block.statistics), axis=0), 0
        )

    half = Select("line", total, lambda size, facts, options: jnp.asarray([size // 2]))
    return Form(apply, (half,), unit=unit, input_axis=-1)


@pytest.mark.parametrize("kind", [tuple, np.stack])
@pytest.mark.parametrize("unit", ["element", "row", "leaf"])
def test_statistics_are_cut_with_the_experts(small_pieces, monkeypatch, unit, kind):
    monkeypatch.setattr(streaming, "_SAMPLE", 32)
    monkeypatch.setattr(pieces, "_RUN", 8)
    random = np.random.default_rng(0)
    experts, statistics = random.random((2, 3, 25, 7), np.float32)
    leaf = Leaf("w", tuple(experts), None, np.ones(3), {}, kind(list(statistics)))
    streamer = Streamer(larger_half(unit))
    parts = list(streamer.merged(leaf, streamer.facts([leaf])[0], np.dtype(np.float32)))
    assert len(parts) == {"element": 3, "row": 5, "leaf": 1}[unit]
    found = np.concatenate([values for _, values in parts]).reshape(25, 7)
    line = np.sort(statistics.sum(0), axis=None)[-(25 * 7 // 2)]
    right = np.where(statistics.sum(0) > line, (experts * statistics).mean(0), 0)
    # What equals the line but for rounding may be on either side.
    near = np.abs(statistics.sum(0) - line) < 1e-6
    np.testing.assert_allclose(found[~near], right[~near], rtol=1e-6)


def test_no_more_than_a_piece_of_the_statistics_is_copied(small_pieces):
    experts = tuple(np.ones((512, 512), np.float32) for _ in range(2))
    statistics = tuple(np.ones((512, 512), np.float32) for _ in range(2))
    leaf = Leaf("w", experts, None, np.ones(2), {}, statistics)
    for unit in ("element", "row"):
        tracemalloc.start()
        for read in itertools.islice(pieces.cut(larger_half(unit), leaf), 3):
            assert read().statistics.shape == read().experts.shape
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 64 * 1024 < statistics[0].nbytes


@pytest.mark.parametrize("unit", ["element", "row"])
def test_statistics_that_do_not_fit_are_named(unit):
    experts = tuple(np.ones((4, 3)) for _ in range(2))
    for statistics in (experts[:1], (np.ones((4, 3)), np.ones((3, 4)))):
        leaf = Leaf("w", experts, None, np.ones(2), {}, statistics)
        with pytest.raises(ValueError, match=r"statistics of 'w'.*each of 2 experts"):
            next(iter(pieces.cut(larger_half(unit), leaf)))


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
@pytest.mark.parametrize("count", [3, 7])
def test_equal_models_fuse_to_themselves_bit_for_bit(small_pieces, count, dtype):
    expert = model(1, dtype)
    merged = streamed([expert] * count, "weighted_average", [1 / count] * count)
    for name, values in merged.items():
        assert values.dtype == dtype
        assert values.tobytes() == expert[name].tobytes(), name


def test_bfloat16_is_rounded_once(small_pieces):
    kind = ml_dtypes.bfloat16
    experts, base = [model(seed, kind) for seed in range(1, 5)], model(0, kind)
    merged = streamed(experts, "task_arithmetic", [0.3] * 4, base)
    for name, values in merged.items():
        origin = base[name].astype(np.float64)
        exact = origin + sum(
            0.3 * (expert[name].astype(np.float64) - origin) for expert in experts
        )
        np.testing.assert_array_equal(values, exact.astype(kind), err_msg=name)


def test_experts_of_several_dtypes_are_widened_first(small_pieces):
    experts = [model(1), model(2, ml_dtypes.bfloat16), model(3, np.float16)]
    wide = [{n: x.astype(np.float32) for n, x in e.items()} for e in experts]
    one = streamed(experts, "weighted_average", [0.5, 0.25, 0.25])
    two = streamed(wide, "weighted_average", [0.5, 0.25, 0.25])
    for name in one:
        np.testing.assert_array_equal(one[name], two[name])


@pytest.mark.parametrize("method", ["ties", "dare", "pcb"])
def test_the_length_of_pieces_changes_nothing(monkeypatch, method):
    experts, base = [model(seed) for seed in (1, 2, 3)], model(0)
    found = []
    for length in (64, 96, 2**18):
        monkeypatch.setattr(pieces, "PIECE", length)
        found.append(streamed(experts, method, [0.5, 0.3, 0.2], base))
    for other in found[1:]:
        for name, values in other.items():
            np.testing.assert_array_equal(values, found[0][name], err_msg=name)


def test_arrays_in_memory_are_merged_by_the_same_pieces(small_pieces):
    experts, base = [model(seed) for seed in (1, 2)], model(0)
    whole = np.arange(3)
    named = {f"m{i}": {"ids": whole, **expert} for i, expert in enumerate(experts)}
    merged = merge_arrays(
        named,
        "ties",
        [0.5, 0.5],
        base={"ids": whole, **base},
        options={"density": 0.4},
    )
    assert list(merged) == ["ids", *SHAPES]
    expected = streamed(experts, "ties", [0.5, 0.5], base, {"density": 0.4})
    for name, values in expected.items():
        np.testing.assert_array_equal(merged[name], values)
    with pytest.raises(ValueError, match="needs base="):
        merge_arrays(named, "ties", [0.5, 0.5])
    with pytest.raises(ValueError, match=r"shape \(1,\) for 2 models"):
        merge_arrays(named, "weighted_average", [1.0])
    with pytest.raises(ValueError, match="whole models"):
        merge_arrays(named, "emr", [0.5, 0.5], base=base)


def test_tensors_without_elements_are_merged_to_none(small_pieces):
    empty = {"e": np.zeros((0, 4), np.float32), "f": np.zeros((4, 0), np.float32)}
    experts = [empty | model(seed) for seed in (1, 2)]
    named = dict(zip("ab", experts, strict=True))
    for method in ("ties", "della", "slerp", "iso_c"):
        merged = merge_arrays(named, method, [0.5, 0.5], base=empty | model(0), seed=1)
        assert merged["e"].shape == (0, 4) and merged["f"].shape == (4, 0)
