"""Whether what happens at the registry is told, in order, with what is needed, and reaches the table.

The judgements are pure functions of reports; what the table has is asked beside them.
"""

from itertools import pairwise
from typing import NamedTuple

from coordinator.doctor import queues
from coordinator.doctor import scratch_table as scratch
from coordinator.doctor.kinds import MOUNT, OCTETS, KindsReport, listed
from coordinator.doctor.registry import failed, untold
from coordinator.doctor.scratch import METHOD_NOT_ALLOWED, Announcement
from coordinator.doctor.texts import Patient, ignored, token
from coordinator.doctor.verdicts import AGAIN, Part, finding, follows, proved, refuted, unproved
from coordinator.doctor.visit import Push, Report, Visit
from coordinator.domain import refusals
from coordinator.domain.findings import Check, Finding, Verdict
from coordinator.domain.names import parse_digest
from coordinator.domain.pods import Linker, ProbeMethod
from coordinator.domain.refusals import Refusals
from coordinator.kafka.tail import Told
from coordinator.pods import configuration
from coordinator.registry.client import RegistryError
from coordinator.registry.images import Image, Index
from schemas.records import RegistryEvent

SWITCHED_OFF = (
    "Deletes are switched off: nothing is ever removed through the registry, so that nothing which it holds is "
    "collected. That is safe, and of little use."
)
PULLS_ARE_SENT = (
    "A probe comes back, and pulls are sent too: that is safe, and a flood of pulls delays pushes and the watermark."
)
IGNORE_PULLS = (
    "Pulls are not needed, since the pod is probed by pushes. In `notifications.endpoints` of each process, and "
    f"restart it:\n{configuration.IGNORE_PULLS.rstrip()}"
)
SWITCH_ON = "storage:\n  delete: {enabled: true}"


def events_arrive(visit: Visit) -> Finding:
    """Whatever was pushed and mounted is told of, and the table has the manifests with what they list."""
    parts, patience = failed(visit), visit.instruments.patience
    refused = None if all(report.sources for report in visit.reports) else visit.refused()
    for report in visit.reports:
        part = arrival(report, patience)
        if refused is not None and not report.sources:
            part = of_wrong_token(part, refused, visit.patient)
        parts.append(_in_table(visit, part, [report.push.image]))
    for each in visit.kinds:
        part = arrival_of_kinds(each, patience)
        parts.append(_in_table(visit, part, list(each.kinds.manifests.values())))
    return finding(Check.EVENTS_ARRIVE, parts, visit.patient)


def of_wrong_token(part: Part, refused: Refusals, patient: Patient) -> Part:
    """Nothing came from there, and what came in the pod's name was refused: anyone may post so, yet it is likely."""
    return part._replace(sentence=f"{part.sentence}; {refusals.told(refused)}", mend=token(patient))


def arrival(report: Report, patience: float) -> Part:
    where, count = str(report.push.place), len(report.push.image.blobs) + 1
    missing = report.missing
    if not missing:
        return proved(where, f"{count} events of {count} pushes came")
    came = f"{count - len(missing)} events of {count} pushes came"
    if report.is_image_over:
        told = f"{came}, though the process told of what came after: none of {', '.join(missing)}"
        return refuted(where, told, untold_of_image(report))
    if report.sources:
        return unproved(where, f"{came} within {patience:.0f} s")
    return unproved(where, f"none of {count} events came within {patience:.0f} s")


def untold_of_image(report: Report) -> str:
    """What a registry ignores that tells of some of an image's pushes, or of none."""
    image, missing = report.push.image, report.missing
    if len(missing) > len(image.blobs):
        return ignored(["push"])
    types = [image.media_type if digest == image.digest else OCTETS for digest in missing]
    return ignored(media_types=set(types))


def untold_of_kinds(report: KindsReport) -> str:
    """What a registry ignores that does not tell of these kinds, though it tells of blobs."""
    types = {report.kinds.manifests[kind].media_type for kind in report.overdue if kind != MOUNT}
    return ignored([MOUNT] if MOUNT in report.overdue else [], types)


def arrival_of_kinds(report: KindsReport, patience: float) -> Part:
    where, kinds = str(report.kinds.place), report.kinds
    if kinds.error is not None:
        return unproved(where, kinds.error, AGAIN)
    if not report.missing:
        return proved(where, f"an event each of {', '.join(kinds.done)} came")
    if report.overdue:
        return refuted(
            where,
            f"of {', '.join(report.overdue)} no event came, though the process told of what came after",
            untold_of_kinds(report),
        )
    return unproved(where, f"of {', '.join(report.missing)} no event came within {patience:.0f} s")


def _in_table(visit: Visit, part: Part, manifests: list[Image | Index]) -> Part:
    """What is proved to have come has to be in the table, too."""
    where, sentence = part.where, part.sentence
    if part.verdict is not Verdict.PROVED:
        return part
    if not visit.are_applied:
        patience = visit.instruments.patience
        told = f"{sentence}, and no worker has applied them within {patience:.0f} s"
        return unproved(where, told, "baleen worker\n(none runs, or it is behind: `baleen status` tells its lag)")
    for manifest in manifests:
        if wrong := _otherwise(visit, manifest):
            told = f"{sentence} and were applied, and the table {wrong}"
            return refuted(where, told, "baleen dead-letters list\n(tells of events and manifests that were not read)")
    references = sum(len(listed(manifest)) for manifest in manifests)
    what = "the manifest with its" if len(manifests) == 1 else f"{len(manifests)} manifests with their"
    return proved(where, f"{sentence}, and the table has {what} {references} references")


def _otherwise(visit: Visit, manifest: Image | Index) -> str | None:
    """What the table has otherwise than it is."""
    repository, digest = visit.scratch.repository, parse_digest(manifest.digest)
    known = visit.ask(lambda connection: scratch.known(connection, repository, digest))
    if not known.held:
        return f"does not have the manifest of type {manifest.media_type}"
    if known.references == frozenset(map(parse_digest, listed(manifest))):
        return None
    found = "what it lists is not known" if known.references is None else "with other references than it lists"
    return f"has the manifest of type {manifest.media_type}: {found}"


def references_arrive(visit: Visit) -> Finding:
    """The events of manifests and indexes, OCI's and docker's, say what these list."""
    parts = [*failed(visit), *map(references, visit.reports)]
    for report in visit.kinds:
        parts += references_of_kinds(report)
    return finding(Check.REFERENCES_ARRIVE, parts, visit.patient)


def references_of_kinds(report: KindsReport) -> list[Part]:
    where, kinds = str(report.kinds.place), report.kinds
    if kinds.error is not None:
        return [follows(where, "not each kind of manifest could be pushed", Check.EVENTS_ARRIVE)]
    return [listing(where, kind, report.told.get(kind), listed(manifest)) for kind, manifest in kinds.manifests.items()]


def references(report: Report) -> Part:
    if not report.sources:
        return untold(str(report.push.place))
    return listing(str(report.push.place), "image's manifest", report.manifest, listed(report.push.image))


def listing(where: str, what: str, told: Told | None, digests: set[str]) -> Part:
    """Compare what an event says that a manifest or an index lists with what it does list."""
    if told is None:
        return follows(where, "not each manifest was told", Check.EVENTS_ARRIVE)
    record = told.record
    assert isinstance(record, RegistryEvent)
    if record.references is None:
        return refuted(where, f"the {what}'s event says nothing of what it lists")
    said = {reference.digest for reference in record.references}
    if said != digests:
        return refuted(where, f"the {what}'s event names {len(said & digests)} of {len(digests)} digests that it lists")
    return proved(where, f"the {what}'s event names the digests that it lists: {len(digests)}")


def events_in_order(visit: Visit) -> Finding:
    """Blobs come before their manifest, that before the probe, and that before what was pushed last; in one queue."""
    orders = [order(report) if report.sources else untold(str(report.push.place)) for report in visit.reports]
    parts = [*failed(visit), *orders, *queues.one_queue(visit)]
    return finding(Check.EVENTS_IN_ORDER, parts, visit.patient)


def order(report: Report) -> Part:
    where, image = str(report.push.place), report.push.image
    if report.manifest is None or report.missing:
        return follows(where, "not all events came", Check.EVENTS_ARRIVE)
    if report.last is None:
        return unproved(where, "the event of what was pushed last did not come", AGAIN)
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


def probes_arrive(visit: Visit) -> Finding:
    """The event of a probe brings its nonce back. Where probes are pushes, pulls had better not be sent."""
    patience = visit.instruments.patience
    parts = [*failed(visit), *(echo(report, patience) for report in visit.reports)]
    found = finding(Check.PROBES_ARRIVE, parts, visit.patient)
    if visit.pod.probe is ProbeMethod.PULL or found.verdict is not Verdict.PROVED:
        return found
    pulls = [str(report.push.place) for report in visit.reports if report.pulls]
    if not pulls:
        return found._replace(proof=f"{found.proof}; no event came of a pull")
    return found._replace(
        meaning=PULLS_ARE_SENT,
        proof=f"{found.proof}; an event of a pull came from {', '.join(pulls)}",
        mend=IGNORE_PULLS,
    )


def echo(report: Report, patience: float) -> Part:
    where = str(report.push.place)
    if report.echoes:
        return proved(where, f"a nonce that was sent to it came back, into {len(report.echoes)} partitions so far")
    if report.last is not None and report.is_one_process:
        return refuted(where, "a nonce that was sent to it did not come back, though the process told of a later push")
    if not report.sources:
        return untold(where)
    return unproved(where, f"a nonce that was sent to it did not come back within {patience:.0f} s")


def deletes_arrive(visit: Visit) -> Finding:
    """A manifest that is deleted at the registry is told of, and the table lets go of it. The last of the checks."""
    parts = failed(visit)
    deletions: list[_Deletion] = []
    switched_off: list[Part] = []
    for push in (push for push in visit.pushes if push.error is None):
        try:
            visit.scratch.delete_manifest(push.place.client, push.image.digest)
            last = visit.scratch.layer()
            visit.scratch.push_blob(push.place.client, last)
        except RegistryError as error:
            if error.registry_status != METHOD_NOT_ALLOWED:
                parts.append(unproved(str(push.place), str(error), AGAIN))
            else:
                switched_off.append(proved(str(push.place), "it refuses deletes (405): there are none to be told"))
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
    if switched_off and not deletions:
        return finding(
            Check.DELETES_ARRIVE, [*parts, *switched_off], visit.patient, meaning=SWITCHED_OFF, mend=SWITCH_ON
        )
    return finding(Check.DELETES_ARRIVE, [*parts, *switched_off], visit.patient)


class _Deletion(NamedTuple):
    """A manifest that was deleted, and what was pushed after that."""

    push: Push
    deleted: Announcement
    last: Announcement


def _deleted(visit: Visit, deletion: _Deletion) -> Part:
    where, patience = str(deletion.push.place), visit.instruments.patience
    told, last = visit.announced(deletion.deleted), visit.announced(deletion.last)
    if told is None and last is None:
        if not any(report.sources for report in visit.reports if report.push is deletion.push):
            return untold(where)
        return unproved(where, f"neither the delete of a manifest nor a later push was told within {patience:.0f} s")
    if told is None:
        return refuted(where, "the delete of a manifest was not told, though a later push was")
    manifest = parse_digest(deletion.push.image.digest)
    repository = visit.scratch.repository
    if visit.wait(lambda: not visit.ask(lambda connection: scratch.known(connection, repository, manifest)).held):
        return proved(where, "the delete of a manifest was told, and the table has let go of it")
    if visit.pod.linker is Linker.RELAY:
        return proved(where, "the delete of a manifest was told; so soon after its push the table keeps it, in doubt")
    told_of = f"the delete of a manifest was told, and the table keeps it since {patience:.0f} s"
    return unproved(
        where, told_of, f"baleen pods show {visit.pod.name}\n(tells of doubtful removals, and what settles them)"
    )
