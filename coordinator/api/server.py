"""Serve the application with uvicorn, with limits and a graceful shutdown.

On SIGTERM or Ctrl-C no new connection is accepted, and running requests have GRACE_SECONDS to end.
"""

import uvicorn
from litestar import Litestar

#: Requests and idle connections of one process; beyond that clients get 503 at once.
CONCURRENCY = 1000
#: Longer than the usual 60 s of proxies, so that the proxy closes an idle connection, not the API.
KEEP_ALIVE_SECONDS = 75
GRACE_SECONDS = 10
HEADER_BYTES = 64 * 1024


def serve(app: Litestar, *, host: str, port: int, log_level: str) -> None:
    """Serve until SIGTERM or Ctrl-C."""
    config = uvicorn.Config(
        app,
        host=host,
        port=port,
        loop="uvloop",
        http="httptools",
        ws="none",
        lifespan="on",
        access_log=False,
        server_header=False,
        log_config=None,
        log_level=log_level,
        limit_concurrency=CONCURRENCY,
        backlog=2048,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=GRACE_SECONDS,
        h11_max_incomplete_event_size=HEADER_BYTES,
    )
    uvicorn.Server(config).run()
