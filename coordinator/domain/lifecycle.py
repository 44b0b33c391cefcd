"""States of a blob, and what moves it from one to another: one table that says something of every pair.

| state          | its bytes                                                        |
|----------------|------------------------------------------------------------------|
| `live`         | are served; it is referenced, or a link still counts             |
| `unreferenced` | are served; nothing references it since `unreferenced_since`     |
| `hiding`       | are about to be hidden: what a crash leaves may be either        |
| `hidden`       | are kept, and not served: registries see 404                     |
| `purging`      | are about to be deleted: some may be gone                        |
| `purged`       | are deleted, as far as a hide had recorded them                  |
| `missing`      | are not there, though it is referenced: an alarm                 |

Counts say whether a blob is needed, states where its bytes are. So a blob that is needed again stays `hidden` until its
bytes were brought back, and a blob whose bytes are missing stays `missing` until they were seen, however often it is
pushed or mounted meanwhile.
Not here: looking (reconcile/presence.py), writing it down (table/statements.py, table/lifecycle.py), when to hide
(domain/gc.py).
"""

from enum import Enum, IntEnum
from typing import Final


class BlobState(IntEnum):
    """The numbers are stored: never reuse one."""

    LIVE = 0
    UNREFERENCED = 1
    HIDDEN = 2
    PURGED = 3
    MISSING = 4
    HIDING = 5
    PURGING = 6


class BlobEvent(Enum):
    #: It is referenced or linked: its counts are not both zero.
    NEEDED = "needed"
    #: Its counts are both zero.
    UNNEEDED = "unneeded"
    #: Somebody looked, and registries are served its bytes.
    SEEN = "seen"
    #: Somebody looked, and they are not.
    ABSENT = "absent"
    #: Garbage collection has written that it is about to hide it.
    HIDE = "hide"
    #: The hide took effect.
    HIDDEN = "hidden"
    #: A hide is undone: its bytes are served again.
    SHOWN = "shown"
    #: Garbage collection has written that it is about to delete what the hide recorded.
    PURGE = "purge"
    #: That is deleted.
    PURGED = "purged"


class Verdict(Enum):
    """What an event is that moves nothing."""

    IGNORE = "ignore"
    #: It cannot happen, and nothing is done.
    ALARM = "alarm"


class LifecycleError(Exception):
    """Something happened that cannot: a bug, and nothing was changed."""


_L, _U, _H, _P, _M = (
    BlobState.LIVE,
    BlobState.UNREFERENCED,
    BlobState.HIDDEN,
    BlobState.PURGED,
    BlobState.MISSING,
)
_HIDING, _PURGING = BlobState.HIDING, BlobState.PURGING
_x, _A = Verdict.IGNORE, Verdict.ALARM

_EVENTS: Final = tuple(BlobEvent)
_ROWS: Final[dict[BlobState, tuple[BlobState | Verdict, ...]]] = {
    #          needed unneeded seen absent hide  hidden shown  purge    purged
    _L:       (_x,    _U,      _x,  _M,    _A,    _A,    _x,    _A,      _A),
    _U:       (_L,    _x,      _x,  _x,    _HIDING, _A,  _x,    _A,      _A),
    _HIDING:  (_x,    _x,      _x,  _x,    _x,    _H,    _U,    _A,      _A),
    _H:       (_x,    _x,      _x,  _x,    _A,    _x,    _U,    _PURGING, _A),
    _PURGING: (_x,    _x,      _x,  _x,    _A,    _A,    _U,    _x,      _P),
    _P:       (_x,    _x,      _L,  _M,    _A,    _A,    _U,    _A,      _x),
    _M:       (_x,    _U,      _L,  _x,    _A,    _A,    _x,    _A,      _A),
}  # fmt: skip

TABLE: Final[dict[tuple[BlobState, BlobEvent], BlobState | Verdict]] = {
    (state, event): cell for state, row in _ROWS.items() for event, cell in zip(_EVENTS, row, strict=True)
}

#: Registries are not served the bytes: a blob in one of these that is needed is to be brought back.
CONCEALED: Final = frozenset({_HIDING, _H, _PURGING, _P})


def after(state: BlobState, event: BlobEvent, *, needed: bool) -> BlobState:
    """The state after an event, of a blob that is `needed` or not; raises LifecycleError.

    A look at what nobody needs says nothing: it is not missed, and a look alone brings nothing back.
    """
    if event in {BlobEvent.SEEN, BlobEvent.ABSENT} and not needed:
        return state
    cell = TABLE[state, event]
    if cell is Verdict.ALARM:
        raise LifecycleError(f"A blob that is {state.name.lower()} cannot be told `{event.value}`.")
    moved = state if cell is Verdict.IGNORE else cell
    assert isinstance(moved, BlobState)
    return counted(moved, referenced=needed) if event is BlobEvent.SHOWN else moved


def told(before: BlobState, to: BlobState) -> str | None:
    """What the world is told of a move; None of one that is only an intent, or that ends one."""
    if to in {_HIDING, _PURGING} or (before is _HIDING and to is not _H):
        return None
    if before in {_H, _PURGING} and to in {_L, _U}:
        return "restored"
    return to.name.lower()


def counted(state: BlobState, *, referenced: bool) -> BlobState:
    """The state after a change of counts; `referenced` if any of them is above zero now."""
    return after(state, BlobEvent.NEEDED if referenced else BlobEvent.UNNEEDED, needed=referenced)


def looked(state: BlobState, *, referenced: bool, stored: bool) -> BlobState:
    """The state after a look at storage; `stored` if registries are served the bytes."""
    return after(state, BlobEvent.SEEN if stored else BlobEvent.ABSENT, needed=referenced)
