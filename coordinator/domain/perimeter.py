"""What a listing of the root says of repositories that no pod owns, and what follows for garbage collection.

The argument for a purge is about registered pods: each has reported, each was reconciled. A registry that uses the same
root and is not registered is outside of it, so any repository of one blocks GC. Its folder is seen in a listing that
began after every request that may have seen the blob had ended (t_h + R): domain/gc.py makes a bound of that.
A listing is of the pods that there were. One that was removed since makes its repositories unowned, and nothing says
whether there are any: then no listing is known. One that was added resolves what its prefixes own.
Not here: listing (gc/unowned.py), the row (gc/unowned_table.py).
"""

from collections.abc import Collection, Iterable, Sequence
from datetime import datetime
from typing import Final, NamedTuple

#: Names that a listing keeps. Any of them blocks everything, so that more only help to see what it is.
NAMES_LIMIT: Final = 100
#: Names in one sentence.
NAMES_SHOWN: Final = 10
#: Characters of one name. A repository's name has up to 255.
NAME_LIMIT: Final = 300

REMEDY: Final = (
    "register its registry with `baleen pods add`, add the prefix to its pod with `baleen pods add-prefix`, or declare "
    "a registry that sends no events with `baleen pods add … --unmanaged` (`baleen pods suggest-prefixes` proposes "
    "prefixes)"
)
NOT_LISTED: Final = (
    "it is not known whether every stored repository belongs to a pod: the root was not listed since the pods changed. "
    "A scheduler lists it within seconds, if it runs and the object store answers"
)


class Listing(NamedTuple):
    """What the last listing of the root has found, by the pods of now."""

    #: By the database's clock, before its first request.
    began_at: datetime
    #: Repositories, or folders of repositories, that no pod owns.
    unowned: Sequence[str] = ()
    #: There are no more of them.
    complete: bool = True

    @property
    def names(self) -> list[str]:
        """The names, and a last word if there are more."""
        return [*self.unowned, *([] if self.complete else ["and more"])]


def is_owned(name: str, prefixes: Iterable[str]) -> bool:
    return any(name == prefix or name.startswith(f"{prefix}/") for prefix in prefixes)


def as_of_now(
    began_at: datetime, listed_with: Collection[str], unowned: Sequence[str], complete: bool, prefixes: Collection[str]
) -> Listing | None:
    """Say what a listing that was made with some prefixes means with those of now; None if it says too little."""
    known = set(prefixes)
    if any(prefix not in known and not is_owned(prefix, known) for prefix in listed_with):
        return None
    return Listing(began_at, [name for name in unowned if not is_owned(name, known)], complete)


def holds(listing: Listing | None) -> list[str]:
    """Say why nothing may be deleted for what was listed; empty if it may."""
    if listing is None:
        return [NOT_LISTED]
    return [f"{unowned(listing)}: {REMEDY}"] if listing.names else []


def unowned(listing: Listing, limit: int = NAMES_SHOWN) -> str:
    """Say which repositories no pod owns, with up to `limit` names, of a listing that has found any."""
    shown = listing.unowned[:limit]
    left = len(listing.unowned) - len(shown)
    more = "" if listing.complete and not left else f" and {f'{left} more' if listing.complete else 'more'}"
    verb = "is" if len(shown) == 1 and not more else "are"
    return f"no pod owns {', '.join(shown) or 'some repositories'}{more}, which {verb} stored in the root"


def shown_name(name: str) -> str:
    """Write a name from a bucket so that it can be stored and shown, whatever is in it."""
    plain = name if name.isprintable() else ascii(name)[1:-1]
    return plain if len(plain) <= NAME_LIMIT else f"{plain[:NAME_LIMIT]}…"
