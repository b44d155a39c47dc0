import errno
import json
import os
import subprocess
import sys
import textwrap

import pytest

from fusion_jax import atomic


def test_directory_appears_whole_when_the_block_ends(tmp_path):
    target = tmp_path / "deep" / "model"
    with atomic.directory(target) as staging:
        (staging / "a").write_text("1")
        assert not target.exists()
    assert (target / "a").read_text() == "1"
    assert os.listdir(target.parent) == ["model"]
    assert target.stat().st_mode & 0o777 == 0o755


def test_directory_replaces_the_former_one_as_a_whole(tmp_path):
    target = tmp_path / "model"
    for name in ("old", "new"):
        with atomic.directory(target) as staging:
            (staging / name).write_text(name)
    assert os.listdir(target) == ["new"]
    assert os.listdir(tmp_path) == ["model"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_exception_leaves_the_former_directory_and_no_rest(tmp_path, error):
    target = tmp_path / "model"
    with atomic.directory(target) as staging:
        (staging / "a").write_text("1")
    with pytest.raises(error), atomic.directory(target) as staging:
        (staging / "a").write_text("2")
        raise error
    assert (target / "a").read_text() == "1"
    assert os.listdir(tmp_path) == ["model"]


def test_a_kill_leaves_the_former_directory(tmp_path):
    target = tmp_path / "model"
    with atomic.directory(target) as staging:
        (staging / "a").write_text("1")
    script = """
        import os, signal, sys
        from fusion_jax import atomic
        with atomic.directory(sys.argv[1]) as staging:
            (staging / "a").write_text("2")
            os.kill(os.getpid(), signal.SIGKILL)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script), str(target)])
    assert done.returncode == -9
    assert (target / "a").read_text() == "1"


def test_a_full_disk_is_one_clear_error_that_names_the_target(tmp_path):
    # A limit on the size of a file stands in for the disk: the kernel refuses the
    # write in the midst of it, just so.
    script = """
        import resource, signal, sys
        import numpy as np
        from fusion_jax import atomic
        from fusion_jax.checkpoints import tensors
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        with atomic.directory(sys.argv[1]) as staging:
            (staging / "config.json").write_text("{}")
            big = {"a": np.zeros(1_000_000, np.float32)}
            tensors.write_file(staging / "model.safetensors", big)
    """
    target = tmp_path / "model"
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), str(target)],
        capture_output=True,
        text=True,
    )
    last = done.stderr.strip().splitlines()[-1]
    assert "WriteFailed" in last and f"the disk is full while writing {target}" in last
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_every_number_of_a_full_disk_is_explained(tmp_path, number):
    with (
        pytest.raises(atomic.WriteFailed, match="the disk is full") as caught,
        atomic.directory(tmp_path / "model"),
    ):
        raise OSError(number, os.strerror(number))
    assert caught.value.errno == number


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission_is_named(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(atomic.WriteFailed, match="no permission to write"):
        atomic.write_text(tmp_path / "a", "1")


def test_files_are_replaced_whole_or_not_at_all(tmp_path):
    file = tmp_path / "results.json"
    atomic.write_json(file, {"a": 1})
    assert json.loads(file.read_text()) == {"a": 1}
    with pytest.raises(ValueError, match="JSON compliant"):
        atomic.write_json(file, {"a": float("nan")})
    atomic.write_bytes(file, b"x")
    assert file.read_bytes() == b"x"
    assert os.listdir(tmp_path) == ["results.json"]
    assert file.stat().st_mode & 0o777 == 0o644
