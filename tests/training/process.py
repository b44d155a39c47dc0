"""A fit in a process of its own: killed by a step, or one of several processes.

Usage: process.py WORKDIR OUT [--kill_at N] [--processes N --process I --port P]
"""

import argparse
import os
import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[2]))

import jax
import numpy as np


class KilledAt:
    """Batches that kill their process, without a warning, when a step is asked for."""

    def __init__(self, source, step):
        self._source, self._step = source, step
        self.steps_per_epoch = source.steps_per_epoch

    def batch(self, step):
        if step == self._step:
            os.kill(os.getpid(), signal.SIGKILL)
        return self._source.batch(step)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("workdir")
    parser.add_argument("out")
    parser.add_argument("--kill_at", type=int, default=-1)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--process", type=int, default=0)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--mesh", default="expert=1,data=1")
    args = parser.parse_args()

    from fusion_jax import runtime

    if args.processes > 1:
        runtime.initialize(
            coordinator=f"localhost:{args.port}",
            num_processes=args.processes,
            process_id=args.process,
        )

    from conftest import MODEL, make_split, small_init

    from fusion_jax.data.batches import TrainBatches
    from fusion_jax.training.config import FROZEN_EMBEDDINGS, FitConfig
    from fusion_jax.training.fit import fit_stack
    from fusion_jax.training.sharding import make_mesh
    from fusion_jax.trees import flatten, partition, stack

    config = FitConfig(
        epochs=2,
        head_epochs=1,
        batch_size=4,
        learning_rate=0.05,
        dropout=True,
        average="ema",
        save_every=1,
        save_seconds=0,
        log_every=2,
        buckets=(8, 16),
    )
    starts = [small_init(jax.random.key(k)) for k in range(2)]
    shared, _ = partition(starts[0], FROZEN_EMBEDDINGS)
    trained = [partition(start, FROZEN_EMBEDDINGS)[1] for start in starts]
    sources = [
        KilledAt(TrainBatches(make_split(rows, k), 4, seed=k, buckets=(8, 16)),
                 args.kill_at)
        for k, rows in enumerate((18, 10))
    ]  # fmt: skip
    axes = dict(part.split("=") for part in args.mesh.split(","))
    result = fit_stack(
        MODEL,
        jax.tree.map(np.asarray, stack(trained)),
        jax.tree.map(np.asarray, shared),
        sources,
        [make_split(16, 7), make_split(12, 8)],
        config,
        kind="single_label",
        workdir=None if args.workdir == "none" else args.workdir,
        mesh=make_mesh(**{name: int(size) for name, size in axes.items()}),
        together=2,
        progress=False,
    )
    gather = jax.jit(lambda x: x, out_shardings=_replicated(result.params))
    leaves = {name: np.asarray(gather(x)) for name, x in flatten(result.params).items()}
    scores = np.array([record["dev_loss"] for record in result.history])
    if args.process == 0:
        np.savez(args.out, scores=scores, best=np.array(result.best_epoch), **leaves)


def _replicated(tree):
    mesh = jax.tree.leaves(tree)[0].sharding.mesh
    return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())


if __name__ == "__main__":
    main()
