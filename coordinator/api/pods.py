"""`/v1/pods`: the registries that Baleen serves. Not here: what a pod may own (db/pods.py, domain/pods.py)."""

from typing import Annotated, Any

import msgspec
from litestar import Request, delete, get, post, put
from litestar.params import FromPath, JSONBody
from msgspec import Meta

from coordinator.api.auth import OPERATE, READ
from coordinator.api.deps import deps_of
from coordinator.api.parameters import Cursor, Limit
from coordinator.api.problems import documented
from coordinator.db import pods as registry
from coordinator.db import sources
from coordinator.db.queries import pods as queries
from coordinator.db.queries.paging import DEFAULT_LIMIT
from coordinator.db.queries.session import writing
from coordinator.db.queries.views import Pod, PodPage
from coordinator.domain.names import parse_pod, parse_repository
from coordinator.domain.pods import Linker, PodMode, parse_registry
from coordinator.pods import configuration
from coordinator.settings import Secret

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


class PodRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    name: PodText
    prefixes: Prefixes
    registries: Registries = []
    mode: PodMode = PodMode.MANIFEST
    linker: Linker = Linker.LINK


class PrefixesRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    prefixes: Prefixes


class RegistriesRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    registries: Registries


class Retirement(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    why: Annotated[str, Meta(min_length=1, max_length=1000)]


class PodToken(msgspec.Struct, frozen=True, kw_only=True):
    """The token is shown here and never again."""

    pod: str
    event_token: str
    registry_config: Annotated[str, Meta(description="The section to paste into the registry's configuration.")]


@get(
    "/v1/pods",
    operation_id="listPods",
    summary="Pods, and what holds garbage collection for each",
    tags=["pods"],
    responses=documented(),
    **READ,
)
async def list_pods(request: Request[Any, Any, Any], cursor: Cursor = None, limit: Limit = DEFAULT_LIMIT) -> PodPage:
    deps = deps_of(request)
    return await queries.pods(deps.engine, deps.silence, cursor=cursor, limit=limit)


@get(
    "/v1/pods/{pod_name:str}",
    operation_id="getPod",
    summary="One pod",
    tags=["pods"],
    responses=documented(404),
    **READ,
)
async def get_pod(request: Request[Any, Any, Any], pod_name: FromPath[str]) -> Pod:
    """With every process of its registry, how far each has reported, and what that waits for."""
    deps = deps_of(request)
    return await queries.pod(deps.engine, parse_pod(pod_name), deps.silence)


@post(
    "/v1/pods",
    operation_id="addPod",
    summary="Register a pod",
    tags=["pods"],
    request_max_body_size=BODY_LIMIT,
    responses=documented(409, 413),
    **OPERATE,
)
async def add_pod(request: Request[Any, Any, Any], data: JSONBody[PodRequest]) -> PodToken:
    """Prefix `team` owns `team` and `team/…`; no two pods' prefixes may overlap."""
    pod = registry.NewPod(
        name=parse_pod(data.name),
        prefixes=[parse_repository(prefix) for prefix in data.prefixes],
        registries=[parse_registry(url) for url in data.registries],
        mode=data.mode,
        linker=data.linker,
    )
    return _token(request, pod.name, await registry.add(deps_of(request).engine, pod))


@post(
    "/v1/pods/{pod_name:str}/token",
    operation_id="rotatePodToken",
    summary="Give a pod another event token",
    tags=["pods"],
    responses=documented(404),
    **OPERATE,
)
async def rotate_pod_token(request: Request[Any, Any, Any], pod_name: FromPath[str]) -> PodToken:
    """The old one is refused within seconds; the registry then repeats its events until it has the new one."""
    pod = parse_pod(pod_name)
    return _token(request, pod, await registry.rotate_token(deps_of(request).engine, pod))


@delete(
    "/v1/pods/{pod_name:str}",
    operation_id="removePod",
    summary="Forget a pod",
    tags=["pods"],
    responses=documented(404, 409),
    **OPERATE,
)
async def remove_pod(request: Request[Any, Any, Any], pod_name: FromPath[str]) -> None:
    """Refused while it holds or links anything or has open dead letters; with open gaps, if storage has links of it."""
    deps = deps_of(request)
    await registry.remove(deps.engine, parse_pod(pod_name), deps.still_holds)


@post(
    "/v1/pods/{pod_name:str}/prefixes",
    status_code=200,
    operation_id="addPrefixes",
    summary="Let a pod own further prefixes",
    tags=["pods"],
    request_max_body_size=BODY_LIMIT,
    responses=documented(404, 409, 413),
    **OPERATE,
)
async def add_prefixes(
    request: Request[Any, Any, Any], pod_name: FromPath[str], data: JSONBody[PrefixesRequest]
) -> Pod:
    """Those that it owns already stay its. What it has there since before is not known until it is reconciled."""
    deps, pod = deps_of(request), parse_pod(pod_name)
    await registry.add_prefixes(deps.engine, pod, [parse_repository(prefix) for prefix in data.prefixes])
    return await queries.pod(deps.engine, pod, deps.silence)


@put(
    "/v1/pods/{pod_name:str}/registries",
    operation_id="setRegistries",
    summary="Say where a pod's registry listens now",
    tags=["pods"],
    request_max_body_size=BODY_LIMIT,
    responses=documented(404, 409, 413),
    **OPERATE,
)
async def set_registries(
    request: Request[Any, Any, Any], pod_name: FromPath[str], data: JSONBody[RegistriesRequest]
) -> Pod:
    """All of its URLs, in place of those before. Processes that were heard elsewhere count until they are retired."""
    deps, pod = deps_of(request), parse_pod(pod_name)
    await registry.set_registries(deps.engine, pod, [parse_registry(url) for url in data.registries])
    return await queries.pod(deps.engine, pod, deps.silence)


@post(
    "/v1/pods/{pod_name:str}/sources/{instance:str}/retire",
    status_code=200,
    operation_id="retireSource",
    summary="Let a process of a pod's registry count no more",
    tags=["pods"],
    responses=documented(404, 413),
    **OPERATE,
)
async def retire_source(
    request: Request[Any, Any, Any], pod_name: FromPath[str], instance: FromPath[str], data: JSONBody[Retirement]
) -> Pod:
    """For one that runs no more, which nothing proves. If it does run, its last events may come too late for blobs
    that they need: say so only of what you have seen end.
    """
    deps, pod = deps_of(request), parse_pod(pod_name)
    async with writing(deps.engine) as connection:
        await sources.retire(connection, pod, instance, data.why)
    return await queries.pod(deps.engine, pod, deps.silence)


def _token(request: Request[Any, Any, Any], pod: str, token: Secret) -> PodToken:
    base = (deps_of(request).url or str(request.base_url)).rstrip("/")
    return PodToken(
        pod=pod,
        event_token=token.reveal(),
        registry_config=configuration.notifications(f"{base}/v1/events/{pod}", token.reveal()),
    )


HANDLERS = [
    list_pods,
    get_pod,
    add_pod,
    rotate_pod_token,
    remove_pod,
    add_prefixes,
    set_registries,
    retire_source,
]
