import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import boto3
import pytest

from coordinator.errors import BaleenError
from coordinator.stack.supervisor import StackEndpoints
from coordinator.storage.port import ObjectStore
from coordinator.storage.s3 import S3ObjectStore
from tests.storage.file_store import WritableFiles
from tests.storage.memory import MemoryObjectStore
from tests.support.store import FaultyStore

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

MakeS3 = Callable[..., S3ObjectStore]
#: Gives a client of the same store that lists this many objects at once, where the store has pages.
Paged = Callable[[ObjectStore, int], ObjectStore]
#: All stores that delete by permit, for `store`.
KINDS = ["memory", "memory-versioned", "faulty", "s3", "s3-rootless", "s3-versioned"]
ROOTLESS, VERSIONED = "contract-rootless", "contract-versioned"


class ForbiddenError(BaleenError):
    """A permit that is not given."""


def allowed() -> None:
    pass


def forbidden() -> None:
    raise ForbiddenError


def s3_client(stack: StackEndpoints) -> "S3Client":
    """boto3's client of the embedded S3 server, for what an administrator does."""
    return boto3.client(
        "s3",
        endpoint_url=stack.s3_endpoint_url,
        region_name="us-east-1",
        aws_access_key_id=stack.s3_access_key,
        aws_secret_access_key=stack.s3_secret_key,
    )


def settings_of(store: S3ObjectStore, stack: StackEndpoints) -> dict[str, str]:
    """The settings of a process that is to use this store."""
    assert stack.s3_access_key is not None
    assert stack.s3_secret_key is not None
    return {
        "s3_endpoint_url": store.endpoint,
        "s3_bucket": store.bucket,
        "s3_root": store.root,
        "s3_access_key": stack.s3_access_key,
        "s3_secret_key": stack.s3_secret_key,
    }


@pytest.fixture(scope="session")
def connect_s3(embedded_stack: StackEndpoints) -> MakeS3:
    """Make a client of the embedded S3 server; arguments replace the right ones."""

    def make(**changes: Any) -> S3ObjectStore:
        right: dict[str, Any] = {
            "bucket": embedded_stack.s3_bucket,
            "root": f"contract/{uuid.uuid4()}",
            "endpoint_url": embedded_stack.s3_endpoint_url,
            "access_key": embedded_stack.s3_access_key,
            "secret_key": embedded_stack.s3_secret_key,
            # The least that S3 permits.
            "part_bytes": 5 << 20,
        }
        return S3ObjectStore(**(right | changes))

    return make


def store_of(request: pytest.FixtureRequest, kind: str) -> ObjectStore:
    """Make an empty store of a kind, in a bucket with versions or without. The server is started when it is needed."""
    if kind.startswith("memory"):
        return MemoryObjectStore(versioned=kind == "memory-versioned")
    request.getfixturevalue("buckets")
    connect: MakeS3 = request.getfixturevalue("connect_s3")
    return connect(bucket=VERSIONED) if kind == "s3-versioned" else connect()


@pytest.fixture(scope="session")
def buckets(embedded_stack: StackEndpoints, connect_s3: MakeS3) -> None:
    """The further buckets of these tests."""
    client = s3_client(embedded_stack)
    for bucket in (ROOTLESS, VERSIONED):
        # Other folders of tests have this fixture, too, as one of their own.
        with suppress(client.exceptions.BucketAlreadyOwnedByYou):
            client.create_bucket(Bucket=bucket)
    connect_s3(bucket=VERSIONED).enable_versioning()


@pytest.fixture(params=["memory", "memory-by-parts", "faulty", "files", "s3", "s3-rootless", "s3-versioned"])
def store(request: pytest.FixtureRequest) -> Iterator[ObjectStore]:
    """An empty store: each test of the contract runs on every one."""
    if request.param == "memory-by-parts":
        yield MemoryObjectStore(by_parts=True)
    elif request.param == "faulty":
        yield FaultyStore(MemoryObjectStore(versioned=True))
    elif request.param == "files":
        root = request.getfixturevalue("tmp_path") / "root"
        root.mkdir()
        yield WritableFiles(root)
    elif request.param == "s3-rootless":
        request.getfixturevalue("buckets")
        made = request.getfixturevalue("connect_s3")(bucket=ROOTLESS, root="")
        yield made
        with ThreadPoolExecutor(8) as pool:
            while page := made.list(""):
                list(pool.map(made.delete, [entry.key for entry in page]))
    else:
        yield store_of(request, request.param)


@pytest.fixture
def paged(request: pytest.FixtureRequest) -> Paged:
    def make(store: ObjectStore, size: int) -> ObjectStore:
        if not isinstance(store, S3ObjectStore):
            return store
        connect: MakeS3 = request.getfixturevalue("connect_s3")
        return connect(bucket=store.bucket, root=store.root, list_limit=size)

    return make
