"""What a worker counts. A closed list: each name says its unit."""

from prometheus_client import Counter, Gauge, Histogram

from coordinator.db.batch import Applied

RECORDS = Counter("baleen_worker_records_total", "Kafka records applied.")
HOLDINGS = Counter("baleen_worker_holdings_total", "Holdings added or removed.", ["change"])
LINKS = Counter("baleen_worker_links_total", "Direct links added or removed.", ["change"])
REMOVALS = Counter("baleen_worker_removals_total", "Removals that were doubtful or overtaken.", ["verdict"])
DEAD_LETTERS = Counter("baleen_worker_dead_letters_total", "Records that could not be understood or applied.")
ECHOES = Counter(
    "baleen_worker_echoes_total", "Watermark records: of a probe that is known, or of one that is not.", ["probe"]
)
RETRIES = Counter("baleen_worker_retries_total", "Batches put off because a service did not answer.")
BATCH_RECORDS = Histogram(
    "baleen_worker_batch_records", "Records in a batch.", buckets=(1, 4, 16, 64, 256, 1024, 4096, 16384)
)
PARTITIONS = Gauge("baleen_worker_partitions", "Partitions assigned to this worker.")
#: Of a scheduler: done, failed, or left to the one that has the lease.
WORK = Counter("baleen_scheduler_work_total", "Pieces of periodic work, by what became of them.", ["work", "outcome"])


def count(applied: Applied) -> None:
    RECORDS.inc(applied.records)
    HOLDINGS.labels("added").inc(applied.holdings_added)
    HOLDINGS.labels("removed").inc(applied.holdings_removed)
    LINKS.labels("added").inc(applied.links_added)
    LINKS.labels("removed").inc(applied.links_removed)
    REMOVALS.labels("doubtful").inc(applied.removals_doubtful)
    REMOVALS.labels("overtaken").inc(applied.removals_overtaken)
    DEAD_LETTERS.inc(applied.dead_letters)
    ECHOES.labels("known").inc(applied.echoes)
    ECHOES.labels("unknown").inc(applied.echoes_unknown)
    BATCH_RECORDS.observe(applied.records)
