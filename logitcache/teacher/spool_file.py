"""The checksum of a spool: behind its bytes, the CRC-32C of name and bytes. For workers: no torch, no zarr."""

from pathlib import Path

import google_crc32c

READ_BYTES = 1 << 24  # at a time
CRC_BYTES = 4


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
