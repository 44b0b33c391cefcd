"""Metrics of the prober."""

from typing import Final

from prometheus_client import Counter, Histogram

#: By outcome: answered, failed, or refused (no process listens).
PROBES: Final = Counter("baleen_probes_total", "Probes that were sent to registries.", ["pod", "outcome"])
SECONDS: Final = Histogram(
    "baleen_probe_seconds",
    "How long registries took to answer a probe.",
    buckets=(0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10),
)
