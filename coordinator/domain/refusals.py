"""Describe events that arrived with a wrong token, or with none.

Anyone can post such events in a pod's name, so they only help an operator to find out why a pod is silent. They have no
effect on garbage collection.
Not here: recording them, and how often (ingest/refusals.py); the rows (pods/refusals.py).
"""

from datetime import datetime, timedelta
from typing import Final, NamedTuple

#: After a pause of this length a refusal starts a new period, and an older one is over: a registry with a wrong token
#: retries within seconds, and the next probe makes an idle one send.
PAUSE: Final = timedelta(hours=1)


class Refusals(NamedTuple):
    """The period in which events in a pod's name were refused for their token: its start, and the last refusal."""

    since: datetime
    last: datetime


def describe_refusals(refused: Refusals) -> str:
    return (
        f"events with a wrong token, or with none, have been refused since {refused.since:%Y-%m-%d %H:%M:%S} UTC, the "
        f"last at {refused.last:%Y-%m-%d %H:%M:%S}"
    )


def describe_refusals_of_pod(refused: Refusals, pod: str) -> str:
    """Say what was refused, and how to repair it."""
    return (
        f"{describe_refusals(refused)}: put the token that `baleen pods add` showed into the "
        f"`notifications` section of each process and restart it, or run `baleen pods rotate-token {pod}` for a new one"
    )
