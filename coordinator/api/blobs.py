"""`/v1/blobs`: look up blobs, their references and history, and restore hidden ones.

Not here: the queries (lookup/blobs.py, lookup/references.py, lookup/explain.py), the restore (gc/restore.py).
"""

from typing import Annotated, Any

import msgspec
from litestar import Request, get, post
from litestar.params import JSONBody, QueryParameter
from msgspec import Meta

from coordinator.api.auth import OPERATE, READ
from coordinator.api.deps import deps_of
from coordinator.api.parameters import DEFAULT_WHY, Cursor, DigestText, Limit, PodFilter, pod_or_none
from coordinator.api.problems import document_problems
from coordinator.db.paging import DEFAULT_LIMIT
from coordinator.domain.lifecycle import STATES, BlobState, StateName
from coordinator.domain.names import parse_digest
from coordinator.domain.reasons import WHY_LIMIT
from coordinator.gc import controls
from coordinator.gc.shapes import Undeletion
from coordinator.lookup import explain
from coordinator.lookup.blobs import LOOKUP_LIMIT, Sort
from coordinator.lookup.references import read_references
from coordinator.lookup.shapes import Blob, BlobPage, Explanation, ReferencePage

#: 1000 digests take 76 kB in compact JSON; clients may indent it.
LOOKUP_BODY_LIMIT = 256 * 1024
BODY_LIMIT = 16 * 1024


class Lookup(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    digests: Annotated[
        list[
            Annotated[str, Meta(pattern="^sha256:[0-9a-f]{64}$", description="sha256: and 64 lower-case hex digits.")]
        ],
        Meta(max_length=LOOKUP_LIMIT),
    ]


class LookupAnswer(msgspec.Struct, frozen=True):
    items: Annotated[
        list[Blob | None], Meta(description="One for each digest, in the same order; null for an unknown one.")
    ]


class UndeleteRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    why: Annotated[str, Meta(min_length=1, max_length=WHY_LIMIT)] = DEFAULT_WHY
    pin: Annotated[
        bool, Meta(description="Pin the blob. Without a pin it may be hidden again after a new grace period.")
    ] = True


@get(
    "/v1/blobs/{digest:str}",
    operation_id="getBlob",
    summary="Get a blob",
    tags=["blobs"],
    responses=document_problems(404),
    **READ,
)
async def get_blob(request: Request[Any, Any, Any], digest: DigestText) -> Blob:
    """The counts are current. For blobs with thousands of references they may be minutes old: see `counted_at`."""
    return await deps_of(request).blobs.get(parse_digest(digest))


@get(
    "/v1/blobs/{digest:str}/references",
    operation_id="listReferences",
    summary="List the holdings that need a blob",
    tags=["blobs"],
    responses=document_problems(404),
    sync_to_thread=True,
    **READ,
)
def list_references(
    request: Request[Any, Any, Any], digest: DigestText, cursor: Cursor = None, limit: Limit = DEFAULT_LIMIT
) -> ReferencePage:
    """Ordered by manifest and repository. Pages of a blob with many references may be short, even empty."""
    deps = deps_of(request)
    return read_references(deps.engine, deps.sizes, parse_digest(digest), cursor=cursor, limit=limit)


@post(
    "/v1/blobs/lookup",
    status_code=200,
    operation_id="lookupBlobs",
    summary="Look up many blobs at once",
    tags=["blobs"],
    request_max_body_size=LOOKUP_BODY_LIMIT,
    responses=document_problems(413),
    **READ,
)
async def lookup_blobs(request: Request[Any, Any, Any], data: JSONBody[Lookup]) -> LookupAnswer:
    """Equivalent to one look-up for each digest."""
    return LookupAnswer(await deps_of(request).blobs.lookup([parse_digest(digest) for digest in data.digests]))


@get(
    "/v1/blobs",
    operation_id="listBlobs",
    summary="List blobs",
    tags=["blobs"],
    responses=document_problems(404),
    **READ,
)
async def list_blobs(
    request: Request[Any, Any, Any],
    of_state: Annotated[
        StateName | None, QueryParameter(name="state", description="Only blobs of this state.", required=False)
    ] = None,
    pod: PodFilter = None,
    min_references: Annotated[
        int, QueryParameter(ge=0, le=2**31 - 1, description="Only blobs with at least this many references.")
    ] = 0,
    sort: Annotated[
        Sort,
        QueryParameter(
            description="`first_seen`; `unreferenced_since`: only unreferenced blobs, the longest first; "
            "`references`: the 10,000 with most. `pod` works with `first_seen` only."
        ),
    ] = "first_seen",
    cursor: Cursor = None,
    limit: Limit = DEFAULT_LIMIT,
) -> BlobPage:
    """A page may be short, even empty, and still have a `next`: each page reads a bounded number of blobs.

    `sort=references` reads all blobs (about 0.1 s for each million), and caches the result for a minute or more.
    """
    return await deps_of(request).blobs.read_page(
        state=of_state,
        pod=pod_or_none(pod),
        min_references=min_references,
        sort=sort,
        cursor=cursor,
        limit=limit,
    )


@get(
    "/v1/blobs/{digest:str}/explain",
    operation_id="explainBlob",
    summary="Explain why a blob is kept, or what happened to it",
    tags=["garbage collection"],
    responses=document_problems(404),
    **READ,
)
async def explain_blob(request: Request[Any, Any, Any], digest: DigestText) -> Explanation:
    """In sentences and as data: what needs the blob, every reason to keep it, and its history in the ledger."""
    deps = deps_of(request)
    return await explain.read_explanation(
        deps.engine, deps.sizes, deps.blobs, deps.read_facts, deps.link_grace, parse_digest(digest)
    )


@post(
    "/v1/blobs/{digest:str}/undelete",
    status_code=202,
    operation_id="undeleteBlob",
    summary="Restore a hidden blob",
    tags=["garbage collection"],
    request_max_body_size=BODY_LIMIT,
    responses=document_problems(404, 409, 413),
    sync_to_thread=True,
    **OPERATE,
)
def undelete_blob(
    request: Request[Any, Any, Any], digest: DigestText, data: JSONBody[UndeleteRequest | None] = None
) -> Undeletion:
    """Possible while its bytes are kept. Workers restore it within seconds, also if nothing references it. It is
    pinned unless `pin` is false. 409 if it is not hidden, or if its bytes are deleted.
    """
    deps, asked = deps_of(request), data or UndeleteRequest()
    back = controls.undelete(deps.engine, parse_digest(digest), asked.why, pin=asked.pin)
    deps.record_mark()
    return Undeletion(digest=digest, state=STATES[back.state], pinned=back.pinned, detail=_describe_undeletion(*back))


def _describe_undeletion(state: BlobState, pinned: bool) -> str:
    sentence = "Workers restore it within seconds"
    if state is BlobState.HIDING:
        sentence = "Its hide is undone: workers restore it, and it is live once no delete of it can land any more"
    elif state is BlobState.PURGING:
        sentence = "Its deletion had begun: workers restore what is left once no delete of it can land any more"
    stays = (
        "it is pinned until `baleen unpin`" if pinned else "it is not hidden again before a new grace period is over"
    )
    return f"{sentence}, and {stays}."


HANDLERS = [get_blob, list_references, lookup_blobs, list_blobs, explain_blob, undelete_blob]
