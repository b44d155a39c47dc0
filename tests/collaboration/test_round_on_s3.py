"""A whole round through a bucket, by real processes that share nothing else."""

import os
import subprocess
import sys

import pytest

from fusion_jax.collaboration.forks import fork
from fusion_jax.collaboration.jobs import Job, check, run_processes
from fusion_jax.collaboration.repository import (
    RepositoryError,
    init_repository,
    open_repository,
)
from fusion_jax.collaboration.rounds import fuse_round
from fusion_jax.collaboration.store import StoreError
from tests.collaboration.killed import finish, start
from tests.collaboration.repositories import hand_in, make_repository
from tests.small_models import write_model, write_task

WHO = ("ada", "bo")


@pytest.fixture
def url(bucket, tmp_path):
    """A bucket with a repository, and what a disk gives for the same contributions."""
    write_model(tmp_path / "base")
    place = f"s3://{bucket}/group"
    init_repository(place, tmp_path / "base", cache=tmp_path / "cache")
    return place


def test_two_processes_hand_in_and_two_fuse_as_on_a_disk(url, tmp_path):
    both = [start("contribute", url, who=who, cache=str(tmp_path / who)) for who in WHO]
    assert [finish(one) for one in both] == [0, 0]
    both = [
        start("fuse", url, quorum=2, cache=str(tmp_path / f"fuser-{n}"))
        for n in range(2)
    ]
    assert [finish(one) for one in both] == [0, 0]
    repository = open_repository(url, cache=tmp_path / "look")
    base = repository.current()
    assert base.round == 1
    on_disk = make_repository(tmp_path)
    for who in WHO:
        hand_in(on_disk, who)
    assert base.weights.sha256 == fuse_round(on_disk).weights.sha256
    made = fork(repository, 1, ["bo"])
    assert open_repository(made.url, cache=tmp_path / "fork").base(0) == made.base(0)


def test_a_bucket_that_vanishes_in_mid_round_is_named(url, tmp_path, bucket, s3_client):
    repository = open_repository(url, cache=tmp_path / "look")
    hand_in(repository, "ada")
    listed = s3_client.list_objects_v2(Bucket=bucket)["Contents"]
    for entry in listed:
        s3_client.delete_object(Bucket=bucket, Key=entry["Key"])
    s3_client.delete_bucket(Bucket=bucket)
    with pytest.raises((StoreError, RepositoryError), match=bucket):
        fuse_round(repository)
    with pytest.raises(StoreError, match=bucket):
        hand_in(repository, "bo", base=repository.base(0))


@pytest.mark.slow
def test_commands_of_two_contributors_and_a_fuser_make_a_round(url, tmp_path):
    for name in ("film", "play"):
        write_task(tmp_path / "tasks" / name)
    jobs = [
        Job(
            name,
            (
                *("repository", "contribute", url, "--data", str(tmp_path / "tasks")),
                *("--task", name, "--max-length", "16", "--set", "epochs=1"),
                *("--set", "batch_size=4", "--cache", str(tmp_path / f"c-{name}")),
                *("--workdir", str(tmp_path / "work")),
            ),
        )
        for name in ("film", "play")
    ]
    check(run_processes(jobs, workers=2))
    done = subprocess.run(
        [
            *(sys.executable, "-m", "fusion_jax.cli.main", "repository", "fuse", url),
            *("--quorum", "2", "--cache", str(tmp_path / "c-fuse")),
        ],
        env=os.environ,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "base 1 of 2 contributions" in done.stdout
