"""The restorer as processes build it from their settings."""

import pytest

from coordinator import bootstrap
from coordinator.domain.lifecycle import BlobState
from coordinator.settings import Secret, Settings
from coordinator.stack.supervisor import StackEndpoints
from coordinator.storage.s3 import S3ObjectStore
from tests.gc.harness import Garbage
from tests.services.databases import Databases
from tests.storage.conftest import VERSIONED, MakeS3


@pytest.mark.usefixtures("buckets")
def test_a_worker_restores_for_good(connect_s3: MakeS3, databases: Databases, embedded_stack: StackEndpoints) -> None:
    """What a worker restores is served, live, and its hide over."""
    store: S3ObjectStore = connect_s3(bucket=VERSIONED)
    with Garbage(databases.migrated(), store) as garbage:
        settings = Settings(
            database_url=Secret(garbage.url),
            s3_endpoint_url=embedded_stack.s3_endpoint_url,
            s3_bucket=store.bucket,
            s3_root=store.root.strip("/"),
            s3_access_key=embedded_stack.s3_access_key,
            s3_secret_key=Secret(embedded_stack.s3_secret_key or ""),
        )
        garbage.pushed("m", "l")
        garbage.forget("m")
        garbage.collect()
        garbage.tell("other", "l")
        with bootstrap.restorer(settings, name="test-gc") as restorer:
            assert restorer.round() == 1
        assert garbage.state("l") is BlobState.LIVE
        assert garbage.hide_of("l") is None
        assert garbage.seen("l")
