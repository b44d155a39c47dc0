"""Every merge keeps the properties that its record promises."""

import re
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fusion_jax import MERGES, stack, trees
from fusion_jax.merging.record import PROMISES

RANDOM = np.random.default_rng(0)
NAMES = sorted(MERGES)
LINEAR = ("weighted_average", "task_arithmetic", "wise_ft")
# Its permutations are of a model's layers: tests of its own.
PLAIN = [n for n in NAMES if n != "git_rebasin"]
# Two trees of numbers are compared; float32 differences cancel where a base is added
# back, and a decomposition rounds more.
SPECTRAL = ("tsv_m", "iso_c", "iso_cts", "knots", "wudi")


def tree(dtype=np.float32, scale=1.0):
    return {
        "encoder": {
            "layer_0": {
                "kernel": jnp.asarray(scale * RANDOM.normal(size=(3, 4)), dtype)
            },
            "layer_1": {"bias": jnp.asarray(scale * RANDOM.normal(size=4), dtype)},
        },
        "head": {"scale": jnp.asarray(scale * RANDOM.normal(), dtype)},
    }


def statistics(name, experts, order=None):
    """Of data that only a leaf's name and shape decide; expert k has row `order[k]`."""

    def drawn(leaf, x, side=None):
        random = np.random.default_rng(zlib.crc32(f"{leaf}/{side}".encode()))
        if side is None:
            values = 10.0 ** random.uniform(-6, 0, x.shape)
        else:
            width = x.shape[{"inputs": 1, "outputs": 2}[side]]
            seen = random.normal(size=(len(x), 4 * width, width))
            values = np.einsum("kni,knj->kij", seen, seen)
        values = values if order is None else values[np.asarray(order)]
        return jnp.asarray(values, jnp.float32)

    flat = trees.flatten(experts)
    matrices = {n: x for n, x in flat.items() if x.ndim == 3}
    if name == "fisher":
        return {n: drawn(n, x) for n, x in flat.items()}
    if name == "regmean":
        return {n: drawn(n, x, "inputs") for n, x in matrices.items()}
    return {
        side: {n: drawn(n, x, side) for n, x in matrices.items()}
        for side in ("inputs", "outputs")
    }


def call(name, experts, coefficients, base, order=None, **more):
    record = MERGES[name]
    extra = {"base": base} if "base" in record.needs else {}
    if "key" in record.needs:
        extra["key"] = jax.random.key(3)
    if "statistics" in record.needs:
        extra["statistics"] = statistics(name, experts, order)
    merged = record.function(experts, coefficients, **extra, **more)
    return merged if isinstance(merged, dict) else merged[0]


def num_experts(name):
    least, most = MERGES[name].experts
    return min(max(least, 3), most or 3)


def weights(name):
    return jnp.asarray([0.2, 0.5, 0.3][: num_experts(name)]) / sum(
        [0.2, 0.5, 0.3][: num_experts(name)]
    )


def promising(promise):
    return [n for n in PLAIN if promise in MERGES[n].promises]


def tolerance(name):
    return 3e-5 if name in SPECTRAL else 2e-6


def leaves(tree):
    return jax.tree.leaves(tree)


def assert_close(one, two, **tolerance):
    assert trees.mismatches([one, two]) == []
    flat = trees.flatten(two)
    for leaf, value in trees.flatten(one).items():
        np.testing.assert_allclose(
            np.asarray(value, np.float64),
            np.asarray(flat[leaf], np.float64),
            err_msg=leaf,
            **tolerance,
        )


@pytest.mark.parametrize("name", promising("one_hot"))
def test_one_hot_coefficients_return_that_expert(name):
    experts = [tree() for _ in range(num_experts(name))]
    for k, expert in enumerate(experts):
        merged = call(name, stack(experts), jnp.eye(len(experts))[k], tree())
        # Bit for bit, unless differences to a base are added back to it.
        exact = "base" not in MERGES[name].needs or name == "wise_ft"
        assert_close(merged, expert, rtol=0, atol=0 if exact else 3e-7)


@pytest.mark.parametrize("name", promising("equal_experts"))
def test_equal_experts_return_themselves(name):
    expert = tree()
    experts = stack([expert] * num_experts(name))
    merged = call(name, experts, weights(name), tree())
    assert_close(merged, expert, rtol=tolerance(name), atol=tolerance(name))


@pytest.mark.parametrize("name", promising("permutation"))
def test_a_joint_permutation_changes_nothing(name):
    count = num_experts(name)
    experts, base = [tree() for _ in range(count)], tree()
    order = list(np.roll(np.arange(count), 1))
    one = call(name, stack(experts), weights(name), base)
    two = call(
        name,
        stack([experts[i] for i in order]),
        weights(name)[jnp.asarray(order)],
        base,
        order=order,
    )
    assert_close(one, two, rtol=tolerance(name), atol=tolerance(name))


@pytest.mark.parametrize("name", promising("base_at_zero"))
def test_zero_coefficients_return_the_base(name):
    base = tree()
    experts = stack([tree() for _ in range(num_experts(name))])
    assert_close(call(name, experts, 0 * weights(name), base), base, rtol=0, atol=0)


@pytest.mark.parametrize("name", promising("scale_free"))
def test_a_multiple_of_the_coefficients_changes_nothing(name):
    experts, base = stack([tree() for _ in range(num_experts(name))]), tree()
    assert_close(
        call(name, experts, 4 * weights(name), base),
        call(name, experts, weights(name), base),
        rtol=tolerance(name),
        atol=tolerance(name),
    )


@pytest.mark.parametrize("name", promising("shift"))
def test_a_tree_added_to_all_models_is_added_to_the_result(name):
    # Small whole numbers of 1/64: adding them rounds nothing, so that no threshold
    # moves for the rounding's sake.
    def grid(x):
        return jnp.round(x * 64) / 64

    experts = [jax.tree.map(grid, tree()) for _ in range(num_experts(name))]
    base, shift = jax.tree.map(grid, tree()), jax.tree.map(grid, tree())
    moved = [jax.tree.map(jnp.add, x, shift) for x in experts]
    one = call(name, stack(experts), weights(name), base)
    two = call(name, stack(moved), weights(name), jax.tree.map(jnp.add, base, shift))
    assert_close(two, jax.tree.map(jnp.add, one, shift), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("name", PLAIN)
def test_dtype_and_structure_are_kept(name, dtype):
    experts = [tree(dtype) for _ in range(num_experts(name))]
    base = tree(dtype)
    merged = call(name, stack(experts), weights(name), base)
    assert trees.mismatches([base, merged]) == []
    assert all(np.isfinite(np.asarray(x, np.float32)).all() for x in leaves(merged))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("name", LINEAR)
def test_linear_sums_are_rounded_once(name, dtype):
    experts = [tree(dtype) for _ in range(num_experts(name))]
    base = tree(dtype)
    merged = call(name, stack(experts), weights(name), base)
    for leaf, value in trees.flatten(merged).items():
        c = np.asarray(weights(name), np.float64)
        parts = [np.asarray(trees.flatten(e)[leaf], np.float64) for e in experts]
        reference = sum(w * p for w, p in zip(c, parts, strict=True))
        if "base" in MERGES[name].needs:
            anchor = np.asarray(trees.flatten(base)[leaf], np.float64)
            reference = reference + (1 - c.sum()) * anchor
        rounding = float(jnp.finfo(dtype).eps)
        np.testing.assert_allclose(
            np.asarray(value, np.float64),
            reference,
            rtol=rounding,
            atol=4e-7 + rounding * 1e-2,
        )


@pytest.mark.parametrize("name", [n for n in PLAIN if n not in ("emr", "tall_masks")])
def test_jit_of_vmap_equals_a_loop(name):
    experts = stack([tree() for _ in range(num_experts(name))])
    base = tree()
    population = jnp.asarray(RANDOM.uniform(0.1, 1, (3, num_experts(name))))
    merged = jax.jit(jax.vmap(lambda c: call(name, experts, c, base)))(population)
    for p, row in enumerate(population):
        one = jax.tree.map(lambda x, p=p: x[p], merged)
        assert_close(
            one,
            call(name, experts, row, base),
            rtol=tolerance(name),
            atol=tolerance(name),
        )


@pytest.mark.parametrize("kind", ["zero", "constant", "tiny", "frozen"])
@pytest.mark.parametrize("name", PLAIN)
def test_odd_leaves_stay_finite_and_so_do_declared_gradients(name, kind):
    count = num_experts(name)
    base = tree(scale={"zero": 0.0, "tiny": 1e-30}.get(kind, 1.0))
    made = [
        tree(scale={"zero": 0.0, "tiny": 1e-30}.get(kind, 1.0)) for _ in range(count)
    ]
    if kind == "constant":
        made = [jax.tree.map(lambda x, k=k: 0 * x + k, base) for k in range(count)]
    if kind == "frozen":
        made = [base] * count
    experts = stack(made)

    def total(c, x):
        return sum(jnp.sum(jnp.sin(y)) for y in leaves(call(name, x, c, base)))

    assert np.isfinite(total(weights(name), experts))
    if MERGES[name].differentiable:
        by_c, by_x = jax.grad(total, argnums=(0, 1))(weights(name), experts)
        assert np.isfinite(by_c).all()
        assert all(np.isfinite(x).all() for x in leaves(by_x))


@pytest.mark.parametrize(
    "name", [n for n in PLAIN if MERGES[n].differentiable and MERGES[n].weights]
)
def test_gradients_by_coefficients_equal_finite_differences(name):
    experts = stack([tree() for _ in range(num_experts(name))])
    base = tree()
    # Away from the point where one expert has half of all weight, a kink of the
    # geometric median. (LiNeS has kinks too, where a summed delta changes its sign.)
    row = weights(name) * jnp.asarray([1.3, 0.8, 1.1][: num_experts(name)])

    def total(c):
        return sum(jnp.sum(jnp.sin(x)) for x in leaves(call(name, experts, c, base)))

    gradient = jax.grad(total)(row)
    step = 1e-2 if name in LINEAR else 4e-3
    for k in range(num_experts(name)):
        shift = step * jnp.eye(num_experts(name))[k]
        difference = (total(row + shift) - total(row - shift)) / (2 * step)
        np.testing.assert_allclose(gradient[k], difference, rtol=5e-3, atol=2e-3)


@pytest.mark.parametrize(
    "name", [n for n in PLAIN if MERGES[n].leafwise and MERGES[n].weights]
)
def test_groups_give_each_part_of_the_tree_its_own_row(name):
    experts = stack([tree() for _ in range(num_experts(name))])
    base = tree()
    rows = jnp.stack([weights(name), weights(name) * 0.5])
    groups = [("head/.*", 1), (".*", 0)]
    merged = call(name, experts, rows, base, groups=groups)
    first, second = (call(name, experts, row, base) for row in rows)
    np.testing.assert_array_equal(merged["head"]["scale"], second["head"]["scale"])
    np.testing.assert_array_equal(
        merged["encoder"]["layer_0"]["kernel"], first["encoder"]["layer_0"]["kernel"]
    )


@pytest.mark.parametrize(
    "name", [n for n in PLAIN if MERGES[n].leafwise and MERGES[n].form]
)
def test_leafwise_methods_merge_a_leaf_alone_as_among_others(name):
    experts, base = stack([tree() for _ in range(num_experts(name))]), tree()
    whole = call(name, experts, weights(name), base)
    kernel = "encoder/layer_0/kernel"
    one, anchor = (
        trees.unflatten({kernel: trees.flatten(x)[kernel]}) for x in (experts, base)
    )
    part = call(name, one, weights(name), anchor)
    np.testing.assert_array_equal(
        part["encoder"]["layer_0"]["kernel"], whole["encoder"]["layer_0"]["kernel"]
    )


@pytest.mark.parametrize("name", PLAIN)
def test_a_tree_of_coefficients_equals_the_vector(name):
    if not MERGES[name].form:
        pytest.skip("not a form: takes one row")
    experts = stack([tree() for _ in range(num_experts(name))])
    base = tree()
    rows = trees.map_with_names(lambda *_: weights(name), base)
    assert_close(
        call(name, experts, rows, base),
        call(name, experts, weights(name), base),
        rtol=0,
        atol=0,
    )


@pytest.mark.parametrize("name", PLAIN)
def test_coefficients_that_do_not_fit_are_refused(name):
    experts = stack([tree() for _ in range(num_experts(name))])
    with pytest.raises(ValueError, match="the stack holds"):
        call(name, experts, jnp.ones(7), tree())
    with pytest.raises(ValueError, match=r"together with groups"):
        call(name, experts, jnp.ones((2, num_experts(name))), tree())


@pytest.mark.parametrize("name", [n for n in PLAIN if "base" in MERGES[n].needs])
def test_a_missing_or_different_base_is_named(name):
    experts = stack([tree() for _ in range(num_experts(name))])
    more = {"key": jax.random.key(0)} if "key" in MERGES[name].needs else {}
    with pytest.raises(ValueError, match=f"{name}: needs base"):
        MERGES[name].function(experts, weights(name), **more)
    with pytest.raises(trees.TreeMismatch, match="head/scale"):
        MERGES[name].function(experts, weights(name), base={"a": jnp.zeros(2)}, **more)


@pytest.mark.parametrize("name", PLAIN)
def test_results_keep_the_sharding_of_the_experts(name):
    form = MERGES[name].form
    if not form or form().unit != "element":
        pytest.skip("needs whole rows or matrices: no sharding is kept")
    if not MERGES[name].leafwise or not MERGES[name].differentiable:
        pytest.skip("a threshold gathers all entries")
    mesh = jax.make_mesh((2,), ("model",), axis_types=(jax.sharding.AxisType.Auto,))
    wide = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(None, "model"))
    flat = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("model"))
    count = num_experts(name)
    experts = {"w": jax.device_put(jnp.ones((count, 8, 2)), wide)}
    base = {"w": jax.device_put(jnp.zeros((8, 2)), flat)}
    merged = jax.jit(lambda s, c, b: call(name, s, c, b))(experts, weights(name), base)
    assert merged["w"].sharding.is_equivalent_to(flat, 2), merged["w"].sharding


def test_every_promise_is_known_and_every_record_says_where_it_is_from():
    for name, record in MERGES.items():
        assert record.promises <= PROMISES.keys(), name
        assert re.search(r"\d{4}", record.reference) or "mergekit" in record.reference


def test_the_mean_of_models_loaded_into_one_template_is_their_mean():
    # Guard against aliasing: a list of references to one reloaded model averages to
    # the last one.
    template, files = tree(), [tree() for _ in range(3)]
    loaded = [jax.tree.map(lambda _, x: x, template, file) for file in files]
    merged = call("weighted_average", stack(loaded), jnp.full(3, 1 / 3), None)
    mean = jax.tree.map(lambda *x: np.mean(np.stack(x), 0), *files)
    assert_close(merged, mean, rtol=1e-6, atol=1e-6)
