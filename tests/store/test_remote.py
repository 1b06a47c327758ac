"""A cache anywhere that fsspec reaches is the cache on a local disk: the same numbers, or one clear error in time."""

import itertools
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from functools import partial
from http import HTTPStatus
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import ClassVar

import fsspec
import numpy as np
import pytest
from dumping import dump_digits
from serving import QuietHandler, serving
from small_caches import arrays_of, assert_same_cache, make, spec_of

from logitcache.audit.checkup import CheckupConfig, check_cache
from logitcache.errors import FormatError, IncompleteError, NotFoundError, OptionError, StorageError
from logitcache.store import CacheReader, CacheWriter, SeedWriter, remote
from logitcache.store.copy import copy_cache
from logitcache.store.derive import derive_cache
from logitcache.store.local import LocalPlace

SPEC = spec_of(n=7)


@pytest.fixture(scope="module")
def local(tmp_path_factory) -> CacheReader:
    return make(tmp_path_factory.mktemp("local") / "c.zarr", SPEC, seeds=(0, 2))


def test_a_cache_written_to_a_url_is_the_one_written_here(root, local):
    reader = make(f"{root}/c.zarr", SPEC, seeds=(0, 2))
    assert_same_cache(reader, local)
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


# From the web ---------------------------------------------------------------------------------------------


class _ListsNothing(QuietHandler):
    def list_directory(self, path: object) -> None:
        self.send_error(HTTPStatus.NOT_FOUND)


@pytest.mark.parametrize("handler", [QuietHandler, _ListsNothing])
def test_a_cache_on_the_web_is_read_and_needs_an_index_where_the_host_does_not_list(handler, local, tmp_path):
    shutil.copytree(local.path, tmp_path / "c.zarr")
    with serving(partial(handler, directory=tmp_path)) as host:
        reader = CacheReader(f"{host}/c.zarr/")
        assert_same_cache(reader, local)
        (tmp_path / "c.zarr" / "seeds.json").unlink()
        assert reader.seeds() == ([0, 2] if handler is QuietHandler else [])
        with CacheWriter.open(tmp_path / "c.zarr", SPEC).seed(2):
            pass
        assert_same_cache(reader, local)
        assert reader.info()["bytes_on_disk"] is None
        shutil.rmtree(tmp_path / "c.zarr" / "seed-0")  # the index still names it
        assert reader.seeds() == [2]
        with pytest.raises(OptionError, match="https is for reading"):
            CacheWriter.open(f"{host}/c.zarr", SPEC)
        with pytest.raises(NotFoundError, match=r"no cache at .*; check the URL"):
            CacheReader(f"{host}/d.zarr")


def _write_and_fail(out: Path) -> None:
    with suppress(KeyboardInterrupt), CacheWriter.open(out, SPEC).seed(3) as own:
        own.write(0, arrays_of(SPEC, 3, 0))
        raise KeyboardInterrupt


def _dump(out: Path) -> None:
    dump_digits(out, 100, seeds=(0, 3))


def _copy(out: Path) -> None:
    make(out.with_name("source.zarr"), SPEC, seeds=(0, 2))
    for seed in (2, 0):
        copy_cache(out.with_name("source.zarr"), out, seeds=(seed,))


def _derive(out: Path) -> None:
    _dump(out.with_name("source.zarr"))
    for seed in (0, 3):
        derive_cache(out.with_name("source.zarr"), out, top_k=2, seeds=(seed,))


def _repair(out: Path) -> None:
    _dump(out)
    (out / "seeds.json").unlink()
    (out / "seed-3" / "commit" / "zarr.json").unlink()
    check_cache(str(out), CheckupConfig(repair=True))


@pytest.mark.parametrize("write", [_write_and_fail, _dump, _copy, _derive, _repair])
def test_whoever_writes_a_cache_names_its_seeds_to_hosts_that_do_not_list(
    write: Callable[[Path], None], tmp_path: Path
) -> None:
    write(tmp_path / "c.zarr")
    seeds = CacheReader(tmp_path / "c.zarr").seeds()
    assert seeds
    with serving(partial(_ListsNothing, directory=tmp_path)) as host:
        assert CacheReader(f"{host}/c.zarr").seeds() == seeds


@pytest.mark.parametrize(
    "index", [b"", b"[]", b'{"seeds": 3}', b'{"seeds": [-1]}', b'{"seeds": ["../x"]}', b"\xff"]
)
def test_an_index_is_not_trusted(index, local, tmp_path):
    shutil.copytree(local.path, tmp_path / "c.zarr")
    (tmp_path / "c.zarr" / "seeds.json").write_bytes(index)
    assert CacheReader(tmp_path / "c.zarr").seeds() == [
        0,
        2,
    ]  # where the place lists, it is not even looked at
    with serving(partial(_ListsNothing, directory=tmp_path)) as host:
        reader = CacheReader(f"{host}/c.zarr")
        if index:
            with pytest.raises(FormatError, match=r"seeds\.json: expected"):
                reader.seeds()
        else:
            assert reader.seeds() == []


class _Endless(QuietHandler):
    """Sends zeros for ever."""

    def do_GET(self) -> None:
        self.send_response(HTTPStatus.OK)
        self.end_headers()
        with suppress(OSError):
            while True:
                self.wfile.write(bytes(1 << 16))


def test_a_host_that_never_stops_sending_is_not_listened_to():
    with serving(_Endless) as host, pytest.raises(FormatError, match="expected at most 16777216 bytes"):
        CacheReader(f"{host}/c.zarr")


class _Drips(QuietHandler):
    """Sends a byte every tenth of a second, never done: of its header, or after it of the file."""

    header: ClassVar[bool]

    def do_GET(self) -> None:
        with suppress(OSError):
            self.wfile.write(b"HTTP/1.0 200 OK\r\n" + (b"" if self.header else b"\r\n"))
            while True:
                self.wfile.write(b"x")
                time.sleep(0.1)


@pytest.mark.parametrize("header", [True, False])
def test_a_host_that_sends_too_slowly_is_given_up_in_time(header, monkeypatch):
    monkeypatch.setattr(remote, "PATIENCE", remote.Patience(attempts=2, pause=0.01, silence=0.5, longest=0.7))
    began = time.monotonic()
    with serving(type("Handler", (_Drips,), {"header": header})) as host:
        with pytest.raises(StorageError, match=r"cannot read .*c\.zarr/zarr\.json \(2 attempts\)"):
            CacheReader(f"{host}/c.zarr")
        assert 1.4 <= time.monotonic() - began < 5  # two attempts of the longest time; never silent


# Faults ---------------------------------------------------------------------------------------------------


class Faulty(BaseHTTPRequestHandler):
    """A proxy before a host: `faults` says what happens to each request in turn; what it does not say goes well."""

    upstream: ClassVar[str]
    faults: ClassVar[Iterator[str]]
    protocol_version = "HTTP/1.1"

    def _forward(self) -> None:
        fault = next(self.faults, "")
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if fault == "drop":
            self.close_connection = True
            return
        if fault == "silence":
            self.connection.settimeout(5)
            with suppress(OSError):
                self.connection.recv(1)  # until the client gives up
            self.close_connection = True
            return
        connection = HTTPConnection(self.upstream.removeprefix("http://"), timeout=10)
        with closing(connection):
            connection.request(self.command, self.path, body, dict(self.headers))
            answer = connection.getresponse()
            data = b"" if fault.isdecimal() else answer.read()
        status = int(fault) if fault.isdecimal() else answer.status
        self.send_response_only(status)
        for name, value in answer.getheaders():
            if name.lower() not in ("connection", "transfer-encoding", "content-length", "server", "date"):
                self.send_header(name, value)
        length = answer.headers["Content-Length"] if self.command == "HEAD" else len(data)
        self.send_header("Content-Length", str(length or 0))
        self.end_headers()
        self.wfile.write(data[: len(data) // 2] if fault == "truncate" else data)
        self.close_connection = fault == "truncate"

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _forward  # noqa: N815

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def impatient(monkeypatch) -> None:
    monkeypatch.setattr(remote, "PATIENCE", remote.Patience(attempts=3, pause=0.01, silence=0.4, longest=5))


@contextmanager
def faulty(upstream: str, faults: Iterable[str]) -> Iterator[str]:
    handler = type("Handler", (Faulty,), {"upstream": upstream, "faults": iter(faults)})
    with serving(handler) as host:
        yield host


FAULTS = ["drop", "silence", "truncate", "500", "503"]


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_that_pass_are_waited_out_on_the_web(fault, local, impatient):
    faults = itertools.cycle([fault, "", "", "", ""])
    with serving(partial(QuietHandler, directory=local.path.parent)) as host, faulty(host, faults) as before:
        reader = CacheReader(f"{before}/c.zarr")
        np.testing.assert_array_equal(reader.read(2, 1)["top"], local.read(2, 1)["top"])


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_that_pass_are_waited_out_on_s3(fault, s3, local, impatient, tmp_path, monkeypatch):
    with faulty(s3, itertools.cycle([fault, *[""] * 12])) as before:
        monkeypatch.setenv("AWS_ENDPOINT_URL", before)
        fsspec.get_filesystem_class("s3").clear_instance_cache()
        url = f"s3://bucket/{tmp_path.name}/c.zarr"
        with CacheWriter.open(url, SPEC).seed(2, local.metadata(2)) as own:
            own.write_files(1, int(local.commits(2)[1]), local.files(2, 1))
        np.testing.assert_array_equal(CacheReader(url).read(2, 1)["top"], local.read(2, 1)["top"])
    fsspec.get_filesystem_class("s3").clear_instance_cache()


@pytest.mark.parametrize("fault", [*FAULTS, "403"])
@pytest.mark.parametrize("kind", ["web", "s3"])
def test_faults_that_stay_end_in_one_line_in_time(kind, fault, s3, impatient, monkeypatch):
    fsspec.filesystem("s3", skip_instance_cache=True).pipe_file("bucket/c.zarr/zarr.json", bytes(1000))
    with faulty(s3, itertools.repeat(fault)) as before:
        monkeypatch.setenv("AWS_ENDPOINT_URL", before)
        fsspec.get_filesystem_class("s3").clear_instance_cache()
        began = time.monotonic()
        with pytest.raises(StorageError, match=r"cannot read .*c\.zarr/zarr\.json") as refused:
            CacheReader("s3://bucket/c.zarr" if kind == "s3" else f"{before}/bucket/c.zarr")
        assert "\n" not in str(refused.value)
        assert time.monotonic() - began < 30
    fsspec.get_filesystem_class("s3").clear_instance_cache()


def test_a_host_that_is_not_there_ends_in_one_line(impatient):
    with pytest.raises(StorageError, match=r"cannot read .*3 attempts.*connect"):
        CacheReader("http://127.0.0.1:9/c.zarr")


@pytest.mark.parametrize("url", ["gopher://hole/c.zarr", "s3://"])
def test_urls_that_nothing_answers_to(url):
    with pytest.raises((OptionError, NotFoundError)):
        CacheReader(url)


def test_a_package_that_is_not_installed_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    with pytest.raises(OptionError, match=r"pip install 'logitcache\[gs\]'"):
        CacheReader("gs://bucket/c.zarr")


def test_passwords_are_not_shown(impatient):
    with pytest.raises(StorageError) as refused:
        CacheReader("http://me:secret@127.0.0.1:9/c.zarr")
    assert "secret" not in str(refused.value)


def test_who_commits_second_is_told_if_it_was_with_something_else(root, local):
    writer = CacheWriter.open(f"{root}/c.zarr", SPEC)
    with writer.seed(2) as own, ExitStack() as stack:
        if not isinstance(writer.place, LocalPlace):  # on a disk the lock forbids what follows
            other = stack.enter_context(CacheWriter.open(f"{root}/c.zarr", SPEC).seed(2))
            monkeypatch = stack.enter_context(pytest.MonkeyPatch.context())
            monkeypatch.setattr(
                SeedWriter, "_refuse_committed", lambda self, shard: None
            )  # both looked before
            for writes in (own, other):  # the same twice: harmless
                writes.write_files(1, int(local.commits(2)[1]), local.files(2, 1))
            with pytest.raises(StorageError, match="written meanwhile by somebody else"):
                other.write(1, local.read(2, 1) | {"gap": np.ones((3, 2), np.float32)})
            with pytest.raises(FormatError, match="not what was committed"):
                CacheReader(f"{root}/c.zarr").read(2, 1)
