"""Tiny hosts for ports: one, the same with its dimensions permuted, shallow, wide."""

from dataclasses import replace

import jax
import numpy as np

from fusion_jax import trees
from fusion_jax.models import build_model
from fusion_jax.models.config import EncoderConfig
from fusion_jax.peft.port_host import Host, Seen

CONFIG = EncoderConfig(
    family="bert",
    vocab_size=40,
    hidden_size=16,
    num_layers=4,
    num_heads=2,
    intermediate_size=24,
    max_positions=16,
)
LABELS = 3


def model_of(config):
    return build_model(config, "single_label", LABELS, every_token=True)


def batch(rows=24, length=10):
    generator = np.random.default_rng(0)
    return {
        "input_ids": generator.integers(1, CONFIG.vocab_size, (rows, length)),
        "attention_mask": np.ones((rows, length), np.int32),
        "token_type_ids": np.zeros((rows, length), np.int32),
    }


def params_of(config, seed=0):
    """Random leaves of size one, biases and norms too: nothing is left at its start."""
    params = jax.eval_shape(model_of(config).init, jax.random.key(0))

    def drawn(name, leaf):
        generator = np.random.default_rng([seed, len(name), sum(map(ord, name))])
        noise = 0.2 * generator.normal(size=leaf.shape).astype(np.float32)
        return noise + (1 if name.endswith("/scale") else 0)

    return trees.map_with_names(drawn, params)


def host_of(config, params, name="host", *, states=True):
    record = {"name": name, "num_layers": config.num_layers}
    encoder = {"encoder": params["encoder"]}
    seen = states_of(config, params) if states else {}
    return Host(encoder, config.num_layers, config.num_heads, record, seen)


def random_states(params, rows=60):
    """States of the right widths that say nothing: enough for sizes."""
    generator = np.random.default_rng(0)
    return {
        name.removesuffix("/kernel"): Seen(
            *(generator.normal(size=(rows, side)) for side in leaf.shape)
        )
        for name, leaf in trees.flatten(params).items()
        if name.endswith("/kernel")
    }


def states_of(config, params):
    @jax.jit
    def run(params):
        found = {}

        def tap(path, x, y):
            found[path.removesuffix("/kernel")] = x, y

        model_of(config).apply(params, batch(), tap=tap)
        return found

    return {
        path: Seen(*(np.asarray(side).reshape(-1, side.shape[-1]) for side in sides))
        for path, sides in run(params).items()
    }


def shallower(config, layers):
    return replace(config, num_layers=layers)


def permuted(config, params, seed=7):
    """The same function with every width in another order, and the order of each."""
    generator = np.random.default_rng(seed)
    width, heads = config.hidden_size, config.num_heads
    stream = generator.permutation(width)
    pooled = generator.permutation(width)
    orders = {"stream": stream, "pooled": pooled}

    def within_heads(order):
        inside = [generator.permutation(width // heads) for _ in range(heads)]
        return np.concatenate([h * (width // heads) + inside[h] for h in order])

    for layer in range(config.num_layers):
        order = generator.permutation(heads)
        orders[f"{layer}/query"] = orders[f"{layer}/key"] = within_heads(order)
        orders[f"{layer}/value"] = within_heads(order)
        orders[f"{layer}/inner"] = generator.permutation(config.intermediate_size)
    return orders, trees.map_with_names(
        lambda name, leaf: reordered(name, leaf, orders), params
    )


def sides(path, orders):
    """The orders of the two sides of a layer; None where nothing is permuted."""
    parts = path.split("/")
    layer = next((p.split("_")[1] for p in parts if p.startswith("layer_")), None)
    last = parts[-1]
    if last in ("query", "key", "value"):
        return orders["stream"], orders[f"{layer}/{last}"]
    if path.endswith("attention/output"):
        return orders[f"{layer}/value"], orders["stream"]
    if last == "up":
        return orders["stream"], orders[f"{layer}/inner"]
    if last == "down":
        return orders[f"{layer}/inner"], orders["stream"]
    if last == "pooler":
        return orders["stream"], orders["pooled"]
    if last == "classifier":
        return orders["pooled"], None
    return None, orders["stream"]


def reordered(name, leaf, orders):
    """A host's own leaf in the order of the permuted host."""
    path, _, last = name.rpartition("/")
    inner, outer = sides(path, orders)
    if last == "kernel":
        leaf = leaf[inner]
    return leaf if outer is None else leaf[..., outer]
