"""Start of a process: compile cache, distributed, device report."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from fusion_jax import runtime

ROOT = str(Path(__file__).parents[1])


def run(code, **environment):
    return subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ
        | {"PYTHONPATH": ROOT, "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "1"}
        | environment,
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_the_report_is_json_and_says_what_there_is():
    report = runtime.device_report()
    json.dumps(report)
    assert report["platform"] == "cpu"
    assert report["devices"] == len(jax.devices())
    assert report["processes"] == 1
    assert report["cpu_cores"] >= 1


def test_half_of_an_address_is_refused():
    with pytest.raises(ValueError, match="num_processes, process_id missing"):
        runtime.initialize(coordinator="localhost:1")


def test_importing_touches_no_device():
    code = (
        "import fusion_jax.runtime, jax._src.xla_bridge as bridge;"
        "print(bridge.backends_are_initialized())"
    )
    assert run(code).stdout.strip() == "False"


CACHED = """
from fusion_jax import runtime
runtime.initialize()
import jax, jax.numpy as jnp
hits = []
jax.monitoring.register_event_listener(lambda name, **_: hits.append(name))
jax.jit(lambda x: jnp.sin(x) @ x.T)(jnp.ones((8, 4))).block_until_ready()
print(runtime.device_report()["compile_cache"])
print(sum(name == "/jax/compilation_cache/cache_hits" for name in hits))
"""


def test_a_second_start_reads_compiled_programs(tmp_path):
    folder = tmp_path / "cache"
    first = run(CACHED, FUSION_JAX_CACHE_DIR=str(folder))
    second = run(CACHED, FUSION_JAX_CACHE_DIR=str(folder))
    assert first.stdout.split() == [str(folder), "0"], first.stderr
    assert second.stdout.split()[0] == str(folder)
    assert int(second.stdout.split()[1]) > 0
    assert any(folder.iterdir())


def test_without_a_wish_there_is_no_cache_and_one_process():
    code = (
        "from fusion_jax import runtime; runtime.initialize(); import jax;"
        "print(runtime.device_report()['compile_cache'], jax.process_count(),"
        "jax.distributed.is_initialized())"
    )
    clean = {
        name: "" for name in ("FUSION_JAX_CACHE_DIR", "FUSION_JAX_DISTRIBUTED")
    } | {"JAX_COMPILATION_CACHE_DIR": ""}
    found = run(code, **clean)
    assert found.stdout.split()[-2:] == ["1", "False"], found.stderr
    assert found.stdout.split()[0] in ("None", "") or len(found.stdout.split()) == 2


def test_the_environment_may_ask_for_processes():
    code = (
        "from fusion_jax import runtime; runtime.initialize("
        "coordinator='localhost:{port}', num_processes=1, process_id=0);"
        "import jax; print(jax.distributed.is_initialized())"
    )
    import socket

    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    found = run(code.format(port=port))
    assert found.stdout.strip().splitlines()[-1] == "True", found.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="settings of glibc")
def test_freed_memory_is_kept_and_given_back_when_asked():
    code = """
import numpy as np
from fusion_jax import runtime

def mib():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4 / 1024

if not runtime.keep_freed_memory():
    print("no glibc")
    raise SystemExit
blocks = [np.ones(2**20, np.uint8) for _ in range(200)]
held = mib()
del blocks
kept = mib()
runtime.release_freed_memory()
print(held - kept < 50, kept - mib() > 150)
"""
    done = run(code)
    assert done.returncode == 0, done.stderr
    if done.stdout.strip() == "no glibc":
        pytest.skip("another C library")
    assert done.stdout.split() == ["True", "True"]
