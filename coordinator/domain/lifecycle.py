"""States of a blob, and what moves it from one to another. The numbers are stored: never reuse one.

| state          | meaning                                               |
|----------------|-------------------------------------------------------|
| `live`         | referenced, or a link still counts                    |
| `unreferenced` | nothing references it since `unreferenced_since`      |
| `hidden`       | registries see 404; the bytes are kept                |
| `purged`       | the recorded bytes are deleted                        |
| `missing`      | referenced, but no bytes                              |

Two things move a blob here: its counts changed (`counted`: the batch apply, which knows nothing of bytes), and somebody
looked whether its bytes are in storage (`looked`). So a missing blob stays missing until its bytes were seen, however
often it is pushed or mounted meanwhile, and one that nobody needs any more is not missed.
Not here: looking (reconcile/presence.py), writing it down (db/rows.py, db/lifecycle.py).
"""

from enum import IntEnum


class BlobState(IntEnum):
    LIVE = 0
    UNREFERENCED = 1
    HIDDEN = 2
    PURGED = 3
    MISSING = 4


def counted(state: BlobState, *, referenced: bool) -> BlobState:
    """The state after a change of counts; `referenced` if any of them is above zero now."""
    if state in {BlobState.HIDDEN, BlobState.PURGED}:
        return state
    if not referenced:
        return BlobState.UNREFERENCED
    return BlobState.MISSING if state is BlobState.MISSING else BlobState.LIVE


def looked(state: BlobState, *, referenced: bool, stored: bool) -> BlobState:
    """The state after a look at storage; `stored` if registries are served the bytes."""
    if not referenced or state is BlobState.HIDDEN:
        return state
    return BlobState.LIVE if stored else BlobState.MISSING
