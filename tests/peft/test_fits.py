"""Modules are trained by the fits that there are, one or a stack over one host."""

import jax
import numpy as np
import pytest

from fusion_jax import trees
from fusion_jax.checkpoints.tensors import hash_params
from fusion_jax.data.encoded import Encoded
from fusion_jax.peft import (
    PeftConfig,
    attach,
    host_leaves,
    init_module,
    module_leaves,
    with_module,
)
from fusion_jax.training.config import FitConfig
from fusion_jax.training.fit import fit, fit_stack
from tests.peft.hosts import LABELS, batch_of, host_of, model_of

CONFIG = PeftConfig(rank=2, alpha=4, dropout=0.1, replaces=(r"head/.*",))
OPTIONS = {"epochs": 2, "batch_size": 4, "learning_rate": 1e-2, "select": "last"}


def rows_of(seed, rows=8):
    generator = np.random.default_rng(seed)
    lengths = np.full(rows, 5)
    return Encoded(
        task_name=f"toy_{seed}",
        kind="single_label",
        num_labels=LABELS,
        columns={
            "input_ids": list(generator.integers(2, 40, (rows, 5), dtype=np.int32)),
            "token_type_ids": list(np.zeros((rows, 5), np.int32)),
        },
        targets={"label": generator.integers(0, LABELS, rows).astype(np.int32)},
        lengths=lengths,
        items=np.arange(rows),
        references=[0] * rows,
        labels=tuple(f"label_{c}" for c in range(LABELS)),
    )


@pytest.fixture(scope="module")
def alone():
    """Three modules, trained one after another."""
    host, config = host_of(), FitConfig(**OPTIONS, dropout=True)
    results = []
    for seed in range(3):
        module = init_module(CONFIG, host, jax.random.key(seed))
        whole = with_module(host, module.params)
        shared, trained = trees.partition(whole, host_leaves(CONFIG))
        result = fit_stack(
            attach(model_of(), CONFIG),
            jax.tree.map(lambda x: x[None], trained),
            shared,
            rows_of(seed),
            None,
            config,
            kind="single_label",
            names=(f"module_{seed}",),
            progress=False,
        )
        results.append(jax.tree.map(lambda x: x[0], result.params))
    return results


def test_a_stack_of_modules_over_one_host_trains_as_each_would_alone(alone):
    host = host_of()
    modules = [init_module(CONFIG, host, jax.random.key(seed)) for seed in range(3)]
    stack = trees.stack([module.params for module in modules])
    shared = trees.partition(with_module(host, modules[0].params), host_leaves(CONFIG))
    before = hash_params(shared[0])
    together = fit_stack(
        attach(model_of(), CONFIG),
        stack,
        shared[0],
        [rows_of(seed) for seed in range(3)],
        None,
        FitConfig(**OPTIONS, dropout=True),
        kind="single_label",
        names=tuple(f"module_{seed}" for seed in range(3)),
        progress=False,
        together=3,
    )
    assert hash_params(shared[0]) == before
    for one, other in zip(trees.unstack(together.params), alone, strict=True):
        theirs = trees.flatten(other)
        for name, leaf in trees.flatten(one).items():
            np.testing.assert_allclose(
                leaf, theirs[name], atol=1e-5, rtol=1e-4, err_msg=name
            )


@pytest.mark.parametrize(
    "config",
    [
        PeftConfig(rank=2, train_norms=True, replaces=(r"head/.*",)),
        PeftConfig(kind="bitfit"),
        PeftConfig(kind="prompt", length=2),
    ],
    ids=lambda config: config.kind,
)
def test_a_fit_moves_the_module_and_leaves_the_host_bit_for_bit(config):
    host = host_of()
    module = init_module(config, host, jax.random.key(0))
    whole = with_module(host, module.params)
    frozen, _ = trees.partition(whole, host_leaves(config))
    before = hash_params(frozen)
    result = fit(
        attach(model_of(), config),
        whole,
        rows_of(0),
        None,
        FitConfig(**OPTIONS | {"epochs": 1}, frozen=(host_leaves(config),)),
        kind="single_label",
        progress=False,
    )
    moved, kept = trees.partition(result.params, module_leaves(config))
    assert hash_params(kept) == before
    start = trees.flatten(module.params)
    assert start.keys() == trees.flatten(moved).keys()
    for name, leaf in trees.flatten(moved).items():
        assert not np.array_equal(leaf, start[name]), name


def test_dropout_of_the_module_is_part_of_a_pass_with_a_key():
    host = host_of()
    module = init_module(CONFIG, host, jax.random.key(0))
    whole = with_module(host, module.params)
    quiet = PeftConfig(rank=2, alpha=4, replaces=(r"head/.*",))
    moved = jax.tree.map(lambda x: np.asarray(x) + np.float32(0.1), whole)
    said = [
        jax.jit(attach(model_of(), config).apply)(
            moved, batch_of(), dropout_key=jax.random.key(4)
        )["logits"]
        for config in (CONFIG, quiet)
    ]
    assert np.abs(said[0] - said[1]).max() > 1e-3
