"""A client of the OCI distribution protocol for one registry.

Route: RegistryClient -> httpx -> registry; push_image and pull_image are built from the single calls.
Invariants: every call has a timeout; returned bytes have been verified against their digest; the token goes only to
the registry's own address. Digests are in the form that registries write, `sha256:<hex>`.
Not here: which registry belongs to which pod; authentication (auth.py); retries.
"""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from typing import Any, BinaryIO, Self

import httpx

from coordinator.domain.references import MANIFEST_BYTES_LIMIT
from coordinator.registry.auth import Credentials, RegistryAuth, is_same_origin
from coordinator.registry.errors import (
    RegistryAuthenticationError,
    RegistryContentError,
    RegistryError,
    RegistryGoneError,
    RegistryNotFoundError,
    RegistryUnreachableError,
)
from coordinator.registry.images import DOCKER, OCI, Image, Index, sha256_digest
from coordinator.registry.transport import (
    LONG_ANSWER,
    AddressTransport,
    describe_error,
    is_refused,
    make_response_limiter,
    request_url,
    tls_context,
)

__all__ = [
    "Manifest",
    "PulledImage",
    "RegistryAuthenticationError",
    "RegistryClient",
    "RegistryContentError",
    "RegistryError",
    "RegistryGoneError",
    "RegistryNotFoundError",
    "RegistryUnreachableError",
]

CHUNK_BYTES = 1 << 20
#: Headers that distinguish a registry, or a proxy before it, from a store that answers every request with 403.
REGISTRY_HEADERS = ("WWW-Authenticate", "Docker-Distribution-Api-Version")
INDEX_TYPES = frozenset({OCI.index, DOCKER.index})
ACCEPT = f"{OCI.manifest}, {OCI.index}, {DOCKER.manifest}, {DOCKER.index}, */*"


@dataclass(frozen=True)
class Manifest:
    content: bytes
    media_type: str
    digest: str


@dataclass(frozen=True)
class PulledImage:
    """The digests of a pulled image, each compared with its bytes."""

    digest: str
    blobs: tuple[str, ...]  # configuration first, then the layers
    children: tuple["PulledImage", ...]


class RegistryClient:
    def __init__(
        self,
        base_url: str,
        *,
        token: str | None = None,
        credentials: Credentials | None = None,
        address: str | None = None,
        ca_file: str | None = None,
        keep_alive: bool = True,
        user_agent: str = "baleen",
        timeout: float = 30.0,
    ) -> None:
        """Use the registry at `base_url`, which must be http or https.

        A challenge of the registry is answered with `credentials`, or without them with a request for an anonymous
        token; with `token` nothing else is tried. `address` is the one of the host's addresses to connect to. `ca_file`
        has certificates to trust in addition to the system's.
        """
        self._base_url = base_url.rstrip("/")
        headers = {"User-Agent": user_agent}
        if token is not None:
            headers["Authorization"] = f"Bearer {token}"
        tls = tls_context(ca_file)
        limits = httpx.Limits(max_connections=100, max_keepalive_connections=20 if keep_alive else 0)
        self._http = httpx.Client(
            base_url=self._base_url,
            headers=headers,
            auth=None if token is not None else RegistryAuth(self._base_url, credentials),
            timeout=timeout,
            verify=tls,
            limits=limits,
            transport=None if address is None else AddressTransport(self._base_url, address, tls, limits),
            event_hooks={"response": [make_response_limiter(timeout)]},
            trust_env=False,
        )

    def __repr__(self) -> str:
        return f"RegistryClient({self._base_url!r})"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._http.close()

    @contextmanager
    def use_user_agent(self, user_agent: str) -> Iterator[None]:
        """Use another User-Agent until the block ends. Used by one thread."""
        known = self._http.headers["User-Agent"]
        self._http.headers["User-Agent"] = user_agent
        try:
            yield
        finally:
            self._http.headers["User-Agent"] = known

    def ping(self) -> None:
        """Raise unless the registry answers and accepts the credentials."""
        self._call("GET", "/v2/", expect=200)

    # Blobs

    def has_blob(self, repository: str, digest: str) -> bool:
        return self._exists(f"/v2/{repository}/blobs/{digest}")

    def blob_size(self, repository: str, digest: str) -> int | None:
        """Return the blob's size in bytes; None if the repository has none."""
        answer = self._call("HEAD", f"/v2/{repository}/blobs/{digest}", expect=(200, 404), follow=True)
        if answer.status_code != 200:
            return None
        size = answer.headers.get("Content-Length", "")
        if not size.isdecimal():
            raise RegistryContentError(f"The registry {self._base_url} does not say how large {digest} is.")
        return int(size)

    def read_blob(self, repository: str, digest: str) -> Iterator[bytes]:
        """Yield a blob in chunks; raise at its end if the bytes do not have the digest."""
        seen = hashlib.sha256()
        with self._stream(f"/v2/{repository}/blobs/{digest}") as response:
            # Yielded as they come, so that the caller can stop when they come too slowly.
            for chunk in response.iter_bytes():
                seen.update(chunk)
                yield chunk
        _check_digest(digest, "sha256:" + seen.hexdigest(), repository)

    def get_blob(self, repository: str, digest: str) -> bytes:
        return b"".join(self.read_blob(repository, digest))

    def push_blob(
        self,
        repository: str,
        content: bytes | BinaryIO,
        *,
        digest: str | None = None,
        unless_present: bool = False,
    ) -> str:
        """Upload a blob (POST, then one PUT) and return its digest.

        A file is read from its present position to its end and must be seekable; it is read twice unless
        `digest` is given. With `unless_present` the registry is asked first, as clients do.
        """
        body = BytesIO(content) if isinstance(content, bytes) else content
        start = body.tell()
        digest = digest or _digest_of(body)
        size = body.seek(0, 2) - start
        body.seek(start)
        if unless_present and self.has_blob(repository, digest):
            return digest
        session = self.begin_upload(repository)
        self.finish_upload(session, digest, iter(lambda: body.read(CHUNK_BYTES), b""), size)
        return digest

    def begin_upload(self, repository: str) -> str:
        """Open an upload and return its session: a path, which may also be valid at another registry process."""
        opened = self._call("POST", f"/v2/{repository}/blobs/uploads/", expect=202)
        return self._session_url(opened).raw_path.decode()

    def append_upload(self, session: str, pieces: Iterator[bytes], size: int, offset: int) -> str:
        """Send the `size` bytes of an upload that begin at `offset`; return its session after that."""
        answer = self._call(
            "PATCH",
            self._url_of(session),
            expect=202,
            content=pieces,
            headers={
                "Content-Length": str(size),
                "Content-Type": "application/octet-stream",
                "Content-Range": f"{offset}-{offset + size - 1}",
            },
        )
        return self._session_url(answer).raw_path.decode()

    def upload_status(self, session: str) -> tuple[str, int]:
        """Return an upload's session, and how many bytes the registry has of it."""
        answer = self._call("GET", self._url_of(session), expect=204)
        # `0-0` means no byte or one byte. Sending that one again is refused, and nothing is lost.
        last = answer.headers.get("Range", "0-0").rpartition("-")[2]
        stands = int(last) + 1 if last.isdigit() and last != "0" else 0
        return self._session_url(answer).raw_path.decode(), stands

    def finish_upload(self, session: str, digest: str, chunks: Iterator[bytes], size: int) -> None:
        self._call(
            "PUT",
            self._url_of(session).copy_merge_params({"digest": digest}),
            expect=201,
            content=chunks,
            headers={"Content-Length": str(size), "Content-Type": "application/octet-stream"},
        )

    def cancel_upload(self, session: str) -> None:
        """Cancel an upload; that the registry does not know it, or does not support this, is not an error."""
        self._call("DELETE", self._url_of(session), expect=(204, 404, 405))

    def mount_blob(self, repository: str, digest: str, from_repository: str | None) -> bool:
        """Link a blob of another repository; False if the registry wants it uploaded instead."""
        params = {"mount": digest} | ({"from": from_repository} if from_repository else {})
        answer = self._call("POST", f"/v2/{repository}/blobs/uploads/", expect=(201, 202), params=params)
        if answer.status_code == 201:
            return True
        # The registry has opened an upload that will not be finished: it would stay in its storage forever.
        self.cancel_upload(self._session_url(answer).raw_path.decode())
        return False

    def delete_blob(self, repository: str, digest: str) -> None:
        self._call("DELETE", f"/v2/{repository}/blobs/{digest}", expect=202)

    # Manifests

    def has_manifest(
        self, repository: str, reference: str, *, user_agent: str | None = None, follow: bool = True
    ) -> bool:
        """Whether the registry has the manifest. With `follow=False` redirects are not followed."""
        return self._exists(f"/v2/{repository}/manifests/{reference}", user_agent=user_agent, follow=follow)

    def get_manifest(self, repository: str, reference: str, *, user_agent: str | None = None) -> Manifest:
        """Fetch a manifest by tag or digest; bytes are verified against a digest."""
        with self._stream(f"/v2/{repository}/manifests/{reference}", user_agent=user_agent) as response:
            content = _read_limited(response, MANIFEST_BYTES_LIMIT)
            media_type = response.headers.get("Content-Type", "").partition(";")[0]
        digest = sha256_digest(content)
        if ":" in reference:
            _check_digest(reference, digest, repository)
        return Manifest(content, media_type, digest)

    def put_manifest(
        self, repository: str, reference: str, media_type: str, content: bytes, *, user_agent: str | None = None
    ) -> str:
        agent = {"User-Agent": user_agent} if user_agent else {}
        self._call(
            "PUT",
            f"/v2/{repository}/manifests/{reference}",
            expect=201,
            content=content,
            headers={"Content-Type": media_type} | agent,
        )
        return sha256_digest(content)

    def delete_manifest(self, repository: str, digest: str) -> None:
        self._call("DELETE", f"/v2/{repository}/manifests/{digest}", expect=202)

    # Whole images

    def push_image(
        self, repository: str, image: Image | Index, tag: str | None = None, *, mount_from: str | None = None
    ) -> str:
        """Push blobs, children and manifest as a client does, and return the manifest's digest.

        Blobs that the repository has are skipped; `mount_from` names a repository to try a mount from.
        """
        if isinstance(image, Index):
            for child in image.manifests:
                self.push_image(repository, child, mount_from=mount_from)
        else:
            for blob in image.blobs:
                if self.has_blob(repository, blob.digest):
                    continue
                if mount_from is None or not self.mount_blob(repository, blob.digest, mount_from):
                    self.push_blob(repository, blob.content, digest=blob.digest)
        return self.put_manifest(repository, tag or image.digest, image.media_type, image.content)

    def pull_image(self, repository: str, reference: str) -> PulledImage:
        """Read an image and everything that it lists, verifying every blob against its digest."""
        manifest = self.get_manifest(repository, reference)
        listed: dict[str, Any] = json.loads(manifest.content)
        if manifest.media_type in INDEX_TYPES:
            children = [self.pull_image(repository, child["digest"]) for child in listed["manifests"]]
            return PulledImage(manifest.digest, (), tuple(children))
        blobs = [listed["config"]["digest"], *(layer["digest"] for layer in listed["layers"])]
        for blob in blobs:
            for _ in self.read_blob(repository, blob):
                pass
        return PulledImage(manifest.digest, tuple(blobs), ())

    # How a call is made

    def _exists(self, path: str, *, user_agent: str | None = None, follow: bool = True) -> bool:
        answer = self._call("HEAD", path, expect=(200, 404), headers=_make_headers(user_agent), follow=follow)
        return answer.status_code == 200

    def _session_url(self, answer: httpx.Response) -> httpx.URL:
        """Return the upload's URL, at the configured address.

        A registry behind a router names the router's host, but the token goes only to the configured address.
        """
        location = answer.headers.get("Location")
        if not location:
            raise RegistryError(
                f"The registry {self._base_url} opened an upload without a Location: check its address."
            )
        return self._url_of(answer.url.join(location).raw_path.decode())

    def _url_of(self, path: str) -> httpx.URL:
        return httpx.URL(self._base_url).copy_with(raw_path=path.encode())

    def _call(
        self,
        method: str,
        url: str | httpx.URL,
        *,
        expect: int | tuple[int, ...],
        content: bytes | Iterator[bytes] | None = None,
        params: dict[str, str] | None = None,
        headers: dict[str, str] | None = None,
        follow: bool = False,
    ) -> httpx.Response:
        request = self._http.build_request(method, url, content=content, params=params, headers=headers)
        with self._translate_errors():
            response = self._http.send(request, follow_redirects=follow)
        if response.status_code not in ((expect,) if isinstance(expect, int) else expect):
            raise _make_error(response, response.content)
        return response

    @contextmanager
    def _stream(self, path: str, *, user_agent: str | None = None) -> Iterator[httpx.Response]:
        # Redirects lead to presigned object store URLs; httpx removes the token for another host.
        with (
            self._translate_errors(),
            self._http.stream(
                "GET", path, headers=_make_headers(user_agent), follow_redirects=True, extensions={LONG_ANSWER: True}
            ) as response,
        ):
            if response.status_code != 200:
                raise _make_error(response, response.read())
            yield response

    @contextmanager
    def _translate_errors(self) -> Iterator[None]:
        try:
            yield
        except httpx.HTTPError as error:
            there = request_url(error) or httpx.URL(self._base_url)
            if not is_same_origin(there, httpx.URL(self._base_url)):
                raise RegistryUnreachableError(
                    f"{there.scheme}://{there.netloc.decode()}, which the registry {self._base_url} named, "
                    f"did not answer ({describe_error(error)}): check that it can be reached from here."
                ) from error
            kind = RegistryGoneError if is_refused(error) else RegistryUnreachableError
            raise kind(
                f"The registry {self._base_url} did not answer ({describe_error(error)}): "
                "check its address and that it runs."
            ) from error


def _make_headers(user_agent: str | None) -> dict[str, str]:
    return {"Accept": ACCEPT} | ({"User-Agent": user_agent} if user_agent else {})


def _make_error(response: httpx.Response, body: bytes) -> RegistryError:
    request = response.request
    codes, detail = _parse_oci_errors(body)
    reason = " ".join(part for part in (str(response.status_code), *codes[:1], detail and f"({detail})") if part)
    message = f"The registry answered {reason} to {request.method} {request.url.path}: see its log."
    kind = RegistryNotFoundError if response.status_code == 404 else RegistryError
    asks = response.status_code == httpx.codes.UNAUTHORIZED or (
        response.status_code == httpx.codes.FORBIDDEN and any(name in response.headers for name in REGISTRY_HEADERS)
    )
    return kind(message, registry_status=response.status_code, codes=codes, challenged=asks)


def _parse_oci_errors(body: bytes) -> tuple[tuple[str, ...], str | None]:
    """Return the codes of all errors, and the message of the first."""
    try:
        errors = json.loads(body)["errors"]
        return tuple(str(each["code"]) for each in errors), str(errors[0].get("message", "")) or None
    except (ValueError, LookupError, TypeError, AttributeError):
        return (), None


def _digest_of(body: BinaryIO) -> str:
    start, seen = body.tell(), hashlib.sha256()
    while chunk := body.read(CHUNK_BYTES):
        seen.update(chunk)
    body.seek(start)
    return "sha256:" + seen.hexdigest()


def _read_limited(response: httpx.Response, limit: int) -> bytes:
    content = bytearray()
    for chunk in response.iter_bytes():
        content += chunk
        if len(content) > limit:
            raise RegistryContentError(
                f"The manifest at {response.request.url.path} is larger than {limit} bytes and is not read."
            )
    return bytes(content)


def _check_digest(expected: str, actual: str, repository: str) -> None:
    if expected != actual:
        raise RegistryContentError(
            f"The registry's bytes for {expected} in {repository} have the digest {actual}: "
            "restore the blob from an intact copy."
        )
