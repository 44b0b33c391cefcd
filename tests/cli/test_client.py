"""What the API's refusals become in a command."""

import httpx
import pytest

from coordinator.client import _refusal
from coordinator.errors import BaleenError, UnavailableError, UsageError


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, UsageError),
        (403, BaleenError),
        (404, BaleenError),
        (409, BaleenError),
        (500, BaleenError),
        (502, UnavailableError),
        (503, UnavailableError),
        (504, UnavailableError),
    ],
)
def test_what_a_status_means(status: int, kind: type[BaleenError]) -> None:
    """A wrong question is wrong usage, what is away may be tried again, all else failed; the sentence is the API's."""
    request = httpx.Request("GET", "http://registry.invalid/v1/status")
    error = _refusal(httpx.Response(status, json={"detail": "Say it so."}, request=request))
    assert type(error) is kind
    assert str(error) == "Say it so."
    document = _refusal(httpx.Response(status, text="<html>", request=request))
    assert type(document) is kind
    assert "BALEEN_URL" in str(document)
