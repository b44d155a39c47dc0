"""Stores of every kind: directories, memory, and S3 by a server on the loopback."""

import os
import subprocess
import sys
import uuid
from pathlib import Path

import pytest

from fusion_jax.collaboration.local_store import LocalStore
from fusion_jax.collaboration.stores import open_store
from tests.collaboration.s3_proxy import Proxy

# A store of your own to hold against the same properties, say gs://bucket/prefix.
YOURS = os.environ.get("FUSION_JAX_TEST_STORE")
KINDS = ["directory", "directory without links", "memory", "s3"]


@pytest.fixture(scope="session")
def s3_port():
    for name in ("moto", "s3fs"):
        pytest.importorskip(name, reason="S3 cannot be tried: pip install '.[test]'")
    script = Path(__file__).with_name("s3_server.py")
    server = subprocess.Popen(
        [sys.executable, str(script)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    line = server.stdout.readline()
    assert line.strip().isdigit(), "the server of S3 did not start"
    yield int(line)
    server.stdin.close()
    server.wait(timeout=20)
    server.stdout.close()


@pytest.fixture
def s3_environment(s3_port, monkeypatch):
    """What every client of S3 reads, and nothing of this machine's own."""
    for name in [each for each in os.environ if each.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name, value in {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{s3_port}",
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        "AWS_EC2_METADATA_DISABLED": "true",
        "NO_PROXY": "127.0.0.1",
    }.items():
        monkeypatch.setenv(name, value)


@pytest.fixture(scope="session")
def s3_client(s3_port):
    import botocore.session

    return botocore.session.Session().create_client(
        "s3",
        endpoint_url=f"http://127.0.0.1:{s3_port}",
        region_name="us-east-1",
        aws_access_key_id="key",
        aws_secret_access_key="secret",
    )


@pytest.fixture
def bucket(s3_environment, s3_client):
    name = f"bucket-{uuid.uuid4().hex[:12]}"
    s3_client.create_bucket(Bucket=name)
    return name


@pytest.fixture
def proxy(s3_port, s3_environment, monkeypatch):
    """The proxy; stores that are opened from here on go through it."""
    made = Proxy(s3_port)
    monkeypatch.setenv("AWS_ENDPOINT_URL", made.url)
    yield made
    made.close()


@pytest.fixture(params=KINDS + (["yours"] if YOURS else []))
def opened(request, tmp_path):
    """Opens the same fresh store, as another party would, each time it is called."""
    if request.param == "directory":
        return lambda: open_store(tmp_path / "store")
    if request.param == "directory without links":
        return lambda: LocalStore(tmp_path / "store", hard_links=False)
    fresh = uuid.uuid4().hex
    if request.param == "memory":
        return lambda: open_store(f"memory://{fresh}")
    if request.param == "yours":
        return lambda: open_store(f"{YOURS.rstrip('/')}/{fresh}")
    url = f"s3://{request.getfixturevalue('bucket')}/some/prefix"
    return lambda: open_store(url)


@pytest.fixture
def store(opened):
    return opened()
