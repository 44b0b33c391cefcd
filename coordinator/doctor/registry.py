"""Check that the registry's processes answer, that all were examined, and that they share uploads."""

from coordinator.doctor.results import RUN_AGAIN, Part, make_finding, not_tried, proved, refuted, unproved
from coordinator.doctor.texts import PodFacts, set_registries_command
from coordinator.doctor.visit import PingResult, Place, Visit
from coordinator.domain.findings import Check, Finding
from coordinator.registry.client import RegistryError, RegistryUnreachableError


def check_registry_answers(visit: Visit) -> Finding:
    """Send GET /v2/ to every address of every URL."""
    pod_facts, answering = visit.pod_facts, [place.url for place in visit.places]
    parts = [
        refuted(url, why, _describe_unreached_urls(pod_facts, [url], answering))
        for url, why in visit.unresolved.items()
    ]
    silent = list(
        dict.fromkeys(answer.place.url for answer in visit.ping_results if answer.error and not answer.vacant)
    )
    parts += [
        _ping_part(answer, pod_facts, _describe_unreached_urls(pod_facts, silent, answering))
        for answer in visit.ping_results
    ]
    if not parts:
        parts = [unproved("", "the pod lists no registry")]
    return make_finding(Check.REGISTRY_ANSWERS, parts, pod_facts)


def _describe_unreached_urls(pod_facts: PodFacts, urls: list[str], answering: list[str]) -> str:
    # Keep a name if at least one of its addresses answers.
    kept = [url for url in pod_facts.registries if url in answering]
    return (
        f"Start the registry process at {', '.join(urls)}. If it listens elsewhere now, replace URL by that address:\n"
        + set_registries_command(pod_facts, kept, "URL")
    )


def _ping_part(answer: PingResult, pod_facts: PodFacts, fix: str) -> Part:
    where = str(answer.place)
    if answer.error is None:
        return proved(where, "GET /v2/ answers 200")
    if answer.vacant:
        return proved(where, "nothing listens there, and nothing ever did; other addresses of the name answer")
    if answer.error.registry_status in {401, 403}:
        return unproved(where, f"the registry requires login: {answer.error}", _describe_login(pod_facts))
    return refuted(where, str(answer.error), fix)


def _describe_login(pod_facts: PodFacts) -> str:
    return (
        "BALEEN_REGISTRY_USERNAME=…\nBALEEN_REGISTRY_PASSWORD=…\n(Set them for this command and for `baleen "
        f"scheduler`, to a user of the registry that may pull, push and delete below {pod_facts.prefix}/.)"
    )


def check_processes_reached(visit: Visit) -> Finding:
    """Name the process that reported the visit's pushes, at each place.

    Which other processes count is read at the end of the visit (examine.py).
    """
    pod_facts = visit.pod_facts
    fix = (
        f"Make the registry accept a push to {pod_facts.prefix}/baleen-doctor-…: the error and the registry's log say "
        "why it does not. If the user has no right to push:\n"
        + _describe_login(pod_facts)
        + f"\nIf the registry answers 500, its key may lack the policy that this prints{_add_path_style(pod_facts)}:\n"
        f"baleen pods policy {pod_facts.pod}"
    )
    parts = [
        unproved(str(push.place), f"the doctor could not push an image: {push.error}", fix)
        for push in visit.pushes
        if push.error is not None
    ]
    parts += [_process_part(str(report.push.place), report.processes) for report in visit.reports]
    return make_finding(Check.PROCESSES_REACHED, parts, pod_facts)


def _add_path_style(pod_facts: PodFacts) -> str:
    """Return what else a registry of version 3 may lack if the store is not AWS."""
    return "" if pod_facts.endpoint_url is None else ", or its storage `forcepathstyle: true` beside `regionendpoint`"


def failed_push_parts(visit: Visit) -> list[Part]:
    """Return parts of another check, for places where the visit's image could not be pushed."""
    return [
        not_tried(str(push.place), "the doctor could not push there", Check.PROCESSES_REACHED)
        for push in visit.pushes
        if push.error is not None
    ]


def no_event_part(where: str) -> Part:
    """Return a part of another check, for a place from which no event came."""
    return not_tried(where, "no event came from there", Check.EVENTS_ARRIVE)


def _process_part(where: str, processes: set[str]) -> Part:
    names = ", ".join(sorted(processes))
    if not processes:
        return no_event_part(where)
    if len(processes) > 1:
        return unproved(where, f"{len(processes)} processes answer there ({names}): each needs an address of its own")
    return proved(where, f"process {names}")


def check_upload_secret(visit: Visit) -> Finding:
    """Begin an upload at each place and finish it at the next."""
    places = visit.places
    if len(places) == 1:
        part = proved(str(places[0]), "there is only one process, which finishes its own uploads")
        return make_finding(Check.UPLOAD_SECRET, [part], visit.pod_facts)
    ring = zip(places, [*places[1:], *places[:1]], strict=True)
    return make_finding(
        Check.UPLOAD_SECRET, [_upload_part(visit, first, second) for first, second in ring], visit.pod_facts
    )


def _upload_part(visit: Visit, first: Place, second: Place) -> Part:
    where = f"from {first} to {second}"
    blob = visit.scratch.make_layer()
    try:
        session = first.client.begin_upload(visit.scratch.repository)
        try:
            visit.scratch.finish_upload(second.client, session, blob)
        except RegistryUnreachableError:
            raise
        except RegistryError as error:
            first.client.cancel_upload(session)
            return refuted(
                where, f"an upload of {len(blob.content)} bytes was begun, and the other refused to finish it: {error}"
            )
    except RegistryError as error:
        return unproved(where, str(error), RUN_AGAIN)
    return proved(where, f"an upload of {len(blob.content)} bytes was begun at one and finished at the other")
