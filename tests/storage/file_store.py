"""The directory adapter with a writing half, so that the contract's tests have something to read from it."""

import shutil
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from coordinator.errors import UsageError
from coordinator.storage.files import FileObjectStore
from coordinator.storage.port import check_key


class WritableFiles(FileObjectStore):
    def put(self, key: str, body: bytes) -> None:
        target = self.root / check_key(key)
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=self.root.parent, delete=False) as file:
            file.write(body)
        Path(file.name).rename(target)

    def put_chunks(self, key: str, chunks: Iterable[bytes], size: int) -> None:
        body = b"".join(chunks)
        if len(body) != size:
            raise UsageError(f"{key} should have {size} bytes, and {len(body)} came.")
        self.put(key, body)

    def copy_from(self, *_: object, **__: object) -> bool:
        return False

    def delete(self, key: str) -> None:
        target = self.root / check_key(key)
        if target.is_file():
            target.unlink()
            while (target := target.parent) != self.root and not any(target.iterdir()):
                target.rmdir()

    def list_folders(self, prefix: str) -> Iterator[str]:
        rests = [entry.key.removeprefix(prefix).partition("/") for entry in self.walk(prefix)]
        yield from dict.fromkeys(f"{prefix}{name}/" for name, slash, _ in rests if slash)

    def empty(self) -> None:
        shutil.rmtree(self.root)
