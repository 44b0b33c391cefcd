"""The HTTP client of the commands: finds the API, sends the token, and turns problems into errors.

The `detail` of a problem is already a sentence that says what to do. Status 400 becomes a UsageError.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx

from coordinator.domain.hosts import is_loopback
from coordinator.errors import BaleenError, SettingsError, UnavailableError, UnconfiguredError, UsageError
from coordinator.settings import Settings

#: The API's own statements end after 30 s.
TIMEOUT = httpx.Timeout(40, connect=5)
PAGE_LIMIT = 1000
#: The API, or a service that it needs, is unavailable: by its own answer or by that of a proxy before it.
_UNAVAILABLE = frozenset({502, 503, 504})


class Api:
    """One connection to the API, for one command."""

    def __init__(self, client: httpx.Client) -> None:
        self._client = client

    def get(self, path: str, **parameters: Any) -> Any:
        return self._send("GET", path, params=_drop_none(parameters))

    def post(self, path: str, body: Any = None) -> Any:
        return self._send("POST", path, json=body)

    def put(self, path: str, body: Any) -> Any:
        return self._send("PUT", path, json=body)

    def delete(self, path: str) -> None:
        self._send("DELETE", path)

    def get_pages(self, path: str, limit: int, cursor: str | None = None, **parameters: Any) -> dict[str, Any]:
        """Return up to `limit` items over as many pages as it takes, and where to go on."""
        items: list[Any] = []
        while True:
            page: dict[str, Any] = self.get(
                path, cursor=cursor, limit=min(limit - len(items), PAGE_LIMIT), **parameters
            )
            items += page["items"]
            cursor = page["next"]
            if cursor is None or len(items) >= limit:
                return page | {"items": items, "next": cursor}

    def _send(self, method: str, path: str, **options: Any) -> Any:
        try:
            answer = self._client.request(method, path, **options)
        except httpx.TimeoutException as error:
            raise UnavailableError(f"The API at {self._client.base_url} took too long to answer: try again.") from error
        except httpx.HTTPError as error:
            raise UnavailableError(
                f"The API does not answer at {self._client.base_url}: start `baleen up`, or check BALEEN_URL."
            ) from error
        if not answer.is_success:
            raise _make_error(answer)
        return None if answer.status_code == httpx.codes.NO_CONTENT else _parse_body(answer)


@contextmanager
def connect_api(settings: Settings) -> Iterator[Api]:
    """Yield the API that the settings or a running `baleen up` name."""
    if settings.url is None:
        raise UnconfiguredError("No API is known: start `baleen up` in this directory, or set BALEEN_URL.")
    if settings.token is None:
        raise UnconfiguredError("No token is known: set BALEEN_TOKEN to one of `baleen tokens create`.")
    headers = {"Authorization": f"Bearer {settings.token.reveal()}"}
    try:
        url = httpx.URL(settings.url)
    except httpx.InvalidURL as error:
        raise SettingsError("BALEEN_URL is malformed: write it as http://host:port.") from error
    try:
        # No proxy for loopback: the token need not leave this machine.
        direct = httpx.HTTPTransport() if is_loopback(url.host) else None
        client = httpx.Client(base_url=url, headers=headers, timeout=TIMEOUT, transport=direct)
    except (httpx.InvalidURL, ValueError, ImportError):
        # The library's message may quote the proxy's URL with a password.
        raise UnavailableError(
            "The proxy that HTTP_PROXY, HTTPS_PROXY or ALL_PROXY names cannot be used: unset the variable for "
            "Baleen, or name a proxy of http or https."
        ) from None
    with client:
        yield Api(client)


def _drop_none(parameters: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in parameters.items() if value is not None}


def _parse_body(answer: httpx.Response) -> Any:
    try:
        parsed = answer.json()
    except (ValueError, RecursionError):
        parsed = None
    if not isinstance(parsed, dict):
        raise BaleenError(_describe_strange_answer(answer))
    return parsed


def _describe_strange_answer(answer: httpx.Response) -> str:
    return f"{answer.url} answered {answer.status_code}, but not as Baleen does: check BALEEN_URL."


def _make_error(answer: httpx.Response) -> BaleenError:
    try:
        detail = str(answer.json()["detail"])
    except (ValueError, KeyError, TypeError, RecursionError):
        detail = _describe_strange_answer(answer)
    if answer.status_code == httpx.codes.BAD_REQUEST:
        return UsageError(detail)
    return UnavailableError(detail) if answer.status_code in _UNAVAILABLE else BaleenError(detail)
