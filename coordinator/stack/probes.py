"""Ask a server on this machine by HTTP, without the user's proxy."""

import http.client
import urllib.error
import urllib.request

PROBE_SECONDS = 1.0


def get_url(url: str, seconds: float = PROBE_SECONDS) -> tuple[int | None, bytes]:
    """Return the status and the body of the answer to a GET; no status if nothing answers."""
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with direct.open(url, timeout=seconds) as answer:
            return int(answer.status), bytes(answer.read())
    except urllib.error.HTTPError as error:
        return error.code, b""
    except (OSError, http.client.HTTPException):
        return None, b""
