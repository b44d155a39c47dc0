"""A linear merge in a running process, beside the disk's own reading and writing.

    python scripts/bench/merge_disk.py RECIPE OUT [--repeats 3]

RECIPE is a mergekit file. The merge is called again and again in one process, so that
start-up does not count; the first call is told apart. The floor is `cat` of the inputs
and a synced write of as many bytes as the merge writes, on the same disk. Both find the
inputs in the page cache. Prints one line of JSON; share is the floor's seconds over
those of the merge, by the least of each.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fusion_jax.checkpoints.mergekit.plan import read_plan
from fusion_jax.checkpoints.run_merge import run_merge

CHUNK = 2**24


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("recipe", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    print(json.dumps(share(options.recipe, options.out, options.repeats)))


def share(recipe: Path, out: Path, repeats: int) -> dict[str, Any]:
    """Seconds of the merge and of the floor, in turns.

    Args:
      recipe: mergekit's file.
      out: folder that is written and removed; it must not be there.
      repeats: calls after the first.
    """
    if out.exists():
        raise FileExistsError(f"{out} is there already")
    plan = read_plan(recipe.read_text(), recipe.parent)
    folders = [Path(folder) for folder in plan.models.values()]
    inputs = [file for one in folders for file in sorted(one.glob("*.safetensors"))]
    written = 0
    # Not zeros, which some disks do not store; made before the clock starts.
    chunk = os.urandom(CHUNK)

    def merge() -> None:
        nonlocal written
        run_merge(plan, out)
        written = sum(file.stat().st_size for file in out.glob("*.safetensors"))

    def floor() -> None:
        subprocess.run(["cat", *inputs], stdout=subprocess.DEVNULL, check=True)
        write(out, chunk, written)

    subprocess.run(["cat", *inputs], stdout=subprocess.DEVNULL, check=True)
    first = clock(merge, out)
    seconds: dict[str, list[float]] = {"merge": [], "floor": []}
    for _ in range(repeats):
        seconds["merge"].append(clock(merge, out))
        seconds["floor"].append(clock(floor, out))
    least = {name: min(values) for name, values in seconds.items()}
    return {
        "first": first,
        "seconds": seconds,
        "min": least,
        "median": {n: statistics.median(values) for n, values in seconds.items()},
        "bytes_in": sum(file.stat().st_size for file in inputs),
        "bytes_out": written,
        "share": least["floor"] / least["merge"],
    }


def clock(function: Callable[[], None], out: Path) -> float:
    """Seconds of a call; what it wrote is removed afterwards."""
    # What the one before wrote is on the disk: the next does not wait for it.
    os.sync()
    begun = time.perf_counter()
    try:
        function()
        return time.perf_counter() - begun
    finally:
        shutil.rmtree(out, ignore_errors=True)


def write(folder: Path, chunk: bytes, count: int) -> None:
    """Writes and syncs so many bytes of a chunk, over and over."""
    folder.mkdir()
    with (folder / "floor.bin").open("wb") as file:
        for start in range(0, count, len(chunk)):
            file.write(chunk[: count - start])
        file.flush()
        os.fdatasync(file.fileno())


if __name__ == "__main__":
    main()
