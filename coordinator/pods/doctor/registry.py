"""Whether the registry's processes can be asked, whether all were, and whether they know each other's uploads."""

from coordinator.db import findings
from coordinator.domain.findings import Check, Finding
from coordinator.pods.doctor.verdicts import Part, finding, proved, refuted, unproved
from coordinator.pods.doctor.visit import Answer, Place, Visit
from coordinator.pods.registry_client import RegistryError, RegistryUnreachableError


def registry_answers(visit: Visit) -> Finding:
    """Ask every address of every URL for /v2/."""
    parts = [refuted(url, why) for url, why in visit.unresolved.items()]
    parts += [_answer(answer) for answer in visit.answers]
    if not parts:
        parts = [unproved("", "the pod lists no registry")]
    return finding(Check.REGISTRY_ANSWERS, parts)


def _answer(answer: Answer) -> Part:
    where = str(answer.place)
    if answer.error is None:
        return proved(where, "GET /v2/ answers 200")
    if answer.vacant:
        return proved(where, "nobody listens there, and nobody ever did; the name leads to others who answer")
    if answer.error.registry_status in {401, 403}:
        return unproved(where, f"it wants to know who asks: {answer.error}")
    return refuted(where, str(answer.error))


def processes_reached(visit: Visit) -> Finding:
    """Compare the processes that told of the visit's pushes with those that count for the watermark."""
    parts = [unproved(str(push.place), push.error) for push in visit.pushes if push.error is not None]
    reached: dict[str, set[str]] = {str(report.push.place): report.sources for report in visit.reports}
    parts += [_reached(where, sources) for where, sources in reached.items()]
    visit.are_applied  # noqa: B018 - until then the table does not know all of them
    counting = visit.ask(lambda connection: findings.counting_processes(connection, visit.pod))
    others = sorted(counting.difference(*reached.values()))
    parts += [
        unproved(f"process {each}", "it counts for the watermark, and the visit did not reach it") for each in others
    ]
    return finding(Check.PROCESSES_REACHED, parts)


def _reached(where: str, sources: set[str]) -> Part:
    told = ", ".join(sorted(sources))
    if not sources:
        return unproved(where, "nothing was told by the process there, so that it is not known which it is")
    if len(sources) > 1:
        return unproved(where, f"{len(sources)} processes answer there ({told}): that each was examined is not sure")
    return proved(where, f"process {told}")


def upload_secret(visit: Visit) -> Finding:
    """Begin an upload at each place and finish it at the next."""
    places = visit.places
    if len(places) == 1:
        part = proved(str(places[0]), "there is only one process, which finishes what it began")
        return finding(Check.UPLOAD_SECRET, [part])
    ring = zip(places, [*places[1:], *places[:1]], strict=True)
    return finding(Check.UPLOAD_SECRET, [_moved(visit, first, second) for first, second in ring])


def _moved(visit: Visit, first: Place, second: Place) -> Part:
    where = f"from {first} to {second}"
    blob = visit.scratch.layer()
    try:
        session = first.client.begin_upload(visit.scratch.repository)
        try:
            visit.scratch.finish_upload(second.client, session, blob)
        except RegistryUnreachableError:
            raise
        except RegistryError as error:
            first.client.cancel_upload(session)
            return refuted(
                where, f"an upload of {len(blob.content)} bytes was begun, and finishing it refused: {error}"
            )
    except RegistryError as error:
        return unproved(where, str(error))
    return proved(where, f"an upload of {len(blob.content)} bytes was begun at one and finished at the other")
