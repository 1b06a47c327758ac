"""The file of a spool: its map, and behind its bytes the CRC-32C of name and bytes. For workers: no zarr."""

from pathlib import Path

import google_crc32c
import numpy as np
import numpy.typing as npt
import torch

READ_BYTES = 1 << 24  # at a time
CRC_BYTES = 4


def map_rows(file: Path, shape: tuple[int, int]) -> npt.NDArray[np.uint8]:
    """Map the rows of an intact file, read-only; it takes no descriptor, as NumPy's would, where that can be."""
    try:
        rows = torch.from_file(str(file), shared=False, size=shape[0] * shape[1], dtype=torch.uint8).numpy()
    except RuntimeError:  # such a map counts as memory where the system promises no more than it has
        return np.memmap(file, dtype=np.uint8, mode="r", shape=shape)
    rows.flags.writeable = False
    return rows.reshape(shape)


def start_crc(file: Path) -> int:
    """Return the CRC-32C of the file's name, which that of its bytes continues: a renamed file is not intact."""
    crc: int = google_crc32c.value(file.stem.encode())
    return crc


def is_intact(file: Path, size: int) -> bool:
    """Return whether the file is there, with `size` bytes and the CRC-32C that it was written with."""
    if not file.exists() or file.stat().st_size != size + CRC_BYTES:
        return False
    crc = start_crc(file)
    with file.open("rb") as data:
        for start in range(0, size, READ_BYTES):
            crc = google_crc32c.extend(crc, data.read(min(READ_BYTES, size - start)))
        return data.read() == crc.to_bytes(CRC_BYTES, "little")
