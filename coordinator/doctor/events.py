"""Check that the registry reports what happens, in order and with references, and that the table gets it.

Findings are pure functions of reports, apart from queries of the table.
"""

from itertools import pairwise
from typing import NamedTuple

from coordinator.doctor import queues
from coordinator.doctor import scratch_table as scratch
from coordinator.doctor.kinds import MOUNT, OCTETS, KindsReport, listed_digests
from coordinator.doctor.registry import failed_push_parts, no_event_part
from coordinator.doctor.results import RUN_AGAIN, Part, make_finding, not_tried, proved, refuted, unproved
from coordinator.doctor.scratch import METHOD_NOT_ALLOWED, Announcement
from coordinator.doctor.texts import PodFacts, describe_ignored, describe_token
from coordinator.doctor.visit import Push, PushReport, Visit
from coordinator.domain import refusals
from coordinator.domain.findings import Check, Finding, Result
from coordinator.domain.names import parse_digest
from coordinator.domain.pods import ProbeMethod
from coordinator.domain.refusals import Refusals
from coordinator.kafka.tail import TailedRecord
from coordinator.pods import configuration
from coordinator.registry.client import RegistryError
from coordinator.registry.images import Image, Index
from schemas.records import RegistryEvent

SWITCHED_OFF = (
    "The registry refuses deletes: nothing is ever removed through it, so Baleen collects nothing of this pod. That is "
    "safe, and of little use."
)
PULLS_ARE_SENT = (
    "A probe comes back. The registry sends pull events too: that is safe, but a flood of pulls delays pushes and the "
    "watermark."
)
IGNORE_PULLS = (
    "Baleen does not need pull events, since it probes this pod by pushes. Add this to `notifications.endpoints` of "
    f"each process, and restart the process:\n{configuration.IGNORE_PULLS.rstrip()}"
)
SWITCH_ON = "storage:\n  delete: {enabled: true}"


def check_events_arrive(visit: Visit) -> Finding:
    """Check that each push and mount is reported, and that the table has the manifests with their references."""
    parts, patience = failed_push_parts(visit), visit.instruments.patience
    refused = None if all(report.processes for report in visit.reports) else visit.read_refusals()
    for report in visit.reports:
        part = arrival_part(report, patience)
        if refused is not None and not report.processes:
            part = add_wrong_token(part, refused, visit.pod_facts)
        parts.append(_add_table_state(visit, part, [report.push.image]))
    for each in visit.kinds:
        part = arrival_part_of_kinds(each, patience)
        parts.append(_add_table_state(visit, part, list(each.kinds.manifests.values())))
    return make_finding(Check.EVENTS_ARRIVE, parts, visit.pod_facts)


def add_wrong_token(part: Part, refused: Refusals, pod_facts: PodFacts) -> Part:
    """Add that events in the pod's name were refused: the likely reason, though anyone may have posted them."""
    return part._replace(
        sentence=f"{part.sentence}; {refusals.describe_refusals(refused)}", fix=describe_token(pod_facts)
    )


def arrival_part(report: PushReport, patience: float) -> Part:
    where, count = str(report.push.place), len(report.push.image.blobs) + 1
    missing = report.missing
    if not missing:
        return proved(where, f"{count} events of {count} pushes came")
    came = f"{count - len(missing)} events of {count} pushes came"
    if report.is_image_over:
        text = f"{came}, though the process reported what came later: none of {', '.join(missing)}"
        return refuted(where, text, describe_ignored_of_image(report))
    if report.processes:
        return unproved(where, f"{came} within {patience:.0f} s")
    return unproved(where, f"none of {count} events came within {patience:.0f} s")


def describe_ignored_of_image(report: PushReport) -> str:
    """Return what a registry must stop ignoring if it does not report all of an image's pushes."""
    image, missing = report.push.image, report.missing
    if len(missing) > len(image.blobs):
        return describe_ignored(["push"])
    types = [image.media_type if digest == image.digest else OCTETS for digest in missing]
    return describe_ignored(media_types=set(types))


def describe_ignored_of_kinds(report: KindsReport) -> str:
    """Return what a registry must stop ignoring if it reports blobs and not these kinds."""
    types = {report.kinds.manifests[kind].media_type for kind in report.overdue if kind != MOUNT}
    return describe_ignored([MOUNT] if MOUNT in report.overdue else [], types)


def arrival_part_of_kinds(report: KindsReport, patience: float) -> Part:
    where, kinds = str(report.kinds.place), report.kinds
    if kinds.error is not None:
        return unproved(where, kinds.error, RUN_AGAIN)
    if not report.missing:
        return proved(where, f"an event each of {', '.join(kinds.done)} came")
    if report.overdue:
        return refuted(
            where,
            f"no event of {', '.join(report.overdue)} came, though the process reported what came later",
            describe_ignored_of_kinds(report),
        )
    return unproved(where, f"no event of {', '.join(report.missing)} came within {patience:.0f} s")


def _add_table_state(visit: Visit, part: Part, manifests: list[Image | Index]) -> Part:
    """Check that the table has the manifests whose events came."""
    where, sentence = part.where, part.sentence
    if part.result is not Result.PROVED:
        return part
    if not visit.are_applied:
        patience = visit.instruments.patience
        text = f"{sentence}, and no worker has applied them within {patience:.0f} s"
        return unproved(where, text, "baleen worker\n(none runs, or it is behind: `baleen status` shows its lag)")
    for manifest in manifests:
        if wrong := _describe_difference(visit, manifest):
            text = f"{sentence} and were applied, and the table {wrong}"
            return refuted(
                where, text, "baleen dead-letters list\n(lists events and manifests that Baleen could not read)"
            )
    references = sum(len(listed_digests(manifest)) for manifest in manifests)
    what = "the manifest with its" if len(manifests) == 1 else f"{len(manifests)} manifests with their"
    return proved(where, f"{sentence}, and the table has {what} {references} references")


def _describe_difference(visit: Visit, manifest: Image | Index) -> str | None:
    """Say how the table's row of the manifest differs from the manifest; None if it does not."""
    repository, digest = visit.scratch.repository, parse_digest(manifest.digest)
    known = visit.query(lambda connection: scratch.read_manifest(connection, repository, digest))
    if not known.held:
        return f"does not have the manifest of type {manifest.media_type}"
    if known.references == frozenset(map(parse_digest, listed_digests(manifest))):
        return None
    found = "what it lists is not known" if known.references is None else "with other references than it lists"
    return f"has the manifest of type {manifest.media_type}: {found}"


def check_references_arrive(visit: Visit) -> Finding:
    """Check that the events of OCI's and docker's manifests and indexes say what these list."""
    parts = [*failed_push_parts(visit), *map(reference_part, visit.reports)]
    for report in visit.kinds:
        parts += reference_parts_of_kinds(report)
    return make_finding(Check.REFERENCES_ARRIVE, parts, visit.pod_facts)


def reference_parts_of_kinds(report: KindsReport) -> list[Part]:
    where, kinds = str(report.kinds.place), report.kinds
    if kinds.error is not None:
        return [not_tried(where, "not every kind of manifest could be pushed", Check.EVENTS_ARRIVE)]
    return [
        compare_references(where, kind, report.entries.get(kind), listed_digests(manifest))
        for kind, manifest in kinds.manifests.items()
    ]


def reference_part(report: PushReport) -> Part:
    if not report.processes:
        return no_event_part(str(report.push.place))
    return compare_references(
        str(report.push.place), "image's manifest", report.manifest, listed_digests(report.push.image)
    )


def compare_references(where: str, what: str, entry: TailedRecord | None, digests: set[str]) -> Part:
    """Compare the references in the event of a manifest or index with those in its bytes."""
    if entry is None:
        return not_tried(where, "not every manifest was reported", Check.EVENTS_ARRIVE)
    record = entry.record
    assert isinstance(record, RegistryEvent)
    if record.references is None:
        return refuted(where, f"the {what}'s event does not say what it lists")
    named = {reference.digest for reference in record.references}
    if named != digests:
        return refuted(
            where, f"the {what}'s event names {len(named & digests)} of {len(digests)} digests that it lists"
        )
    return proved(where, f"the {what}'s event names the digests that it lists: {len(digests)}")


def check_events_in_order(visit: Visit) -> Finding:
    """Check the order of events: blobs, their manifest, the probe, the last push; and that all wait in one queue."""
    orders = [
        order_part(report) if report.processes else no_event_part(str(report.push.place)) for report in visit.reports
    ]
    parts = [*failed_push_parts(visit), *orders, *queues.queue_parts(visit)]
    return make_finding(Check.EVENTS_IN_ORDER, parts, visit.pod_facts)


def order_part(report: PushReport) -> Part:
    where, image = str(report.push.place), report.push.image
    if report.manifest is None or report.missing:
        return not_tried(where, "not all events came", Check.EVENTS_ARRIVE)
    if report.last is None:
        return unproved(where, "the event of the last push did not come", RUN_AGAIN)
    partition = report.manifest.partition
    echo = [entry for entry in report.echoes if entry.partition == partition][:1]
    row: list[TailedRecord] = [
        *(report.blobs[blob.digest] for blob in image.blobs),
        report.manifest,
        *echo,
        report.last,
    ]
    if any(entry.partition != partition for entry in row):
        return refuted(where, "events of one repository are in several partitions")
    for before, after in pairwise(row):
        if before.offset >= after.offset:
            return refuted(
                where, f"what was done first is at offset {before.offset}, and what was done next at {after.offset}"
            )
    times = [entry.record.timestamp for entry in row if isinstance(entry.record, RegistryEvent)]
    if times != sorted(times):
        return refuted(where, "the times in the registry's events do not increase")
    return proved(where, f"{len(row)} records are in the order of what was done, from offset {row[0].offset} on")


def check_probes_arrive(visit: Visit) -> Finding:
    """Check that the event of a probe has its nonce, and whether pull events come where probes are pushes."""
    patience = visit.instruments.patience
    parts = [*failed_push_parts(visit), *(echo_part(report, patience) for report in visit.reports)]
    found = make_finding(Check.PROBES_ARRIVE, parts, visit.pod_facts)
    if visit.pod.probe is ProbeMethod.PULL or found.result is not Result.PROVED:
        return found
    pulls = [str(report.push.place) for report in visit.reports if report.pulls]
    if not pulls:
        return found._replace(proof=f"{found.proof}; no event of a pull came")
    return found._replace(
        meaning=PULLS_ARE_SENT,
        proof=f"{found.proof}; an event of a pull came from {', '.join(pulls)}",
        fix=IGNORE_PULLS,
    )


def echo_part(report: PushReport, patience: float) -> Part:
    where = str(report.push.place)
    if report.echoes:
        return proved(where, f"a nonce that was sent to it came back, in {len(report.echoes)} partitions so far")
    if report.last is not None and report.is_one_process:
        return refuted(where, "a nonce that was sent to it did not come back, though the process reported a later push")
    if not report.processes:
        return no_event_part(where)
    return unproved(where, f"a nonce that was sent to it did not come back within {patience:.0f} s")


def check_deletes_arrive(visit: Visit) -> Finding:
    """Check that the delete of a manifest is reported, and that the table removes it. The last of the checks."""
    parts = failed_push_parts(visit)
    deletions: list[_Deletion] = []
    switched_off: list[Part] = []
    for push in (push for push in visit.pushes if push.error is None):
        try:
            visit.scratch.delete_manifest(push.place.client, push.image.digest)
            last = visit.scratch.make_layer()
            visit.scratch.push_blob(push.place.client, last)
        except RegistryError as error:
            if error.registry_status != METHOD_NOT_ALLOWED:
                parts.append(unproved(str(push.place), str(error), RUN_AGAIN))
            else:
                switched_off.append(proved(str(push.place), "it refuses deletes (405): there are none to report"))
        else:
            repository = visit.scratch.repository
            deletions.append(
                _Deletion(
                    push,
                    Announcement("delete", repository, push.image.digest),
                    Announcement("push", repository, last.digest),
                )
            )
    visit.read_until(lambda: all(visit.find_event(deletion.last) for deletion in deletions))
    visit.await_applied()
    parts += [_deletion_part(visit, deletion) for deletion in deletions]
    if switched_off and not deletions:
        return make_finding(
            Check.DELETES_ARRIVE, [*parts, *switched_off], visit.pod_facts, meaning=SWITCHED_OFF, fix=SWITCH_ON
        )
    return make_finding(Check.DELETES_ARRIVE, [*parts, *switched_off], visit.pod_facts)


class _Deletion(NamedTuple):
    """A deleted manifest, and what was pushed after the delete."""

    push: Push
    deleted: Announcement
    last: Announcement


def _deletion_part(visit: Visit, deletion: _Deletion) -> Part:
    where, patience = str(deletion.push.place), visit.instruments.patience
    entry, last = visit.find_event(deletion.deleted), visit.find_event(deletion.last)
    if entry is None and last is None:
        if not any(report.processes for report in visit.reports if report.push is deletion.push):
            return no_event_part(where)
        return unproved(where, f"no event of a manifest's delete or of a later push came within {patience:.0f} s")
    if entry is None:
        return refuted(where, "no event of a manifest's delete came, though that of a later push did")
    manifest = parse_digest(deletion.push.image.digest)
    repository = visit.scratch.repository
    if visit.read_until(
        lambda: not visit.query(lambda connection: scratch.read_manifest(connection, repository, manifest)).held
    ):
        return proved(where, "the event of a manifest's delete came, and the table removed the manifest")
    if not visit.pod.kind.is_reconcilable:
        return proved(
            where, "the event of a manifest's delete came; so soon after the push it is a doubtful removal in the table"
        )
    late = f"the event of a manifest's delete came, and the table still has the manifest after {patience:.0f} s"
    return unproved(
        where, late, f"baleen pods show {visit.pod.name}\n(lists doubtful removals, and what resolves them)"
    )
