"""Where registries listen, as far as that can be found out in time."""

import threading
from collections.abc import Sequence

from coordinator.domain.pods import parse_registry
from coordinator.errors import UnavailableError
from coordinator.pods.addresses import look_up_all


def test_what_cannot_be_looked_up_is_left_out() -> None:
    """Addresses stand for themselves; a name that hangs, or is not known now, hides no other and ends nothing."""
    over = threading.Event()
    registries = {name: parse_registry(f"http://{name}:5000") for name in ("hangs", "away", "known", "[0:0::1]")}

    def resolve(host: str, _: int) -> Sequence[str]:
        if host == "hangs":
            over.wait(60)
        if host == "away":
            raise UnavailableError("away")
        return ["127.0.0.1", "::1"]

    found = look_up_all(registries.values(), within=0.5, resolve=resolve)
    over.set()
    # Had it waited for the one that hangs, that would be in it.
    assert found == {registries["known"]: {"127.0.0.1", "::1"}, registries["[0:0::1]"]: {"::1"}}
