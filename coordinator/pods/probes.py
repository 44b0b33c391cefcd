"""Look up probes for ingest. Not here: recording and deleting them (table/processes.py)."""

from collections.abc import Collection

from sqlalchemy import Engine, text

from coordinator.db.session import read_connection

_PODS_OF_NONCES = text("""
SELECT a.nonce, p.name FROM unnest(CAST(:nonces AS uuid[])) d (nonce)
JOIN probes a ON a.nonce = d.nonce JOIN pods p ON p.id = a.pod_id
""")


def read_pods_of(engine: Engine, nonces: Collection[str]) -> dict[str, str]:
    """Return the pod of each of these nonces that belongs to a probe.

    That includes echoed probes: another process may report the same probe, and a report that reached Kafka only in part
    is sent again.
    """
    with read_connection(engine) as connection:
        rows = connection.execute(_PODS_OF_NONCES, {"nonces": list(nonces)})
        return {row.nonce.hex: row.name for row in rows}
