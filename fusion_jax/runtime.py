"""The first call of every launch script: processes, compile cache, device report.

Nothing here runs at import, and nothing touches a device before `initialize`.
"""

import contextlib
import ctypes
import os
import sys
from pathlib import Path
from typing import Any

import jax

DISTRIBUTED = "FUSION_JAX_DISTRIBUTED"
CACHE = "FUSION_JAX_CACHE_DIR"

_FALSE = ("", "0", "false", "no", "off")


def initialize(
    *,
    distributed: bool | None = None,
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
) -> None:
    """Joins the processes of a job where asked for, and switches the cache on.

    On a TPU pod, under Slurm and under Open MPI jax finds the coordinator itself;
    elsewhere give all three of coordinator, num_processes and process_id.

    Args:
      distributed: whether to call `jax.distributed.initialize`; None asks the
        environment variable FUSION_JAX_DISTRIBUTED (0 or 1), default no. A
        coordinator means yes.
      coordinator: 'host:port' of process 0.
      num_processes: processes of the job.
      process_id: number of this one.
      cache_dir: as in `enable_compile_cache`.

    Raises:
      ValueError: some but not all of the three are given.
      RuntimeError: a device was touched before, or the coordinator does not answer.
    """
    given = {
        "coordinator": coordinator,
        "num_processes": num_processes,
        "process_id": process_id,
    }
    missing = [name for name, value in given.items() if value is None]
    if 0 < len(missing) < len(given):
        raise ValueError(
            f"initialize: {', '.join(missing)} missing; give coordinator, "
            "num_processes and process_id together, or none of them where the cluster "
            "says them itself"
        )
    enable_compile_cache(cache_dir)
    keep_freed_memory()
    if distributed is None:
        asked = os.environ.get(DISTRIBUTED, "").strip().lower() not in _FALSE
        distributed = asked or coordinator is not None
    if not distributed or jax.distributed.is_initialized():
        return
    platforms = jax.config.jax_platforms  # type: ignore[attr-defined]
    if platforms == "cpu":
        # The CPU's own collectives know one process only.
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(coordinator, num_processes, process_id)


def enable_compile_cache(directory: str | os.PathLike[str] | None = None) -> str | None:
    """Keeps compiled programs in a directory, so that a second start is fast.

    Off by default. Only for a directory that you trust: what is read from it runs.

    Args:
      directory: None asks the environment variable FUSION_JAX_CACHE_DIR, and where
        that is not set leaves things as they are (jax reads JAX_COMPILATION_CACHE_DIR
        itself).

    Returns:
      The directory in use, or None.
    """
    directory = directory or os.environ.get(CACHE)
    if directory:
        path = Path(directory).expanduser().absolute()
        path.mkdir(parents=True, exist_ok=True)
        jax.config.update("jax_compilation_cache_dir", str(path))
        # A start of MiniLM compiles some hundred small programs, which together take
        # as long as a large one: all are worth keeping.
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
        jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    return jax.config.jax_compilation_cache_dir  # type: ignore[attr-defined]


def keep_freed_memory() -> bool:
    """Lets the C library keep large freed blocks instead of giving them back.

    On a CPU every step allocates its activations anew; by default glibc maps and unmaps
    them, and half of the page faults of a MiniLM step come from that (13 % more tokens
    a second without them, measured on 2 cores).

    Returns:
      Whether there was a glibc that took the settings.
    """
    if sys.platform != "linux":
        return False
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return False
    # mmap_threshold (its largest allowed value), trim_threshold, top_pad.
    settings = ((-3, 32 * 2**20), (-1, 2**31 - 1), (-2, 64 * 2**20))
    return all([mallopt(name, value) for name, value in settings])


def release_freed_memory() -> None:
    """Gives what was freed, and kept by `keep_freed_memory`, back to the system.

    For between two stages: inside one, the next step would fault every page in again.
    """
    if sys.platform != "linux":
        return
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def device_report() -> dict[str, Any]:
    """What this job runs on, as JSON values.

    Returns:
      'platform', 'device' (its kind), 'devices' (in the job), 'local_devices',
      'processes', 'process', 'memory_gib' (of one device; None where unknown),
      'cpu_cores', 'jax', 'compile_cache'.
    """
    device = jax.local_devices()[0]
    statistics = device.memory_stats() if device.platform != "cpu" else None
    limit = (statistics or {}).get("bytes_limit")
    return {
        "platform": device.platform,
        "device": device.device_kind,
        "devices": jax.device_count(),
        "local_devices": jax.local_device_count(),
        "processes": jax.process_count(),
        "process": jax.process_index(),
        "memory_gib": None if limit is None else round(limit / 2**30, 2),
        "cpu_cores": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
        "jax": jax.__version__,
        "compile_cache": jax.config.jax_compilation_cache_dir,  # type: ignore[attr-defined]
    }
