"""The object store port on S3, by boto3.

Errors: only the store's own word that there is no such key is "not found"; everything else, 403, 500 and a 404 from
something that is no S3 alike, is UnavailableError. A bucket that is not there is UnavailableError too, so that a
wrong setting never looks like an empty registry. (SeaweedFS makes a bucket that it does not have at the first PUT
of an administrator's key, as its default is.)
"""

import ipaddress
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import boto3
from botocore.config import Config
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    NoCredentialsError,
    ParamValidationError,
    PartialCredentialsError,
)

from coordinator.errors import SettingsError, UnavailableError, UsageError
from coordinator.storage.port import LIST_LIMIT, ObjectInfo, ObjectNotFoundError, check_key, page_size

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

CONNECT_TIMEOUT_S = 3.0
#: Without a single byte; a large body may take longer in all.
READ_TIMEOUT_S = 20.0
#: A store that never answers is given up after ATTEMPTS times these, and pauses of a few seconds.
ATTEMPTS = 3


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
        connect_timeout: float = CONNECT_TIMEOUT_S,
        read_timeout: float = READ_TIMEOUT_S,
        attempts: int = ATTEMPTS,
    ) -> None:
        self.bucket = bucket
        self.root = f"{check_key(root.strip('/'))}/" if root.strip("/") else ""
        config = Config(
            connect_timeout=connect_timeout,
            read_timeout=read_timeout,
            retries={"mode": "standard", "total_max_attempts": attempts},
            s3={"addressing_style": "path"} if endpoint_url else {},
            max_pool_connections=32,
            # No proxy leads to this machine's own loopback.
            proxies={} if endpoint_url and _is_loopback(endpoint_url) else None,
        )
        try:
            self._client: S3Client = boto3.client(
                "s3",
                endpoint_url=endpoint_url,
                region_name=region,
                aws_access_key_id=access_key,
                aws_secret_access_key=secret_key,
                config=config,
            )
        except (ValueError, BotoCoreError) as error:
            raise SettingsError(
                f"The S3 settings cannot be used ({type(error).__name__}): check BALEEN_S3_ENDPOINT_URL, "
                "BALEEN_S3_REGION, and that both keys are set or neither."
            ) from error

    def __repr__(self) -> str:
        return f"S3ObjectStore({self.bucket!r}, {self.root!r})"

    def get(self, key: str, limit: int | None = None) -> bytes:
        with self._translated(key):
            answer = self._client.get_object(Bucket=self.bucket, Key=self._path(key))
            # As a context manager the body would hand out urllib3's own stream, whose errors are not botocore's.
            with closing(answer["Body"]) as body:
                if limit is not None and answer["ContentLength"] > limit:
                    raise UsageError(f"{key} has {answer['ContentLength']} bytes, more than {limit}.")
                return body.read()

    def head(self, key: str) -> ObjectInfo | None:
        with self._translated(key):
            try:
                answer = self._client.head_object(Bucket=self.bucket, Key=self._path(key))
            except ClientError as error:
                if _status(error) != 404:
                    raise
                # HEAD has no body to say what was not found: a missing bucket must not look like a missing object.
                self.check()
                return None
            return ObjectInfo(key, answer["ContentLength"], answer["LastModified"])

    def put(self, key: str, body: bytes) -> None:
        with self._translated(key):
            self._client.put_object(Bucket=self.bucket, Key=self._path(key), Body=body)

    def delete(self, key: str) -> None:
        try:
            with self._translated(key):
                self._client.delete_object(Bucket=self.bucket, Key=self._path(key))
        except ObjectNotFoundError:
            return  # S3 itself does not say so, some others do

    def list(self, prefix: str, start_after: str | None = None, limit: int = LIST_LIMIT) -> list[ObjectInfo]:
        limit = page_size(limit)
        found: list[ObjectInfo] = []
        # A store may give fewer than asked for and still have more.
        for page in self._pages(prefix, start_after, limit):
            found += page
            if len(found) >= limit:
                break
        return found[:limit]

    def walk(self, prefix: str) -> Iterator[ObjectInfo]:
        for page in self._pages(prefix, None, LIST_LIMIT):
            yield from page

    def _pages(self, prefix: str, start_after: str | None, size: int) -> Iterator[Sequence[ObjectInfo]]:
        request: dict[str, Any] = {"StartAfter": self.root + start_after} if start_after else {}
        while True:
            with self._translated(prefix):
                answer = self._client.list_objects_v2(
                    Bucket=self.bucket, Prefix=self.root + prefix, MaxKeys=size, **request
                )
            yield [
                ObjectInfo(entry["Key"].removeprefix(self.root), entry["Size"], entry["LastModified"])
                for entry in answer.get("Contents", [])
                if not entry["Key"].endswith("/")  # what some stores show of directories
            ]
            if not answer["IsTruncated"]:
                return
            request = {"ContinuationToken": answer["NextContinuationToken"]}

    def check(self) -> None:
        with self._translated(""):
            try:
                self._client.head_bucket(Bucket=self.bucket)
            except ClientError as error:
                if _status(error) == 404:
                    raise UnavailableError(f"Bucket {self.bucket!r} does not exist: check BALEEN_S3_BUCKET.") from error
                raise

    def enable_versioning(self) -> None:
        """Keep what is overwritten or deleted: GC hides by a delete marker on such a bucket."""
        with self._translated(""):
            self._client.put_bucket_versioning(Bucket=self.bucket, VersioningConfiguration={"Status": "Enabled"})

    def _path(self, key: str) -> str:
        return self.root + check_key(key)

    @contextmanager
    def _translated(self, key: str) -> Iterator[None]:
        try:
            yield
        except ClientError as error:
            code = error.response.get("Error", {}).get("Code", "")
            if code == "NoSuchKey":
                raise ObjectNotFoundError(f"There is no object {key!r} in bucket {self.bucket!r}.") from error
            raise UnavailableError(f"The object store refused {key!r} ({code}): check the S3 settings.") from error
        except (NoCredentialsError, PartialCredentialsError, ParamValidationError) as error:
            raise UnavailableError(
                f"The object store cannot be asked ({type(error).__name__}): check the S3 settings."
            ) from error
        except (BotoCoreError, OSError) as error:
            raise UnavailableError(f"The object store does not answer ({type(error).__name__}): try again.") from error


def _is_loopback(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _status(error: ClientError) -> int:
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
