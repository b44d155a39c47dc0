"""Server optimizers against the papers' formulas, over rounds."""

import numpy as np
import pytest
from safetensors.numpy import load_file

from fusion_jax.checkpoints.tensors import CheckpointError
from fusion_jax.collaboration.fusing import FuseOptions
from tests.collaboration.bodies import base_tensors, member, save, tuned
from tests.collaboration.fuses import fused, mean_of, round_of, wide


@pytest.mark.parametrize("optimizer", ["momentum", "adam"])
def test_server_optimizers_follow_the_papers_over_rounds(tmp_path, optimizer):
    values = {"momentum": {"momentum": 0.8}, "adam": {"beta1": 0.7, "tau": 1e-2}}
    options = FuseOptions(
        server_rate=0.05, optimizer=optimizer, optimizer_options=values[optimizer]
    )
    current = base_tensors(0)
    reference = wide(current)
    m = {n: np.zeros_like(x) for n, x in reference.items()}
    v = {n: np.full_like(x, 1e-4) for n, x in reference.items()}
    state = None
    for round_ in range(4):
        base = save(tmp_path / f"base{round_}.safetensors", current)
        tensors = [tuned(current, 10 * round_ + k) for k in range(3)]
        files = [
            save(tmp_path / f"{round_}_{k}.safetensors", x)
            for k, x in enumerate(tensors)
        ]
        after = tmp_path / f"state{round_ + 1}.safetensors"
        found, _ = fused(
            base,
            [member(x) for x in files],
            options,
            tmp_path,
            state=state,
            state_out=after,
        )
        for name in reference:
            delta = mean_of([x[name] for x in tensors]) - current[name].astype(float)
            if optimizer == "momentum":
                m[name] = 0.8 * m[name] + delta
                reference[name] += 0.05 * m[name]
            else:
                m[name] = 0.7 * m[name] + 0.3 * delta
                v[name] = 0.99 * v[name] + 0.01 * delta**2
                reference[name] += 0.05 * m[name] / (np.sqrt(v[name]) + 1e-2)
            # What a round has done, of which the weights are only the sum.
            np.testing.assert_allclose(
                found[name], reference[name], rtol=2e-6, atol=1e-7
            )
        current, state = found, after
    held = load_file(state)
    assert held["step"].tolist() == [4]
    first = "momentum" if optimizer == "momentum" else "first"
    for name in reference:
        np.testing.assert_allclose(
            held[f"{first}/{name}"], m[name], rtol=2e-5, atol=2e-7
        )


def test_momentum_of_zero_is_the_plain_rate(tmp_path):
    base, _, files, _ = round_of(tmp_path, 3)
    members = [member(x) for x in files]
    options = FuseOptions(
        server_rate=0.5, optimizer="momentum", optimizer_options={"momentum": 0.0}
    )
    found, _ = fused(
        base, members, options, tmp_path, state_out=tmp_path / "state.safetensors"
    )
    plain, _ = fused(base, members, FuseOptions(server_rate=0.5), tmp_path)
    for name, values in wide(plain).items():
        np.testing.assert_allclose(found[name], values, rtol=1e-7)


def test_a_state_of_another_optimizer_is_refused(tmp_path):
    base, _, files, _ = round_of(tmp_path, 2)
    members, state = [member(x) for x in files], tmp_path / "state.safetensors"
    fused(base, members, FuseOptions(optimizer="momentum"), tmp_path, state_out=state)
    adam = FuseOptions(optimizer="adam", server_rate=1e-3)
    with pytest.raises(CheckpointError, match="momentum, step and is no state of adam"):
        fused(base, members, adam, tmp_path, state=state, state_out=tmp_path / "s2")
    with pytest.raises(ValueError, match="has a state; say where"):
        fused(base, members, adam, tmp_path)
    assert not (tmp_path / "s2").exists()
