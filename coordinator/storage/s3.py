"""The object store on S3, by boto3.

Errors: only the store's own answer that there is no such key means "not found". Everything else is UnavailableError:
403, 500, and a 404 from something that is not S3. A missing bucket is UnavailableError too, so that a wrong setting
never looks like an empty registry. (By default SeaweedFS creates a missing bucket at the first PUT with an
administrator's key.)
"""

import datetime
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing, contextmanager, suppress
from contextvars import ContextVar
from functools import cache
from itertools import islice
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import boto3
import botocore.session
from botocore.config import Config
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    NoCredentialsError,
    ParamValidationError,
    PartialCredentialsError,
)
from botocore.utils import parse_timestamp

from coordinator.domain.hosts import is_loopback
from coordinator.errors import ConflictError, SettingsError, UnavailableError, UsageError
from coordinator.storage.layout import BLOBS, QUARANTINE
from coordinator.storage.port import (
    CHUNK_BYTES,
    DELETE_LIMIT,
    LIST_LIMIT,
    VERSIONS_LIMIT,
    DeleteResult,
    KeyVersion,
    ObjectInfo,
    ObjectNotFoundError,
    ObjectReader,
    ObjectVersion,
    OpenObject,
    Permit,
    Target,
    UnfinishedUpload,
    UnsafeStoreError,
    check_key,
    check_page_size,
)

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

CONNECT_TIMEOUT_S = 3.0
#: Seconds without a single byte; a large body may take longer in total.
READ_TIMEOUT_S = 20.0
#: A store that never answers is given up after ATTEMPTS times these, and pauses of a few seconds.
ATTEMPTS = 3

PARTS_LIMIT = 10_000
#: S3 wants parts of 5 MiB at least and PARTS_LIMIT of them at most; one is held in memory while it is sent.
PART_BYTES = 8 << 20
#: Larger objects are copied in parts of this size: S3 allows 5 GiB in one call, and a call must finish before it times
#: out.
COPY_BYTES = 512 << 20
#: Answers of a store that may not, or cannot, copy between these two places: the bytes then go through this process.
_NO_COPY_CODES = frozenset({"AccessDenied", "NotImplemented", "MethodNotAllowed"})

#: Where a store's address and keys come from: a setting, or an option of the command.
_BUCKET_HINT = "the bucket's name (BALEEN_S3_BUCKET, or the s3:// URL that was given)"
_ENDPOINT_HINT = "the endpoint (BALEEN_S3_ENDPOINT_URL, or --endpoint-url)"
_KEYS_HINT = (
    "BALEEN_S3_ACCESS_KEY and BALEEN_S3_SECRET_KEY, or, also for --endpoint-url, AWS_ACCESS_KEY_ID and "
    "AWS_SECRET_ACCESS_KEY"
)

#: Answers of a store that has no rules, or does not support them.
_NO_RULES_CODES = frozenset({"NoSuchLifecycleConfiguration", "NotImplemented", "MethodNotAllowed"})
#: Storage classes from which an object has to be restored before it can be read.
_ARCHIVE_CLASSES = frozenset({"GLACIER", "DEEP_ARCHIVE"})

_NOT_FOUND_CODES = frozenset({"NoSuchKey", "NoSuchVersion"})
#: Answers for a multipart upload that was completed or aborted.
_NO_UPLOAD_CODE = "NoSuchUpload"

#: The permit of the `delete_many` or `abort` that this thread runs.
_current_permit: ContextVar[Permit] = ContextVar("permit")

#: boto3's sessions are not thread-safe; their clients are.
_session_lock = threading.Lock()


class S3ObjectStore:
    """One bucket and a root in it. `root` may be empty; keys are then relative to the bucket."""

    def __init__(
        self,
        bucket: str,
        root: str = "",
        *,
        endpoint_url: str | None = None,
        region: str | None = "us-east-1",
        access_key: str | None = None,
        secret_key: str | None = None,
        connect_timeout: float = CONNECT_TIMEOUT_S,
        read_timeout: float = READ_TIMEOUT_S,
        attempts: int = ATTEMPTS,
        part_bytes: int = PART_BYTES,
        copy_bytes: int = COPY_BYTES,
        list_limit: int = LIST_LIMIT,
    ) -> None:
        self.bucket = bucket
        self.part_bytes = part_bytes
        self.copy_bytes = copy_bytes
        self.list_limit = list_limit
        self.root = f"{check_key(root.strip('/'))}/" if root.strip("/") else ""

        def connected(endpoint: str | None) -> "S3Client":
            config = Config(
                connect_timeout=connect_timeout,
                read_timeout=read_timeout,
                retries={"mode": "standard", "total_max_attempts": attempts},
                s3={"addressing_style": "path"} if endpoint else {},
                max_pool_connections=32,
                # boto3's own takes a tenth of the time of a small call.
                user_agent="baleen",
                # A proxy cannot reach this machine's loopback.
                proxies={} if endpoint and is_loopback(urlsplit(endpoint).hostname or "") else None,
            )
            with _session_lock:
                return _make_session().client(
                    "s3",
                    endpoint_url=endpoint,
                    region_name=region,
                    aws_access_key_id=access_key,
                    aws_secret_access_key=secret_key,
                    config=config,
                )

        try:
            self._client = connected(endpoint_url)
            found = self._client.meta.endpoint_url
            if endpoint_url is None and not _is_amazon(found):
                # One that boto3 found, in AWS_ENDPOINT_URL or its configuration.
                self._client = connected(found)
            # Asked after signing, so that the signature's age limits how late a permitted request takes effect.
            for call in ("DeleteObjects", "AbortMultipartUpload"):
                self._client.meta.events.register(f"before-send.s3.{call}", _ask_permit)
        except (ValueError, BotoCoreError) as error:
            raise SettingsError(
                f"The S3 settings cannot be used ({type(error).__name__}): check BALEEN_S3_ENDPOINT_URL, "
                "BALEEN_S3_REGION, and that both keys are set or neither."
            ) from error

    def __repr__(self) -> str:
        return f"S3ObjectStore({self.bucket!r}, {self.root!r})"

    def get(self, key: str, limit: int | None = None) -> bytes:
        with self._translate_errors(key):
            answer = self._client.get_object(Bucket=self.bucket, Key=self._full_key(key))
            # As a context manager the body would return urllib3's own stream, whose errors are not botocore's.
            with closing(answer["Body"]) as body:
                if limit is not None and answer["ContentLength"] > limit:
                    raise UsageError(f"{key} has {answer['ContentLength']} bytes, more than {limit}.")
                return body.read()

    def head(self, key: str) -> ObjectInfo | None:
        answer = self._head(key)
        return None if answer is None else ObjectInfo(key, answer["ContentLength"], answer["LastModified"])

    def _head(self, key: str) -> Any:
        with self._translate_errors(key):
            try:
                return self._client.head_object(Bucket=self.bucket, Key=self._full_key(key))
            except ClientError as error:
                if error_status(error) != 404:
                    raise
                # HEAD has no body to say what was not found: a missing bucket must not look like a missing object.
                self.check()
                return None

    def open(self, key: str) -> AbstractContextManager[OpenObject]:
        return self._open_object(key)

    def open_version(self, key: str, version: str) -> AbstractContextManager[OpenObject]:
        return self._open_object(key, VersionId=version)

    @contextmanager
    def _open_object(self, key: str, **which: Any) -> Iterator[OpenObject]:
        with self._translate_errors(key):
            answer = self._client.get_object(Bucket=self.bucket, Key=self._full_key(key), **which)
        with closing(answer["Body"]) as body:
            yield OpenObject(answer["ContentLength"], answer.get("ETag"), self._read_chunks(key, body.read))

    def _read_chunks(self, key: str, read: Callable[[int], bytes]) -> Iterator[bytes]:
        while True:
            with self._translate_errors(key):
                chunk = read(CHUNK_BYTES)  # the read at the end raises if bytes are missing
            if not chunk:
                return
            yield chunk

    def put(self, key: str, body: bytes) -> None:
        with self._translate_errors(key):
            self._client.put_object(Bucket=self.bucket, Key=self._full_key(key), Body=body)

    def put_chunks(self, key: str, chunks: Iterable[bytes], size: int) -> None:
        part_bytes = max(self.part_bytes, -(-size // PARTS_LIMIT))
        parts = _split_parts(key, chunks, size, part_bytes)
        if size <= part_bytes:
            self.put(key, b"".join(parts))
            return
        with self._multipart_upload(key) as (upload, done):
            for number, part in enumerate(parts, 1):
                with self._translate_errors(key):
                    answer = self._client.upload_part(**upload, PartNumber=number, Body=part)
                done.append({"PartNumber": number, "ETag": answer["ETag"]})

    def copy_from(self, source: ObjectReader, source_key: str, key: str, *, etag: str | None = None) -> bool:
        if not isinstance(source, S3ObjectStore) or source.endpoint != self.endpoint:
            return False
        size, request = source.copy_source(source_key)
        if etag is not None and request["CopySourceIfMatch"] != etag:
            raise _changed_error(source_key)
        try:
            self._copy_inside(key, size, request)
        except ClientError as error:
            code = error_code(error)
            if code in _NO_COPY_CODES or error_status(error) in {403, 405, 501}:
                return False
            if code == "PreconditionFailed" or error_status(error) == 412:
                raise _changed_error(source_key) from error
            with self._translate_errors(key):
                raise
        return True

    @property
    def endpoint(self) -> str:
        return self._client.meta.endpoint_url

    def copy_source(self, key: str) -> tuple[int, dict[str, Any]]:
        """Return an object's size, and the arguments to copy exactly these bytes: parts must not be of two objects."""
        found = self._head(key)
        if found is None:
            raise ObjectNotFoundError(f"There is no object {key!r} in bucket {self.bucket!r}.")
        place = {"Bucket": self.bucket, "Key": self._full_key(key)}
        return found["ContentLength"], {"CopySource": place, "CopySourceIfMatch": found["ETag"]}

    def _copy_inside(self, key: str, size: int, request: dict[str, Any]) -> None:
        """Copy inside the store, without reading the bytes; does not translate its refusals."""
        if size <= self.copy_bytes:
            with self._translate_errors(key, refusals=False):
                self._client.copy_object(Bucket=self.bucket, Key=self._full_key(key), **request)
            return
        with self._multipart_upload(key) as (upload, done):
            part_bytes = max(self.copy_bytes, -(-size // PARTS_LIMIT))
            for number, start in enumerate(range(0, size, part_bytes), 1):
                piece = f"bytes={start}-{min(start + part_bytes, size) - 1}"
                with self._translate_errors(key, refusals=False):
                    answer = self._client.upload_part_copy(
                        **upload, PartNumber=number, CopySourceRange=piece, **request
                    )
                done.append({"PartNumber": number, "ETag": answer["CopyPartResult"]["ETag"]})

    @contextmanager
    def _multipart_upload(self, key: str) -> Iterator[tuple[dict[str, Any], list[Any]]]:
        """Run a multipart upload; it is completed at the end of the block, and aborted if the block raises."""
        upload: dict[str, Any] = {"Bucket": self.bucket, "Key": self._full_key(key)}
        with self._translate_errors(key):
            upload["UploadId"] = self._client.create_multipart_upload(**upload)["UploadId"]
        done: list[Any] = []
        try:
            yield upload, done
            with self._translate_errors(key):
                self._client.complete_multipart_upload(**upload, MultipartUpload={"Parts": done})
        except BaseException:
            with use_permit(_permit_own_upload), suppress(BotoCoreError, ClientError, OSError):
                self._client.abort_multipart_upload(**upload)
            raise

    def delete(self, key: str) -> None:
        try:
            with self._translate_errors(key):
                self._client.delete_object(Bucket=self.bucket, Key=self._full_key(key))
        except ObjectNotFoundError:
            return  # S3 itself does not report it, some others do

    def delete_many(self, targets: Sequence[Target], permit: Permit) -> Sequence[DeleteResult]:
        if not targets:
            return []
        if len(targets) > DELETE_LIMIT or len(set(targets)) < len(targets):
            raise UsageError(f"Delete up to {DELETE_LIMIT} different objects at once.")
        named: list[Any] = [
            {"Key": self._full_key(each.key)} | ({} if each.version is None else {"VersionId": each.version})
            for each in targets
        ]
        with use_permit(permit), self._translate_errors(targets[0].key):
            answer = self._client.delete_objects(Bucket=self.bucket, Delete={"Objects": named})
        wrong = {
            (each["Key"], each.get("VersionId")): f"{each.get('Code', '')} {each.get('Message', '')}".strip()
            for each in answer.get("Errors", [])
            if each.get("Code") not in _NOT_FOUND_CODES
        }
        deleted = answer.get("Deleted", [])
        done = {(each["Key"], each.get("VersionId")) for each in deleted}
        # The answer also has the id of a marker that was itself the target, and not every store says that it was.
        below = {(each["Key"], each.get("VersionId")) for each in named}
        markers = {
            each["Key"]: marker
            for each in deleted
            if (marker := each.get("DeleteMarkerVersionId")) is not None and (each["Key"], marker) not in below
        }
        return [
            DeleteResult(
                target,
                markers.get(name["Key"]) if target.version is None else None,
                wrong.get((name["Key"], target.version)),
                (name["Key"], target.version) in done,
            )
            for target, name in zip(targets, named, strict=True)
        ]

    def read_versioning(self) -> str | None:
        """Return `Enabled`, `Suspended`, or None if the bucket never kept versions."""
        with self._translate_errors(""):
            return self._client.get_bucket_versioning(Bucket=self.bucket).get("Status")

    def keeps_versions(self) -> bool:
        status = self.read_versioning()
        if status == "Suspended":
            raise UnsafeStoreError(
                f"Versioning of bucket {self.bucket!r} is suspended, so a delete keeps some objects and destroys "
                "others: enable versioning."
            )
        self._check_lifecycle_rules()
        return status == "Enabled"

    def _check_lifecycle_rules(self) -> None:
        """Raise UnsafeStoreError if a rule of the bucket deletes what GC needs to stay."""
        try:
            with self._translate_errors("", refusals=False):
                answer = self._client.get_bucket_lifecycle_configuration(Bucket=self.bucket)
        except ClientError as error:
            code = error_code(error)
            if code in _NO_RULES_CODES:
                return
            if code in {"AccessDenied", "Forbidden"}:
                raise UnsafeStoreError(
                    f"The lifecycle rules of bucket {self.bucket!r}, which may delete hidden bytes, cannot be read: "
                    "permit s3:GetLifecycleConfiguration to Baleen's key."
                ) from error
            raise UnavailableError(self._describe_refusal("", code, error_status(error))) from error
        areas = [self.root + BLOBS, self.root + QUARANTINE]
        for rule in answer.get("Rules", []):
            expires = {"Days", "Date"} & rule.get("Expiration", {}).keys() or "NoncurrentVersionExpiration" in rule
            moves = rule.get("Transitions", []) + rule.get("NoncurrentVersionTransitions", [])
            archives = _ARCHIVE_CLASSES & {move.get("StorageClass") for move in moves}
            prefix = _prefix_of(rule)
            if (
                rule["Status"] == "Enabled"
                and (expires or archives)
                and any(area.startswith(prefix) or prefix.startswith(area) for area in areas)
            ):
                does, left = ("deletes by itself", "gone") if expires else ("archives", "out of reach")
                raise UnsafeStoreError(
                    f"Rule {rule.get('ID', '')!r} of bucket {self.bucket!r} {does} below "
                    f"{prefix or 'all prefixes'}, so hidden bytes may be {left} when they are needed again: limit "
                    f"the rule to prefixes other than {' and '.join(areas)}."
                )

    def list(self, prefix: str, start_after: str | None = None, limit: int = LIST_LIMIT) -> list[ObjectInfo]:
        limit = check_page_size(limit)
        # A store may return fewer than requested and still have more.
        return list(islice(self._list_objects(prefix, start_after, limit), limit))

    def walk(self, prefix: str) -> Iterator[ObjectInfo]:
        return self._list_objects(prefix, None, self.list_limit)

    def walk_keys(self, prefix: str) -> Iterator[str]:
        return (entry.key for entry in self.walk(prefix))

    def list_folders(self, prefix: str) -> Iterator[str]:
        return self._folders_in(self._list_object_pages(prefix, Delimiter="/", MaxKeys=self.list_limit))

    def _list_objects(self, prefix: str, start_after: str | None, size: int) -> Iterator[ObjectInfo]:
        first = {"StartAfter": self.root + start_after} if start_after else {}
        for page in self._list_object_pages(prefix, first, MaxKeys=size):
            for entry in page.get("Contents", []):
                if not entry["Key"].endswith("/"):  # some stores list directories
                    yield ObjectInfo(entry["Key"].removeprefix(self.root), entry["Size"], entry["LastModified"])

    def _list_object_pages(self, prefix: str, first: dict[str, Any] | None = None, **request: Any) -> Iterator[Any]:
        marks = {"ContinuationToken": "NextContinuationToken"}
        request |= {"Bucket": self.bucket, "Prefix": self.root + prefix}
        return self._list_pages(self._client.list_objects_v2, prefix, request, marks, first)

    def _list_version_pages(self, prefix: str, **request: Any) -> Iterator[Any]:
        marks = {"KeyMarker": "NextKeyMarker", "VersionIdMarker": "NextVersionIdMarker"}
        request = {"Bucket": self.bucket, "Prefix": self.root + prefix, "MaxKeys": self.list_limit} | request
        return self._list_pages(self._client.list_object_versions, prefix, request, marks)

    def _list_pages(
        self,
        call: Callable[..., Any],
        key: str,
        request: dict[str, Any],
        marks: Mapping[str, str],
        first: dict[str, Any] | None = None,
    ) -> Iterator[Any]:
        """Yield the pages of a listing.

        `marks` maps arguments of the next call to the fields of an answer; `first` has those of the first call. A store
        that does not say how to continue must not look as if the list had ended.
        """
        after = first or {}
        while True:
            with self._translate_errors(key):
                page = call(**request, **after)
            yield page
            if not page["IsTruncated"]:
                return
            # SeaweedFS uses one of two marks of unfinished uploads, and rejects the other.
            before, after = after, {name: page[field] for name, field in marks.items() if page.get(field)}
            if after in ({}, before):
                raise _endless_listing_error()

    def _folders_in(self, pages: Iterable[Any]) -> Iterator[str]:
        for page in pages:
            for entry in page.get("CommonPrefixes", []):
                yield entry["Prefix"].removeprefix(self.root)

    def list_versions(self, key: str, limit: int = VERSIONS_LIMIT) -> Sequence[ObjectVersion]:
        path = self._full_key(key)
        found: list[ObjectVersion] = []
        for page in self._list_version_pages(key, MaxKeys=min(limit, self.list_limit)):
            # The key's own states come first: no key that begins with it is smaller.
            found += (state for name, state in _parse_states(page) if name == path)
            ends = page.get("NextKeyMarker")
            if len(found) >= limit or ends not in {None, path}:
                break
            if page["IsTruncated"] and None in {ends, page.get("NextVersionIdMarker")}:
                raise _endless_listing_error()
        found.sort(key=lambda each: (each.latest, each.modified_at), reverse=True)
        return found[:limit]

    def remove_marker(self, key: str, version: str) -> bool:
        # Version names are unique: a marker never becomes a version with bytes.
        if not any(each.is_marker and each.version == version for each in self.list_versions(key)):
            return False
        try:
            with self._translate_errors(key):
                self._client.delete_object(Bucket=self.bucket, Key=self._full_key(key), VersionId=version)
        except ObjectNotFoundError:
            return False  # as in `delete`: another process was faster, or an earlier attempt without an answer
        return True

    def walk_versions(self, prefix: str) -> Iterator[KeyVersion]:
        for page in self._list_version_pages(prefix):
            # A page has versions and markers in two lists. The page's last key is yielded last, because the next page
            # may have more of it.
            ends = page.get("NextKeyMarker")
            found: dict[str, list[ObjectVersion]] = {}
            for key, state in _parse_states(page):
                found.setdefault(key, []).append(state)
            for key in sorted(found, key=lambda key: key == ends):
                for state in found[key]:
                    yield KeyVersion(key.removeprefix(self.root), state)

    def list_version_folders(self, prefix: str) -> Iterator[str]:
        return self._folders_in(self._list_version_pages(prefix, Delimiter="/"))

    def list_unfinished(self, prefix: str) -> Iterator[UnfinishedUpload]:
        marks = {"KeyMarker": "NextKeyMarker", "UploadIdMarker": "NextUploadIdMarker"}
        request = {"Bucket": self.bucket, "Prefix": self.root + prefix, "MaxUploads": self.list_limit}
        for page in self._list_pages(self._client.list_multipart_uploads, prefix, request, marks):
            for entry in page.get("Uploads", []):
                yield UnfinishedUpload(entry["Key"].removeprefix(self.root), entry["Initiated"], entry["UploadId"])

    def count_stored_bytes(self, upload: UnfinishedUpload) -> int:
        marks = {"PartNumberMarker": "NextPartNumberMarker"}
        try:
            pages = self._list_pages(self._client.list_parts, upload.key, self._upload_arguments(upload), marks)
            return sum(part["Size"] for page in pages for part in page.get("Parts", []))
        except UnavailableError as error:
            if isinstance(error.__cause__, ClientError) and error_code(error.__cause__) == _NO_UPLOAD_CODE:
                return 0
            raise

    def abort_upload(self, upload: UnfinishedUpload, permit: Permit) -> None:
        with use_permit(permit), self._translate_errors(upload.key):
            try:
                self._client.abort_multipart_upload(**self._upload_arguments(upload))
            except ClientError as error:
                if error_code(error) != _NO_UPLOAD_CODE:
                    raise

    def _upload_arguments(self, upload: UnfinishedUpload) -> Any:
        return {"Bucket": self.bucket, "Key": self._full_key(upload.key), "UploadId": upload.upload}

    def check(self) -> None:
        with self._translate_errors(""):
            try:
                self._client.head_bucket(Bucket=self.bucket)
            except ClientError as error:
                if error_status(error) == 404:
                    raise self._no_bucket_error() from error
                raise

    def enable_versioning(self) -> None:
        """Enable versioning of the bucket: GC then hides by a delete marker."""
        with self._translate_errors(""):
            self._client.put_bucket_versioning(Bucket=self.bucket, VersioningConfiguration={"Status": "Enabled"})

    def _full_key(self, key: str) -> str:
        return self.root + check_key(key)

    @contextmanager
    def _translate_errors(self, key: str, *, refusals: bool = True) -> Iterator[None]:
        """Translate boto3's errors; without `refusals` the store's own answers are raised unchanged."""
        try:
            yield
        except ClientError as error:
            if not refusals:
                raise
            code = error_code(error)
            if code in _NOT_FOUND_CODES:
                raise ObjectNotFoundError(f"There is no object {key!r} in bucket {self.bucket!r}.") from error
            if code == "NoSuchBucket":
                raise self._no_bucket_error() from error
            raise UnavailableError(self._describe_refusal(key, code, error_status(error))) from error
        except (NoCredentialsError, PartialCredentialsError) as error:
            raise UnavailableError(
                f"There are no keys for the object store at {self._safe_endpoint}: set {_KEYS_HINT}."
            ) from error
        except ParamValidationError as error:
            raise UnavailableError(
                f"The object store at {self._safe_endpoint} cannot be asked for bucket {self.bucket!r} "
                f"({type(error).__name__}): check {_BUCKET_HINT}."
            ) from error
        except (BotoCoreError, OSError) as error:
            raise UnavailableError(
                f"The object store does not answer at {self._safe_endpoint} "
                f"({type(error).__name__}): start it or try again, "
                f"or check {_ENDPOINT_HINT}."
            ) from error

    @property
    def _safe_endpoint(self) -> str:
        """The endpoint without secrets, for messages: a URL can carry one."""
        url = urlsplit(self.endpoint)
        return f"{url.scheme}://{url.netloc.rpartition('@')[2]}"

    def _no_bucket_error(self) -> UnavailableError:
        return UnavailableError(
            f"There is no bucket {self.bucket!r} at {self._safe_endpoint}: check {_BUCKET_HINT}, and {_ENDPOINT_HINT}."
        )

    def _describe_refusal(self, key: str, code: str, status: int) -> str:
        what = f"{key!r} in bucket {self.bucket!r}" if key else f"bucket {self.bucket!r}"
        refused = f"The object store at {self._safe_endpoint} refused {what} ({code or status})"
        if status in {401, 403}:
            return f"{refused}: check {_KEYS_HINT}, and the permissions of that key."
        return f"{refused}: try again, or check {_ENDPOINT_HINT}."


@contextmanager
def use_permit(permit: Permit) -> Iterator[None]:
    """Permit this thread to run `delete_many` or `abort`; neither works without a permit."""
    before = _current_permit.set(permit)
    try:
        yield
    finally:
        _current_permit.reset(before)


def _ask_permit(**_: Any) -> None:
    _current_permit.get()()


def _permit_own_upload() -> None:
    """A permit for a multipart upload that this process started and aborts itself."""


@cache
def _make_session() -> boto3.session.Session:
    """Return a boto3 session with a fast parser of dates, because boto3's own slows listings."""
    session = botocore.session.get_session()
    session.get_component("response_parser_factory").set_parser_defaults(timestamp_parser=_parse_time)
    return boto3.session.Session(botocore_session=session)


def _parse_time(value: Any) -> datetime.datetime:
    """Parse a time in the format of S3's listings; other formats are parsed by boto3, ten times as slowly."""
    try:
        found = datetime.datetime.fromisoformat(value)
    except (TypeError, ValueError):
        found = None
    if found is not None and found.tzinfo is not None:
        return found
    parsed: datetime.datetime = parse_timestamp(value)
    return parsed


def _split_parts(key: str, chunks: Iterable[bytes], size: int, part_bytes: int) -> Iterator[bytes]:
    """Yield `size` bytes in parts of the same length; raises UsageError if there are more or fewer."""
    came, part = 0, bytearray()
    for chunk in chunks:
        came += len(chunk)
        if came > size:
            break
        part += chunk
        while len(part) > part_bytes:
            yield bytes(part[:part_bytes])
            del part[:part_bytes]
    if came != size:
        raise UsageError(f"{key} should have {size} bytes, and {'more' if came > size else came} came.")
    yield bytes(part)


def _prefix_of(rule: Any) -> str:
    """Return the prefix to which a rule is limited. A limit by tags is ignored: the tags are not known here."""
    within = rule.get("Filter", {})
    found: str = within.get("Prefix") or within.get("And", {}).get("Prefix") or rule.get("Prefix") or ""
    return found


def _parse_states(page: Any) -> Iterator[tuple[str, ObjectVersion]]:
    """Yield the keys, with their root, and states of a page of versions."""
    for entry in (*page.get("Versions", []), *page.get("DeleteMarkers", [])):
        if not entry["Key"].endswith("/"):  # what some stores show of directories
            # A marker has no size.
            state = ObjectVersion(entry["VersionId"], entry.get("Size"), entry["LastModified"], entry["IsLatest"])
            yield entry["Key"], state


def _endless_listing_error() -> UnavailableError:
    return UnavailableError("The object store does not say how to continue its list.")


def _changed_error(key: str) -> ConflictError:
    return ConflictError(f"{key} has changed since it was read: try again.")


def _is_amazon(url: str) -> bool:
    return (urlsplit(url).hostname or "").endswith((".amazonaws.com", ".amazonaws.com.cn"))


def error_code(error: ClientError) -> str:
    return str(error.response.get("Error", {}).get("Code", ""))


def error_status(error: ClientError) -> int:
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
