"""The object store port on S3, by boto3.

Errors: 404 of an object is ObjectNotFoundError or None; everything else, 403 and 500 alike, is UnavailableError. A
bucket that is not there is UnavailableError too, so that a wrong setting never looks like an empty registry.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from coordinator.errors import UnavailableError, UsageError
from coordinator.storage.port import LIST_LIMIT, ObjectInfo, ObjectNotFoundError

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

CONNECT_TIMEOUT_S = 3
READ_TIMEOUT_S = 20


class S3ObjectStore:
    """One bucket and a root in it. `root` may be empty; keys are then relative to the bucket."""

    def __init__(
        self,
        bucket: str,
        root: str = "",
        *,
        endpoint_url: str | None = None,
        region: str = "us-east-1",
        access_key: str | None = None,
        secret_key: str | None = None,
    ) -> None:
        self.bucket = bucket
        self.root = f"{root.strip('/')}/" if root.strip("/") else ""
        self._client: S3Client = boto3.client(
            "s3",
            endpoint_url=endpoint_url,
            region_name=region,
            aws_access_key_id=access_key,
            aws_secret_access_key=secret_key,
            config=Config(
                connect_timeout=CONNECT_TIMEOUT_S,
                read_timeout=READ_TIMEOUT_S,
                retries={"mode": "standard", "max_attempts": 3},
                s3={"addressing_style": "path"} if endpoint_url else {},
                max_pool_connections=32,
            ),
        )

    def get(self, key: str, limit: int | None = None) -> bytes:
        with self._translated(key):
            answer = self._client.get_object(Bucket=self.bucket, Key=self.root + key)
            with answer["Body"] as body:
                if limit is not None and answer["ContentLength"] > limit:
                    raise UsageError(f"{key} has {answer['ContentLength']} bytes, more than {limit}.")
                return body.read()

    def head(self, key: str) -> ObjectInfo | None:
        try:
            with self._translated(key):
                answer = self._client.head_object(Bucket=self.bucket, Key=self.root + key)
                return ObjectInfo(key, answer["ContentLength"], answer["LastModified"])
        except ObjectNotFoundError:
            # HEAD has no body to say what was not found: a missing bucket must not look like a missing object.
            self.check()
            return None

    def put(self, key: str, body: bytes) -> None:
        with self._translated(key):
            self._client.put_object(Bucket=self.bucket, Key=self.root + key, Body=body)

    def delete(self, key: str) -> None:
        with self._translated(key):
            self._client.delete_object(Bucket=self.bucket, Key=self.root + key)

    def list(self, prefix: str, start_after: str | None = None, limit: int = LIST_LIMIT) -> list[ObjectInfo]:
        request: dict[str, Any] = {"StartAfter": self.root + start_after} if start_after else {}
        with self._translated(prefix):
            answer = self._client.list_objects_v2(
                Bucket=self.bucket, Prefix=self.root + prefix, MaxKeys=min(limit, LIST_LIMIT), **request
            )
        return [
            ObjectInfo(entry["Key"].removeprefix(self.root), entry["Size"], entry["LastModified"])
            for entry in answer.get("Contents", [])
        ]

    def check(self) -> None:
        with self._translated(""):
            try:
                self._client.head_bucket(Bucket=self.bucket)
            except ClientError as error:
                if _status(error) == 404:
                    raise UnavailableError(
                        f"Bucket {self.bucket!r} does not exist: check BALEEN_S3_BUCKET."
                    ) from error
                raise

    def enable_versioning(self) -> None:
        """Keep what is overwritten or deleted: GC hides by a delete marker on such a bucket."""
        with self._translated(""):
            self._client.put_bucket_versioning(
                Bucket=self.bucket, VersioningConfiguration={"Status": "Enabled"}
            )

    @contextmanager
    def _translated(self, key: str) -> Iterator[None]:
        try:
            yield
        except ClientError as error:
            code = error.response.get("Error", {}).get("Code", "")
            if code in {"NoSuchKey", "404"}:
                raise ObjectNotFoundError(f"There is no object {key!r} in bucket {self.bucket!r}.") from error
            raise UnavailableError(
                f"The object store refused {key!r} ({code}): check the S3 settings."
            ) from error
        except (BotoCoreError, OSError) as error:
            raise UnavailableError(
                f"The object store does not answer ({type(error).__name__}): try again."
            ) from error


def _status(error: ClientError) -> int:
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
