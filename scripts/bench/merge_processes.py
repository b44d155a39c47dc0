"""One command in a process of its own: seconds, memory, the load before it."""

import contextlib
import importlib
import os
import select
import subprocess
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

PERIOD = 0.02
"""Seconds between two looks at a command's memory."""


def measure(
    command: Sequence[str | Path],
    log: Path,
    environment: Mapping[str, str],
) -> dict[str, Any]:
    """Runs a command once.

    Args:
      command: words of the command.
      log: file that gets what it says.
      environment: all its variables.

    Returns:
      code: exit status; wall and cpu (user + system, all its processes) seconds;
      maxrss_mb, which counts mapped files, that the system may drop, as the private
      memory, of the largest process; anon_mb: the most private memory that it and its
      descendants held at one time, looked at every 20 ms; load: the average of one
      minute before it. 1 MB = 2**20 bytes.
    """
    # What the one before wrote is on the disk: the next does not wait for it.
    os.sync()
    load = os.getloadavg()[0]
    with log.open("wb") as said:
        begun = time.perf_counter()
        child = subprocess.Popen(
            [str(word) for word in command],
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=subprocess.STDOUT,
            env=dict(environment),
        )
        try:
            most = watch(child.pid)
            wall = time.perf_counter() - begun
            _, status, usage = os.wait4(child.pid, 0)
        except BaseException:
            child.kill()
            child.wait()
            raise
    child.returncode = os.waitstatus_to_exitcode(status)
    return {
        "code": child.returncode,
        "wall": wall,
        "cpu": usage.ru_utime + usage.ru_stime,
        "maxrss_mb": usage.ru_maxrss / 2**10,
        "anon_mb": most / 2**10,
        "load": load,
    }


def watch(pid: int) -> int:
    """Waits for a process to end; the most private memory of its tree, in KiB."""
    most = 0
    end = os.pidfd_open(pid)
    try:
        while not select.select([end], [], [], PERIOD)[0]:
            most = max(most, sum(anonymous(one) for one in tree(pid)))
    finally:
        os.close(end)
    return most


def tree(pid: int) -> list[int]:
    """A process and its descendants."""
    found = [pid]
    for one in found:
        # A process may end between two lines.
        with contextlib.suppress(OSError):
            for task in os.listdir(f"/proc/{one}/task"):
                text = Path(f"/proc/{one}/task/{task}/children").read_text()
                found += map(int, text.split())
    return found


def anonymous(pid: int) -> int:
    """Resident private memory of one process, in KiB; 0 when it has ended."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("RssAnon:"):
                return int(line.split()[1])
    return 0


def apart(module: str, function: str, *arguments: Any) -> Any:
    """Calls a function of a module of this folder in a process of its own.

    The maxRSS of a command begins at that of the process which starts it: the one that
    measures must stay small.
    """
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(_call, module, function, *arguments).result()


def _call(module: str, function: str, *arguments: Any) -> Any:
    return getattr(importlib.import_module(module), function)(*arguments)
