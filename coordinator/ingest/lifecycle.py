"""Write what happened to blobs to blob.lifecycle, and return only when Kafka has all of it.

Route: coordinator/outbox.py -> `publish(records)`. Records of one digest go to one partition, in the order given.
At least once: after a failure or a crash the same records are given again, and a copy of one may then stand
behind later ones of its digest; `at` says which is newer. A client (kafka-python's, idempotent, `acks=all`) that failed
is thrown away with all that it holds, and another made at the next call.
Not here: which records wait (db/lifecycle.py), making the topic (topics.py).
"""

import contextlib
import time
from collections.abc import Sequence
from typing import Final

import msgspec
from kafka import KafkaAdminClient, KafkaProducer
from kafka.errors import KafkaError

from coordinator.errors import UnavailableError
from coordinator.ingest.connection import client_arguments
from coordinator.ingest.topics import LIFECYCLE
from coordinator.settings import Settings
from schemas.records import BlobLifecycle, headers

#: For all records of one call. Their rows are locked meanwhile, so it is well below the database's patience.
TIMEOUT_S: Final = 15.0

_encoder = msgspec.json.Encoder()


class LifecycleProducer:
    """For one thread. Connects when there is something to write."""

    def __init__(self, settings: Settings, timeout: float = TIMEOUT_S) -> None:
        self._settings = settings
        self._arguments = client_arguments(settings)
        self._timeout = timeout
        self._client: KafkaProducer | None = None

    def publish(self, records: Sequence[BlobLifecycle]) -> None:
        """Write the records; raises UnavailableError when Kafka did not acknowledge all of them in time."""
        deadline = time.monotonic() + self._timeout
        try:
            client = self._connected()
            sent = [
                client.send(
                    LIFECYCLE, key=record.digest.encode(), value=_encoder.encode(record), headers=headers(record)
                )
                for record in records
            ]
            for each in sent:
                each.get(timeout=max(0.0, deadline - time.monotonic()))
        except (KafkaError, OSError) as error:
            self._discard()
            raise UnavailableError(
                f"Kafka does not take records of {LIFECYCLE} ({type(error).__name__}): see that it runs."
            ) from error
        except BaseException:
            self._discard()
            raise

    def close(self) -> None:
        self._discard()

    def _connected(self) -> KafkaProducer:
        if self._client is None:
            self._check_topic()
            self._client = KafkaProducer(
                **self._arguments,
                acks="all",
                max_block_ms=round(self._timeout * 1000),
                bootstrap_timeout_ms=round(self._timeout * 1000),
                request_timeout_ms=round(self._timeout * 1000 / 2),
                delivery_timeout_ms=round(self._timeout * 1000),
            )
        return self._client

    def _check_topic(self) -> None:
        """Brokers make a topic that is asked for by its name, with one partition, and so that it forgets too soon."""
        milliseconds = round(self._timeout * 1000)
        admin = KafkaAdminClient(**self._arguments, request_timeout_ms=milliseconds, bootstrap_timeout_ms=milliseconds)
        try:
            there = LIFECYCLE in admin.list_topics()
        finally:
            admin.close()
        if not there:
            raise UnavailableError(f"Kafka has no topic {LIFECYCLE}: create it with `baleen topics create`.")

    def _discard(self) -> None:
        client, self._client = self._client, None
        if client is None:
            return
        with contextlib.suppress(KafkaError):
            client.close(timeout=0)
        # While records wait, `close` gives up before it has ended the thread that would go on sending them.
        client._sender.force_close()  # noqa: SLF001
