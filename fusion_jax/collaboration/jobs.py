"""Contributions as jobs: in processes of this machine, or as tasks of a Ray cluster.

A job is the command that a contributor would type: addresses travel, never weights, and
what is done stands in the repository alone. So a job that is killed is started again,
and one that was done finds what it handed in.
"""

import concurrent.futures
import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

WRONG_USAGE = 2  # exit code of a command that no second try makes right
_WORDS = 2000  # characters kept of what a failed job said


class Job(NamedTuple):
    """One contribution.

    Attributes:
      name: for messages.
      arguments: of `fusion-jax`, without --json.
    """

    name: str
    arguments: tuple[str, ...]

    @property
    def command(self) -> list[str]:
        """The words of the process."""
        return [sys.executable, "-m", "fusion_jax.cli.main", *self.arguments, "--json"]


class Outcome(NamedTuple):
    """What became of a job.

    Attributes:
      name: of the job.
      record: what the command printed; None where it failed.
      error: what it said last; '' where it did not fail.
      attempts: how often it was started.
      seconds: all starts together.
    """

    name: str
    record: Mapping[str, Any] | None
    error: str
    attempts: int
    seconds: float


class JobsFailed(OSError):
    """Jobs failed for good; names each and what it said last."""


def run_processes(
    jobs: Sequence[Job], *, workers: int = 1, retries: int = 2
) -> list[Outcome]:
    """Runs jobs in processes of this machine.

    Args:
      jobs: contributions.
      workers: processes at a time.
      retries: further starts of a job that was killed or failed.

    Returns:
      One outcome a job, in their order; those that failed tell why.
    """
    with concurrent.futures.ThreadPoolExecutor(max(1, workers)) as pool:
        return list(pool.map(lambda job: attempt(job, retries), jobs))


def run_ray(
    jobs: Sequence[Job], *, workers: int = 1, retries: int = 2
) -> list[Outcome]:
    """Runs jobs as tasks of the Ray cluster at $RAY_ADDRESS, or of a local one.

    A task whose worker dies is started again by Ray, elsewhere. Nothing is kept in Ray:
    if the cluster is lost, the same command goes on from the repository.

    Args:
      jobs: contributions; every node needs the package and sees data and store.
      workers: CPUs of a local cluster, where none is running.
      retries: further starts of a job that failed, or whose worker died.

    Raises:
      ValueError: Ray is not installed.
    """
    try:
        import ray  # pyright: ignore[reportMissingImports]
    except ModuleNotFoundError as error:
        raise ValueError(
            "the backend 'ray' needs Ray: pip install 'fusion_jax[ray]'"
        ) from error
    started = not ray.is_initialized()
    if started:
        _connect(ray, max(1, workers))
    try:
        # A fresh worker for each: device memory is given back when it ends.
        remote = ray.remote(max_calls=1, max_retries=retries, num_cpus=1)(attempt)
        waiting = [remote.remote(job, retries) for job in jobs]
        return [_outcome(ray, job, ref) for job, ref in zip(jobs, waiting, strict=True)]
    finally:
        if started:
            ray.shutdown()


def attempt(job: Job, retries: int) -> Outcome:
    """Runs one job in a process of its own until it succeeds or is given up."""
    began, error = time.monotonic(), ""
    for number in range(1, retries + 2):
        done = subprocess.run(job.command, capture_output=True, text=True, check=False)
        if done.returncode == 0:
            record = json.loads(done.stdout.strip().splitlines()[-1])
            seconds = time.monotonic() - began
            return Outcome(job.name, record, "", number, seconds)
        error = done.stderr.strip()[-_WORDS:] or f"ended with {done.returncode}"
        if done.returncode == WRONG_USAGE:
            break
    return Outcome(job.name, None, error, number, time.monotonic() - began)


def check(outcomes: Sequence[Outcome]) -> None:
    """Raises `JobsFailed` with all that failed, if one did."""
    failed = [outcome for outcome in outcomes if outcome.record is None]
    if failed:
        told = "\n".join(
            f"  {outcome.name} ({outcome.attempts} starts): {outcome.error}"
            for outcome in failed
        )
        raise JobsFailed(
            f"{len(failed)} of {len(outcomes)} contributions failed; those of the "
            f"others are in the repository, and the same command goes on:\n{told}"
        )


def _connect(ray: Any, workers: int) -> None:
    import os

    options: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    if not os.environ.get("RAY_ADDRESS"):
        options |= {"num_cpus": workers, "include_dashboard": False}
    ray.init(**options)


def _outcome(ray: Any, job: Job, reference: Any) -> Outcome:
    try:
        return ray.get(reference)
    except ray.exceptions.RayError as error:
        return Outcome(job.name, None, str(error).strip()[-_WORDS:], 0, 0.0)


BACKENDS: Mapping[str, Callable[..., list[Outcome]]] = {
    "processes": run_processes,
    "ray": run_ray,
}
"""`(jobs, *, workers, retries) -> outcomes`; add a way to run by a line here."""
