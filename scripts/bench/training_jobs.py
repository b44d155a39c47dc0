"""Contributors of one round trained as one stack, one after another, or each alone.

    python scripts/bench/training_jobs.py JOB

JOB is JSON: part ('stack' or 'alone') and what its function takes. Prints one line of
JSON: seconds of each call, the first of which compiles, and real tokens of one.
"""

import json
import sys
import time
from typing import Any

import jax

from fusion_jax import trees
from fusion_jax.checkpoints import huggingface as hf
from fusion_jax.checkpoints.huggingface import Checkpoint
from fusion_jax.data.synthetic import generate
from fusion_jax.data.tokenise import load_tokenizer
from fusion_jax.systems.experts import head_key
from fusion_jax.systems.problem import Problem, make_problem, starting_params, widened
from fusion_jax.training.config import FROZEN_EMBEDDINGS, FitConfig
from fusion_jax.training.fit import fit, fit_stack
from fusion_jax.types import Params

TASKS = 6
RATE = 2e-4


def main() -> None:
    """Trains as the job says."""
    job = json.loads(sys.argv[1])
    print(json.dumps(PARTS[job.pop("part")](**job)))


def fit_config(epochs: int) -> FitConfig:
    """How everybody trains; the last epoch is taken, nobody scores on dev."""
    return FitConfig(epochs=epochs, learning_rate=RATE, select="last")


def problem_of(number: int, encoder: Checkpoint, rows: int, max_length: int) -> Problem:
    """A contributor's task: one of six kinds, of a seed of its own."""
    made = generate(number // TASKS, num_tasks=TASKS, train=rows, dev=8, test=8)
    return make_problem(
        list(made.values())[number % TASKS],
        encoder,
        load_tokenizer(encoder.path),
        max_length=max_length,
        splits=("train",),
    )


def stack(
    encoder: str,
    contributors: int,
    together: int,
    rows: int,
    max_length: int,
    epochs: int,
    repeats: int,
) -> dict[str, Any]:
    """All contributors by one call of `fit_stack`, `together` in one program."""
    checkpoint = hf.load(encoder)
    problems = [
        problem_of(number, checkpoint, rows, max_length)
        for number in range(contributors)
    ]
    config = fit_config(epochs)
    width = max(problem.task.num_labels for problem in problems)
    wide = [widened(problem, checkpoint, width, config.dtype) for problem in problems]
    starts = [start_of(problem, checkpoint, k) for k, problem in enumerate(wide)]
    names = [f"contributor_{number}" for number in range(contributors)]
    shared = trees.partition(starts[0], FROZEN_EMBEDDINGS)[0]
    experts = trees.stack(
        [trees.partition(start, FROZEN_EMBEDDINGS)[1] for start in starts], names
    )
    batches = [problem.train_batches(config) for problem in wide]

    def run() -> int:
        done = fit_stack(
            wide[0].model,
            experts,
            shared,
            batches,
            None,
            config,
            kind=wide[0].kind,
            names=names,
            progress=False,
            together=together,
        )
        jax.block_until_ready(done.params)
        return done.tokens

    return timed(run, repeats)


def alone(
    encoder: str, number: int, rows: int, max_length: int, epochs: int, repeats: int
) -> dict[str, Any]:
    """One contributor by `fit`."""
    checkpoint = hf.load(encoder)
    problem = problem_of(number, checkpoint, rows, max_length)
    config = fit_config(epochs)
    start = start_of(problem, checkpoint, number)
    batches = problem.train_batches(config)

    def run() -> int:
        done = fit(
            problem.model,
            start,
            batches,
            None,
            config,
            kind=problem.kind,
            progress=False,
        )
        jax.block_until_ready(done.params)
        return done.tokens

    return timed(run, repeats)


def start_of(problem: Problem, encoder: Checkpoint, number: int) -> Params:
    """The base with a contributor's head."""
    key = head_key(f"contributor_{number}", 0)
    return starting_params(problem, encoder.params, encoder.params, key)


def timed(run: Any, repeats: int) -> dict[str, Any]:
    """Seconds of the first call and of those after it, and tokens of one."""
    seconds = []
    tokens = 0
    for _ in range(1 + repeats):
        begun = time.perf_counter()
        tokens = run()
        seconds.append(time.perf_counter() - begun)
    return {"first": seconds[0], "seconds": seconds[1:], "tokens": tokens}


PARTS = {"stack": stack, "alone": alone}


if __name__ == "__main__":
    main()
