"""Train states on disk."""

import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fusion_jax.atomic import WriteFailed
from fusion_jax.checkpoints import orbax


@pytest.fixture
def tree():
    key = jax.random.key(0)
    return {
        "params": {"layer": {"kernel": jax.random.normal(key, (4, 3))}},
        "moments": (jnp.ones(3, jnp.bfloat16), jnp.arange(5)),
        "step": jnp.int32(7),
    }


def assert_same(left, right):
    assert jax.tree.structure(left) == jax.tree.structure(right)
    for a, b in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


def test_a_tree_and_its_metadata_come_back(tree, tmp_path):
    metadata = {"score": 1 / 3, "history": [1, None, "x"]}
    orbax.save(tmp_path / "state", tree, metadata)
    assert_same(orbax.load(tmp_path / "state", tree), tree)
    assert_same(orbax.load(tmp_path / "state", orbax.abstract(tree)), tree)
    assert orbax.load_metadata(tmp_path / "state") == metadata


def test_saving_again_replaces(tree, tmp_path):
    orbax.save(tmp_path / "state", tree)
    changed = jax.tree.map(lambda x: x + 1, tree)
    orbax.save(tmp_path / "state", changed)
    assert_same(orbax.load(tmp_path / "state", tree), changed)


def test_what_is_not_there_is_said(tree, tmp_path):
    assert orbax.load_metadata(tmp_path / "state") is None
    with pytest.raises(FileNotFoundError, match="no checkpoint"):
        orbax.load(tmp_path / "state", tree)


def test_another_structure_or_shape_is_refused_with_the_folder(tree, tmp_path):
    orbax.save(tmp_path / "state", tree)
    other = {"params": tree["params"]}
    with pytest.raises(orbax.UnreadableState, match="state: the state cannot be read"):
        orbax.load(tmp_path / "state", other)
    wider = {**tree, "params": {"layer": {"kernel": jnp.zeros((4, 5))}}}
    with pytest.raises(orbax.UnreadableState, match="remove this folder"):
        orbax.load(tmp_path / "state", wider)


def test_a_damaged_state_is_refused(tree, tmp_path):
    orbax.save(tmp_path / "state", tree)
    for file in (tmp_path / "state").rglob("*"):
        if file.is_file() and "ocdbt" not in file.name and file.parent.name == "d":
            file.write_bytes(file.read_bytes()[:10])
    with pytest.raises(orbax.UnreadableState):
        orbax.load(tmp_path / "state", tree)


def test_the_manager_keeps_the_newest(tree, tmp_path):
    with orbax.Manager(tmp_path) as manager:
        assert manager.restore_latest(tree) is None
        assert manager.latest_metadata() is None
        for step in (1, 5, 9):
            changed = jax.tree.map(lambda x, s=step: x + s, tree)
            manager.save(step, changed, {"epoch": step})
    with orbax.Manager(tmp_path) as manager:
        step, state, metadata = manager.restore_latest(tree)
        assert (step, metadata) == (9, {"epoch": 9})
        assert manager.latest_metadata() == {"epoch": 9}
        assert_same(state, jax.tree.map(lambda x: x + 9, tree))
    steps = [path.name for path in tmp_path.iterdir() if path.is_dir()]
    assert steps == ["9"]


def test_a_state_that_is_donated_right_after_is_saved_as_it_was(tmp_path):
    advance = jax.jit(lambda x: jax.tree.map(lambda a: a + 1, x), donate_argnums=0)
    state = advance({"large": jnp.zeros(3_000_000), "small": jnp.zeros(2)})
    with orbax.Manager(tmp_path) as manager:
        for step in range(1, 4):
            expected = float(state["small"][0])
            manager.save(step, state)
            for _ in range(10):
                state = advance(state)
            manager.wait()
            _, found, _ = manager.restore_latest(state)
            assert float(found["large"].min()) == expected
            assert float(found["large"].max()) == expected


KILLED = """
import os, signal, sys, threading, time
sys.path.insert(0, {root!r})
import jax.numpy as jnp
from fusion_jax.checkpoints import orbax
state = {{"x": jnp.zeros(4_000_000), "step": jnp.int32(0)}}
manager = orbax.Manager({folder!r})
for step in range(1, 4):
    manager.save(step, {{"x": state["x"] + step, "step": jnp.int32(step)}})
    manager.wait()
manager.save(9, {{"x": state["x"] + 9, "step": jnp.int32(9)}})
time.sleep({delay})
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("delay", [0.0, 0.01])
def test_a_kill_while_writing_leaves_a_whole_state(tmp_path, delay):
    root = str(Path(__file__).parents[2])
    code = KILLED.format(root=root, folder=str(tmp_path), delay=delay)
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    killed = subprocess.run([sys.executable, "-c", code], env=environment, timeout=120)
    assert killed.returncode == -signal.SIGKILL
    like = {"x": jnp.zeros(4_000_000), "step": jnp.int32(0)}
    with orbax.Manager(tmp_path) as manager:
        step, state, _ = manager.restore_latest(like)
        assert step in (3, 9)
        assert int(state["step"]) == step
        np.testing.assert_array_equal(np.asarray(state["x"]), step)
        manager.save(10, like)
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == ["10"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission_is_named(tree, tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(WriteFailed, match="no permission to write"):
        orbax.save(tmp_path / "state", tree)


def test_a_full_disk_is_said_and_the_state_before_it_stays(tmp_path):
    small = {"x": jnp.ones(4)}
    orbax.save(tmp_path / "state", small)
    # A limit on the size of files stands for a disk without space.
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, before[1]))
    try:
        with pytest.raises(WriteFailed, match=r"the disk is full .*state"):
            orbax.save(tmp_path / "state", {"x": jnp.ones(1_000_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert_same(orbax.load(tmp_path / "state", small), small)
    assert [path.name for path in tmp_path.iterdir()] == ["state"]
