"""Answer the OCI distribution protocol as CNCF distribution 2.8 answers it, with its notifications.

Route: socket -> _Handler._route (ROUTES) -> one method per endpoint -> ModelStorage, then Notifier
Invariants: storage is written before the event is sent, but a tag's links after it, as in distribution; the event is
queued before the answer is sent, so that events of a client's next request, on any connection, come after it; a
refused request sends no event.
Not here, because no client of Baleen needs it: authentication, ranges, content negotiation, the catalogue.
"""

import json
import re
import socket
import time
import traceback
import uuid
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

from coordinator.domain.names import parse_digest, parse_repository
from coordinator.errors import BaleenError, InvalidNameError
from coordinator.stack.model_manifest import ModelManifest, NotAManifestError, drop_empty
from coordinator.stack.model_notifications import Notifier, Webhook
from coordinator.stack.model_storage import ModelStorage, digest_of

FORM_TYPE = "application/x-www-form-urlencoded"
BLOB_TYPE = "application/octet-stream"
_TAG = re.compile(r"\w[\w.-]{0,127}", re.ASCII)
_UUID = r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"
#: The method `_<HTTP method>_<kind>` answers; HEAD is answered as GET, without the body.
ROUTES = {
    "base": re.compile(r"/v2/"),
    "uploads": re.compile(r"/v2/(?P<name>.+)/blobs/uploads/"),
    "upload": re.compile(rf"/v2/(?P<name>.+)/blobs/uploads/(?P<upload>{_UUID})"),
    "blob": re.compile(r"/v2/(?P<name>.+)/blobs/(?P<digest>[^/]+)"),
    "manifest": re.compile(r"/v2/(?P<name>.+)/manifests/(?P<reference>[^/]+)"),
    "tags": re.compile(r"/v2/(?P<name>.+)/tags/list"),
}


class _Refusal(Exception):  # noqa: N818 - it is an answer, not a fault
    def __init__(self, status: int, code: str, details: tuple[Any, ...] = (None,)) -> None:
        super().__init__(code)
        self.status, self.code, self.details = status, code, details


class ModelServer(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def __init__(
        self,
        address: str,
        port: int,
        storage: ModelStorage,
        webhook: Webhook | None,
        clock: Callable[[], int] = time.time_ns,
    ) -> None:
        super().__init__((address, port), _Handler)
        self.storage = storage
        self.notifier = Notifier(webhook, f"{socket.gethostname()}:{self.server_port}", clock)

    @property
    def url(self) -> str:
        return f"http://{self.server_address[0]!s}:{self.server_port}"

    def server_bind(self) -> None:
        # HTTPServer looks up the address's host name here, which can take seconds where there is no DNS.
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])

    def close(self) -> None:
        self.server_close()
        self.notifier.close()


class _Handler(BaseHTTPRequestHandler):
    server: ModelServer
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # headers and body are two writes: together they would wait for an ACK
    timeout = 120

    def _dispatch(self) -> None:
        self._request_id = str(uuid.uuid4())
        self._body = self._read_body()
        try:
            self._route()
        except InvalidNameError:
            self._refuse(_Refusal(404, "NAME_UNKNOWN"))
        except _Refusal as refusal:
            self._refuse(refusal)
        except BaleenError:
            self.log_error("%s", traceback.format_exc())
            self._refuse(_Refusal(500, "UNKNOWN"))

    # The names that http.server calls.
    do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = _dispatch

    def _route(self) -> None:
        url = urlsplit(self.path)
        self._query = {name: values[0] for name, values in parse_qs(url.query).items()}
        for kind, pattern in ROUTES.items():
            if match := pattern.fullmatch(url.path):
                method = "get" if self.command == "HEAD" else self.command.lower()
                handler = getattr(self, f"_{method}_{kind}", None)
                if handler is None:
                    raise _Refusal(405, "UNSUPPORTED")
                names = match.groupdict()
                self._repository = parse_repository(names.pop("name")) if "name" in names else ""
                handler(**names)
                return
        raise _Refusal(404, "NAME_UNKNOWN")

    def _get_base(self) -> None:
        self._answer(200, {"Content-Type": "application/json"}, b"{}")

    # Blobs

    def _get_blob(self, digest: str) -> None:
        size = self._storage.layer_size(self._repository, _parse_digest(digest))
        if size is None:
            raise _Refusal(404, "BLOB_UNKNOWN", (digest,))
        headers = {"Content-Type": BLOB_TYPE, "Docker-Content-Digest": digest, "Etag": f'"{digest}"'}
        content = b""
        if self.command == "HEAD":
            headers["Content-Length"] = str(size)
        else:
            content = self._storage.read_blob(digest)
        self._emit("pull", self._blob_target(digest, size))
        self._answer(200, headers, content)

    def _delete_blob(self, digest: str) -> None:
        if self._storage.layer_size(self._repository, _parse_digest(digest)) is None:
            raise _Refusal(404, "BLOB_UNKNOWN", (digest,))
        self._storage.unlink_layer(self._repository, digest)
        self._emit("delete", {"digest": digest, "repository": self._repository})
        self._answer(202)

    # Uploads and mounts

    def _post_uploads(self) -> None:
        wanted = dict(self._query)
        if self.headers.get_content_type() == FORM_TYPE:
            wanted |= {name: values[0] for name, values in parse_qs(self._body.decode()).items()}
        if wanted.get("mount") and wanted.get("from") and self._mount(wanted["mount"], wanted["from"]):
            return
        upload = self._storage.start_upload(self._repository)
        self._answer(202, self._upload_headers(upload, 0))

    def _mount(self, digest: str, source: str) -> bool:
        try:
            size = self._storage.layer_size(parse_repository(source), _parse_digest(digest))
        except (InvalidNameError, _Refusal):
            return False
        if size is None:
            return False
        self._storage.link_layer(self._repository, digest)
        self._emit("mount", self._blob_target(digest, size) | {"fromRepository": source})
        self._answer(201, self._blob_headers(digest))
        return True

    def _get_upload(self, upload: str) -> None:
        self._require_upload(upload)
        content = self._storage.read_upload(self._repository, upload)
        self._answer(204, self._upload_headers(upload, len(content)))

    def _patch_upload(self, upload: str) -> None:
        self._require_upload(upload)
        length = self._storage.append_upload(self._repository, upload, self._body)
        self._answer(202, self._upload_headers(upload, length))

    def _put_upload(self, upload: str) -> None:
        self._require_upload(upload)
        digest = _parse_digest(self._query.get("digest", ""))
        content = self._storage.read_upload(self._repository, upload) + self._body
        if digest_of(content) != digest:
            self._storage.end_upload(self._repository, upload)
            raise _Refusal(400, "DIGEST_INVALID", ("the content has another digest",))
        self._storage.add_layer(self._repository, digest, content)
        self._storage.end_upload(self._repository, upload)
        self._emit("push", self._blob_target(digest, len(content)))
        self._answer(201, self._blob_headers(digest))

    def _delete_upload(self, upload: str) -> None:
        self._require_upload(upload)
        self._storage.end_upload(self._repository, upload)
        self._answer(204)

    def _require_upload(self, upload: str) -> None:
        if not self._storage.has_upload(self._repository, upload):
            raise _Refusal(404, "BLOB_UPLOAD_UNKNOWN")

    # Manifests

    def _get_manifest(self, reference: str) -> None:
        tag = None if ":" in reference else reference
        digest = _parse_digest(reference) if tag is None else self._storage.read_tag(self._repository, tag)
        if digest is None or self._storage.manifest_size(self._repository, digest) is None:
            raise _Refusal(404, "MANIFEST_UNKNOWN", (reference,))
        try:
            manifest = ModelManifest.parse(self._storage.read_blob(digest))
        except NotAManifestError:  # a layer's digest: its link makes it visible here too
            raise _Refusal(404, "MANIFEST_UNKNOWN", (reference,)) from None
        headers = {
            "Content-Type": manifest.media_type,
            "Docker-Content-Digest": digest,
            "Etag": f'"{digest}"',
        }
        self._emit("pull", self._manifest_target(manifest, tag))
        self._answer(200, headers, manifest.content)

    def _put_manifest(self, reference: str) -> None:
        tag = None if ":" in reference else reference
        if tag is None and _parse_digest(reference) != digest_of(self._body):
            raise _Refusal(400, "DIGEST_INVALID")
        if tag is not None and _TAG.fullmatch(tag) is None:
            raise _Refusal(404, "NAME_UNKNOWN")
        try:
            manifest = ModelManifest.parse(self._body)
        except NotAManifestError:
            raise _Refusal(400, "MANIFEST_INVALID") from None
        if self.headers.get_content_type() != manifest.media_type:
            raise _Refusal(400, "MANIFEST_INVALID", ("the Content-Type is not the manifest's mediaType",))
        if missing := tuple(self._find_missing(manifest)):
            raise _Refusal(400, "MANIFEST_BLOB_UNKNOWN", missing)
        self._storage.add_manifest(self._repository, manifest.digest, manifest.content)
        self._emit("push", self._manifest_target(manifest, tag))
        if tag is not None:
            self._storage.set_tag(self._repository, tag, manifest.digest)
        location = f"/v2/{self._repository}/manifests/{manifest.digest}"
        self._answer(201, {"Location": location, "Docker-Content-Digest": manifest.digest})

    def _find_missing(self, manifest: ModelManifest) -> Iterator[str]:
        held = self._storage.manifest_size if manifest.is_index else self._storage.layer_size
        for reference in manifest.references:
            if held(self._repository, reference["digest"]) is None:
                yield reference["digest"]

    def _delete_manifest(self, reference: str) -> None:
        digest = _parse_digest(reference)
        if self._storage.manifest_size(self._repository, digest) is None:
            raise _Refusal(404, "MANIFEST_UNKNOWN")
        self._storage.unlink_manifest(self._repository, digest)
        self._emit("delete", {"digest": digest, "repository": self._repository})
        for tag in self._storage.list_tags(self._repository):
            if self._storage.read_tag(self._repository, tag) == digest:
                self._storage.remove_tag(self._repository, tag)
                self._emit("delete", {"repository": self._repository, "tag": tag})
        self._answer(202)

    def _get_tags(self) -> None:
        tags = self._storage.list_tags(self._repository)
        if not tags:
            raise _Refusal(404, "NAME_UNKNOWN", ({"name": self._repository},))
        body = json.dumps({"name": self._repository, "tags": tags}).encode()
        self._answer(200, {"Content-Type": "application/json; charset=utf-8"}, body)

    # Events

    def _blob_target(self, digest: str, size: int) -> dict[str, Any]:
        return self._target(BLOB_TYPE, digest, size, "blobs")

    def _manifest_target(self, manifest: ModelManifest, tag: str | None) -> dict[str, Any]:
        target = self._target(manifest.media_type, manifest.digest, len(manifest.content), "manifests")
        return target | drop_empty({"tag": tag, "references": manifest.references})

    def _target(self, media_type: str, digest: str, size: int, kind: str) -> dict[str, Any]:
        described = {
            "mediaType": media_type,
            "size": size,
            "digest": digest,
            "length": size,
            "repository": self._repository,
            "url": f"/v2/{self._repository}/{kind}/{digest}",
        }
        return drop_empty(described)

    def _emit(self, action: str, target: dict[str, Any]) -> None:
        request = {
            "id": self._request_id,
            "addr": f"{self.client_address[0]}:{self.client_address[1]}",
            "host": self.headers.get("Host", ""),
            "method": self.command,
            "useragent": self.headers.get("User-Agent", ""),
        }
        self.server.notifier.emit(action, target, request)

    # Reading and answering

    @property
    def _storage(self) -> ModelStorage:
        return self.server.storage

    def _read_body(self) -> bytes:
        if "chunked" not in self.headers.get("Transfer-Encoding", "").lower():
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        chunks = []
        while size := int(self.rfile.readline().partition(b";")[0], 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        while self.rfile.readline().strip():
            pass  # trailers
        return b"".join(chunks)

    def _blob_headers(self, digest: str) -> dict[str, str]:
        location = f"/v2/{self._repository}/blobs/{digest}"
        return {"Location": location, "Docker-Content-Digest": digest}

    def _upload_headers(self, upload: str, length: int) -> dict[str, str]:
        return {
            "Location": f"/v2/{self._repository}/blobs/uploads/{upload}",
            "Docker-Upload-Uuid": upload,
            "Range": f"0-{max(length - 1, 0)}",
        }

    def _refuse(self, refusal: _Refusal) -> None:
        message = refusal.code.replace("_", " ").lower()
        errors = [{"code": refusal.code, "message": message, "detail": detail} for detail in refusal.details]
        headers = {"Content-Type": "application/json; charset=utf-8"}
        self._answer(refusal.status, headers, json.dumps({"errors": errors}).encode())

    def _answer(self, status: int, headers: dict[str, str] | None = None, body: bytes = b"") -> None:
        self.send_response(status)
        self.send_header("Docker-Distribution-Api-Version", "registry/2.0")
        for name, value in ({"Content-Length": str(len(body))} | (headers or {})).items():
            if status != 204 or name != "Content-Length":
                self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        """Log nothing: requests show in events and storage."""


def _parse_digest(text: str) -> str:
    try:
        parse_digest(text)
    except InvalidNameError:
        raise _Refusal(400, "DIGEST_INVALID") from None
    return text
