"""Decide whether stored repositories that no pod owns block garbage collection, from a listing of the root.

The argument for a purge covers registered pods: each has reported, each was reconciled. A registry that uses the same
root and is not registered is not covered, so any repository of it blocks GC. Its folder shows in a listing that began
after every request that may have seen the blob had ended (t_h + R): domain/gc.py makes a bound of that.
A listing is valid for the pods of its time. If a pod was removed since, its repositories may be unowned, and the
listing did not look for them: then no listing is known. A pod that was added owns what is below its prefixes.
Not here: listing (perimeter/root_listing.py), the row (perimeter/root_listing_table.py).
"""

from collections.abc import Collection, Iterable, Sequence
from datetime import datetime
from typing import Final, NamedTuple

#: Names that a listing keeps. One name blocks GC; more only help to identify the registry.
NAMES_LIMIT: Final = 100
#: Names in one sentence.
NAMES_SHOWN: Final = 10
#: Characters of one name. A repository's name has up to 255.
NAME_LIMIT: Final = 300

#: In a listing, in place of a repository: a lock file shows such a registry, and no pod is one.
DATABASE_REGISTRY: Final = "a GitLab registry with a metadata database (lockfiles/database-in-use, kind `gitlab`)"
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
    """The last listing of the root, evaluated with the present pods."""

    #: By the database's clock, before its first request.
    began_at: datetime
    #: Repositories, or folders of repositories, that no pod owns.
    unowned: Sequence[str] = ()
    #: `unowned` has all of them.
    complete: bool = True

    @property
    def names_to_show(self) -> list[str]:
        """The names, with a last entry if there are more."""
        return [*self.unowned, *([] if self.complete else ["and more"])]


def is_owned(name: str, prefixes: Iterable[str]) -> bool:
    return any(name == prefix or name.startswith(f"{prefix}/") for prefix in prefixes)


def evaluate_listing(
    began_at: datetime, listed_with: Collection[str], unowned: Sequence[str], complete: bool, prefixes: Collection[str]
) -> Listing | None:
    """Evaluate a listing made with earlier prefixes for the present ones; None if it does not cover them."""
    known = set(prefixes)
    if any(prefix not in known and not is_owned(prefix, known) for prefix in listed_with):
        return None
    return Listing(began_at, [name for name in unowned if not is_owned(name, known)], complete)


def block_reasons(listing: Listing | None) -> list[str]:
    """Return why the listing forbids deleting anything; empty if it does not."""
    if listing is None:
        return [NOT_LISTED]
    return [f"{describe_unowned(listing)}: {REMEDY}"] if listing.names_to_show else []


def describe_unowned(listing: Listing, limit: int = NAMES_SHOWN) -> str:
    """Return a sentence that names up to `limit` repositories that no pod owns; the listing must have found any."""
    shown = listing.unowned[:limit]
    left = len(listing.unowned) - len(shown)
    more = "" if listing.complete and not left else f" and {f'{left} more' if listing.complete else 'more'}"
    verb = "is" if len(shown) == 1 and not more else "are"
    return f"no pod owns {', '.join(shown) or 'some repositories'}{more}, which {verb} stored in the root"


def make_name_safe(name: str) -> str:
    """Make a name from a bucket safe to store and show, whatever characters it has."""
    plain = name if name.isprintable() else ascii(name)[1:-1]
    return plain if len(plain) <= NAME_LIMIT else f"{plain[:NAME_LIMIT]}…"
