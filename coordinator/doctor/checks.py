"""The checks, in the order in which a visit makes them: data."""

from collections.abc import Callable

from coordinator.doctor import cache, clocks, events, kafka, key, registry, storage
from coordinator.doctor.visit import Visit
from coordinator.domain.findings import Check, Finding

CHECKS: dict[Check, Callable[[Visit], Finding]] = {
    Check.REGISTRY_ANSWERS: registry.registry_answers,
    Check.KAFKA_DURABLE: kafka.kafka_durable,
    Check.VERSIONED: storage.versioned,
    Check.REPOSITORIES_OWNED: storage.repositories_owned,
    Check.EVENTS_ARRIVE: events.events_arrive,
    Check.REFERENCES_ARRIVE: events.references_arrive,
    Check.EVENTS_IN_ORDER: events.events_in_order,
    Check.PROBES_ARRIVE: events.probes_arrive,
    Check.PROCESSES_REACHED: registry.processes_reached,
    Check.SAME_ROOT: storage.same_root,
    Check.CLOCKS: clocks.clocks,
    Check.UPLOAD_SECRET: registry.upload_secret,
    Check.NO_DESCRIPTOR_CACHE: cache.no_descriptor_cache,
    Check.CANNOT_DELETE: key.cannot_delete,
    Check.OTHERS_CLOSED: key.others_closed,
    Check.QUARANTINE_CLOSED: key.quarantine_closed,
    Check.BUCKET_CLOSED: key.bucket_closed,
    # Last, because it deletes what the others use.
    Check.DELETES_ARRIVE: events.deletes_arrive,
}

#: Checks of each process: they prove nothing of a process that the visit did not reach.
OF_PROCESSES = frozenset(
    {
        Check.PROCESSES_REACHED,
        Check.EVENTS_ARRIVE,
        Check.REFERENCES_ARRIVE,
        Check.EVENTS_IN_ORDER,
        Check.PROBES_ARRIVE,
        Check.SAME_ROOT,
        Check.CLOCKS,
        Check.UPLOAD_SECRET,
        Check.NO_DESCRIPTOR_CACHE,
        Check.DELETES_ARRIVE,
    }
)
