"""Keep records that are too many for memory on disk, in buckets by the first byte of a digest.

All buckets of a spill share one unnamed file: it is gone however the process ends, and takes one file handle. A writer
gathers `chunk_bytes` for a bucket before it writes them, so it uses at most 1 MiB. The positions of each bucket's
chunks are kept in memory, a thousandth of what is on disk.
Not here: what the records mean (survey.py).
"""

import os
import tempfile
import threading
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn, Self

from coordinator.errors import BaleenError

BUCKETS = 256
CHUNK_BYTES = 4096


class Spill:
    """Records of one length. Several writers may write at once; read only after all of them are closed."""

    def __init__(self, record_bytes: int, directory: Path | None = None, chunk_bytes: int = CHUNK_BYTES) -> None:
        self.record_bytes = record_bytes
        self.chunk_bytes = chunk_bytes
        self._directory = directory
        try:
            self._file = tempfile.TemporaryFile(buffering=0, dir=directory)  # noqa: SIM115 - closed by the block
        except OSError as error:
            self._raise_no_room(error)
        self._lock = threading.Lock()
        self._places = [array("Q") for _ in range(BUCKETS)]
        self._lengths = [array("H") for _ in range(BUCKETS)]
        #: Bytes on disk so far.
        self.bytes = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def write(self, bucket: int, chunk: bytes | bytearray) -> None:
        with self._lock:
            place = self.bytes
            self.bytes += len(chunk)
            self._places[bucket].append(place)
            self._lengths[bucket].append(len(chunk))
        try:
            written = os.pwrite(self._file.fileno(), chunk, place)
        except OSError as error:
            self._raise_no_room(error)
        if written != len(chunk):
            self._raise_no_room(OSError("the disk is full"))

    def read(self, bucket: int) -> Iterator[bytes]:
        """Give the bucket's records in chunks, as they were written."""
        descriptor = self._file.fileno()
        for place, length in zip(self._places[bucket], self._lengths[bucket], strict=True):
            yield os.pread(descriptor, length, place)

    def _raise_no_room(self, error: OSError) -> NoReturn:
        where = self._directory or tempfile.gettempdir()
        raise BaleenError(
            f"Cannot write to {where} ({error.strerror or error}). Name a directory with more space with --tmp-dir."
        ) from error


class Writer:
    """One thread's buffers for a spill, one for each bucket. The hot loop writes to `buffers` directly."""

    def __init__(self, spill: Spill) -> None:
        self._spill = spill
        self.buffers = [bytearray() for _ in range(BUCKETS)]
        #: The length at which a buffer is to be flushed.
        self.full = spill.chunk_bytes - spill.chunk_bytes % spill.record_bytes

    def flush(self, bucket: int) -> None:
        buffer = self.buffers[bucket]
        self._spill.write(bucket, buffer)
        buffer.clear()

    def close(self) -> None:
        for bucket, buffer in enumerate(self.buffers):
            if buffer:
                self.flush(bucket)
