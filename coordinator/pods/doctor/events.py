"""Whether what happens at the registry is told, in order, with what is needed, and reaches the table.

The judgements are pure functions of reports; what the table has is asked beside them.
"""

from itertools import pairwise
from typing import NamedTuple

from coordinator.db import scratch
from coordinator.domain.findings import Check, Finding, Verdict
from coordinator.domain.names import parse_digest
from coordinator.domain.pods import Linker
from coordinator.ingest.tail import Told
from coordinator.pods.doctor.scratch import METHOD_NOT_ALLOWED, Announcement
from coordinator.pods.doctor.verdicts import Part, finding, proved, refuted, unproved
from coordinator.pods.doctor.visit import Push, Report, Visit
from coordinator.pods.registry_client import RegistryError
from schemas.records import RegistryEvent

SWITCHED_OFF = (
    "Deletes are switched off: nothing is ever removed through the registry, so that nothing which it holds is "
    "collected. That is safe, and of little use."
)
SWITCH_ON = "storage:\n  delete: {enabled: true}"


def events_arrive(visit: Visit) -> Finding:
    """Every blob and manifest that was pushed is told of, and the table has the holding with what it lists."""
    parts = _failed(visit)
    for report in visit.reports:
        part = arrival(report, visit.instruments.patience)
        parts.append(part if part.verdict is not Verdict.PROVED else _in_table(visit, report, part.sentence))
    return finding(Check.EVENTS_ARRIVE, parts)


def arrival(report: Report, patience: float) -> Part:
    where, count = str(report.push.place), len(report.push.image.blobs) + 1
    missing = report.missing
    if not missing:
        return proved(where, f"{count} events of {count} pushes came")
    came = f"{count - len(missing)} events of {count} pushes came"
    if report.is_image_over:
        return refuted(where, f"{came}, though the process told of what came after: none of {', '.join(missing)}")
    if report.sources:
        return unproved(where, f"{came} within {patience:.0f} s")
    return unproved(where, f"none of {count} events came within {patience:.0f} s")


def _in_table(visit: Visit, report: Report, sentence: str) -> Part:
    where, image = str(report.push.place), report.push.image
    if not visit.are_applied:
        patience = visit.instruments.patience
        return unproved(where, f"{sentence}, and no worker has applied them within {patience:.0f} s")
    repository, digest = visit.scratch.repository, parse_digest(image.digest)
    known = visit.ask(lambda connection: scratch.known(connection, repository, digest))
    if not known.held:
        return refuted(where, f"{sentence} and were applied, and the table does not have the manifest")
    listed = frozenset(parse_digest(blob.digest) for blob in image.blobs)
    if known.references != listed:
        found = "what it lists is not known" if known.references is None else "with other references than it lists"
        return refuted(where, f"{sentence} and were applied, and the table has the manifest: {found}")
    return proved(where, f"{sentence}, and the table has the manifest with its {len(listed)} references")


def references_arrive(visit: Visit) -> Finding:
    """The manifest's event says what the manifest lists."""
    return finding(Check.REFERENCES_ARRIVE, [*_failed(visit), *map(references, visit.reports)])


def references(report: Report) -> Part:
    where = str(report.push.place)
    if report.manifest is None:
        return unproved(where, "no event of the manifest came")
    record = report.manifest.record
    assert isinstance(record, RegistryEvent)
    if record.references is None:
        return refuted(where, "the manifest's event says nothing of what it lists")
    said = {reference.digest for reference in record.references}
    listed = {blob.digest for blob in report.push.image.blobs}
    if said != listed:
        return refuted(where, f"the manifest's event names {len(said & listed)} of the {len(listed)} blobs it lists")
    return proved(where, f"the manifest's event names the {len(listed)} blobs that it lists")


def events_in_order(visit: Visit) -> Finding:
    """Blobs come before their manifest, that before the probe, and that before what was pushed last."""
    return finding(Check.EVENTS_IN_ORDER, [*_failed(visit), *map(order, visit.reports)])


def order(report: Report) -> Part:
    where, image = str(report.push.place), report.push.image
    if report.manifest is None or report.last is None or report.missing:
        return unproved(where, "not all events came")
    partition = report.manifest.partition
    echo = [told for told in report.echoes if told.partition == partition][:1]
    row: list[Told] = [*(report.blobs[blob.digest] for blob in image.blobs), report.manifest, *echo, report.last]
    if any(told.partition != partition for told in row):
        return refuted(where, "events of one repository stand in several partitions")
    for before, after in pairwise(row):
        if before.offset >= after.offset:
            return refuted(
                where, f"what was done first stands at offset {before.offset}, and what came next at {after.offset}"
            )
    times = [told.record.timestamp for told in row if isinstance(told.record, RegistryEvent)]
    if times != sorted(times):
        return refuted(where, "the registry's times of its events do not rise")
    return proved(where, f"{len(row)} records stand in the order of what was done, from offset {row[0].offset} on")


def pulls_arrive(visit: Visit) -> Finding:
    """The pull event of a probe brings its nonce back."""
    patience = visit.instruments.patience
    return finding(Check.PULLS_ARRIVE, [*_failed(visit), *(echo(report, patience) for report in visit.reports)])


def echo(report: Report, patience: float) -> Part:
    where = str(report.push.place)
    if report.echoes:
        return proved(where, f"a nonce that was sent to it came back, into {len(report.echoes)} partitions so far")
    if report.last is not None and report.is_one_process:
        return refuted(where, "a nonce that was sent to it did not come back, though the process told of a later push")
    return unproved(where, f"a nonce that was sent to it did not come back within {patience:.0f} s")


def deletes_arrive(visit: Visit) -> Finding:
    """A manifest that is deleted at the registry is told of, and the table lets go of it. The last of the checks."""
    parts = _failed(visit)
    deletions: list[_Deletion] = []
    refusals: list[Part] = []
    for push in (push for push in visit.pushes if push.error is None):
        try:
            visit.scratch.delete_manifest(push.place.client, push.image.digest)
            last = visit.scratch.layer()
            visit.scratch.push_blob(push.place.client, last)
        except RegistryError as error:
            if error.registry_status != METHOD_NOT_ALLOWED:
                parts.append(unproved(str(push.place), str(error)))
            else:
                refusals.append(proved(str(push.place), "it refuses deletes (405): there are none to be told"))
        else:
            repository = visit.scratch.repository
            deletions.append(
                _Deletion(
                    push,
                    Announcement("delete", repository, push.image.digest),
                    Announcement("push", repository, last.digest),
                )
            )
    visit.wait(lambda: all(visit.announced(deletion.last) for deletion in deletions))
    visit.await_applied()
    parts += [_deleted(visit, deletion) for deletion in deletions]
    if refusals and not deletions:
        return finding(Check.DELETES_ARRIVE, [*parts, *refusals], meaning=SWITCHED_OFF, mend=SWITCH_ON)
    return finding(Check.DELETES_ARRIVE, [*parts, *refusals])


class _Deletion(NamedTuple):
    """A manifest that was deleted, and what was pushed after that."""

    push: Push
    deleted: Announcement
    last: Announcement


def _deleted(visit: Visit, deletion: _Deletion) -> Part:
    where, patience = str(deletion.push.place), visit.instruments.patience
    told, last = visit.announced(deletion.deleted), visit.announced(deletion.last)
    if told is None and last is None:
        return unproved(where, f"neither the delete of a manifest nor a later push was told within {patience:.0f} s")
    if told is None:
        return refuted(where, "the delete of a manifest was not told, though a later push was")
    manifest = parse_digest(deletion.push.image.digest)
    repository = visit.scratch.repository
    if visit.wait(lambda: not visit.ask(lambda connection: scratch.known(connection, repository, manifest)).held):
        return proved(where, "the delete of a manifest was told, and the table has let go of it")
    if visit.pod.linker is Linker.RELAY:
        return proved(where, "the delete of a manifest was told; so soon after its push the table keeps it, in doubt")
    return unproved(where, f"the delete of a manifest was told, and the table keeps it since {patience:.0f} s")


def _failed(visit: Visit) -> list[Part]:
    """Places where the visit's image could not be pushed."""
    return [unproved(str(push.place), push.error) for push in visit.pushes if push.error is not None]
