"""A cache anywhere that fsspec reaches is the cache on a local disk: the same numbers, or one clear error in time."""

import logging
from collections.abc import Iterator

import fsspec
import numpy as np
import pytest
from moto.server import ThreadedMotoServer
from test_spool import make, of_all_shards, spec_of

from logitcache.errors import IncompleteError, NotFoundError, OptionError, StorageError
from logitcache.store import CacheReader, CacheWriter

SPEC = spec_of()


@pytest.fixture(scope="session")
def s3() -> Iterator[str]:
    """A real S3 server on loopback, by its address; the bucket is called `bucket`."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    endpoint = f"http://{host}:{port}"
    with pytest.MonkeyPatch.context() as patch:
        for name, value in S3_ENVIRONMENT.items():
            patch.setenv(name, value)
        patch.setenv("AWS_ENDPOINT_URL", endpoint)
        fsspec.filesystem("s3", skip_instance_cache=True).mkdir("bucket")
        yield endpoint
    server.stop()


S3_ENVIRONMENT = {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "AWS_DEFAULT_REGION": "us-east-1"}


@pytest.fixture(params=["memory", "s3", "file"])
def root(request, tmp_path) -> str:
    """Where a test may put caches, of every kind that can be written."""
    if request.param == "s3":
        request.getfixturevalue("s3")
        return f"s3://bucket/{tmp_path.name}"
    return f"memory://{tmp_path.name}" if request.param == "memory" else f"file://{tmp_path}"


@pytest.fixture(scope="module")
def local(tmp_path_factory) -> CacheReader:
    return make(tmp_path_factory.mktemp("local") / "c.zarr", SPEC, seeds=(0, 2))


def assert_same(reader: CacheReader, other: CacheReader) -> None:
    assert reader.seeds() == other.seeds()
    for seed in reader.seeds():
        expected = of_all_shards(other, seed)
        for name, array in of_all_shards(reader, seed).items():
            np.testing.assert_array_equal(array, expected[name])
        assert reader.identity(seed) == other.identity(seed)
        assert reader.canaries(seed) == other.canaries(seed)


def test_a_cache_written_to_a_url_is_the_one_written_here(root, local):
    reader = make(f"{root}/c.zarr", SPEC, seeds=(0, 2))
    assert_same(reader, local)
    found, expected = reader.info(), local.info()
    assert found.pop("path") == str(reader.path)
    expected.pop("path")
    assert found == expected


def test_a_shard_at_a_url_is_never_written_again(root):
    make(f"{root}/c.zarr", SPEC)
    with CacheWriter.open(f"{root}/c.zarr", SPEC).seed(0) as own:
        assert own.committed().all()
        with pytest.raises(OptionError, match="never written again"):
            own.write(0, {})


def test_what_is_not_there_is_not_found(root):
    with pytest.raises(NotFoundError, match="no cache at"):
        CacheReader(f"{root}/nothing")
    writer = CacheWriter.open(f"{root}/c.zarr", SPEC)
    with writer.seed(3):
        pass
    reader = CacheReader(f"{root}/c.zarr")
    assert reader.complete() == []
    with pytest.raises(IncompleteError, match="no seed 1; it has seed 3"):
        reader.commits(1)
    with pytest.raises(IncompleteError, match="shard 1 of seed 3"):
        reader.read(3, 1)


def test_a_bucket_that_is_not_there_ends_clearly(s3):
    with pytest.raises(NotFoundError, match="no cache at"):
        CacheReader("s3://nobody/c.zarr")
    with pytest.raises(StorageError, match="bucket does not exist"):
        CacheWriter.open("s3://nobody/c.zarr", SPEC)
