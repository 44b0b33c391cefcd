"""Compare the mark in the bucket with the database, to detect that one of them went back in time.

| what is seen                                            | what it means                                              |
|---------------------------------------------------------|------------------------------------------------------------|
| the database's instance is not the recorded one         | a failover, a restored dump, a point-in-time restore       |
| no mark, and the bucket had one                         | another bucket, or an older state of it                    |
| a mark of another database                              | two Baleens on one bucket, or a database before a claim    |
| a mark later than any that this database wrote          | the database is older than the bucket                      |
| a mark earlier than one that the bucket had             | the bucket is older than the database                      |
| a mark that another instance wrote                      | as the first, where the row was restored with the database |

Anything else passes. Not here: reading and writing the mark (gc/mark.py), the database's side (gc/mark_table.py).
"""

from typing import NamedTuple

from coordinator.errors import BaleenError

#: A part of an instance that the database does not report.
UNKNOWN = "?"
#: No database reaches this epoch. A mark that has it was not written by Baleen.
EPOCHS_LIMIT = 2**62


class Instance(NamedTuple):
    """What changes when a database is restored or fails over, as text; UNKNOWN if the database does not report it."""

    #: Of the server's data directory: another one after `initdb`, and so after a dump was restored elsewhere.
    system: str
    #: Of its log: another one after a promotion and after a point-in-time restore.
    timeline: str
    #: OIDs: others after a dump was restored, on the same server too.
    database: str
    table: str

    @classmethod
    def parse(cls, text: str) -> "Instance":
        parts = text.split("/")
        if len(parts) != len(cls._fields) or not all(parts):
            raise ValueError("not an instance")
        return cls(*parts)

    def __str__(self) -> str:
        return "/".join(self)

    @property
    def unknown(self) -> list[str]:
        return [name for name, value in self._asdict().items() if value == UNKNOWN]


class FoundMark(NamedTuple):
    """The mark in the bucket."""

    database: str
    epoch: int
    #: None in a mark of an earlier release.
    instance: Instance | None = None


#: A mark that cannot be read.
MARK_OF_NOBODY = FoundMark("nobody", 0)


class Mark(NamedTuple):
    """The database's side of the mark."""

    #: A UUID.
    database: str
    #: How many changes there were that an older state of the database would not know.
    epoch: int
    #: The latest epoch that was written to the bucket, or is about to be; 0 if none.
    writing: int
    #: The latest epoch that the bucket is known to have had; 0 if none.
    written: int
    #: The instance that wrote it; None before the first write of this release.
    recorded: Instance | None
    #: The instance that answers now.
    current: Instance
    #: Why the last comparison refused; None if it did not.
    refused: str | None = None
    #: A write is under way, or one without a result may still land.
    unsure: bool = False


class ForeignBucketError(BaleenError):
    """The bucket's GC history does not match this database."""


_CLAIM_ADVICE = "GC is blocked. See `Failover and restore` in docs/RECOVERY.md, then run `baleen gc claim --why …`."


def describe_move(recorded: Instance | None, current: Instance) -> str | None:
    """Return how the database has changed since its instance was recorded; None if no change is known."""
    if recorded is None:
        return None
    changed = [
        name
        for name, before, now in zip(Instance._fields, recorded, current, strict=True)
        if before != now and UNKNOWN not in {before, now}
    ]
    if not changed:
        return None
    if changed == ["timeline"]:
        return (
            f"The database is on WAL timeline {current.timeline}, and was on {recorded.timeline}: a standby was "
            "promoted, or the database was restored to a point in time. Commits may be lost, and blobs that they hid "
            f"may be live and answer 404. {_CLAIM_ADVICE}"
        )
    if "system" in changed:
        return (
            f"The database runs on another PostgreSQL server (system identifier {current.system}, before "
            f"{recorded.system}): it was restored or moved. {_CLAIM_ADVICE}"
        )
    return f"The database was restored from a dump: its tables were created again. {_CLAIM_ADVICE}"


def describe_unreported(current: Instance) -> str | None:
    """Return which parts of its instance the database does not report; None if it reports all."""
    if not current.unknown:
        return None
    return (
        f"The database does not report its {' and '.join(current.unknown)}, so a failover would go unnoticed: grant "
        "Baleen's user EXECUTE on pg_control_system(), pg_current_wal_lsn() and pg_walfile_name(pg_lsn)"
    )


def describe_refusal(found: FoundMark | None, before: Mark, after: Mark, key: str) -> str | None:
    """Return why GC may not run; None if bucket and database match.

    `before` was read before the mark and `after` after it, since others may be writing. `key` is the mark's.
    """
    written_by = None if found is None else found.instance
    return (
        describe_move(after.recorded, after.current)
        or _describe_mismatch(found, before, after, key)
        or describe_move(written_by, after.current)
    )


def _describe_mismatch(found: FoundMark | None, before: Mark, after: Mark, key: str) -> str | None:
    if found is None:
        return describe_lost_mark(before, key)
    if found.database != after.database:
        return (
            f"Another database ({found.database[:100]}, by {key}) collects garbage in this bucket: each would delete "
            f"what only the other knows. Stop one of the two. {_CLAIM_ADVICE}"
        )
    return describe_older_database(found, after, key) or describe_older_bucket(found, before, key)


def describe_lost_mark(before: Mark, key: str) -> str | None:
    """Return why a bucket without a mark does not match; None if it never had one."""
    if not before.written:
        return None
    return (
        f"The bucket has lost the mark {key} that this database wrote: it is another bucket, was emptied, or is in "
        f"an older state. {_CLAIM_ADVICE}"
    )


def describe_older_database(found: FoundMark, after: Mark, key: str) -> str | None:
    """Return how a database that is older than the bucket shows that; None if it is not."""
    # Its own epoch proves nothing: an older database also advances, with what its workers restore.
    if found.epoch <= after.writing:
        return None
    return (
        f"The database is older than the bucket: {key} is at epoch {found.epoch}, and this database wrote "
        f"{after.writing}. It was restored from a backup, or lost commits. {_CLAIM_ADVICE}"
    )


def describe_older_bucket(found: FoundMark, before: Mark, key: str) -> str | None:
    """Return how a bucket that is older than the database shows that; None if it is not."""
    if found.epoch >= before.written:
        return None
    return (
        f"The bucket is older than the database: {key} is at epoch {found.epoch}, and had {before.written}. The "
        f"bucket was rolled back, or is a replica that was promoted. {_CLAIM_ADVICE}"
    )
