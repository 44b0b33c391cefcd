"""What tests ask of a pod's watermark, by the database's clock."""

import datetime as dt

from tests.registries.harness import Baleen, Pod
from tests.support.wait import eventually


def states(baleen: Baleen, pod: Pod) -> list[str]:
    """What its processes are, sorted."""
    return sorted(source["state"] for source in baleen.pod(pod)["processes"])


def watermark(baleen: Baleen, pod: Pod) -> dt.datetime | None:
    shown = baleen.pod(pod)["watermark"]
    return None if shown is None else dt.datetime.fromisoformat(shown)


def is_past(baleen: Baleen, pod: Pod, moment: dt.datetime) -> bool:
    at = watermark(baleen, pod)
    return at is not None and at > moment


def now(baleen: Baleen) -> dt.datetime:
    found: dt.datetime = baleen.rows("SELECT clock_timestamp()")[0][0]
    return found


def moves_on(baleen: Baleen, pod: Pod) -> None:
    began = now(baleen)
    eventually(lambda: is_past(baleen, pod, began), why=lambda: baleen.pod(pod))
