"""Metrics of workers and schedulers. Each name says its unit."""

from collections.abc import Mapping
from typing import Any

from prometheus_client import Counter, Gauge, Histogram, start_http_server

from coordinator.errors import SettingsError
from coordinator.table.batch import ApplyResult

RECORDS = Counter("baleen_worker_records_total", "Kafka records applied.")
HOLDINGS = Counter("baleen_worker_holdings_total", "Holdings added or removed.", ["change"])
LINKS = Counter("baleen_worker_links_total", "Direct links added or removed.", ["change"])
REMOVALS = Counter("baleen_worker_removals_total", "Removals that were doubtful or overtaken.", ["result"])
DEAD_LETTERS = Counter("baleen_worker_dead_letters_total", "Records that could not be understood or applied.")
NOT_KEPT = Counter("baleen_worker_dead_letters_not_kept_total", "Dead letters beyond a pod's limit, replaced by a gap.")
ECHOES = Counter("baleen_worker_echoes_total", "Watermark records, of a known or an unknown probe.", ["probe"])
RETRIES = Counter("baleen_worker_retries_total", "Batches retried because a service did not answer.")
BATCH_RECORDS = Histogram(
    "baleen_worker_batch_records", "Records in a batch.", buckets=(1, 4, 16, 64, 256, 1024, 4096, 16384)
)
PARTITIONS = Gauge("baleen_worker_partitions", "Partitions assigned to this worker.")
#: Of a scheduler: done, failed, or left to the scheduler that holds the lease.
WORK = Counter("baleen_scheduler_work_total", "Periodic work, by outcome.", ["work", "outcome"])
RESTORED = Counter("baleen_worker_restored_total", "Hidden blobs that were restored.")
#: Of a scheduler: done; held (done, but every blob was blocked); dry; refused by its limits; stopped by a control;
#: failed; left to the next scheduler.
GC_RUNS = Counter("baleen_gc_runs_total", "Collections, by outcome.", ["outcome"])
GC_BLOBS = Counter("baleen_gc_blobs_total", "Blobs that collections hid, purged or restored.", ["change"])
GC_BYTES = Counter("baleen_gc_bytes_total", "Bytes that collections hid, and bytes that storage freed.", ["change"])


def count_applied(applied: ApplyResult) -> None:
    RECORDS.inc(applied.records)
    HOLDINGS.labels("added").inc(applied.holdings_added)
    HOLDINGS.labels("removed").inc(applied.holdings_removed)
    LINKS.labels("added").inc(applied.links_added)
    LINKS.labels("removed").inc(applied.links_removed)
    REMOVALS.labels("doubtful").inc(applied.removals_doubtful)
    REMOVALS.labels("overtaken").inc(applied.removals_overtaken)
    DEAD_LETTERS.inc(applied.dead_letters)
    NOT_KEPT.inc(applied.dead_letters_not_kept)
    ECHOES.labels("known").inc(applied.echoes)
    ECHOES.labels("unknown").inc(applied.echoes_unknown)
    BATCH_RECORDS.observe(applied.records)


def count_collection(progress: Mapping[str, Any], outcome: str) -> None:
    """Count a collection that ended or was left to the next scheduler."""
    GC_RUNS.labels(outcome).inc()
    for change in ("hidden", "purged"):
        amount = progress.get(change, {})
        GC_BLOBS.labels(change).inc(amount.get("blobs", 0))
        GC_BYTES.labels(change).inc(amount.get("bytes", 0))
    GC_BLOBS.labels("restored").inc(progress.get("restored", 0))


def serve_metrics(port: int, setting: str) -> None:
    """Serve the metrics on loopback, unless the port is 0; raises SettingsError, with the setting's name."""
    if port == 0:
        return
    try:
        start_http_server(port, addr="127.0.0.1")
    except OSError as error:
        raise SettingsError(
            f"The metrics cannot be served on port {port} ({error.strerror}): set {setting} to a free port."
        ) from error
