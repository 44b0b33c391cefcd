"""How much a reconcile does at once, and how often it tries again."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Sizes:
    """The defaults are those of production."""

    #: Parts of a plan: enough to keep several threads busy, and to lose little work when one has to be done again.
    parts: int = 32
    #: Parts that are listed at once. A store answers a page in some ten milliseconds, and processing it takes as long.
    parts_at_once: int = 4
    #: Links and manifests that are looked up at once, by all parts together.
    lookups_at_once: int = 12
    #: Attempts for a part, and the pause after the first, doubled after each: half a minute in all.
    attempts: int = 6
    first_pause_s: float = 1.0
    #: Links that are compared together; a repository with more is compared by itself.
    compared: int = 2000
    #: Rows of a cursor that are in memory at once.
    fetched: int = 2000
    #: Links that one transaction adds.
    added: int = 500
    #: Manifests that are read together: each may list some fifty thousand digests.
    read: int = 128
    #: Links that are looked up together.
    looked_up: int = 256
    #: Links missing from a listing that the next listing has to show; of more, an even selection of this many.
    lacking_kept: int = 1000


PRODUCTION = Sizes()
