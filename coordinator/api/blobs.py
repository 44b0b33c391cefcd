"""`/v1/blobs`: who needs a blob. Not here: how it is found (db/queries/blobs.py, references.py)."""

from typing import Annotated, Any

import msgspec
from litestar import Request, get, post
from litestar.params import JSONBody, QueryParameter
from msgspec import Meta

from coordinator.api.auth import READ
from coordinator.api.deps import deps_of
from coordinator.api.parameters import Cursor, DigestText, Limit, PodFilter, pod_or_none
from coordinator.api.problems import documented
from coordinator.db.queries.blobs import LOOKUP_LIMIT, Sort
from coordinator.db.queries.paging import DEFAULT_LIMIT
from coordinator.db.queries.references import references
from coordinator.db.queries.views import Blob, BlobPage, ReferencePage, StateName
from coordinator.domain.names import parse_digest

#: 1000 digests take 76 kB, written as tersely as JSON allows; others may indent.
LOOKUP_BODY_LIMIT = 256 * 1024


class Lookup(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    digests: Annotated[
        list[
            Annotated[str, Meta(pattern="^sha256:[0-9a-f]{64}$", description="sha256: and 64 lower-case hex digits.")]
        ],
        Meta(max_length=LOOKUP_LIMIT),
    ]


class LookupAnswer(msgspec.Struct, frozen=True):
    items: Annotated[list[Blob | None], Meta(description="One for each digest, in order; null for an unknown one.")]


@get(
    "/v1/blobs/{digest:str}",
    operation_id="getBlob",
    summary="Who needs a blob",
    tags=["blobs"],
    responses=documented(404),
    **READ,
)
async def get_blob(request: Request[Any, Any, Any], digest: DigestText) -> Blob:
    """The counts are of now. `counted_at` is older, up to minutes, for blobs with thousands of references."""
    return await deps_of(request).blobs.get(parse_digest(digest))


@get(
    "/v1/blobs/{digest:str}/references",
    operation_id="listReferences",
    summary="The holdings that need a blob",
    tags=["blobs"],
    responses=documented(404),
    **READ,
)
async def list_references(
    request: Request[Any, Any, Any], digest: DigestText, cursor: Cursor = None, limit: Limit = DEFAULT_LIMIT
) -> ReferencePage:
    """In the order of manifest and repository. Pages of a blob that many need may be short, even empty."""
    return await references(deps_of(request).engine, parse_digest(digest), cursor=cursor, limit=limit)


@post(
    "/v1/blobs/lookup",
    status_code=200,
    operation_id="lookupBlobs",
    summary="Look up many blobs at once",
    tags=["blobs"],
    request_max_body_size=LOOKUP_BODY_LIMIT,
    responses=documented(413),
    **READ,
)
async def lookup_blobs(request: Request[Any, Any, Any], data: JSONBody[Lookup]) -> LookupAnswer:
    """The same as so many single look-ups."""
    return LookupAnswer(await deps_of(request).blobs.lookup([parse_digest(digest) for digest in data.digests]))


@get(
    "/v1/blobs",
    operation_id="listBlobs",
    summary="Browse blobs",
    tags=["blobs"],
    responses=documented(404),
    **READ,
)
async def list_blobs(
    request: Request[Any, Any, Any],
    of_state: Annotated[
        StateName | None, QueryParameter(name="state", description="Only of this state.", required=False)
    ] = None,
    pod: PodFilter = None,
    min_references: Annotated[int, QueryParameter(ge=0, le=2**31 - 1, description="Only with so many, or more.")] = 0,
    sort: Annotated[
        Sort,
        QueryParameter(
            description="`first_seen`; `unreferenced_since`: only blobs that nothing references, the longest first; "
            "`references`: the 10,000 with most. `pod` works with `first_seen` only."
        ),
    ] = "first_seen",
    cursor: Cursor = None,
    limit: Limit = DEFAULT_LIMIT,
) -> BlobPage:
    """A page may be short, even empty, while `next` goes on: no page looks at more than a bounded number of blobs.

    `sort=references` reads all blobs (about 0.1 s for each million) and then answers from that for a minute or more.
    """
    return await deps_of(request).blobs.browse(
        state=of_state,
        pod=pod_or_none(pod),
        min_references=min_references,
        sort=sort,
        cursor=cursor,
        limit=limit,
    )


HANDLERS = [get_blob, list_references, lookup_blobs, list_blobs]
