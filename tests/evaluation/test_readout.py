import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fusion_jax.evaluation import losses, readout

read_jitted = jax.jit(readout.readout, static_argnums=0)

KIND_OF_LOGITS = ("single_label", "multi_label", "choice", "text_to_text")


def brute_force(logits, max_tokens):
    pairs = [
        (logits[s, 0] + logits[e, 1], s, e)
        for s in range(len(logits))
        for e in range(s, min(s + max_tokens, len(logits)))
    ]
    return max(pairs)


@pytest.mark.parametrize("max_tokens", [1, 3, 30])
def test_best_span_equals_the_search_over_all_pairs(max_tokens, generator):
    logits = generator.normal(size=(20, 11, 2)).astype(np.float32)
    logits[:, :2] = losses.NEVER
    find = jax.jit(readout.best_span, static_argnums=1)
    spans, confidence = find(jnp.asarray(logits), max_tokens)
    for row, found, value in zip(logits, spans, confidence, strict=True):
        best, start, end = brute_force(row, max_tokens)
        assert tuple(found.tolist()) == (start, end)
        np.testing.assert_allclose(value, best, rtol=1e-6)


def test_temperatures_are_log_spaced_around_one():
    ratios = np.diff(np.log(readout.TEMPERATURES))
    np.testing.assert_allclose(ratios, ratios[0])
    assert 1.0 in readout.TEMPERATURES


def test_tempered_losses_are_the_losses_of_divided_logits(generator):
    logits = generator.normal(size=(4, 3)).astype(np.float32)
    batch = {"label": np.array([0, 1, 2, 0]), "mask": np.ones(4, np.float32)}
    kept = read_jitted("single_label", {"logits": logits}, batch)
    for j, temperature in enumerate(readout.TEMPERATURES):
        expected = losses.single_label({"logits": logits / temperature}, batch)
        np.testing.assert_allclose(kept["tempered"][:, j], expected, rtol=1e-5)
    one = readout.TEMPERATURES.index(1.0)
    np.testing.assert_allclose(kept["tempered"][:, one], kept["loss"], rtol=1e-6)


def test_a_population_reads_as_its_members_do(generator):
    logits = generator.normal(size=(3, 4, 5, 2)).astype(np.float32)
    batch = {
        "start": np.array([1, 2, -1, 0]),
        "end": np.array([1, 3, -1, 0]),
        "context_mask": np.ones((4, 5), np.int32),
        "mask": np.ones(4, np.float32),
    }
    read = jax.jit(lambda x: readout.readout("span", {"logits": x}, batch))
    many = jax.jit(jax.vmap(read))(logits)
    for p in range(3):
        one = read(logits[p])
        for name, value in one.items():
            np.testing.assert_allclose(many[name][p], value, rtol=1e-6)


def test_padded_columns_are_never_chosen(generator):
    logits = np.full((2, 3, 4), 1.0, np.float32)
    logits[..., 3] = 9.0
    mask = {"label_mask": np.array([1, 1, 1, 0]), "mask": np.ones(2, np.float32)}
    tags = read_jitted(
        "token", {"logits": logits}, mask | {"tags": np.zeros((2, 3), np.int32)}
    )
    assert (np.asarray(tags["tags"]) < 3).all()
    label = read_jitted(
        "single_label", {"logits": logits[:, 0]}, mask | {"label": np.zeros(2, int)}
    )
    assert (np.argmax(label["logits"], -1) < 3).all()


@pytest.mark.parametrize("leading", [0, 1])
def test_collect_restores_the_order_of_rows_of_any_length(leading):
    lead = (2,) * leading

    def piece(index, tokens):
        rows = np.array(index)
        tags = np.broadcast_to(rows[:, None], (*lead, len(rows), tokens))
        return rows, {"tags": tags, "loss": tags[..., 0] * 1.0}

    pieces = [piece([4, 0], 3), piece([2, -1], 5), piece([1, 3], 2)]
    whole = readout.collect(pieces, 5, leading=leading)
    assert whole["loss"].shape == (*lead, 5)
    assert whole["tags"].shape == (*lead, 5, 5)
    np.testing.assert_array_equal(whole["loss"].reshape(-1, 5)[0], np.arange(5))
    assert whole["tags"].reshape(-1, 5, 5)[0, 1].tolist() == [1, 1, -1, -1, -1]


def test_collect_names_the_rows_that_no_batch_holds():
    with pytest.raises(ValueError, match=r"1 of 3 rows .* row 1"):
        readout.collect([(np.array([0, 2]), {"loss": np.zeros(2)})], 3)


def test_read_runs_a_model_over_all_batches(generator):
    logits = generator.normal(size=(5, 3)).astype(np.float32)

    def apply(params, batch):
        return {"logits": params["scale"] * batch["logits"]}

    batches = [
        {
            "logits": logits[index] * (index >= 0)[:, None],
            "label": np.zeros(3, np.int32),
            "mask": (index >= 0).astype(np.float32),
            "index": index,
        }
        for index in (np.array([3, 1, 0]), np.array([2, 4, -1]))
    ]
    reader = readout.make_reader(apply, "single_label")
    found = readout.read(reader, {"scale": jnp.float32(2)}, batches, 5)
    np.testing.assert_allclose(found["logits"], 2 * logits, rtol=1e-6)
    assert found["weight"].tolist() == [1] * 5
