"""One merge of models in memory, timed: no start, no reading, no writing.

    python scripts/bench/merge_in_process.py JOB

JOB is JSON: side ('ours' or 'mergekit'), models (label -> weight file), repeats,
seconds (after which no further repeat begins), threads, and what the side's function
takes. Runs in the interpreter of its side and prints one line of JSON: seconds of the
first call, where ours compiles, and of those after it. Either side gives new arrays in
the machine's memory.
"""

import json
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from safetensors.numpy import load_file

Models = Mapping[str, Mapping[str, np.ndarray]]


def main() -> None:
    """Times one merge."""
    job = json.loads(sys.argv[1])
    # A mapped file is read when it is first used: copies are in memory before.
    models = {
        label: {name: x.copy() for name, x in load_file(file).items()}
        for label, file in job["models"].items()
    }
    merge = SIDES[job["side"]](models, job)
    first = clock(merge)
    seconds: list[float] = []
    while len(seconds) < job["repeats"] and (
        not seconds or sum(seconds) < job["seconds"]
    ):
        seconds.append(clock(merge))
    print(json.dumps({"first": first, "seconds": seconds}))


def clock(function: Callable[[], Any]) -> float:
    """Seconds of a call; its result is thrown away outside."""
    begun = time.perf_counter()
    result = function()
    seconds = time.perf_counter() - begun
    del result
    return seconds


def ours(models: Models, job: Mapping[str, Any]) -> Callable[[], Any]:
    """The merge of this package."""
    from fusion_jax.checkpoints.in_process import merge_arrays

    experts = dict(models)
    base = experts.pop(job["base"], None)
    return lambda: merge_arrays(
        experts,
        job["method"],
        job["coefficients"],
        base=base,
        options=job["options"],
        seed=0,
    )


def mergekit(models: Models, job: Mapping[str, Any]) -> Callable[[], Any]:
    """The merge of mergekit on tensors that share the arrays' memory."""
    import torch  # pyright: ignore[reportMissingImports]
    from mergekit.merge_methods.api import (  # pyright: ignore[reportMissingImports]
        merge_state_dicts,
    )

    torch.set_num_threads(job["threads"])
    states = {
        label: {name: torch.from_numpy(x) for name, x in model.items()}
        for label, model in models.items()
    }

    @torch.no_grad()
    def merge() -> Any:
        return merge_state_dicts(
            states, job["method"], parameters=job["parameters"], base=job["base"]
        )

    return merge


SIDES = {"ours": ours, "mergekit": mergekit}


if __name__ == "__main__":
    main()
