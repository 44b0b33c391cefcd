"""Check what GC relies on at a GitLab Container Registry: its database, its own collection of garbage, its lock file.

Its database is the truth about the pod, so it must be this registry's: what a visit pushes has its rows there.
Its own garbage collection would delete bytes that other pods need, and sends no event. No request to the registry shows
whether it is on; the metrics of a process do, at the process's debug address: series `registry_gc_…` exist from the
first run of a worker on, which comes within a minute of the process's start. Baleen has the debug addresses from a file
beside that with the database's URL (gitlab/files.py), and not from an option of the command: so the scheduler, too,
examines a process that began later, which may be configured differently (reexamination.py).
Not here: the clock of the database (clocks.py), a blob whose bytes are gone (cache.py).
"""

import re
from datetime import datetime, timedelta
from typing import Final, NamedTuple

from coordinator.doctor.registry import failed_push_parts
from coordinator.doctor.results import RUN_AGAIN, Part, make_finding, proved, refuted, unproved
from coordinator.doctor.visit import TIMEOUT_S, Push, Visit
from coordinator.domain.findings import Check, Finding
from coordinator.domain.names import format_digest, parse_digest
from coordinator.domain.pods import parse_registry
from coordinator.errors import BaleenError, UsageError
from coordinator.gitlab.database import GitlabDatabase
from coordinator.gitlab.files import read_debug_urls
from coordinator.registry.errors import RegistryError
from coordinator.registry.metrics import read_metrics
from coordinator.storage.layout import DATABASE_LOCK, FILESYSTEM_LOCK

#: A process of such a registry has series of its database from its start on.
OF_REGISTRY: Final = "registry_database_"
OF_GC: Final = "registry_gc_"
#: A worker waits up to 60 s before its first run. Of a younger process nothing is proved.
MIN_AGE: Final = timedelta(minutes=2)
_METRICS_PATH: Final = "/metrics"
_DEBUG_URL: Final = re.compile(r"(https?://[^/?#@\s]{1,300})(/[A-Za-z0-9/._~-]{1,200})?", re.ASCII | re.IGNORECASE)


def check_registry_database(visit: Visit) -> Finding:
    """Read the database, and look there for the rows of what was pushed at each place."""
    database = visit.instruments.databases.of(visit.pod.name)
    try:
        identity = database.read_identity()
        parts = [_rows_part(visit, database, push) for push in visit.pushes if push.error is None]
        if database.read_identity() != identity:
            parts.append(unproved("", "another database answered before the check was over", RUN_AGAIN))
    except BaleenError as error:
        return make_finding(Check.REGISTRY_DATABASE, [unproved("", str(error))], visit.pod_facts)
    found = make_finding(Check.REGISTRY_DATABASE, [*failed_push_parts(visit), *parts], visit.pod_facts)
    return found._replace(subject=identity)


def _rows_part(visit: Visit, database: GitlabDatabase, push: Push) -> Part:
    where, repository = str(push.place), visit.scratch.repository
    manifest = parse_digest(push.image.digest)
    blobs = [parse_digest(blob.digest) for blob in push.image.blobs]
    *links, held = database.find_links([(repository, digest) for digest in (*blobs, manifest)])
    known = database.find_known(blobs)
    rows = {
        f"repositories ({repository})": database.read_repository(repository) is not None,
        f"manifests ({push.image.digest})": held.revision is not None
        and database.read_manifests([(repository, manifest)]) == {manifest: push.image.content},
        **{
            f"repository_blobs ({format_digest(digest)})": link.layer is not None
            for digest, link in zip(blobs, links, strict=True)
        },
        **{f"blobs ({format_digest(digest)})": digest in known for digest in blobs},
    }
    missing = [row for row, there in rows.items() if not there]
    if missing:
        return refuted(
            where, f"of {len(rows)} rows of a pushed image, {len(missing)} are missing, such as {missing[0]}"
        )
    return proved(where, f"all {len(rows)} rows of a pushed image are in the database, which is a primary")


class _DebugPlace(NamedTuple):
    """One address of a line in the file of debug addresses."""

    base_url: str
    path: str
    address: str

    def __str__(self) -> str:
        host = parse_registry(self.base_url).host
        return self.base_url if host == self.address else f"{self.base_url} at {self.address}"


def check_registry_gc_off(visit: Visit) -> Finding:
    """Read the metrics at each debug address; there must be one for each place of the registry."""
    parts: list[Part] = []
    places: list[_DebugPlace] = []
    try:
        lines = read_debug_urls(visit.instruments.settings.gitlab_databases, visit.pod.name)
    except BaleenError as error:
        return make_finding(Check.REGISTRY_GC_OFF, [unproved("", str(error))], visit.pod_facts)
    for line in lines:
        try:
            places += _find_places(visit, line)
        except BaleenError as error:
            parts.append(unproved("", str(error)))
    examined: set[datetime] = set()
    parts += [_gc_part(visit, place, examined) for place in dict.fromkeys(places)]
    if len(examined) < len(visit.places):
        sentence = f"{len(examined)} of {len(visit.places)} processes were examined at their debug addresses"
        parts.append(unproved("", sentence))
    return make_finding(Check.REGISTRY_GC_OFF, parts, visit.pod_facts)


def _find_places(visit: Visit, line: str) -> list[_DebugPlace]:
    """Return the places of one line; raises UsageError and UnavailableError."""
    match = _DEBUG_URL.fullmatch(line)
    if match is None:
        raise UsageError("A debug address is http:// or https://, a host and a port, such as http://10.0.0.7:5001.")
    base_url = str(parse_registry(match[1]))
    found = visit.look_up(base_url)
    if isinstance(found, str):
        raise UsageError(f"{base_url}: {found}.")
    path = match[2] if match[2] and match[2] != "/" else _METRICS_PATH
    return [_DebugPlace(base_url, path, address) for address in found]


def _gc_part(visit: Visit, place: _DebugPlace, examined: set[datetime]) -> Part:
    """Return what the metrics at a place prove; adds the start of its process, which no other process shares."""
    where, ca_file = str(place), visit.instruments.settings.registry_ca_file
    try:
        metrics = read_metrics(place.base_url, place.path, place.address, ca_file=ca_file, timeout=TIMEOUT_S)
    except RegistryError as error:
        return unproved(where, str(error))
    if not any(name.startswith(OF_REGISTRY) for name in metrics.names):
        return unproved(where, f"it has no series {OF_REGISTRY}…, so it is no such registry with a database")
    if metrics.started_at is None:
        return unproved(where, "its metrics do not say when the process began (process_start_time_seconds)")
    examined.add(metrics.started_at)
    if series := sorted(name for name in metrics.names if name.startswith(OF_GC)):
        return refuted(where, f"it collects garbage: its metrics have {series[0]}")
    age = visit.read_clock() - metrics.started_at
    if age < MIN_AGE:
        sentence = (
            f"it began {age.total_seconds():.0f} s ago, and this shows {MIN_AGE.total_seconds():.0f} s after that"
        )
        return unproved(where, sentence, f"Wait {(MIN_AGE - age).total_seconds():.0f} s. {RUN_AGAIN}")
    return proved(where, f"its metrics have no series {OF_GC}…, {age.total_seconds():.0f} s after it began")


def check_lock_file(visit: Visit) -> Finding:
    """Look for the lock file by which a registry with a database keeps those without one from its root."""
    store = visit.instruments.store
    root = f"bucket {store.bucket}, root /{store.root.rstrip('/')}"
    if store.head(DATABASE_LOCK) is None:
        part = refuted("", f"{DATABASE_LOCK} is not in {root}")
    elif store.head(FILESYSTEM_LOCK) is not None:
        part = refuted("", f"{FILESYSTEM_LOCK} is in {root}, too: a registry without a database was started there")
    else:
        part = proved("", f"{DATABASE_LOCK} is in {root}")
    return make_finding(Check.LOCK_FILE, [part], visit.pod_facts)
