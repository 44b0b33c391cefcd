"""What is told of events that came with a wrong token, or with none.

Anyone may post such in a pod's name: it is information for whoever looks why a pod is not heard, and nothing else. It
neither holds garbage collection nor lets it go.
Not here: who notes them, and how often (ingest/refusals.py); the rows (pods/refusals.py).
"""

from datetime import datetime, timedelta
from typing import Final, NamedTuple

#: A later refusal than this begins anew, and an older one is of the past: a registry whose token is wrong comes again
#: within seconds, and one that is idle is made to by the next probe.
PAUSE: Final = timedelta(hours=1)


class Refusals(NamedTuple):
    """From when on events in a pod's name have been refused for their token, with no pause; and when last."""

    since: datetime
    last: datetime


def told(refused: Refusals) -> str:
    return (
        f"events arrive with a wrong token, or with none, since {refused.since:%Y-%m-%d %H:%M:%S} UTC, the last at "
        f"{refused.last:%Y-%m-%d %H:%M:%S}, and are refused"
    )


def sentence(refused: Refusals, pod: str) -> str:
    """What is told, and what mends it."""
    return (
        f"{told(refused)}: put the token that `baleen pods add` showed into the "
        f"`notifications` section of each process and restart it; `baleen pods rotate-token {pod}` makes another"
    )
