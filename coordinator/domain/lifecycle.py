"""Define the states of a blob and the transitions between them, in one table with a cell for every pair.

| state          | its bytes                                                        |
|----------------|------------------------------------------------------------------|
| `live`         | are served; it is referenced, or a link still counts             |
| `unreferenced` | are served; nothing references it since `unreferenced_since`     |
| `hiding`       | are about to be hidden: after a crash they may be either         |
| `hidden`       | are kept, and not served: registries see 404                     |
| `purging`      | are about to be deleted: some may be gone                        |
| `purged`       | are deleted, as far as a hide had recorded them                  |
| `missing`      | are not there, though it is referenced: an alarm                 |

Counts say whether a blob is needed, states say where its bytes are. So a blob that is needed again stays `hidden` until
its bytes are served again, and a blob whose bytes are missing stays `missing` until they are seen in storage, however
often it is pushed or mounted meanwhile.
Not here: reading storage (reconcile/presence.py), writing the table (table/statements.py, table/lifecycle.py), when to
hide (domain/gc.py).
"""

from enum import Enum, IntEnum
from typing import Final, Literal


class BlobState(IntEnum):
    """The states of a blob. The numbers are stored: never reuse one."""

    LIVE = 0
    UNREFERENCED = 1
    HIDDEN = 2
    PURGED = 3
    MISSING = 4
    HIDING = 5
    PURGING = 6


StateName = Literal["live", "unreferenced", "hidden", "purged", "missing", "hiding", "purging"]
STATES: Final[dict[int, StateName]] = {
    BlobState.LIVE: "live",
    BlobState.UNREFERENCED: "unreferenced",
    BlobState.HIDDEN: "hidden",
    BlobState.PURGED: "purged",
    BlobState.MISSING: "missing",
    BlobState.HIDING: "hiding",
    BlobState.PURGING: "purging",
}
STATE_NUMBERS: Final = {name: number for number, name in STATES.items()}


class BlobEvent(Enum):
    #: It is referenced or linked: its counts are not both zero.
    NEEDED = "needed"
    #: Its counts are both zero.
    UNNEEDED = "unneeded"
    #: Storage was checked: its bytes are served to registries.
    SEEN = "seen"
    #: Storage was checked: they are not.
    ABSENT = "absent"
    #: Garbage collection has written that it is about to hide it.
    HIDE = "hide"
    #: The hide took effect.
    HIDDEN = "hidden"
    #: A hide is undone: its bytes are served again.
    SHOWN = "shown"
    #: Garbage collection has written that it is about to delete what the hide recorded.
    PURGE = "purge"
    #: What the hide recorded is deleted.
    PURGED = "purged"


class NoTransition(Enum):
    """How an event is treated that does not change the state."""

    IGNORE = "ignore"
    #: It cannot happen: nothing changes, and an error is raised.
    ALARM = "alarm"


class LifecycleError(Exception):
    """An impossible transition was requested: a bug. Nothing was changed."""


_L, _U, _H, _P, _M = (
    BlobState.LIVE,
    BlobState.UNREFERENCED,
    BlobState.HIDDEN,
    BlobState.PURGED,
    BlobState.MISSING,
)
_HIDING, _PURGING = BlobState.HIDING, BlobState.PURGING
_x, _A = NoTransition.IGNORE, NoTransition.ALARM

_EVENTS: Final = tuple(BlobEvent)
_ROWS: Final[dict[BlobState, tuple[BlobState | NoTransition, ...]]] = {
    #          needed unneeded seen absent hide  hidden shown  purge    purged
    _L:       (_x,    _U,      _x,  _M,    _A,    _A,    _x,    _A,      _A),
    _U:       (_L,    _x,      _x,  _x,    _HIDING, _A,  _x,    _A,      _A),
    _HIDING:  (_x,    _x,      _x,  _x,    _x,    _H,    _U,    _A,      _A),
    _H:       (_x,    _x,      _x,  _x,    _A,    _x,    _U,    _PURGING, _A),
    _PURGING: (_x,    _x,      _x,  _x,    _A,    _A,    _U,    _x,      _P),
    _P:       (_x,    _x,      _L,  _M,    _A,    _A,    _U,    _A,      _x),
    _M:       (_x,    _U,      _L,  _x,    _A,    _A,    _x,    _A,      _A),
}  # fmt: skip

TRANSITIONS: Final[dict[tuple[BlobState, BlobEvent], BlobState | NoTransition]] = {
    (state, event): cell for state, row in _ROWS.items() for event, cell in zip(_EVENTS, row, strict=True)
}

#: States whose bytes are not served to registries: a needed blob in one of them must be restored.
CONCEALED: Final = frozenset({_HIDING, _H, _PURGING, _P})


def state_after(state: BlobState, event: BlobEvent, *, needed: bool) -> BlobState:
    """Return the state after an event, of a blob that is `needed` or not; raises LifecycleError.

    A check of storage changes nothing for a blob that is not needed: it cannot be missing, and is not restored.
    """
    if event in {BlobEvent.SEEN, BlobEvent.ABSENT} and not needed:
        return state
    cell = TRANSITIONS[state, event]
    if cell is NoTransition.ALARM:
        raise LifecycleError(f"The event `{event.value}` is impossible for a blob that is {state.name.lower()}.")
    moved = state if cell is NoTransition.IGNORE else cell
    assert isinstance(moved, BlobState)
    return state_after_count(moved, referenced=needed) if event is BlobEvent.SHOWN else moved


def published_name(before: BlobState, to: BlobState) -> str | None:
    """Return the name under which a transition is published; None for an intent, or for the end of one."""
    if to in {_HIDING, _PURGING} or (before is _HIDING and to is not _H):
        return None
    if before in {_H, _PURGING} and to in {_L, _U}:
        return "restored"
    return to.name.lower()


def state_after_count(state: BlobState, *, referenced: bool) -> BlobState:
    """Return the state after a change of counts; `referenced` if any of them is above zero now."""
    return state_after(state, BlobEvent.NEEDED if referenced else BlobEvent.UNNEEDED, needed=referenced)


def state_after_check(state: BlobState, *, referenced: bool, stored: bool) -> BlobState:
    """Return the state after a check of storage; `stored` if the bytes are served to registries."""
    return state_after(state, BlobEvent.SEEN if stored else BlobEvent.ABSENT, needed=referenced)
