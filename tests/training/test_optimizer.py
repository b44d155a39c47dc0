"""The schedule and AdamW against float64 references written out here."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fusion_jax.training.config import FitConfig
from fusion_jax.training.optimizer import learning_rate, make_optimizer


def reference_rate(schedule, warmup_fraction, step, total):
    warmup = int(np.ceil(warmup_fraction * total))
    if step < warmup:
        return (step + 1) / warmup
    past = (step - warmup) / (total - warmup)
    return {
        "linear": 1 - past,
        "cosine": 0.5 * (1 + np.cos(np.pi * past)),
        "constant": 1.0,
    }[schedule]


@pytest.mark.parametrize("schedule", ["linear", "cosine", "constant"])
@pytest.mark.parametrize("warmup", [0.0, 0.25])
@pytest.mark.parametrize("total", [1, 2, 20])
def test_rate_follows_the_formula_and_is_never_zero(schedule, warmup, total):
    config = FitConfig(schedule=schedule, warmup_fraction=warmup)
    rates = jax.vmap(lambda s: learning_rate(config, s, total, 0.5))(jnp.arange(total))
    expected = [0.5 * reference_rate(schedule, warmup, s, total) for s in range(total)]
    np.testing.assert_allclose(rates, expected, rtol=1e-6, atol=1e-7)
    assert float(rates.min()) > 0


def test_updates_equal_a_float64_adamw():
    generator = np.random.Generator(np.random.PCG64(0))
    params = {"kernel": generator.normal(size=(3, 4)), "bias": generator.normal(size=4)}
    config = FitConfig(
        learning_rate=0.1, warmup_fraction=0.0, schedule="linear", weight_decay=0.3,
        clip_norm=1.0,
    )  # fmt: skip
    total, moments = 6, {name: (0.0, 0.0) for name in params}
    optimizer = make_optimizer(config, total)
    ours = {name: jnp.asarray(x, jnp.float32) for name, x in params.items()}
    state = optimizer.init(ours)
    for step in range(total):
        gradient = {name: generator.normal(size=x.shape) for name, x in params.items()}
        norm = np.sqrt(sum((g**2).sum() for g in gradient.values()))
        for name, raw in gradient.items():
            g = raw * min(1.0, 1.0 / norm)
            m, v = moments[name]
            m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
            moments[name] = m, v
            direction = (m / (1 - 0.9 ** (step + 1))) / (
                np.sqrt(v / (1 - 0.999 ** (step + 1))) + 1e-8
            )
            decay = 0.3 * params[name] if params[name].ndim == 2 else 0.0
            rate = 0.1 * reference_rate("linear", 0.0, step, total)
            params[name] = params[name] - rate * (direction + decay)
        floats = {name: jnp.asarray(g, jnp.float32) for name, g in gradient.items()}
        updates, state = optimizer.update(floats, state, ours)
        ours = optax.apply_updates(ours, updates)
    for name, expected in params.items():
        np.testing.assert_allclose(ours[name], expected, rtol=2e-5, atol=1e-6)


def test_experts_with_their_own_number_of_steps_get_their_own_rates():
    config = FitConfig(warmup_fraction=0.1)
    totals = jnp.array([10, 40])
    rates = jax.jit(jax.vmap(lambda n: learning_rate(config, 9, n, 1.0)))(totals)
    expected = [reference_rate("linear", 0.1, 9, n) for n in (10, 40)]
    np.testing.assert_allclose(rates, expected, rtol=1e-6)
