"""Linear models on vectors: two stages, no Linen, exact in float64 by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fusion_jax.search.points import make_points
from fusion_jax.types import Model, Stage

WIDTH, CLASSES, ROWS = 4, 3, 11


def _embed(params, carry, batch, *, dropout_key=None):
    del carry, dropout_key
    return batch["x"] @ params["encoder"]["kernel"]


def _head(params, carry, batch, *, dropout_key=None):
    del batch, dropout_key
    return {"logits": carry + params["head"]["bias"]}


def _init(key):
    kernel, bias = jax.random.split(key)
    return {
        "encoder": {"kernel": jax.random.normal(kernel, (WIDTH, CLASSES))},
        "head": {"bias": jax.random.normal(bias, (CLASSES,))},
    }


def _apply(params, batch, *, dropout_key=None):
    return _head(params, _embed(params, None, batch), batch, dropout_key=dropout_key)


MODEL = Model(
    init=_init,
    apply=_apply,
    stages=(Stage("embed", "encoder/.*", _embed), Stage("head", "head/.*", _head)),
)


@pytest.fixture(scope="session")
def linear_model():
    """logits = x W + b."""
    return MODEL


@pytest.fixture(scope="session")
def linear_points():
    """Three of them."""
    return make_points({f"expert_{k}": _init(jax.random.key(k)) for k in range(3)})


@pytest.fixture(scope="session")
def linear_rows():
    """(x [N, D], label [N]), float64."""
    random = np.random.default_rng(5)
    x = random.normal(size=(ROWS, WIDTH))
    return x, random.integers(0, CLASSES, ROWS)


@pytest.fixture(scope="session")
def linear_batches(linear_rows):
    """The rows shuffled into batches of four, the last one with a padding row."""
    x, label = linear_rows
    order = np.append(np.random.default_rng(6).permutation(ROWS), -1)
    return [
        {
            "x": jnp.asarray(x[index], jnp.float32),
            "label": jnp.asarray(label[index], jnp.int32),
            "index": index.astype(np.int32),
            "mask": (index >= 0).astype(np.float32),
        }
        for index in order.reshape(-1, 4)
    ]


@pytest.fixture(scope="session")
def linear_logits(linear_points, linear_rows):
    """`(weights [K]) -> [N, C]` of the merged model, in float64."""
    kernel = np.asarray(linear_points.stack["encoder"]["kernel"], np.float64)
    bias = np.asarray(linear_points.stack["head"]["bias"], np.float64)
    x, _ = linear_rows

    def logits(weights):
        return x @ np.tensordot(weights, kernel, 1) + np.tensordot(weights, bias, 1)

    return logits
