"""The alternatives to a cache, written as one would for speed: how a record is looked up, and what it keeps."""

import os
import struct
from abc import ABC, abstractmethod
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from logitcache.schema import CHUNK_SAMPLES
from logitcache.sparse import SparseTeacher

Rows = npt.NDArray[np.uint8]
LEAST = 1e-8  # the tail's mass where the record's rounded probabilities leave none


class Lookup(ABC):
    """Records of n rows of equal size on disk, looked up by their numbers."""

    name: str

    def __init__(self, folder: Path, rows: Rows) -> None:
        self.width = rows.shape[1]
        self.open(folder, rows)

    @abstractmethod
    def open(self, folder: Path, rows: Rows) -> None:
        """Write the rows, and open what was written."""

    @abstractmethod
    def take(self, samples: npt.NDArray[np.int64]) -> Rows:
        """Return the rows of these samples, (B, width)."""

    @abstractmethod
    def close(self) -> None:
        """Let go of what was opened."""


class SeekAndRead(Lookup):
    """One file of fixed-size records; a seek and a read for each sample, as TinyViT's saved logits are read."""

    name = "seek + read"

    def open(self, folder: Path, rows: Rows) -> None:
        """Write one file; open it without Python's buffer, which would read 8 kB for each record."""
        rows.tofile(folder / "records")
        self._file = (folder / "records").open("rb", buffering=0)

    def take(self, samples: npt.NDArray[np.int64]) -> Rows:
        """Seek and read, sample by sample."""
        found = []
        for sample in samples.tolist():
            self._file.seek(sample * self.width)
            found.append(self._file.read(self.width))
        return np.frombuffer(b"".join(found), np.uint8).reshape(len(samples), self.width)

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class MappedTake(Lookup):
    """The same file, mapped, and NumPy's take: what a look-up cannot be quicker than by much."""

    name = "memmap.take"

    def open(self, folder: Path, rows: Rows) -> None:
        """Write one file and map it."""
        rows.tofile(folder / "mapped")
        self._rows = np.memmap(folder / "mapped", np.uint8, "r", shape=rows.shape)

    def take(self, samples: npt.NDArray[np.int64]) -> Rows:
        """Take all at once."""
        return np.take(self._rows, samples, axis=0)

    def close(self) -> None:
        """Let go of the mapping."""
        del self._rows


class Lmdb(Lookup):
    """LMDB, keys of 8 bytes in the order of the samples; a batch is one transaction, values are not copied twice."""

    name = "LMDB"

    def open(self, folder: Path, rows: Rows) -> None:
        """Write all rows in one transaction, in order, appended."""
        import lmdb

        self._database: Any = lmdb.open(
            str(folder / "lmdb"),
            map_size=max(1 << 24, 4 * rows.nbytes),
            readahead=False,
            sync=False,
            lock=False,
        )
        with self._database.begin(write=True) as transaction, transaction.cursor() as cursor:
            cursor.putmulti(
                ((struct.pack(">Q", i), row.tobytes()) for i, row in enumerate(rows)), append=True
            )

    def take(self, samples: npt.NDArray[np.int64]) -> Rows:
        """Get each from a read transaction, joined once."""
        with self._database.begin(buffers=True) as transaction:
            found = [transaction.get(struct.pack(">Q", sample)) for sample in samples.tolist()]
            return np.frombuffer(b"".join(found), np.uint8).reshape(len(samples), self.width)

    def close(self) -> None:
        """Close the database."""
        self._database.close()


class Hdf5(Lookup):
    """One HDF5 data set in chunks of 1,024 rows, not compressed; h5py wants a selection sorted, without repeats."""

    name = "HDF5"

    def open(self, folder: Path, rows: Rows) -> None:
        """Write the data set, and open it."""
        import h5py

        with h5py.File(folder / "rows.h5", "w") as file:
            file.create_dataset("rows", data=rows, chunks=(min(1024, len(rows)), self.width))
        self._file: Any = h5py.File(folder / "rows.h5", "r")

    def take(self, samples: npt.NDArray[np.int64]) -> Rows:
        """Read the sorted selection, and put it back into order."""
        sorted_once, back = np.unique(samples, return_inverse=True)
        found: Rows = self._file["rows"][sorted_once]
        return found[back]

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class ZarrFancy(Lookup):
    """The rows as a Zarr array of this project's chunks, read with Zarr's own fancy indexing."""

    name = "Zarr oindex"

    def open(self, folder: Path, rows: Rows) -> None:
        """Write the array, compressed as Zarr does by default, and open it."""
        import zarr

        chunks = (min(CHUNK_SAMPLES, len(rows)), self.width)
        array = zarr.create_array(folder / "rows.zarr", shape=rows.shape, chunks=chunks, dtype=np.uint8)
        array[:] = rows
        self._rows: Any = zarr.open_array(folder / "rows.zarr", mode="r")

    def take(self, samples: npt.NDArray[np.int64]) -> Rows:
        """Read the selection."""
        return np.asarray(self._rows.oindex[samples])

    def close(self) -> None:
        """Let go of the array."""
        del self._rows


class FilePerSample(Lookup):
    """A .pt file for each sample, as torchdistill (to 1.1.4) and FKD keep theirs; of the first 8,192 samples only."""

    name = "file each"
    most = 8192

    def open(self, folder: Path, rows: Rows) -> None:
        """Write the files."""
        self._folder = folder
        for number, row in enumerate(rows[: self.most]):
            torch.save(torch.from_numpy(row.copy()), folder / f"{number}.pt")

    def take(self, samples: npt.NDArray[np.int64]) -> Rows:
        """Load file by file."""
        found = [
            torch.load(self._folder / f"{s % self.most}.pt", weights_only=True) for s in samples.tolist()
        ]
        return torch.stack(found).numpy()

    def close(self) -> None:
        """There is nothing to close."""


def alternatives() -> list[type[Lookup]]:
    """Return the look-ups that can be measured with the packages that are installed."""
    wanted: dict[type[Lookup], str] = {Lmdb: "lmdb", Hdf5: "h5py"}
    installed = [kind for kind, package in wanted.items() if find_spec(package)]
    return [SeekAndRead, *installed, ZarrFancy, FilePerSample, MappedTake]


def copy_file(source: Path, target: Path, *, durable: bool) -> None:
    """Copy a file plainly, in large pieces; `durable` flushes it to the disk, as shards are and spools are not."""
    with source.open("rb") as read, target.open("wb") as written:
        while piece := read.read(1 << 24):
            written.write(piece)
        if durable:
            written.flush()
            os.fsync(written.fileno())


# What a record tells of the distribution ------------------------------------------------------------------


def true_log_probs(logits: Tensor, ids: Tensor, temperature: float) -> Tensor:
    """(B, k + 1) log-probabilities at T of the listed classes and of all others together, in float64."""
    log_p = (logits.double() / temperature).log_softmax(1)
    tail = log_p.scatter(1, ids, -torch.inf).logsumexp(1)
    return torch.cat([log_p.gather(1, ids), tail[:, None]], 1)


def sparse_log_probs(teacher: SparseTeacher, temperature: float) -> Tensor:
    """(B, k + 1) the same, as a cache's rows tell them."""
    soft = teacher.at(temperature)
    return torch.cat([soft.log_probs, soft.log_tail_mass[:, None]], 1).double()


def tinyvit_log_probs(logits: Tensor, ids: Tensor, temperature: float) -> Tensor:
    """(B, k + 1) the same, from k float16 probabilities at T = 1, the rest spread evenly over the other classes."""
    p = logits.double().softmax(1).gather(1, ids).half().double()
    rest = logits.shape[1] - ids.shape[1]
    share = (1 - p.sum(1, keepdim=True)).clamp(min=LEAST) / rest
    heads = p.clamp(min=2.0**-25).log() / temperature
    tail = share.log() / temperature + np.log(rest)
    both = torch.cat([heads, tail], 1)
    return both - both.logsumexp(1, keepdim=True)


def divergence(p: Tensor, q: Tensor) -> Tensor:
    """(B,) KL(p ‖ q) in nats of log-probabilities over the same classes."""
    return (p.exp() * (p - q)).sum(1)
