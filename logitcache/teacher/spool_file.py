"""Files that tell whether they are whole: behind their bytes stands the CRC-32C of their name and these."""

from pathlib import Path

import google_crc32c

BLOCK = 1 << 24  # bytes read at a time
CRC = 4  # bytes of it


def begun(file: Path) -> int:
    """Return the CRC-32C that the bytes of a file extend: its name's, as bytes under another are not its own."""
    crc: int = google_crc32c.value(file.stem.encode())
    return crc


def whole(file: Path, size: int) -> bool:
    """Is there a file of so many bytes and their CRC-32C, as it was written?"""
    if not file.exists() or file.stat().st_size != size + CRC:
        return False
    crc = begun(file)
    with file.open("rb") as data:
        for start in range(0, size, BLOCK):
            crc = google_crc32c.extend(crc, data.read(min(BLOCK, size - start)))
        return data.read() == crc.to_bytes(CRC, "little")
