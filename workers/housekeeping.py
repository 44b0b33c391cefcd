"""Work that no event triggers: expired links, doubtful removals, removals that no later event can contradict, links
kept for manifests, and hidden blobs that are needed again.

Any worker may do it at any time: the work is in bounded transactions, and repeating it changes nothing.
"""

import asyncio
from collections.abc import Callable
from datetime import timedelta

import structlog

from coordinator.db.connection import Connections
from coordinator.errors import UnavailableError
from coordinator.gc.restore import Restorer
from coordinator.reconcile.link_keeper import LinkKeeper
from coordinator.reconcile.resolve import Resolver
from coordinator.table import expiry
from workers import metrics

log = structlog.get_logger()


class Housekeeping:
    def __init__(
        self,
        connections: Connections,
        resolver: Resolver,
        link_keeper: LinkKeeper,
        restorer: Restorer,
        *,
        link_grace: timedelta,
        retention: timedelta,
    ) -> None:
        """`retention`: how long Kafka keeps the events."""
        self._connections = connections
        self._resolver = resolver
        self._link_keeper = link_keeper
        self._restorer = restorer
        self._link_grace = link_grace
        self._retention = retention

    async def resolve(self) -> None:
        await self._run_logged(self._resolver.resolve_all)

    async def keep_links(self) -> None:
        await self._run_logged(self._link_keeper.round)

    async def restore(self) -> None:
        await self._run_logged(lambda: metrics.RESTORED.inc(self._restorer.round()))

    async def sweep(self) -> None:
        await self._run_logged(self._sweep)

    def _sweep(self) -> None:
        with self._connections.use() as connection:
            expired = expiry.delete_expired_links(connection, self._link_grace)
            expiry.resolve_needless_removals(connection)
            forgotten = expiry.delete_old_removals(connection, self._retention)
        if expired or forgotten:
            log.info("swept", links_expired=expired, removals_forgotten=forgotten)

    async def _run_logged(self, work: Callable[[], object]) -> None:
        try:
            await asyncio.to_thread(work)
        except UnavailableError as error:
            log.warning("housekeeping failed, will be retried", reason=str(error))
        except Exception:
            # It is retried later; a worker that can apply events must not end because of it.
            log.exception("housekeeping failed")
