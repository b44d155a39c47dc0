import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

from fusion_jax.models.config import EncoderConfig
from fusion_jax.models.heads import HEADS, NO_CANDIDATE, ChoiceHead, needs_pooler

CONFIG = EncoderConfig("bert", 40, 8, 1, 2, 12, 12)


def test_choice_logits_are_pointer_sums_over_mentions():
    hidden = np.random.default_rng(0).normal(size=(2, 5, 8)).astype(np.float32)
    ids = np.array([[0, -1, 1, 0, -1], [2, -1, -1, -1, -1]])
    mask = np.array([[1, 1, 0], [1, 0, 1]])
    batch = {"choice_ids": ids, "choice_mask": mask}
    head = ChoiceHead(CONFIG)
    params = head.init(jax.random.key(1), hidden, batch)["params"]
    logits = np.asarray(head.apply({"params": params}, hidden, batch)["logits"])
    kernel = np.asarray(params["choice"]["kernel"], np.float64)
    scores = (hidden.astype(np.float64) @ kernel)[..., 0]
    assert logits[0, 0] == pytest.approx(special.logsumexp(scores[0, [0, 3]]), abs=1e-5)
    assert logits[0, 1] == pytest.approx(scores[0, 2], abs=1e-5)
    assert logits[1, 2] == pytest.approx(scores[1, 0], abs=1e-5)
    # No such candidate, and a candidate that no token mentions.
    assert logits[0, 2] == NO_CANDIDATE and logits[1, 1] == NO_CANDIDATE
    assert logits[1, 0] == pytest.approx(NO_CANDIDATE)


def test_choice_gradients_are_finite_where_no_candidate_is_mentioned():
    hidden = np.ones((1, 3, 8), np.float32)
    batch = {"choice_ids": -np.ones((1, 3), int), "choice_mask": np.ones((1, 2), int)}
    head = ChoiceHead(CONFIG)
    params = head.init(jax.random.key(1), hidden, batch)["params"]

    def loss(params):
        logits = head.apply({"params": params}, hidden, batch)["logits"]
        return -jax.nn.log_softmax(logits)[0, 0]

    assert all(np.isfinite(x).all() for x in jax.tree.leaves(jax.grad(loss)(params)))


def test_only_bert_classifiers_pool():
    pooled = {(k, f) for k in HEADS for f in HEADS[k] if needs_pooler(k, f)}
    assert pooled == {("single_label", "bert"), ("multi_label", "bert")}


@pytest.mark.parametrize("kind", sorted(HEADS))
@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert"])
def test_heads_compute_in_float32_whatever_comes_in(kind, family):
    head = HEADS[kind][family](CONFIG, 3)
    shape = (2, 8) if needs_pooler(kind, family) else (2, 5, 8)
    features = jnp.ones(shape, jnp.bfloat16)
    batch = {"choice_ids": np.zeros((2, 5), int), "choice_mask": np.ones((2, 2), int)}
    params = head.init(jax.random.key(0), features, batch)
    assert head.apply(params, features, batch)["logits"].dtype == jnp.float32
