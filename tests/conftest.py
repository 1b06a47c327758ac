"""What several tests share: a trained teacher's worth of digits, made once, and a quiet machine."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # many small networks: threads only get in each other's way

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import settings

settings.register_profile("untimed", deadline=None)  # no test is a race
settings.load_profile("untimed")


@pytest.fixture(autouse=True)
def spools_go_to_a_temporary_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOGITCACHE_SPOOL", str(tmp_path / "spool"))


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    """One thread for each process; and autograd begins here, before anything is exported.

    After `torch.export` it would begin with threads of its own, and no process forked from this one could train.
    """
    torch.set_num_threads(1)
    torch.ones(1, requires_grad=True).sum().backward()


@pytest.fixture(scope="session")
def s3() -> Iterator[str]:
    """A real S3 server on loopback, by its address; the bucket is called `bucket`."""
    import fsspec
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    endpoint = f"http://{host}:{port}"
    with pytest.MonkeyPatch.context() as patch:
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            patch.setenv(name, "anybody")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        patch.setenv("AWS_ENDPOINT_URL", endpoint)
        fsspec.filesystem("s3", skip_instance_cache=True).mkdir("bucket")
        yield endpoint
    server.stop()


@pytest.fixture(params=["memory", "s3", "file"])
def root(request, tmp_path) -> str:
    """Where a test may put caches, of every kind that can be written."""
    if request.param == "s3":
        request.getfixturevalue("s3")
        return f"s3://bucket/{tmp_path.name}"
    return f"memory://{tmp_path.name}" if request.param == "memory" else f"file://{tmp_path}"
