"""Metrics of ingest. Only registered pods become label values, because anyone may post any name."""

from typing import Final

from prometheus_client import Counter, Gauge, Histogram

#: Events by outcome: accepted, reported (a probe), dropped or dead-lettered; counted after Kafka has them.
EVENTS: Final = Counter(
    "baleen_ingest_events_total",
    "Events that registries posted, by outcome.",
    ["pod", "outcome", "reason"],
)
#: Refused requests: unauthorized, memory, slow-body, kafka. The registry repeats them. `pod` is the pod that the
#: request names if it exists, else empty.
REFUSED: Final = Counter("baleen_ingest_refused_total", "Requests that ingest refused.", ["pod", "reason"])
#: From a request's head to its answer: a registry's next event waits this long.
SECONDS: Final = Histogram(
    "baleen_ingest_request_seconds",
    "Duration of authenticated requests at ingest.",
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30),
)
BYTES_IN_FLIGHT: Final = Gauge("baleen_ingest_bytes_in_flight", "Bytes of request bodies held now.")
