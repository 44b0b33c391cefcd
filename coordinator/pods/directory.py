"""Read the registered pods and their prefixes for the worker. Not here: changing them (table.py)."""

from typing import Any, NamedTuple

from psycopg import Connection

from coordinator.domain.names import Digest, PodName


class Directory(NamedTuple):
    """The registered pods at the time of reading."""

    #: Pod name to id.
    pods: dict[PodName, int]
    #: Prefix to the pod that owns it.
    owners: dict[str, PodName]


def read_directory(connection: Connection[Any]) -> Directory:
    pods = {PodName(row[1]): int(row[0]) for row in connection.execute("SELECT id, name FROM pods")}
    owners = connection.execute("SELECT x.prefix, p.name FROM pod_prefixes x JOIN pods p ON p.id = x.pod_id")
    return Directory(pods, {row[0]: PodName(row[1]) for row in owners})


def find_verified_manifests(connection: Connection[Any], wanted: set[Digest]) -> set[Digest]:
    """Return which of these digests are manifests whose own bytes were read: no report changes what they list."""
    found = connection.execute(
        "SELECT b.digest FROM unnest(%s::bytea[]) d (digest) JOIN blobs b ON b.digest = d.digest"
        " JOIN manifests m ON m.id = b.id WHERE m.verified",
        (list(wanted),),
    )
    return {Digest(row[0]) for row in found}


def find_unread_manifests(connection: Connection[Any], wanted: set[Digest]) -> dict[Digest, set[int]]:
    """Return which of these digests are manifests with unknown contents, and the pods that hold each by a link."""
    if not connection.execute("SELECT FROM manifests WHERE refs IS NULL LIMIT 1").rowcount:
        return {}
    found = connection.execute(
        """
        SELECT b.digest, array_agg(DISTINCT p.id) FROM unnest(%s::bytea[]) d (digest)
        JOIN blobs b ON b.digest = d.digest JOIN manifests m ON m.id = b.id
        JOIN repository_manifests h ON h.manifest_id = m.id JOIN repositories r ON r.id = h.repository_id
        JOIN pods p ON p.id = r.pod_id WHERE m.refs IS NULL AND p.links_in_store GROUP BY 1
        """,
        (list(wanted),),
    )
    return {Digest(digest): set(pods) for digest, pods in found}
