"""Metrics of the token service. Only registered pods become label values."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from prometheus_client import Counter, Gauge, Histogram

from coordinator.errors import BaleenError

_BUCKETS: Final = (0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)

#: Requests for a token by outcome: issued, refused, denied, unavailable, busy, malformed.
REQUESTS: Final = Counter("baleen_token_requests_total", "Requests for a token.", ["outcome"])
REQUEST_SECONDS: Final = Histogram(
    "baleen_token_request_seconds", "Duration of requests for a token.", buckets=_BUCKETS
)
#: Answers of pods' issuers: granted, refused, denied, invalid, failed, slow, unreachable, busy.
ANSWERS: Final = Counter("baleen_token_issuer_answers_total", "Answers of the pods' token issuers.", ["pod", "outcome"])
ISSUER_SECONDS: Final = Histogram("baleen_token_issuer_seconds", "How long issuers took.", ["pod"], buckets=_BUCKETS)
KEYS_UNREAD: Final = Gauge(
    "baleen_token_keys_unread", "1 while a key file cannot be read and the previous keys are used.", ["setting"]
)


@contextmanager
def count_malformed() -> Iterator[None]:
    """Count requests that are refused before an issuer is asked."""
    try:
        yield
    except BaleenError:
        REQUESTS.labels("malformed").inc()
        raise
