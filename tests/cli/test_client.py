"""The error of a command for each refusal of the API."""

import httpx
import pytest

from coordinator.client import _make_error
from coordinator.errors import BaleenError, UnavailableError, UsageError


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, UsageError),
        *((status, BaleenError) for status in (403, 404, 409, 500)),
        *((status, UnavailableError) for status in (502, 503, 504)),
    ],
)
def test_what_a_status_means(status: int, kind: type[BaleenError]) -> None:
    """A malformed request is wrong usage, an unavailable API can be retried, all else failed; the sentence is the
    API's.
    """
    request = httpx.Request("GET", "http://registry.invalid/v1/status")
    error = _make_error(httpx.Response(status, json={"detail": "Say it so."}, request=request))
    assert type(error) is kind
    assert str(error) == "Say it so."
    document = _make_error(httpx.Response(status, text="<html>", request=request))
    assert type(document) is kind
    assert "BALEEN_URL" in str(document)
