"""Serve the application with uvicorn: its limits, and how it ends.

On SIGTERM or Ctrl-C no new connection is taken, and requests under way have GRACE_SECONDS to end.
"""

import uvicorn
from litestar import Litestar

#: Requests and idle connections that one process holds; beyond it clients are answered 503 at once.
CONCURRENCY = 1000
#: Longer than the usual 60 s of proxies, so that they and not we end an idle connection.
KEEP_ALIVE_SECONDS = 75
GRACE_SECONDS = 10
HEADER_BYTES = 64 * 1024


def serve(app: Litestar, *, host: str, port: int, log_level: str) -> None:
    """Serve until told to end."""
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
