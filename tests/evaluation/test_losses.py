import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fusion_jax.evaluation import losses


def log_softmax(logits):
    logits = np.asarray(logits, np.float64)
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def batch_of(kind, generator, rows=5, tokens=6, classes=4):
    """A batch of random targets whose last row is padding."""
    shape = {
        "token": (rows, tokens, classes),
        "span": (rows, tokens, 2),
    }.get(kind, (rows, classes))
    batch = {"mask": np.array([1.0] * (rows - 1) + [0.0], np.float32)}
    if kind == "multi_label":
        batch["labels"] = generator.integers(0, 2, (rows, classes)).astype(np.float32)
    elif kind == "token":
        batch["tags"] = generator.integers(-1, classes, (rows, tokens))
        batch["tags"][1] = -1
    elif kind == "span":
        batch["context_mask"] = np.ones((rows, tokens), np.int32)
        batch["context_mask"][:, 0] = 0
        batch["start"] = np.array([1, 2, -1, 3, -1])
        batch["end"] = np.array([1, 4, -1, 5, -1])
    else:
        batch["label"] = generator.integers(0, classes, rows)
    if kind == "choice":
        batch["choice_mask"] = np.ones((rows, classes), np.int32)
        batch["choice_mask"][:, 3] = 0
        batch["label"] = np.array([0, 1, 2, 3, 0])
    return {"logits": generator.normal(size=shape).astype(np.float32)}, batch


@pytest.mark.parametrize("kind", ["single_label", "text_to_text"])
def test_class_loss_is_the_log_likelihood_over_real_columns(kind, generator):
    outputs, batch = batch_of(kind, generator)
    batch["label_mask"] = np.array([1, 1, 1, 0], np.float32)
    batch["label"] = np.array([0, 1, 2, 0, 1])
    expected = -log_softmax(outputs["logits"][:, :3])[np.arange(5), batch["label"]]
    found = losses.LOSSES[kind](outputs, batch)
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_multi_label_loss_is_binary_cross_entropy_over_real_columns(generator):
    outputs, batch = batch_of("multi_label", generator)
    batch["label_mask"] = np.array([1, 0, 1, 1], np.float32)
    z = outputs["logits"].astype(np.float64)
    p, y = 1 / (1 + np.exp(-z)), batch["labels"]
    terms = -(y * np.log(p) + (1 - y) * np.log(1 - p))
    expected = terms[:, [0, 2, 3]].mean(1)
    np.testing.assert_allclose(losses.multi_label(outputs, batch), expected, rtol=1e-5)


def test_token_loss_is_the_mean_over_tagged_tokens(generator):
    outputs, batch = batch_of("token", generator)
    expected = []
    for logits, tags in zip(log_softmax(outputs["logits"]), batch["tags"], strict=True):
        terms = [-logits[t, tag] for t, tag in enumerate(tags) if tag >= 0]
        expected.append(np.mean(terms) if terms else 0.0)
    np.testing.assert_allclose(losses.token(outputs, batch), expected, rtol=1e-5)
    assert losses.row_weight("token", batch).tolist() == [1, 0, 1, 1, 0]


def test_span_loss_reads_the_context_and_skips_windows_without_the_answer(generator):
    outputs, batch = batch_of("span", generator)
    logits = log_softmax(outputs["logits"][:, 1:].swapaxes(1, 2))
    expected = [
        -0.5 * (logits[b, 0, s - 1] + logits[b, 1, e - 1]) if s >= 0 else 0.0
        for b, (s, e) in enumerate(zip(batch["start"], batch["end"], strict=True))
    ]
    np.testing.assert_allclose(losses.span(outputs, batch), expected, rtol=1e-5)
    assert losses.row_weight("span", batch).tolist() == [1, 1, 0, 1, 0]


def test_choice_whose_gold_candidate_was_cut_off_weighs_nothing(generator):
    outputs, batch = batch_of("choice", generator)
    found = losses.choice(outputs, batch)
    expected = -log_softmax(outputs["logits"][:, :3])[[0, 1, 2], [0, 1, 2]]
    np.testing.assert_allclose(found[:3], expected, rtol=1e-5)
    assert found[3] == 0.0
    assert losses.row_weight("choice", batch).tolist() == [1, 1, 1, 0, 0]


@pytest.mark.parametrize("kind", list(losses.LOSSES))
def test_mean_loss_ignores_padding_rows(kind, generator):
    outputs, batch = batch_of(kind, generator)
    short = {k: v if k == "label_mask" else v[:-1] for k, v in batch.items()}
    whole = losses.mean_loss(kind, outputs, batch)
    cut = losses.mean_loss(kind, {"logits": outputs["logits"][:-1]}, short)
    np.testing.assert_allclose(whole, cut, rtol=1e-6)


@pytest.mark.parametrize("kind", list(losses.LOSSES))
def test_losses_and_gradients_are_finite_in_bfloat16_and_padding(kind, generator):
    outputs, batch = batch_of(kind, generator)
    for name in ("start", "end", "tags", "label", "choice_mask", "context_mask"):
        if name in batch:
            batch[name] = np.array(batch[name])
            batch[name][-1] = 0 if name.endswith("mask") else -1
    logits = jnp.asarray(outputs["logits"], jnp.bfloat16)

    def total(logits):
        return losses.mean_loss(kind, {"logits": logits}, batch)

    value, gradient = jax.jit(jax.value_and_grad(total))(logits)
    assert value.dtype == jnp.float32
    assert np.isfinite(value)
    assert np.isfinite(np.asarray(gradient, np.float32)).all()


def test_unknown_kind_is_named_with_the_kinds_there_are():
    with pytest.raises(ValueError, match=r"'regression'.*single_label"):
        losses.loss_of("regression")
