"""Object stores, from the settings: the shared one, and those that an operator names."""

from typing import Any

from coordinator.errors import UnconfiguredError, UsageError
from coordinator.settings import HTTP_URL, Secret, Settings
from coordinator.storage.files import FileObjectStore
from coordinator.storage.locations import FileLocation, Location
from coordinator.storage.port import ObjectReader
from coordinator.storage.s3 import S3ObjectStore
from coordinator.storage.trial import TrialStore

#: With this setting, boto3 is asked for a region first, because the region is what is usually not set elsewhere.
DEFAULT_REGION = Settings().s3_region


def _require_bucket(settings: Settings) -> str:
    if settings.s3_bucket is None:
        raise UnconfiguredError(
            "No bucket is configured: start `baleen up` in this directory, or set BALEEN_S3_BUCKET."
        )
    return settings.s3_bucket


def make_object_store(settings: Settings, **timeouts: Any) -> S3ObjectStore:
    """The shared store; `timeouts` are arguments of S3ObjectStore."""
    return S3ObjectStore(
        _require_bucket(settings),
        settings.s3_root,
        endpoint_url=settings.s3_endpoint_url,
        region=settings.s3_region,
        access_key=settings.s3_access_key,
        secret_key=None if settings.s3_secret_key is None else settings.s3_secret_key.reveal(),
        **timeouts,
    )


def make_trial_store(settings: Settings, access_key: str | None = None, secret_key: Secret | None = None) -> TrialStore:
    """The shared store for a doctor's trials, with Baleen's own key or another."""
    if access_key is None:
        access_key, secret_key = settings.s3_access_key, settings.s3_secret_key
    return TrialStore(
        _require_bucket(settings),
        settings.s3_root,
        endpoint_url=settings.s3_endpoint_url,
        region=settings.s3_region,
        access_key=access_key,
        secret_key=None if secret_key is None else secret_key.reveal(),
    )


def open_location(location: Location, settings: Settings, *, endpoint_url: str | None = None) -> ObjectReader:
    """Open a store that the operator named, for reading: a directory, or a bucket.

    The bucket is at `endpoint_url` (`--endpoint-url`), else at the settings' endpoint, else where boto3 finds it.
    The settings' keys are used only at the settings' endpoint; elsewhere boto3 finds keys. Raises UsageError if
    `endpoint_url` is malformed.
    """
    if isinstance(location, FileLocation):
        return FileObjectStore(location.directory)
    if endpoint_url is not None:
        try:
            HTTP_URL.parse(endpoint_url)
        except ValueError as error:
            raise UsageError(f"--endpoint-url is malformed: it must be {HTTP_URL}.") from error
    ours = endpoint_url is None or settings.s3_endpoint_url in {None, endpoint_url}
    secret = settings.s3_secret_key if ours else None
    return S3ObjectStore(
        location.bucket,
        location.root,
        endpoint_url=endpoint_url or settings.s3_endpoint_url,
        region=settings.s3_region if settings.s3_region != DEFAULT_REGION else None,
        access_key=settings.s3_access_key if ours else None,
        secret_key=None if secret is None else secret.reveal(),
    )


def is_same_place(one: ObjectReader, other: ObjectReader) -> bool:
    """Whether both are the same root of the same bucket, judged by their addresses."""
    return (
        isinstance(one, S3ObjectStore)
        and isinstance(other, S3ObjectStore)
        and (one.endpoint, one.bucket, one.root) == (other.endpoint, other.bucket, other.root)
    )
