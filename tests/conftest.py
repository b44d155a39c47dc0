"""Eight virtual CPU devices, no network, and the folder of real data, if any."""

import gc
import os
import zlib
from pathlib import Path

# Before jax is imported anywhere: the platform is read once.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE"):
    os.environ.setdefault(name, "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import hypothesis  # noqa: E402
import jax  # noqa: E402
import numpy as np  # noqa: E402
import pytest  # noqa: E402

ROOT = Path(__file__).resolve().parents[1]

jax.config.update("jax_num_cpu_devices", 8)
# Workers and later runs share what was compiled; a test's time is mostly that.
jax.config.update("jax_compilation_cache_dir", str(ROOT / ".cache" / "jax-tests"))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
# The first call of a property compiles; its time says nothing.
hypothesis.settings.register_profile("project", deadline=None)
hypothesis.settings.load_profile("project")


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of task folders that FUSION_JAX_DATA names, or ../shared/data."""
    named = os.environ.get("FUSION_JAX_DATA")
    beside = ROOT.parent / "shared" / "data"
    folder = Path(named) if named else beside
    if not folder.is_dir():
        pytest.skip("no real data: set FUSION_JAX_DATA to a folder of task folders")
    return folder


@pytest.fixture(autouse=True)
def _numbers_of_its_own(request):
    """What a test draws from its module's RANDOM depends on its name alone.

    Not on the tests that ran before it in the same process: those change from run to
    run, and a failure that cannot be repeated cannot be explained.
    """
    random = getattr(request.module, "RANDOM", None)
    if random is not None:
        seed = zlib.crc32(request.node.name.encode())
        random.bit_generator.state = np.random.default_rng(seed).bit_generator.state


@pytest.fixture(autouse=True, scope="module")
def _release_programs():
    """Drops compiled programs before the process has as many mappings as Linux allows.

    Each program of XLA maps memory of its own; some thousands of them end in a crash
    of its compiler.
    """
    yield
    maps = Path("/proc/self/maps")
    if maps.is_file() and maps.read_bytes().count(b"\n") > 20_000:
        jax.clear_caches()
        gc.collect()
