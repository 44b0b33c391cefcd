"""List everything below `blobs/`: blobs by digest, and keys that belong to no blob.

A folder `blobs/sha256/<2 hex>/` holds one 256th of the blobs. FOLDERS_AT_ONCE folders are listed at once, each into a
queue. The queues are read one after another, so the blobs come in the order of digests. Queued blobs are packed, and
their number is bounded.
Not here: what it is compared with (audit.py).
"""

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import islice
from queue import Full, Queue
from struct import Struct

from coordinator.domain.inventory import StoredBlob
from coordinator.domain.names import Digest
from coordinator.storage.layout import BASE, BLOBS, parse_blob_key
from coordinator.storage.port import ObjectInfo, ObjectStore

FOLDERS_AT_ONCE = 8
#: Blobs that are packed together.
BLOCK = 1000
#: Blocks of one folder that may wait: 10 MB.
BLOCKS_WAITING = 200
#: How often a waiting thread checks whether it should end.
POLL_S = 0.2

#: Digest, size, modified.
_PACKED = Struct("<32sqd")
_ALL_BLOBS = f"{BASE}/blobs/"

#: Gets a key that belongs to no blob. Called by several threads.
OddKey = Callable[[ObjectInfo], None]


class _Folder:
    """One folder that is being listed: its blocks, then None or an error."""

    def __init__(self, prefix: str, waiting: int) -> None:
        self.prefix = prefix
        self.blocks: Queue[bytes | BaseException | None] = Queue(waiting)


@contextmanager
def list_stored_blobs(
    store: ObjectStore, odd: OddKey, block: int = BLOCK, waiting: int = BLOCKS_WAITING
) -> Iterator[Iterator[StoredBlob]]:
    """Give every stored blob by digest; raises UnavailableError if a listing is incomplete."""
    stop = threading.Event()
    with ThreadPoolExecutor(FOLDERS_AT_ONCE, thread_name_prefix="list") as pool:
        try:
            yield _list_in_order(
                pool, _list_prefixes(store, odd), waiting, lambda folder: _list_folder(store, folder, stop, odd, block)
            )
        finally:
            stop.set()


def _list_in_order(
    pool: ThreadPoolExecutor, prefixes: Iterator[str], waiting: int, fill: Callable[[_Folder], None]
) -> Iterator[StoredBlob]:
    folders: deque[_Folder] = deque()
    while True:
        for prefix in islice(prefixes, FOLDERS_AT_ONCE - len(folders)):
            folders.append(_Folder(prefix, waiting))
            pool.submit(fill, folders[-1])
        if not folders:
            return
        blocks = folders.popleft().blocks
        while (block := blocks.get()) is not None:
            if isinstance(block, BaseException):
                raise block
            for digest, size, modified in _PACKED.iter_unpack(block):
                yield StoredBlob(Digest(digest), size, modified)


def _list_prefixes(store: ObjectStore, odd: OddKey) -> Iterator[str]:
    """Yield the folders of blobs in order, after all other keys were passed to `odd`."""
    beside = [folder for folder in store.list_folders(_ALL_BLOBS) if folder != BLOBS]
    folders = sorted(store.list_folders(BLOBS))
    beside += [folder for folder in folders if not _is_first_byte(folder[len(BLOBS) :])]
    for folder in beside:
        for entry in store.walk(folder):
            odd(entry)
    yield from [folder for folder in folders if folder not in beside]


def _is_first_byte(name: str) -> bool:
    return len(name) == 3 and all(character in "0123456789abcdef" for character in name[:2])


def _list_folder(store: ObjectStore, folder: _Folder, stop: threading.Event, odd: OddKey, block: int) -> None:
    end: BaseException | None = None
    try:
        entries = store.walk(folder.prefix)
        while not stop.is_set() and (some := list(islice(entries, block))):
            _put_block(folder.blocks, _pack_blobs(some, odd), stop)
    except BaseException as error:  # noqa: BLE001 - raised where the folder is read
        end = error
    _put_block(folder.blocks, end, stop)


def _pack_blobs(entries: Iterable[ObjectInfo], odd: OddKey) -> bytes:
    pack = _PACKED.pack
    found: list[bytes] = []
    for entry in entries:
        digest = parse_blob_key(entry.key)
        if digest is None:
            odd(entry)
        else:
            found.append(pack(digest, entry.size, entry.modified_at.timestamp()))
    return b"".join(found)


def _put_block(
    blocks: "Queue[bytes | BaseException | None]", block: bytes | BaseException | None, stop: threading.Event
) -> None:
    while not stop.is_set():
        try:
            blocks.put(block, timeout=POLL_S)
        except Full:
            continue
        return
