"""TSV-M, Iso-C and Iso-CTS against their formulas, in both layouts of kernels."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fusion_jax import stack, trees
from fusion_jax.merging.isotropic import iso_c, iso_cts
from fusion_jax.merging.spectral import decompose, orthogonalised
from fusion_jax.merging.tsv import tsv_m

MERGES = [tsv_m, iso_c, iso_cts]
C = np.asarray([0.6, 1.0, -0.5])
MATRICES = ("kernel", "wide", "column")
REST = ("bias", "one", "scale", "word_embedding", "cube")


def tree(seed, dtype=jnp.float32):
    random = np.random.default_rng(seed)
    draw = lambda *shape: jnp.asarray(random.normal(size=shape), dtype)  # noqa: E731
    return {
        "kernel": draw(7, 9),
        "wide": draw(6, 20),
        "column": draw(5, 1),
        "word_embedding": draw(6, 4),
        "cube": draw(2, 3, 4),
        "bias": draw(5),
        "one": draw(1),
        "scale": draw(),
        "frozen": jnp.ones((4, 3), dtype),
        "steps": jnp.asarray(7),
    }


def polar(matrix):
    left, values, right = np.linalg.svd(matrix, full_matrices=False)
    real = values > 1e-6 * values[0]
    return left[:, real] @ right[real]


def svd(matrix, rank=None):
    left, values, right = np.linalg.svd(matrix, full_matrices=False)
    return left[:, :rank], values[:rank], right[:rank]


# The references are in PyTorch's layout, [out, in], matrix by matrix in float64.


def reference_tsv_m(deltas, c):
    rank = max(1, int(min(deltas[0].shape) / len(deltas)))
    parts = [svd(d, rank) for d in deltas]
    left = polar(np.concatenate([u for u, _, _ in parts], axis=1))
    right = polar(np.concatenate([v for _, _, v in parts], axis=0))
    values = np.concatenate([w * s for w, (_, s, _) in zip(c, parts, strict=True)])
    return left @ np.diag(values) @ right


def reference_iso_c(deltas, c):
    left, values, right = svd(sum(w * d for w, d in zip(c, deltas, strict=True)))
    return values.mean() * left @ right


def reference_iso_cts(deltas, c, fraction=0.8):
    full, num_experts = min(deltas[0].shape), len(deltas)
    own = round((full - int(fraction * full + 1e-6)) / num_experts)
    own = min(own, full // num_experts)
    scaled = [w * d for w, d in zip(c, deltas, strict=True)]
    left, values, right = svd(sum(scaled), full - own * num_experts)
    lefts, sizes, rights = [left], [values], [right]
    for delta in scaled:
        u, s, v = svd(delta - left @ left.T @ delta, own)
        lefts.append(u)
        sizes.append(s)
        rights.append(v)
    both = polar(np.concatenate(lefts, axis=1)) @ polar(np.concatenate(rights, axis=0))
    return np.concatenate(sizes).mean() * both


REFERENCES = {
    tsv_m: reference_tsv_m,
    iso_c: reference_iso_c,
    iso_cts: reference_iso_cts,
}


def transposed(params):
    return jax.tree.map(lambda x: x.T if x.ndim == 2 else x, params)


@pytest.mark.parametrize("layout", ["flax", "torch"])
@pytest.mark.parametrize("merge", MERGES)
def test_matrices_are_merged_by_the_formula_and_others_get_the_mean(merge, layout):
    base, experts = tree(0), [tree(k) for k in (1, 2, 3)]
    c = jnp.asarray(C, jnp.float32)
    if layout == "flax":
        merged = merge(stack(experts), c, base=base, scale=0.7)
    else:
        merged = transposed(
            merge(
                stack([transposed(e) for e in experts]),
                c,
                base=transposed(base),
                scale=0.7,
                input_axis=-1,
            )
        )
    for name in (*MATRICES, *REST):
        anchor = np.asarray(base[name], float)
        deltas = [np.asarray(e[name], float) - anchor for e in experts]
        if name in MATRICES:
            delta = REFERENCES[merge]([d.T for d in deltas], C).T
        else:
            delta = sum(w * d for w, d in zip(C, deltas, strict=True)) / 3
        size = np.abs(delta).max()
        np.testing.assert_allclose(
            merged[name],
            anchor + 0.7 * delta,
            rtol=1e-5,
            atol=1e-5 * size,
            err_msg=name,
        )
    np.testing.assert_array_equal(merged["frozen"], base["frozen"])
    assert merged["steps"] == 7


def test_the_input_axis_decides_the_side_of_the_projection():
    base, experts = tree(0), stack([tree(k) for k in (1, 2, 3)])
    one = iso_cts(experts, jnp.ones(3), base=base, common_fraction=0.5)
    two = iso_cts(experts, jnp.ones(3), base=base, common_fraction=0.5, input_axis=-1)
    assert np.abs(one["kernel"] - two["kernel"]).max() > 1e-2


@pytest.mark.parametrize("fraction", [0.0, 0.29, 0.5, 1.0])
@pytest.mark.parametrize("num_experts", [1, 2, 5])
def test_every_split_of_common_and_own_directions_is_that_of_the_formula(
    fraction, num_experts
):
    random = np.random.default_rng(4)
    deltas = random.normal(size=(num_experts, 7, 8))
    merged = iso_cts(
        {"w": jnp.asarray(deltas, jnp.float32)},
        jnp.ones(num_experts),
        base={"w": jnp.zeros((7, 8))},
        common_fraction=fraction,
    )["w"]
    wanted = reference_iso_cts([d.T for d in deltas], np.ones(num_experts), fraction).T
    size = np.abs(wanted).max()
    np.testing.assert_allclose(merged, wanted, rtol=1e-5, atol=2e-5 * size)


def test_iso_cts_without_own_directions_is_iso_c():
    base, experts = tree(0), stack([tree(k) for k in (1, 2, 3)])
    one = iso_cts(experts, jnp.ones(3), base=base, common_fraction=1.0)
    two = iso_c(experts, jnp.ones(3), base=base)
    np.testing.assert_allclose(one["kernel"], two["kernel"], rtol=1e-5, atol=1e-5)


def test_all_singular_values_of_an_isotropic_merge_are_equal():
    base, experts = tree(0), stack([tree(k) for k in (1, 2, 3)])
    for merge in (iso_c, iso_cts):
        delta = np.asarray(merge(experts, jnp.ones(3), base=base)["kernel"])
        values = np.linalg.svd(delta - np.asarray(base["kernel"]), compute_uv=False)
        np.testing.assert_allclose(values, values[0], rtol=1e-5)


def test_one_expert_of_tsv_m_returns_itself():
    base, expert = tree(0), tree(1)
    merged = tsv_m(stack([expert]), jnp.ones(1), base=base)
    for name, x in expert.items():
        np.testing.assert_allclose(merged[name], x, rtol=1e-5, atol=3e-6)


def test_more_experts_than_directions_keep_one_direction_each():
    deltas = np.random.default_rng(2).normal(size=(4, 3, 2))
    merged = tsv_m(
        {"w": jnp.asarray(deltas, jnp.float32)},
        jnp.ones(4),
        base={"w": jnp.zeros((3, 2))},
    )["w"]
    assert np.abs(merged).max() > 0.1
    wanted = reference_tsv_m([d.T for d in deltas], np.ones(4)).T
    np.testing.assert_allclose(merged, wanted, rtol=1e-5, atol=1e-5)


def test_tasks_in_orthogonal_subspaces_are_summed_without_a_change():
    one, two = np.zeros((6, 6)), np.zeros((6, 6))
    one[0, 1], one[1, 0], two[3, 4], two[4, 5] = 3, 2, 5, 1
    experts = {"w": jnp.asarray([one, two], jnp.float32)}
    merged = tsv_m(experts, jnp.asarray([1.0, 2.0]), base={"w": jnp.zeros((6, 6))})
    np.testing.assert_allclose(merged["w"], one + 2 * two, atol=1e-5)


@pytest.mark.parametrize("merge", MERGES)
def test_an_expert_equal_to_the_base_does_not_touch_the_others(merge):
    delta = np.random.default_rng(3).normal(size=(6, 6)).astype(np.float32)
    experts = {"w": jnp.asarray([delta, 0 * delta])}
    merged = merge(experts, jnp.ones(2), base={"w": jnp.zeros((6, 6))})["w"]
    if merge is tsv_m:
        left, values, right = svd(delta.astype(float), 3)
        wanted = left * values @ right
    elif merge is iso_c:
        wanted = reference_iso_c([delta.astype(float)], [1])
    else:
        # Common directions 4, own 1 of this expert, 1 of the other that has none.
        left, values, right = svd(delta.astype(float), 5)
        wanted = values.sum() / 6 * left @ right
    np.testing.assert_allclose(merged, wanted, atol=1e-5)


@pytest.mark.parametrize("factor", [1e-30, 1e-3, 1e15])
@pytest.mark.parametrize("merge", MERGES)
def test_a_multiple_of_the_deltas_gives_that_multiple(merge, factor):
    deltas = np.random.default_rng(5).normal(size=(3, 5, 7)).astype(np.float32)
    base = {"w": jnp.zeros((5, 7))}
    one = merge({"w": jnp.asarray(deltas)}, jnp.ones(3), base=base)["w"]
    other = merge({"w": jnp.asarray(factor * deltas)}, jnp.ones(3), base=base)["w"]
    np.testing.assert_allclose(other / factor, one, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("merge", MERGES)
def test_constant_and_rank_one_matrices_stay_in_their_direction(merge):
    # All vectors but the first are arbitrary: none of them may appear.
    ones = jnp.ones((3, 4, 5)) * jnp.asarray([1.0, 2.0, -1.0])[:, None, None]
    merged = merge({"w": ones}, jnp.ones(3), base={"w": jnp.zeros((4, 5))})["w"]
    np.testing.assert_allclose(merged, np.full((4, 5), merged[0, 0]), atol=1e-6)
    assert abs(merged[0, 0]) > 0.1


@pytest.mark.parametrize("merge", MERGES)
def test_excluded_names_and_dtypes(merge):
    base = tree(0, jnp.bfloat16)
    experts = stack([tree(k, jnp.bfloat16) for k in (1, 2, 3)])
    merged = merge(experts, jnp.ones(3), base=base, exclude="kernel")
    assert trees.mismatches([base, merged]) == []
    mean = np.asarray(experts["kernel"], float).mean(0)
    np.testing.assert_allclose(np.asarray(merged["kernel"], float), mean, rtol=5e-3)
    free = np.asarray(experts["word_embedding"], float).mean(0)
    assert np.abs(np.asarray(merged["word_embedding"], float) - free).max() > 0.05


def test_choices_that_do_not_exist_are_refused():
    experts, base = {"w": jnp.ones((2, 3, 3))}, {"w": jnp.ones((3, 3))}
    for merge in MERGES:
        with pytest.raises(ValueError, match="input_axis: 1"):
            merge(experts, jnp.ones(2), base=base, input_axis=1)
        with pytest.raises(ValueError, match=f"{merge.__name__}: needs base"):
            merge(experts, jnp.ones(2))
    with pytest.raises(ValueError, match="common_fraction: 80"):
        iso_cts(experts, jnp.ones(2), base=base, common_fraction=80)


@pytest.mark.parametrize("merge", MERGES)
def test_jit_of_vmap_over_coefficients_and_scale_equals_a_loop(merge):
    base = {"w": tree(0)["kernel"], "b": tree(0)["bias"]}
    experts = stack([{"w": tree(k)["kernel"], "b": tree(k)["bias"]} for k in (1, 2, 3)])
    rows = jnp.asarray([[1.0, 0, 0], [0.2, 0.5, 0.3], [0, 0, 0]])
    scales = jnp.asarray([0.5, 1.0, 2.0])

    def one(c, scale):
        return merge(experts, c, base=base, scale=scale)

    merged = jax.jit(jax.vmap(one))(rows, scales)
    for i in range(3):
        for name, x in one(rows[i], scales[i]).items():
            np.testing.assert_allclose(merged[name][i], x, rtol=1e-5, atol=2e-5)
    np.testing.assert_array_equal(merged["w"][2], base["w"])


@settings(max_examples=25, deadline=None)
@given(
    st.tuples(st.integers(1, 4), st.integers(1, 4)).flatmap(
        lambda s: st.lists(
            st.lists(st.integers(-3, 3), min_size=s[1], max_size=s[1]),
            min_size=s[0],
            max_size=s[0],
        )
    )
)
def test_a_decomposition_returns_its_matrix_and_a_polar_factor_its_span(rows):
    matrix = np.asarray(rows, np.float32)
    left, values, right = decompose(jnp.asarray(matrix))
    np.testing.assert_allclose((left * values) @ right.T, matrix, atol=1e-5)
    # P Q^T keeps the span, and is the identity on it.
    factor = np.asarray(orthogonalised(jnp.asarray(matrix)), float)
    np.testing.assert_allclose(factor @ factor.T @ matrix, matrix, atol=1e-4)
    np.testing.assert_allclose(factor @ factor.T @ factor, factor, atol=1e-5)
