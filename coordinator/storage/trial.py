"""Trials of a doctor on a bucket: whether it keeps versions, what a key is permitted to do, and cleaning up.

An `Attempt` expects to be refused, so a refusal is a result here and no error. Each is harmless if it is permitted: it
works on a scratch object, sets what is set already, starts what has no effect, or sends what no store accepts.
`erase` and `erase_below` permanently delete all versions: they are only for a visit's own scratch objects
(doctor/scratch.py), and nothing else calls them.
Not here: which objects are scratch.
"""

import re
from collections.abc import Callable, Iterable
from contextlib import closing
from typing import Any, NamedTuple

from botocore.exceptions import ClientError

from coordinator.errors import UnavailableError, UsageError
from coordinator.storage.port import LIST_LIMIT, KeyVersion, check_key
from coordinator.storage.s3 import S3ObjectStore, error_code, error_status, use_permit

#: S3's names for the state of a bucket's versioning.
ENABLED = "Enabled"


class Attempt(NamedTuple):
    """The result of an attempt: whether the store permitted it, and the store's error code."""

    allowed: bool
    #: The store's error code; "done" if it permitted the attempt.
    reply: str

    @property
    def is_forbidden(self) -> bool:
        """Whether this key lacks the right; the answer to an unknown key is another one."""
        return self.reply == "AccessDenied"


class TrialStore(S3ObjectStore):
    """One bucket, used with one key."""

    # Attempts that should be refused

    def attempt_put(self, key: str, body: bytes) -> Attempt:
        return self._attempt(
            key, lambda: self._client.put_object(Bucket=self.bucket, Key=self._full_key(key), Body=body)
        )

    def attempt_get(self, key: str) -> Attempt:
        def get() -> dict[str, Any]:
            with closing(self._client.get_object(Bucket=self.bucket, Key=self._full_key(key))["Body"]):
                return {}

        return self._attempt(key, get)

    def attempt_list(self, prefix: str) -> Attempt:
        return self._attempt(
            prefix, lambda: self._client.list_objects_v2(Bucket=self.bucket, Prefix=self.root + prefix, MaxKeys=1)
        )

    def attempt_upload(self, key: str, cleaner: "TrialStore") -> Attempt:
        """Start a multipart upload, and have `cleaner` abort it: needs the right to overwrite, and changes nothing."""
        begun: list[str] = []

        def begin() -> Any:
            answer = self._client.create_multipart_upload(Bucket=self.bucket, Key=self._full_key(key))
            begun.append(answer["UploadId"])
            return answer

        try:
            return self._attempt(key, begin)
        finally:
            if begun:
                cleaner.abort_uploads(key)

    def attempt_delete(self, key: str, version: str | None = None) -> Attempt:
        return self._attempt(
            key, lambda: self._client.delete_object(Bucket=self.bucket, **self._object_arguments(key, version))
        )

    def attempt_delete_many(self, key: str, version: str | None = None) -> Attempt:
        """Delete by the call that deletes up to a thousand at once, as registries do: a store checks it separately."""
        delete: Any = {"Objects": [self._object_arguments(key, version)]}
        with use_permit(_permit_own):
            return self._attempt(key, lambda: self._client.delete_objects(Bucket=self.bucket, Delete=delete))

    def attempt_versioning(self, status: str) -> Attempt:
        """Set the bucket's versioning to its present value: shows whether the key may, and changes nothing."""
        setting: Any = {"Status": status}
        return self._attempt(
            "", lambda: self._client.put_bucket_versioning(Bucket=self.bucket, VersioningConfiguration=setting)
        )

    def attempt_policy(self) -> Attempt:
        """Set the bucket's policy to invalid content: if the key is permitted to, the store refuses the content."""
        return self._attempt("", lambda: self._client.put_bucket_policy(Bucket=self.bucket, Policy="no policy"))

    def _attempt(self, key: str, call: Callable[[], Any]) -> Attempt:
        with self._translate_errors(key):
            try:
                answer = call()
            except ClientError as error:
                if not 400 <= error_status(error) < 500:
                    raise  # an outage is not a refusal
                return Attempt(allowed=False, reply=error_code(error) or str(error_status(error)))
        for failed in answer.get("Errors", ()):
            return Attempt(allowed=False, reply=str(failed.get("Code", "refused")))
        return Attempt(allowed=True, reply="done")

    # Cleaning up

    def erase(self, keys: Iterable[str]) -> int:
        """Delete every version and marker of objects; return how many there were."""
        return self._erase_states([each for key in keys for each in self.walk_versions(key) if each.key == key])

    def list_matching(self, prefix: str, pattern: re.Pattern[str]) -> set[str]:
        """Return the keys that begin with prefix and match, also of objects with only old versions left."""
        return {each.key for each in self.walk_versions(prefix) if pattern.search(each.key)}

    def abort_uploads(self, key: str) -> None:
        """Abort all multipart uploads of one key. Only for keys that are never written by multipart uploads."""
        for upload in self.list_unfinished(key):
            if upload.key == key:
                self.abort_upload(upload, _permit_own)

    def erase_below(self, prefix: str) -> int:
        """Delete every version and marker of all objects below a folder, and abort multipart uploads there."""
        if not prefix.endswith("/"):
            raise UsageError(f"{prefix!r} is not a folder: it would also match its neighbours.")
        folder = check_key(prefix.rstrip("/")) + "/"
        count = self._erase_states(list(self.walk_versions(folder)))
        uploads = list(self.list_unfinished(folder))
        for upload in uploads:
            self.abort_upload(upload, _permit_own)
        return count + len(uploads)

    def _erase_states(self, found: list[KeyVersion]) -> int:
        for start in range(0, len(found), LIST_LIMIT):
            # By version even if none are kept: the version is then `null`, and no marker is left. (On SeaweedFS a
            # marker of that name, which a bucket with suspended versioning makes, cannot be removed.)
            part = found[start : start + LIST_LIMIT]
            names: Any = [{"Key": self.root + each.key, "VersionId": each.state.version} for each in part]
            with use_permit(_permit_own), self._translate_errors(part[0].key):
                answer = self._client.delete_objects(Bucket=self.bucket, Delete={"Objects": names, "Quiet": True})
            for failed in answer.get("Errors", ()):
                code = failed.get("Code")
                raise UnavailableError(f"The object store did not delete {failed.get('Key')!r} ({code}): try again.")
        return len(found)

    def _object_arguments(self, key: str, version: str | None) -> Any:
        return {"Key": self._full_key(key)} | ({} if version is None else {"VersionId": version})


def _permit_own() -> None:
    """A permit for objects that a trial made itself."""
