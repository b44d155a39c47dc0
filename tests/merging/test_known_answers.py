"""Small inputs on which public implementations go wrong, with the right answers.

Each case runs twice: as a function of trees, and streamed as files are. What concerns
files and not formulas is in tests/checkpoints/test_known_faults.py.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fusion_jax
from fusion_jax import MERGES
from fusion_jax.checkpoints.in_process import merge_arrays

# name: (method, base or None, experts, coefficients, options, answer)
CASES = {
    "slerp of an untouched zero bias is the straight line": (
        ("slerp", None, [[0, 0], [1, 1]], [0.5, 0.5], {}, [0.5, 0.5])
    ),
    "nuslerp as well": ("nuslerp", None, [[0, 0], [1, 1]], [1, 1], {}, [0.5, 0.5]),
    "slerp of parallel vectors is the straight line": (
        ("slerp", None, [[1, 2], [2, 4]], [0.5, 0.5], {}, [1.5, 3.0])
    ),
    "Model Stock does not extrapolate": (
        ("model_stock", [0, 0], [[1, 0], [-0.977, 0.2132]], [1, 1], {}, [0, 0])
    ),
    "Model Stock of opposite experts is the base": (
        ("model_stock", [1, 1], [[2, 1], [0, 1]], [1, 1], {}, [1, 1])
    ),
    "Model Stock of equal experts is that expert, however near the base": (
        ("model_stock", [0] * 4, [[1e-5] * 4] * 2, [1, 1], {}, [1e-5] * 4)
    ),
    "weights of both signs are no means: the sum over agreeing ones is finite": (
        "ties",
        [0],
        [[0.01], [-0.0101]],
        [1, -0.999],
        {"density": 1.0, "aggregate": "sum", "elect": "weighted"},
        [0.01],
    ),
    "DELLA of a row of one entry is finite": (
        "della",
        [[0.0]] * 5,
        [[[1.0], [2.0], [3.0], [4.0], [5.0]]],
        [1],
        {"density": 1.0},
        [[1.0], [2.0], [3.0], [4.0], [5.0]],
    ),
    "density .29 of 100 keeps 29": (
        "ties",
        np.zeros(100),
        [np.arange(1.0, 101)],
        [1],
        {"density": 0.29},
        np.where(np.arange(1, 101) > 71, np.arange(1.0, 101), 0),
    ),
    "Breadcrumbs keeps entries of small tensors": (
        "breadcrumbs",
        np.zeros(5),
        [[1.0, 2, 3, 4, 5]],
        [1],
        {"density": 0.8, "gamma": 0.01},
        [0, 2, 3, 4, 5],
    ),
    "Breadcrumbs keeps half of fifty": (
        "breadcrumbs",
        np.zeros(50),
        [np.arange(1.0, 51)],
        [1],
        {"density": 0.5, "gamma": 0.01},
        np.where(np.arange(1, 51) > 25, np.arange(1.0, 51), 0),
    ),
    "SCE weights do not turn uniform for small deltas": (
        ("sce", [0, 0], [[3e-4] * 2, [1e-4] * 2], [1, 1], {}, [2.8e-4] * 2)
    ),
    "and are the same for large ones": (
        ("sce", [0, 0], [[3] * 2, [1] * 2], [1, 1], {}, [2.8] * 2)
    ),
    "SCE of a frozen leaf keeps it and its shape": (
        ("sce", [1, 2], [[1, 2]] * 3, [1] * 3, {"select_topk": 0.5}, [1, 2])
    ),
    "TIES keeps one of five at 20 %": (
        ("ties", [0] * 5, [[1, 2, 3, 4, 5]], [1], {"density": 0.2}, [0, 0, 0, 0, 5])
    ),
    "TIES keeps all at 1": (
        ("ties", [0] * 5, [[1, 2, 3, 4, 5]], [1], {"density": 1.0}, [1, 2, 3, 4, 5])
    ),
    "TIES of ten distinct entries keeps two at 20 %": (
        "ties",
        np.zeros(10),
        [np.arange(1.0, 11)],
        [1],
        {"density": 0.2},
        [0] * 8 + [9, 10],
    ),
    "zeros stay zero where most entries are": (
        "ties",
        np.zeros(10),
        [[0, 0, 0, 7, 0, 0, 0, 0, 0, 0]],
        [1],
        {"density": 0.2},
        [0, 0, 0, 7, 0, 0, 0, 0, 0, 0],
    ),
    "TIES oracle, sum": (
        "ties",
        [0] * 3,
        [[3, -1, 2], [1, 4, -2]],
        [1, 1],
        {"density": 1.0, "aggregate": "sum"},
        [4, 4, 2],
    ),
    "TIES oracle, mean": (
        "ties",
        [0] * 3,
        [[3, -1, 2], [1, 4, -2]],
        [1, 1],
        {"density": 1.0},
        [2, 4, 2],
    ),
    "DARE that drops all leaves the base": (
        "dare",
        [1, 2],
        [[2, 4]],
        [1],
        {"density": 0.0, "exempt_vectors": False},
        [1, 2],
    ),
    "a task vector is merged as it is, never its square": (
        ("task_arithmetic", [0], [[1], [1]], [0.5, 0.5], {}, [1])
    ),
    "the mean of opposite directions is the weighted sum": (
        ("karcher", None, [[1, 0], [-1, 1e-9]], [0.5, 0.5], {}, [0, 5e-10])
    ),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("streamed", [False, True])
def test_the_answer_is_the_right_one(case, streamed):
    method, base, experts, coefficients, options, answer = CASES[case]
    trees = [{"x": np.asarray(expert, np.float32)} for expert in experts]
    anchor = None if base is None else {"x": np.asarray(base, np.float32)}
    if streamed:
        models = {str(k): tree for k, tree in enumerate(trees)}
        merged = merge_arrays(
            models, method, coefficients, base=anchor, options=options
        )
    else:
        more = {"base": anchor} if anchor is not None else {}
        if "key" in MERGES[method].needs:
            more["key"] = jax.random.key(0)
        merged = MERGES[method].function(
            fusion_jax.stack(trees),
            jnp.asarray(coefficients, jnp.float32),
            **more,
            **options,
        )
    np.testing.assert_allclose(merged["x"], answer, rtol=2e-6, atol=1e-9)


def test_float16_norms_do_not_overflow():
    # 160,000 ones: their sum, and that of their squares, is beyond float16.
    base = {"x": jnp.zeros((400, 400), jnp.float16)}
    expert = {"x": jnp.ones((400, 400), jnp.float16)}
    merged = fusion_jax.dare(
        fusion_jax.stack([expert]),
        jnp.ones(1),
        base=base,
        key=jax.random.key(0),
        density=0.5,
        rescale="l1",
    )["x"]
    kept = np.asarray(merged)[np.asarray(merged) != 0]
    assert 0.45 < kept.size / 160_000 < 0.55
    np.testing.assert_allclose(kept, 160_000 / kept.size, rtol=1e-3)


def test_dare_divides_by_the_probability_whatever_survives():
    base = {"x": jnp.zeros((1, 4))}
    expert = fusion_jax.stack([{"x": jnp.asarray([[8.0, 1, 1, 1]])}])
    for seed in range(20):
        merged = fusion_jax.dare(
            expert, jnp.ones(1), base=base, key=jax.random.key(seed), density=0.75
        )["x"]
        survivors = np.asarray(merged)[np.asarray(merged) != 0]
        assert set(np.round(survivors, 3)) <= {np.float32(1.333), np.float32(10.667)}


def test_bfloat16_sums_are_rounded_once():
    random = np.random.default_rng(0)
    bfloat16 = jnp.bfloat16
    base = np.asarray(random.normal(0, 0.02, 100_000), bfloat16)
    experts = [
        np.asarray(
            base.astype(np.float32) + random.normal(0, 5e-4, base.shape), bfloat16
        )
        for _ in range(4)
    ]
    anchor = base.astype(np.float64)
    exact = anchor + sum(0.3 * (x.astype(np.float64) - anchor) for x in experts)
    right = exact.astype(np.float32).astype(bfloat16)
    merged = merge_arrays(
        {str(k): {"x": x} for k, x in enumerate(experts)},
        "task_arithmetic",
        [0.3] * 4,
        base={"x": base},
    )["x"]
    assert merged.dtype == bfloat16
    assert np.mean(merged != right) < 1e-4  # a tie of the two roundings, if any
