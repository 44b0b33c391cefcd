"""Whether the registry's processes can be asked, whether all were, and whether they know each other's uploads."""

from coordinator.doctor.texts import Patient, set_registries
from coordinator.doctor.verdicts import AGAIN, Part, finding, follows, proved, refuted, unproved
from coordinator.doctor.visit import Answer, Place, Visit
from coordinator.domain.findings import Check, Finding
from coordinator.registry.client import RegistryError, RegistryUnreachableError


def registry_answers(visit: Visit) -> Finding:
    """Ask every address of every URL for /v2/."""
    patient, answering = visit.patient, [place.url for place in visit.places]
    parts = [refuted(url, why, _elsewhere(patient, [url], answering)) for url, why in visit.unresolved.items()]
    silent = list(dict.fromkeys(answer.place.url for answer in visit.answers if answer.error and not answer.vacant))
    parts += [_answer(answer, patient, _elsewhere(patient, silent, answering)) for answer in visit.answers]
    if not parts:
        parts = [unproved("", "the pod lists no registry")]
    return finding(Check.REGISTRY_ANSWERS, parts, patient)


def _elsewhere(patient: Patient, urls: list[str], answering: list[str]) -> str:
    # A name of which one address does not answer stays.
    kept = [url for url in patient.registries if url in answering]
    return (
        f"Start what is to listen at {', '.join(urls)}. If it listens elsewhere by now, list that in place of URL:\n"
        + set_registries(patient, kept, "URL")
    )


def _answer(answer: Answer, patient: Patient, mend: str) -> Part:
    where = str(answer.place)
    if answer.error is None:
        return proved(where, "GET /v2/ answers 200")
    if answer.vacant:
        return proved(where, "nobody listens there, and nobody ever did; the name leads to others who answer")
    if answer.error.registry_status in {401, 403}:
        return unproved(where, f"it wants to know who asks: {answer.error}", _known_user(patient))
    return refuted(where, str(answer.error), mend)


def _known_user(patient: Patient) -> str:
    return (
        "BALEEN_REGISTRY_USERNAME=…\nBALEEN_REGISTRY_PASSWORD=…\n(for this command and for `baleen scheduler`: a user "
        f"of the registry who may pull, push and delete below {patient.prefix}/)"
    )


def processes_reached(visit: Visit) -> Finding:
    """Say which process told of the visit's pushes, at each place. Who else counts is asked at the end (examine.py)."""
    patient = visit.patient
    mend = (
        f"Let the registry take a push to {patient.prefix}/baleen-doctor-…: what it says, and its log, tell why it "
        "does not. If it is a matter of rights:\n"
        + _known_user(patient)
        + f"\nIf it answers 500, its key may lack the policy that this prints{_path_style(patient)}:\n"
        f"baleen pods policy {patient.pod}"
    )
    parts = [
        unproved(str(push.place), f"what is tried could not be pushed: {push.error}", mend)
        for push in visit.pushes
        if push.error is not None
    ]
    parts += [_reached(str(report.push.place), report.sources) for report in visit.reports]
    return finding(Check.PROCESSES_REACHED, parts, patient)


def _path_style(patient: Patient) -> str:
    """What else a registry of version 3 may lack, where the store is not that of AWS."""
    return "" if patient.endpoint_url is None else ", or its storage `forcepathstyle: true` beside `regionendpoint`"


def failed(visit: Visit) -> list[Part]:
    """Parts of other checks, for places where the visit's image could not be pushed."""
    return [
        follows(str(push.place), "nothing could be pushed there", Check.PROCESSES_REACHED)
        for push in visit.pushes
        if push.error is not None
    ]


def untold(where: str) -> Part:
    """A part of another check, for a place whose process told nothing."""
    return follows(where, "no event came from there", Check.EVENTS_ARRIVE)


def _reached(where: str, sources: set[str]) -> Part:
    told = ", ".join(sorted(sources))
    if not sources:
        return untold(where)
    if len(sources) > 1:
        return unproved(where, f"{len(sources)} processes answer there ({told}): that each was examined is not sure")
    return proved(where, f"process {told}")


def upload_secret(visit: Visit) -> Finding:
    """Begin an upload at each place and finish it at the next."""
    places = visit.places
    if len(places) == 1:
        part = proved(str(places[0]), "there is only one process, which finishes what it began")
        return finding(Check.UPLOAD_SECRET, [part], visit.patient)
    ring = zip(places, [*places[1:], *places[:1]], strict=True)
    return finding(Check.UPLOAD_SECRET, [_moved(visit, first, second) for first, second in ring], visit.patient)


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
        return unproved(where, str(error), AGAIN)
    return proved(where, f"an upload of {len(blob.content)} bytes was begun at one and finished at the other")
