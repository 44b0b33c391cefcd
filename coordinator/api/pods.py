"""`/v1/pods`: register, change, show and remove pods. Not here: the rules for pods (pods/table.py, domain/pods.py)."""

import datetime as dt
from typing import Annotated, Any

import msgspec
from litestar import Request, delete, get, post, put
from litestar.params import FromPath, JSONBody, PathParameter, QueryParameter
from msgspec import Meta

from coordinator.api.auth import OPERATE, READ
from coordinator.api.deps import deps_of
from coordinator.api.parameters import Cursor, Limit
from coordinator.api.problems import document_problems
from coordinator.db.paging import DEFAULT_LIMIT
from coordinator.db.session import driver_connection, write_transaction
from coordinator.domain.names import parse_pod, parse_repository
from coordinator.domain.pods import PodKind, PodMode, ProbeMethod, TokenIssuer, parse_registry, parse_token_url
from coordinator.domain.reasons import WHY_LIMIT
from coordinator.errors import UsageError
from coordinator.pods import configuration
from coordinator.pods import table as registry
from coordinator.pods import view as queries
from coordinator.pods.shapes import PodPage, PodView, VanishedPage
from coordinator.pods.vanished_view import read_vanished_page as list_of_vanished
from coordinator.settings import Secret
from coordinator.table import processes, vanished_links
from coordinator.tokens.keys import parse_trusted_keys

BODY_LIMIT = 256 * 1024

PodText = Annotated[str, Meta(min_length=1, max_length=63)]
Prefixes = Annotated[list[Annotated[str, Meta(max_length=255)]], Meta(min_length=1, max_length=1000)]
Registries = Annotated[
    list[
        Annotated[
            str,
            Meta(
                max_length=2000,
                pattern=r"^https?://[^\s\x00]+$",
                description="http:// or https://, its host and its port, such as http://10.0.0.7:5000.",
            ),
        ]
    ],
    Meta(max_length=100),
]


Text = Annotated[str, Meta(min_length=1, max_length=255, pattern=r"^[^\x00-\x1f\x7f]+$", description="a line of text")]


class TokenIssuerRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The token issuer of a pod's registry."""

    url: Annotated[str, Meta(min_length=1, max_length=1000)]
    issuer: Text
    service: Text
    keys: Annotated[
        str,
        Meta(
            min_length=1,
            max_length=200_000,
            pattern=r"^[^\x00]+$",
            description="PEM (certificates or public keys) or a JWKS.",
        ),
    ]


class UnmanagedRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Why a pod's registry sends no events, and who declares it."""

    why: Annotated[str, Meta(min_length=1, max_length=WHY_LIMIT)]
    by: Annotated[str, Meta(min_length=1, max_length=WHY_LIMIT)]


class PodRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    name: PodText
    prefixes: Prefixes
    registries: Registries = []
    mode: PodMode = PodMode.MANIFEST
    kind: PodKind = PodKind.LINK
    probe: ProbeMethod = ProbeMethod.PUSH
    token_issuer: TokenIssuerRequest | None = None
    unmanaged: Annotated[
        UnmanagedRequest | None,
        Meta(description="Its registry sends no events; Baleen relies on reconciles. No event token is made."),
    ] = None


class ManagedRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    unmanaged: Annotated[UnmanagedRequest | None, Meta(description="Null: the registry sends events from now on.")]


class PrefixesRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    prefixes: Prefixes


class ProbeRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    probe: ProbeMethod


class RegistriesRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    registries: Registries


RepositoryFilter = Annotated[str | None, QueryParameter(description="Only links of this repository.", required=False)]
Why = Annotated[str, Meta(min_length=1, max_length=WHY_LIMIT)]
Instance = Annotated[
    str,
    PathParameter(
        description="`instance_id` of a registry process, from the pod's `processes`.", pattern=r"^[^\x00]+$"
    ),
]


class Retirement(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    why: Why


class GapsResolution(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    why: Why


class VanishedAcceptance(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    why: Annotated[str, Meta(min_length=1, max_length=WHY_LIMIT)]
    by: Annotated[str, Meta(min_length=1, max_length=vanished_links.BY_LIMIT, description="Who accepts it.")]
    repository: Annotated[
        Annotated[str, Meta(max_length=255)] | None, Meta(description="Only links of this repository.")
    ] = None
    before: Annotated[
        Annotated[dt.datetime, Meta(tz=True)] | None,
        Meta(description="Only links that were noticed until then. Default: now."),
    ] = None


class VanishedAccepted(msgspec.Struct, frozen=True, kw_only=True):
    accepted: int
    more: Annotated[bool, Meta(description="There may be more: repeat the call with this `before`.")]
    before: dt.datetime


class TokenQuestion(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    token: Annotated[str, Meta(min_length=1, max_length=1000)]


class TokenAnswer(msgspec.Struct, frozen=True, kw_only=True):
    is_of_pod: bool


class PodToken(msgspec.Struct, frozen=True, kw_only=True):
    """A pod's event token, which is never shown again. Both fields are null for an unmanaged pod."""

    pod: str
    event_token: str | None
    registry_config: Annotated[str | None, Meta(description="The section to paste into the registry's configuration.")]


@get(
    "/v1/pods",
    operation_id="listPods",
    summary="List pods, with the reasons for which each blocks garbage collection",
    tags=["pods"],
    responses=document_problems(),
    sync_to_thread=True,
    **READ,
)
def list_pods(request: Request[Any, Any, Any], cursor: Cursor = None, limit: Limit = DEFAULT_LIMIT) -> PodPage:
    deps = deps_of(request)
    return queries.read_pod_page(
        deps.engine, deps.silence, deps.request_bound, deps.unsafe_findings, cursor=cursor, limit=limit
    )


@get(
    "/v1/pods/{pod_name:str}",
    operation_id="getPod",
    summary="Get a pod",
    tags=["pods"],
    responses=document_problems(404),
    sync_to_thread=True,
    **READ,
)
def get_pod(request: Request[Any, Any, Any], pod_name: FromPath[str]) -> PodView:
    """With all registry processes, how far each has reported, and what the watermark waits for."""
    deps = deps_of(request)
    return queries.read_pod(deps.engine, parse_pod(pod_name), deps.silence, deps.request_bound, deps.unsafe_findings)


@post(
    "/v1/pods",
    operation_id="addPod",
    summary="Register a pod",
    tags=["pods"],
    request_max_body_size=BODY_LIMIT,
    responses=document_problems(409, 413),
    sync_to_thread=True,
    **OPERATE,
)
def add_pod(request: Request[Any, Any, Any], data: JSONBody[PodRequest]) -> PodToken:
    """A pod with prefix `team` owns `team` and `team/…`. Prefixes of two pods may not overlap."""
    events = _events_url(request, parse_pod(data.name))
    pod = registry.NewPod(
        name=parse_pod(data.name),
        prefixes=[parse_repository(prefix) for prefix in data.prefixes],
        registries=[parse_registry(url) for url in data.registries],
        mode=data.mode,
        kind=data.kind,
        probe=data.probe,
        issuer=None if data.token_issuer is None else _make_issuer(data.token_issuer),
        unmanaged=_make_unmanaged(data.unmanaged),
    )
    deps = deps_of(request)
    token = registry.add_pod(deps.engine, pod)
    deps.record_mark()
    if pod.unmanaged is not None:
        return PodToken(pod=pod.name, event_token=None, registry_config=None)
    return _make_pod_token(pod.name, token, events, pod.probe, pod.kind)


@post(
    "/v1/pods/{pod_name:str}/token",
    operation_id="rotatePodToken",
    summary="Replace a pod's event token",
    tags=["pods"],
    responses=document_problems(404, 409),
    sync_to_thread=True,
    **OPERATE,
)
def rotate_pod_token(request: Request[Any, Any, Any], pod_name: FromPath[str]) -> PodToken:
    """The old token is refused within seconds. The registry repeats its events until it has the new one."""
    pod = parse_pod(pod_name)
    events, engine = _events_url(request, pod), deps_of(request).engine
    probe, kind = registry.read_notifying(engine, pod)
    return _make_pod_token(pod, registry.rotate_token(engine, pod), events, probe, kind)


@post(
    "/v1/pods/{pod_name:str}/token/check",
    status_code=200,
    operation_id="checkPodToken",
    summary="Check whether this is a pod's event token",
    tags=["pods"],
    request_max_body_size=BODY_LIMIT,
    responses=document_problems(404, 413),
    sync_to_thread=True,
    **OPERATE,
)
def check_pod_token(
    request: Request[Any, Any, Any], pod_name: FromPath[str], data: JSONBody[TokenQuestion]
) -> TokenAnswer:
    """Changes nothing. Only a hash of the token is stored, so it can be checked but not shown."""
    known = registry.has_token(deps_of(request).engine, parse_pod(pod_name), data.token)
    return TokenAnswer(is_of_pod=known)


@delete(
    "/v1/pods/{pod_name:str}",
    operation_id="removePod",
    summary="Remove a pod",
    tags=["pods"],
    responses=document_problems(404, 409),
    sync_to_thread=True,
    **OPERATE,
)
def remove_pod(request: Request[Any, Any, Any], pod_name: FromPath[str]) -> None:
    """Refused while it has holdings, links or open dead letters, or storage has links that the table lacks."""
    deps = deps_of(request)
    registry.remove_pod(deps.engine, parse_pod(pod_name), deps.still_holds, deps.probe_image)
    deps.record_mark()


@post(
    "/v1/pods/{pod_name:str}/prefixes",
    status_code=200,
    operation_id="addPrefixes",
    summary="Add prefixes to a pod",
    tags=["pods"],
    request_max_body_size=BODY_LIMIT,
    responses=document_problems(404, 409, 413),
    sync_to_thread=True,
    **OPERATE,
)
def add_prefixes(request: Request[Any, Any, Any], pod_name: FromPath[str], data: JSONBody[PrefixesRequest]) -> PodView:
    """Existing prefixes stay. What is already stored below the new ones is unknown until the pod is reconciled."""
    deps, pod = deps_of(request), parse_pod(pod_name)
    registry.add_prefixes(deps.engine, pod, [parse_repository(prefix) for prefix in data.prefixes])
    deps.record_mark()
    return queries.read_pod(deps.engine, pod, deps.silence, deps.request_bound, deps.unsafe_findings)


@put(
    "/v1/pods/{pod_name:str}/registries",
    operation_id="setRegistries",
    summary="Replace a pod's registry URLs",
    tags=["pods"],
    request_max_body_size=BODY_LIMIT,
    responses=document_problems(404, 409, 413),
    sync_to_thread=True,
    **OPERATE,
)
def set_registries(
    request: Request[Any, Any, Any], pod_name: FromPath[str], data: JSONBody[RegistriesRequest]
) -> PodView:
    """Give all URLs; they replace the previous ones. Processes at previous URLs count until they are retired."""
    deps, pod = deps_of(request), parse_pod(pod_name)
    registry.set_registries(deps.engine, pod, [parse_registry(url) for url in data.registries])
    deps.record_mark()
    return queries.read_pod(deps.engine, pod, deps.silence, deps.request_bound, deps.unsafe_findings)


@put(
    "/v1/pods/{pod_name:str}/probe",
    operation_id="setProbe",
    summary="Choose whether a pod's registry is probed by pushes or pulls",
    tags=["pods"],
    request_max_body_size=BODY_LIMIT,
    responses=document_problems(404, 413),
    sync_to_thread=True,
    **OPERATE,
)
def set_probe(request: Request[Any, Any, Any], pod_name: FromPath[str], data: JSONBody[ProbeRequest]) -> PodView:
    """After a change, garbage collection is blocked until a doctor has examined the pod again."""
    deps, pod = deps_of(request), parse_pod(pod_name)
    registry.set_probe(deps.engine, pod, data.probe)
    return queries.read_pod(deps.engine, pod, deps.silence, deps.request_bound, deps.unsafe_findings)


@put(
    "/v1/pods/{pod_name:str}/managed",
    operation_id="setManaged",
    summary="Declare whether a pod's registry sends events",
    tags=["pods"],
    request_max_body_size=BODY_LIMIT,
    responses=document_problems(404, 413),
    sync_to_thread=True,
    **OPERATE,
)
def set_managed(request: Request[Any, Any, Any], pod_name: FromPath[str], data: JSONBody[ManagedRequest]) -> PodView:
    """Its previous event token is then refused, and a doctor must examine it again. Its holdings stay known."""
    deps, pod = deps_of(request), parse_pod(pod_name)
    registry.set_managed(deps.engine, pod, _make_unmanaged(data.unmanaged))
    deps.record_mark()
    return queries.read_pod(deps.engine, pod, deps.silence, deps.request_bound, deps.unsafe_findings)


def _make_unmanaged(data: UnmanagedRequest | None) -> registry.Unmanaged | None:
    return None if data is None else registry.Unmanaged(data.why, data.by)


@put(
    "/v1/pods/{pod_name:str}/token-issuer",
    operation_id="setTokenIssuer",
    summary="Set the token issuer of a pod's registry",
    tags=["pods"],
    request_max_body_size=BODY_LIMIT,
    responses=document_problems(404, 413),
    sync_to_thread=True,
    **OPERATE,
)
def set_issuer(request: Request[Any, Any, Any], pod_name: FromPath[str], data: JSONBody[TokenIssuerRequest]) -> PodView:
    """Replaces the previous one within seconds. While its keys are rotated, send the old and the new ones."""
    deps, pod = deps_of(request), parse_pod(pod_name)
    registry.set_issuer(deps.engine, pod, _make_issuer(data))
    return queries.read_pod(deps.engine, pod, deps.silence, deps.request_bound, deps.unsafe_findings)


@delete(
    "/v1/pods/{pod_name:str}/token-issuer",
    operation_id="removeTokenIssuer",
    summary="Remove a pod's token issuer",
    tags=["pods"],
    responses=document_problems(404),
    sync_to_thread=True,
    **OPERATE,
)
def remove_issuer(request: Request[Any, Any, Any], pod_name: FromPath[str]) -> None:
    """New tokens grant nothing on its repositories. Tokens that were signed before are valid until they expire."""
    registry.set_issuer(deps_of(request).engine, parse_pod(pod_name), None)


def _make_issuer(data: TokenIssuerRequest) -> TokenIssuer:
    keys = parse_trusted_keys(data.keys.encode())
    names = tuple(key.fingerprint for key in keys.keys)
    return TokenIssuer(parse_token_url(data.url), data.issuer, data.service, data.keys, names)


@post(
    "/v1/pods/{pod_name:str}/processes/{instance:str}/retire",
    status_code=200,
    operation_id="retireSource",
    summary="Retire a registry process that has ended",
    tags=["pods"],
    responses=document_problems(404, 413),
    sync_to_thread=True,
    **OPERATE,
)
def retire_process(
    request: Request[Any, Any, Any], pod_name: FromPath[str], instance: Instance, data: JSONBody[Retirement]
) -> PodView:
    """Baleen cannot verify that the process has ended. If it still runs, its last events may come too late for blobs
    that they need: retire only a process that you have seen end.
    """
    deps, pod = deps_of(request), parse_pod(pod_name)
    with write_transaction(deps.engine) as connection:
        processes.retire_process(driver_connection(connection), pod, instance, data.why, deps.request_bound)
    return queries.read_pod(deps.engine, pod, deps.silence, deps.request_bound, deps.unsafe_findings)


@post(
    "/v1/pods/{pod_name:str}/gaps/resolve",
    status_code=200,
    operation_id="settleGaps",
    summary="Resolve the open gaps of a pod that cannot be reconciled",
    tags=["pods"],
    responses=document_problems(404, 409, 413),
    sync_to_thread=True,
    **OPERATE,
)
def resolve_gaps(request: Request[Any, Any, Any], pod_name: FromPath[str], data: JSONBody[GapsResolution]) -> PodView:
    """For a pod whose links are not in shared storage. State how you know that the table has everything that it holds.
    Refused for other pods: a reconcile resolves their gaps.
    """
    deps, pod = deps_of(request), parse_pod(pod_name)
    registry.resolve_gaps(deps.engine, pod, data.why)
    return queries.read_pod(deps.engine, pod, deps.silence, deps.request_bound, deps.unsafe_findings)


@get(
    "/v1/pods/{pod_name:str}/vanished",
    operation_id="listVanished",
    summary="List links of a pod that vanished without a delete event",
    tags=["pods"],
    responses=document_problems(404),
    sync_to_thread=True,
    **READ,
)
def list_vanished(
    request: Request[Any, Any, Any],
    pod_name: FromPath[str],
    repository: RepositoryFilter = None,
    cursor: Cursor = None,
    limit: Limit = DEFAULT_LIMIT,
) -> VanishedPage:
    """They block garbage collection until they are pushed again, a delete event arrives, or they are accepted."""
    name = None if repository is None else parse_repository(repository)
    engine = deps_of(request).engine
    return list_of_vanished(engine, parse_pod(pod_name), repository=name, cursor=cursor, limit=limit)


@post(
    "/v1/pods/{pod_name:str}/vanished/accept",
    status_code=200,
    operation_id="acceptVanished",
    summary="Accept that links of a pod are gone",
    tags=["pods"],
    responses=document_problems(404, 413),
    sync_to_thread=True,
    **OPERATE,
)
def accept_vanished(
    request: Request[Any, Any, Any], pod_name: FromPath[str], data: JSONBody[VanishedAcceptance]
) -> VanishedAccepted:
    """What only they kept is collected after a full grace period, which begins now. A call accepts some thousands."""
    name = None if data.repository is None else parse_repository(data.repository)
    engine = deps_of(request).engine
    done = vanished_links.accept_vanished(engine, parse_pod(pod_name), data.why, data.by, name, data.before)
    return VanishedAccepted(**done._asdict())


def _events_url(request: Request[Any, Any, Any], pod: str) -> str:
    """Return the URL for the pod's events; raises UsageError. Call it before a token is made, or that would be lost."""
    try:
        base = deps_of(request).url or str(request.base_url)
    except ValueError as error:
        raise UsageError("The header `Host` is malformed: send the host at which registries reach Baleen.") from error
    return f"{base.rstrip('/')}/v1/events/{pod}"


def _make_pod_token(pod: str, token: Secret, events: str, probe: ProbeMethod, kind: PodKind) -> PodToken:
    section = configuration.notifications_section(
        events, token.reveal(), probe, drops_events=kind.has_registry_database
    )
    return PodToken(pod=pod, event_token=token.reveal(), registry_config=section)


HANDLERS = [
    list_pods,
    get_pod,
    add_pod,
    rotate_pod_token,
    check_pod_token,
    remove_pod,
    add_prefixes,
    set_registries,
    set_probe,
    set_managed,
    set_issuer,
    remove_issuer,
    retire_process,
    resolve_gaps,
    list_vanished,
    accept_vanished,
]
