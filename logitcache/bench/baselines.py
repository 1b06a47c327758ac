"""Other ways to keep a teacher's answers, written for speed: a record per sample, looked up by its number.

All hold the same records, a structured array with a row for each sample, so that some keep bytes and others columns.
"""

import struct
from abc import ABC, abstractmethod
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from logitcache.format.schema import CHUNK_SAMPLES

Records = npt.NDArray[np.void]
Samples = npt.NDArray[np.int64]


class Lookup(ABC):
    """Records in a folder of their own, which need not be there, looked up by the numbers of samples."""

    name: str
    record: str  # whose records these are, or what they lie in, for tables
    max_records: int | None = None  # that are written

    def __init__(self, folder: Path, records: Records) -> None:
        self.folder, self.dtype = folder, records.dtype
        self.n = len(records[: self.max_records])
        folder.mkdir(parents=True)
        self.open(records[: self.max_records])

    @abstractmethod
    def open(self, records: Records) -> None:
        """Write the records, and open what was written."""

    @abstractmethod
    def take(self, samples: Samples) -> Records:
        """Return the records of these samples, (B,)."""

    @abstractmethod
    def close(self) -> None:
        """Close what was opened."""


class SeekAndRead(Lookup):
    """One file of fixed-size records; a seek and a read for each sample, as TinyViT's saved logits are read."""

    name, record = "seek + read", "TinyViT's"

    def open(self, records: Records) -> None:
        """Write one file; open it without Python's buffer, which would read 8 kB for each record."""
        records.tofile(self.folder / "records.bin")
        self._file = (self.folder / "records.bin").open("rb", buffering=0)

    def take(self, samples: Samples) -> Records:
        """Seek and read, sample by sample."""
        parts, width = [], self.dtype.itemsize
        for sample in samples.tolist():
            self._file.seek(sample * width)
            parts.append(self._file.read(width))
        return np.frombuffer(b"".join(parts), self.dtype)

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class MappedTake(Lookup):
    """A memory-mapped .npy file and NumPy's take: a look-up can't be much quicker."""

    name, record = "memmap.take", "memmap"

    def open(self, records: Records) -> None:
        """Write one file and map it."""
        np.save(self.folder / "records.npy", records)
        self._rows = np.load(self.folder / "records.npy", mmap_mode="r")

    def take(self, samples: Samples) -> Records:
        """Take all at once."""
        return np.take(self._rows, samples, axis=0)

    def close(self) -> None:
        """Close the mapping."""
        del self._rows


class Lmdb(Lookup):
    """LMDB, keys of 8 bytes in the order of the samples; a batch is one transaction, values are not copied twice."""

    name = record = "LMDB"

    def open(self, records: Records) -> None:
        """Write all records in one transaction, in order, appended."""
        import lmdb

        self._database: Any = lmdb.open(
            str(self.folder),
            map_size=max(1 << 24, 4 * records.nbytes),
            readahead=False,
            sync=False,
            lock=False,
        )
        with self._database.begin(write=True) as transaction, transaction.cursor() as cursor:
            cursor.putmulti(
                ((struct.pack(">Q", i), row.tobytes()) for i, row in enumerate(records)), append=True
            )

    def take(self, samples: Samples) -> Records:
        """Get each from a read transaction, joined once."""
        with self._database.begin(buffers=True) as transaction:
            parts = [transaction.get(struct.pack(">Q", sample)) for sample in samples.tolist()]
            return np.frombuffer(b"".join(parts), self.dtype)

    def close(self) -> None:
        """Close the database."""
        self._database.close()


class Hdf5(Lookup):
    """One HDF5 data set in chunks of 1,024 rows, not compressed; h5py wants a selection sorted, without repeats."""

    name = record = "HDF5"

    def open(self, records: Records) -> None:
        """Write the data set, of a compound type, and open it."""
        import h5py

        with h5py.File(self.folder / "records.h5", "w") as file:
            file.create_dataset("records", data=records, chunks=(min(1024, len(records)),))
        self._file: Any = h5py.File(self.folder / "records.h5", "r")

    def take(self, samples: Samples) -> Records:
        """Read the sorted selection, and put it back into order."""
        rising, inverse = np.unique(samples, return_inverse=True)
        records: Records = self._file["records"][rising]
        return records[inverse]

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class Parquet(Lookup):
    """One Parquet file, a column for each field, Zstandard, row groups of 65,536; `Dataset.take` finds rows.

    Neither smaller nor larger row groups, nor Snappy, nor no compression was read twice as fast; each was larger.
    """

    name = record = "Parquet"

    def open(self, records: Records) -> None:
        """Write the file, and open it as a data set."""
        import pyarrow as pa
        import pyarrow.dataset
        import pyarrow.parquet

        def column(values: npt.NDArray[Any]) -> Any:
            flat = pa.array(np.ascontiguousarray(values).reshape(-1))
            return flat if values.ndim == 1 else pa.FixedSizeListArray.from_arrays(flat, values.shape[1])

        table = pa.table({name: column(records[name]) for name in self.dtype.names or ()})
        file = self.folder / "records.parquet"
        pyarrow.parquet.write_table(
            table, file, row_group_size=1 << 16, compression="zstd", use_dictionary=False
        )
        self._dataset: Any = pyarrow.dataset.dataset(file)

    def take(self, samples: Samples) -> Records:
        """Take the rows, and put the columns together."""
        table = self._dataset.take(samples)
        records = np.empty(len(samples), self.dtype)
        for name in self.dtype.names or ():
            column = table.column(name).combine_chunks()
            values = column if records[name].ndim == 1 else column.flatten()
            records[name] = values.to_numpy().reshape(records[name].shape)
        return records

    def close(self) -> None:
        """Close the data set."""
        del self._dataset


class ZarrFancy(Lookup):
    """The records' bytes as a Zarr array of this project's chunks, read with Zarr's own fancy indexing."""

    name, record = "Zarr oindex", "Zarr, bytes"

    def open(self, records: Records) -> None:
        """Write the array, compressed as Zarr does by default, and open it."""
        import zarr

        rows = records.view(np.uint8).reshape(len(records), -1)
        chunks = (min(CHUNK_SAMPLES, len(rows)), rows.shape[1])
        path = self.folder / "records.zarr"
        array = zarr.create_array(path, shape=rows.shape, chunks=chunks, dtype=np.uint8)
        array[:] = rows
        self._rows: Any = zarr.open_array(path, mode="r")

    def take(self, samples: Samples) -> Records:
        """Read the selection."""
        rows = np.ascontiguousarray(self._rows.oindex[samples])
        return rows.view(self.dtype)[:, 0]

    def close(self) -> None:
        """Close the array."""
        del self._rows


class FilePerSample(Lookup):
    """A pickled .pt file of tensors for each sample, as torchdistill (to 1.1.4) keeps them; 4,096 of them."""

    name = record = "file each"
    max_records = 4096

    def open(self, records: Records) -> None:
        """Write the files."""
        for number, record in enumerate(records):
            fields = {name: torch.from_numpy(np.array(record[name])) for name in self.dtype.names or ()}
            torch.save(fields, self.folder / f"{number}.pt")

    def take(self, samples: Samples) -> Records:
        """Load file by file."""
        records = np.empty(len(samples), self.dtype)
        for row, sample in enumerate(samples.tolist()):
            fields = torch.load(self.folder / f"{sample % self.n}.pt", weights_only=True)
            for name, value in fields.items():
                records[row][name] = value.numpy()
        return records

    def close(self) -> None:
        """There is nothing to close."""


def installed_lookups() -> list[type[Lookup]]:
    """Return the look-ups that can be measured with the packages that are installed."""
    packages: dict[type[Lookup], str] = {Lmdb: "lmdb", Hdf5: "h5py", Parquet: "pyarrow"}
    installed = [kind for kind, package in packages.items() if find_spec(package)]
    return [SeekAndRead, *installed, ZarrFancy, FilePerSample, MappedTake]
