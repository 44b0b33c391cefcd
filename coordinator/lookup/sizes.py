"""How much the API reads while a client waits, and how long it caches what takes longer."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Sizes:
    """The defaults are those of production."""

    #: Holdings that are counted while a client waits: of one blob, of all blobs of a request.
    live: int = 5_000
    live_total: int = 50_000
    #: Holdings that one pass over blobs with more of them reads: a few seconds.
    hot_group: int = 2_000_000
    #: How long the counts of such blobs, the ranking and the figures of garbage collection are cached, in seconds; or
    #: `cost_factor` times as long as counting took, if that is more.
    hot_s: float = 60.0
    ranking_s: float = 60.0
    figures_s: float = 15.0
    cost_factor: float = 50.0
    #: Blobs with the most references that are ranked.
    ranked: int = 10_000
    #: Blobs that one page reads, at most, to find those that match; the same if each needs a look-up of its own.
    walk: int = 100_000
    pod_walk: int = 4_000
    #: Blobs that one page of a plan reads, at most, to find those of one step.
    plan_walk: int = 2_000
    #: References of a blob up to which the index finds them; beyond that, manifests that one page reads, at most.
    indexed: int = 20_000
    manifests_walk: int = 30_000
    #: Manifests whose references are counted, of all repositories of one page.
    list_manifests: int = 5_000
    #: Entries of the ledger that are shown of one blob.
    entries: int = 50
    #: How long known pods serve ingest before they are read again, in seconds.
    pods_s: float = 5.0


PRODUCTION = Sizes()
