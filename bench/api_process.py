"""`python -m bench.api_process PORT`: one API replica as `baleen api` runs it, on loopback, configured by BALEEN_…"""

import sys

from coordinator import settings
from coordinator.api.server import serve
from coordinator.compose import api as compose_api
from coordinator.telemetry import configure_logging


def main() -> None:
    loaded = settings.load()
    configure_logging(loaded)
    serve(compose_api.make_api(loaded), host="127.0.0.1", port=int(sys.argv[1]), log_level="warning")


if __name__ == "__main__":
    main()
