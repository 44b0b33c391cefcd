"""A Kafka-protocol broker as a child process: `noida-db start --only kafka` from the `noida-db` wheel.

For trying Baleen and for tests; production needs Apache Kafka. On older systems its program prints a harmless warning
about GLIBC_2.39. Observed with 0.2.3 (2 cores; tests/stack/test_broker_contract.py verifies what Baleen relies on):

What survives. The log is in memory. About a second after a change the whole log is written to
`kafka.json` (to another file, then renamed), as JSON that takes four bytes for one.
- SIGTERM: everything: topics, records, committed offsets; 1 s for 30 MB of records.
- SIGKILL: the content of the last finished write. Idle: everything older than about 2 s. Under a steady load of
  11 MB/s half of 75 600 records that had been acknowledged with acks=all were gone, 5 s of them.
  **Offsets jump back and are used again for other records**, and nothing in the protocol shows it: there are no
  topic ids (Metadata goes up to v8, Fetch and DeleteTopics are by name) and leader epochs are -1. A consumer
  beyond the new end gets OFFSET_OUT_OF_RANGE, until new records have passed it. `noida.control.json` is
  removed only at a clean end, so `prepare()` can detect that the last run was cut off
  (`StackEndpoints.kafka_log_cut`).
- A topic that is deleted and created again starts at offset 0; only the offsets show it.

Consumer groups. Two members share the partitions, and rebalance within a second when one joins or leaves;
with members that one thread polls in turn it takes 10 s, and leaving 30 s (Kafka: 6 s in all).
- **A member that dies without leaving is never expired.** It keeps its partitions (45 s were seen, with a
  session timeout of 6 s). A new member beside it waits for ever, or the group ends up stable with partitions
  that two members own. The group cannot be deleted. Only a restart of the broker clears it.
- A commit during a rebalance is refused with ILLEGAL_GENERATION; aiokafka with automatic commits, its
  default, then leaves the group and no member gets partitions. Without group commits this does not happen.
So: one worker, a new group name for each of its starts, and no group commits while partitions move.

Supported and tried: acks=all, idempotent and transactional producers (read_committed, abort, offsets in a
transaction), headers, keys, order within a partition, own timestamps, earliest, latest and by-time offsets,
seek, create, delete and describe topics, DeleteRecords, DescribeConfigs (only what was set). retention.ms is
enforced within seconds, by the records' own timestamps and 7 days by default: a record dated long ago
vanishes at once. retention.bytes is ignored. Asking for a topic creates it. A replication factor above 1 is
refused.

Speed with 8 partitions and 20 000 records of 1.5 kB: written in 0.4 s (50 000/s) with aiokafka; 37 MB of
memory, 72 MB after reading and saving; 480 MB for 95 000 such records under load, since each save copies the
log. Ready in 0.05 s, with 30 MB of records in 0.6 s.
"""

from __future__ import annotations

import os
import socket
from pathlib import Path

from coordinator.stack import wheels
from coordinator.stack.process import ManagedProcess

# It writes its whole log as it ends, about 30 MB of records in a second on an idle machine.
STOP_SECONDS = 60.0
PROBE_SECONDS = 1.0
# One ApiVersions v0 request (key 18) with correlation id 1 and no client id, and how an answer to it begins.
_API_VERSIONS = bytes.fromhex("0000000a0012000000000001ffff")


def require_program() -> Path:
    """Return the program inside the wheel; the wheel's wrapper would hide its process id."""
    found = wheels.find_file("noida_db", "noida-db")
    if found is None:
        raise wheels.make_missing_error("Kafka broker", "BALEEN_KAFKA_BOOTSTRAP", "a Kafka")
    if not os.access(found, os.X_OK):
        found.chmod(0o755)  # some installers drop the mode
    return found


class EmbeddedKafka:
    """One broker, in a directory of its own."""

    def __init__(self, directory: Path, log_file: Path, *, host: str, port: int) -> None:
        self._program = require_program()
        self._directory = directory
        self._log_file = log_file
        self._host = host
        self._port = port

    @property
    def bootstrap(self) -> str:
        return f"{self._host}:{self._port}"

    def prepare(self) -> bool:
        """Create the directory; True if the last run was cut off, so that acknowledged records may be lost."""
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        left = self._directory / "noida.control.json"
        cut = left.exists()
        left.unlink(missing_ok=True)
        return cut

    def process(self) -> ManagedProcess:
        return ManagedProcess(
            name="The Kafka broker noida-db",
            argv=[
                *(self._program, "start", "--only", "kafka", "--host", self._host),
                *("--data-dir", self._directory, "--kafka-port", str(self._port)),
            ],
            env={name: value for name, value in os.environ.items() if not name.startswith("NOIDA_")},
            cwd=self._directory,
            log_file=self._log_file,
            stop_timeout=STOP_SECONDS,
            probe=lambda: speaks_kafka(self._host, self._port),
            ready_timeout=60.0,
            advice="BALEEN_KAFKA_BOOTSTRAP may name another broker",
        )


def speaks_kafka(host: str, port: int) -> bool:
    """Whether a broker answers an ApiVersions request there."""
    with socket.create_connection((host, port), PROBE_SECONDS) as connection:
        connection.settimeout(PROBE_SECONDS)
        connection.sendall(_API_VERSIONS)
        answer = connection.recv(10)
    return len(answer) == 10 and answer[4:10] == bytes.fromhex("000000010000")
