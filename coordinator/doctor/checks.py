"""The checks, in the order in which a visit makes them: data."""

from collections.abc import Callable

from coordinator.doctor import cache, clocks, events, gitlab, kafka, key, registry, storage
from coordinator.doctor.visit import Visit
from coordinator.domain.findings import Check, Finding

CHECKS: dict[Check, Callable[[Visit], Finding]] = {
    Check.REGISTRY_ANSWERS: registry.check_registry_answers,
    Check.KAFKA_DURABLE: kafka.check_kafka_durable,
    Check.VERSIONED: storage.check_versioned,
    Check.REPOSITORIES_OWNED: storage.check_repositories_owned,
    Check.EVENTS_ARRIVE: events.check_events_arrive,
    Check.REFERENCES_ARRIVE: events.check_references_arrive,
    Check.EVENTS_IN_ORDER: events.check_events_in_order,
    Check.PROBES_ARRIVE: events.check_probes_arrive,
    Check.PROCESSES_REACHED: registry.check_processes_reached,
    Check.SAME_ROOT: storage.check_same_root,
    Check.REGISTRY_DATABASE: gitlab.check_registry_database,
    Check.REGISTRY_GC_OFF: gitlab.check_registry_gc_off,
    Check.LOCK_FILE: gitlab.check_lock_file,
    Check.CLOCKS: clocks.check_clocks,
    Check.UPLOAD_SECRET: registry.check_upload_secret,
    Check.NO_DESCRIPTOR_CACHE: cache.check_no_descriptor_cache,
    Check.CANNOT_DELETE: key.check_cannot_delete,
    Check.OTHERS_CLOSED: key.check_others_closed,
    Check.QUARANTINE_CLOSED: key.check_quarantine_closed,
    Check.BUCKET_CLOSED: key.check_bucket_closed,
    # Last, because it deletes what the others use.
    Check.DELETES_ARRIVE: events.check_deletes_arrive,
}

#: Checks of each process: they prove nothing of a process that the visit did not reach.
CHECKS_OF_PROCESSES = frozenset(
    {
        Check.PROCESSES_REACHED,
        Check.EVENTS_ARRIVE,
        Check.REFERENCES_ARRIVE,
        Check.EVENTS_IN_ORDER,
        Check.PROBES_ARRIVE,
        Check.SAME_ROOT,
        Check.REGISTRY_DATABASE,
        Check.REGISTRY_GC_OFF,
        Check.CLOCKS,
        Check.UPLOAD_SECRET,
        Check.NO_DESCRIPTOR_CACHE,
        Check.DELETES_ARRIVE,
    }
)
