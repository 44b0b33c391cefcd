"""How the S3 adapter treats a store that is wrong, refuses, or is away."""

import socket
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from coordinator.errors import BaleenError, SettingsError, UnavailableError
from coordinator.storage.port import UnfinishedUpload, UnsafeStoreError
from coordinator.storage.s3 import S3ObjectStore
from tests.services.http import Handler, HTTPServer
from tests.storage.conftest import ROOTLESS, VERSIONED, MakeS3

#: Far above what the timeouts given here allow, far below what a caller would wait for ever.
BOUND_S = 20.0
IMPATIENT: dict[str, Any] = {"connect_timeout": 0.3, "read_timeout": 0.3, "attempts": 2}
READS: dict[str, Callable[[S3ObjectStore], object]] = {
    "get": lambda store: store.get("a"),
    "head": lambda store: store.head("a"),
    "list": lambda store: store.list(""),
    "walk": lambda store: list(store.walk("")),
    "walk_versions": lambda store: list(store.walk_versions("")),
    "version_folders": lambda store: list(store.list_version_folders("")),
    "unfinished": lambda store: list(store.list_unfinished("")),
    "delete": lambda store: store.delete("a"),
    "check": lambda store: store.check(),
}
CALLS = READS | {
    "put": lambda store: store.put("a", b""),
    "enable_versioning": lambda store: store.enable_versioning(),
    "abort": lambda store: store.abort_upload(UnfinishedUpload("a", datetime.now(UTC), "1"), lambda: None),
}


def refused(call: Callable[[S3ObjectStore], object], store: S3ObjectStore) -> str:
    """Return the message of a call; it must raise UnavailableError, and in bounded time."""
    began = time.monotonic()
    with pytest.raises(UnavailableError) as raised:
        call(store)
    assert time.monotonic() - began < BOUND_S
    return str(raised.value)


@contextmanager
def answering(answer: Callable[[str], tuple[int, bytes]]) -> Iterator[str]:
    """An HTTP server that is no S3; gives its URL."""

    class Answering(Handler):
        def _answer(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            status, body = answer(self.path)
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        do_GET = do_HEAD = do_PUT = do_DELETE = _answer

    with HTTPServer(Answering) as server:
        yield server.address


@pytest.mark.parametrize("call", READS.values(), ids=READS)
def test_a_bucket_that_is_not_there(connect_s3: MakeS3, call: Callable[[S3ObjectStore], object]) -> None:
    """A missing bucket is an outage and not an empty bucket; the message names the bucket and the endpoint."""
    store = connect_s3(bucket="not-there")
    assert f"There is no bucket 'not-there' at {store.endpoint}: check the bucket's name" in refused(call, store)


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
@pytest.mark.parametrize("wrong", [{"secret_key": "wrong-secret"}, {"access_key": "nobody"}], ids=["secret", "key"])
def test_a_key_that_is_refused(
    connect_s3: MakeS3, wrong: dict[str, Any], call: Callable[[S3ObjectStore], object]
) -> None:
    """A key that the store does not accept is an outage, and the message says where to look."""
    store = connect_s3(**wrong)
    text = refused(call, store)
    assert f"The object store at {store.endpoint} refused " in text
    assert f"bucket {store.bucket!r}" in text
    assert "check BALEEN_S3_ACCESS_KEY and BALEEN_S3_SECRET_KEY, or" in text
    assert "wrong-secret" not in text


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_nobody_listens(connect_s3: MakeS3, call: Callable[[S3ObjectStore], object]) -> None:
    """A store that is down is unavailable."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and does not listen
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        store = connect_s3(endpoint_url=url, **IMPATIENT)
        assert f"does not answer at {url} (EndpointConnectionError): start it" in refused(call, store)


@pytest.mark.lengthy
@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_a_store_that_hangs(connect_s3: MakeS3, call: Callable[[S3ObjectStore], object]) -> None:
    """A store that takes connections and never answers is given up in bounded time."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        store = connect_s3(endpoint_url=f"http://127.0.0.1:{silent.getsockname()[1]}", **IMPATIENT)
        assert "does not answer" in refused(call, store)


@pytest.mark.parametrize("ends", [True, False], ids=["ends", "hangs"])
def test_a_body_that_breaks_off(connect_s3: MakeS3, ends: bool) -> None:
    """An object whose bytes end too early, or stop coming, is not handed out in part."""
    kept: list[socket.socket] = []

    def serve(listener: socket.socket) -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            connection.recv(65536)
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n12345")
            if ends:
                connection.close()
            kept.append(connection)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve, args=(listener,), daemon=True)
        thread.start()
        store = connect_s3(endpoint_url=f"http://127.0.0.1:{listener.getsockname()[1]}", **IMPATIENT)
        assert "does not answer" in refused(READS["get"], store)
        listener.shutdown(socket.SHUT_RDWR)
        thread.join(BOUND_S)
    for connection in kept:
        connection.close()


@pytest.mark.parametrize("status", [404, 403, 500, 503])
@pytest.mark.parametrize("body", [b"", b"<html>no such page</html>"], ids=["empty", "html"])
@pytest.mark.parametrize("call", READS.values(), ids=READS)
def test_something_that_is_no_s3(
    connect_s3: MakeS3, call: Callable[[S3ObjectStore], object], body: bytes, status: int
) -> None:
    """An error of a proxy, or of a server that is no S3, is never taken for a missing object, not even a 404."""
    with answering(lambda _: (status, body)) as url:
        assert url in refused(call, connect_s3(endpoint_url=url, **(IMPATIENT | {"attempts": 1})))


def test_pages_that_are_shorter_than_asked_for(connect_s3: MakeS3) -> None:
    """A listing goes on after a page with few keys or none, if the store has more."""
    pages: dict[str | None, tuple[list[str], str]] = {
        None: (["r/a", "r/b"], "1"),
        "1": ([], "2"),
        "2": (["r/c/"], "3"),
        "3": (["r/d", "r/e"], ""),
    }
    asked: list[str | None] = []

    def answer(path: str) -> tuple[int, bytes]:
        token = parse_qs(urlsplit(path).query).get("continuation-token", [None])[0]
        asked.append(token)
        keys, after = pages[token]
        entries = "".join(
            f"<Contents><Key>{key}</Key><Size>1</Size><LastModified>2026-01-01T00:00:00Z</LastModified></Contents>"
            for key in keys
        )
        more = f"<IsTruncated>true</IsTruncated><NextContinuationToken>{after}</NextContinuationToken>"
        end = more if after else "<IsTruncated>false</IsTruncated>"
        return 200, f"<ListBucketResult>{entries}{end}</ListBucketResult>".encode()

    with answering(answer) as url:
        store = connect_s3(endpoint_url=url, root="r")
        assert [entry.key for entry in store.list("")] == ["a", "b", "d", "e"]
        assert [entry.key for entry in store.list("", limit=3)] == ["a", "b", "d"]
        assert [entry.key for entry in store.walk("")] == ["a", "b", "d", "e"]
        asked.clear()
        assert [entry.key for entry in store.list("", limit=2)] == ["a", "b"]
        assert asked == [None]


def test_delete_where_a_store_says_that_there_is_none(connect_s3: MakeS3) -> None:
    """Some stores answer a delete of nothing with NoSuchKey; that is no error."""
    body = b"<Error><Code>NoSuchKey</Code><Message>none</Message></Error>"
    with answering(lambda _: (404, body)) as url:
        connect_s3(endpoint_url=url).delete("a")


def test_no_credentials(connect_s3: MakeS3, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without any credentials the message names the settings."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    for name in ("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"):
        monkeypatch.setenv(name, "/nowhere")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    store = connect_s3(access_key=None, secret_key=None)
    text = refused(READS["get"], store)
    assert f"There are no keys for the object store at {store.endpoint}: set BALEEN_S3_ACCESS_KEY and" in text
    assert "AWS_ACCESS_KEY_ID" in text


def test_a_name_that_no_bucket_has(connect_s3: MakeS3) -> None:
    """A bucket's name that S3 does not allow is reported as a wrong name."""
    assert "check the bucket's name" in refused(READS["get"], connect_s3(bucket="no bucket"))


def test_a_secret_in_the_endpoint(connect_s3: MakeS3) -> None:
    """The user name in an endpoint's URL is not shown."""
    store = connect_s3(endpoint_url="http://hidden@127.0.0.1:9", attempts=1)
    text = refused(READS["check"], store)
    assert "http://127.0.0.1:9" in text
    assert "hidden" not in text


@pytest.mark.parametrize(
    "wrong",
    [{"endpoint_url": "not a url"}, {"region": "no region"}, {"secret_key": None}],
    ids=["endpoint", "region", "half a key"],
)
def test_settings_that_cannot_be_meant(connect_s3: MakeS3, wrong: dict[str, Any]) -> None:
    """Values that boto3 refuses are an error of the settings."""
    with pytest.raises(SettingsError, match="S3 settings"):
        connect_s3(**wrong)


@pytest.mark.usefixtures("buckets")
@pytest.mark.parametrize("bucket", [ROOTLESS, VERSIONED])
def test_roots_keep_apart(connect_s3: MakeS3, bucket: str) -> None:
    """Roots whose names begin alike are separate, and slashes around a name make no difference."""
    plain, longer, slashes = (connect_s3(bucket=bucket, root=root) for root in ("x/root", "x/root-2", "/x/root/"))
    plain.put("a", b"1")
    longer.put("b", b"2")
    assert [entry.key for entry in plain.list("")] == [entry.key for entry in slashes.walk("")] == ["a"]
    assert longer.head("a") is plain.head("b") is None
    assert slashes.get("a") == b"1"
    assert connect_s3(bucket=bucket, root="").get("x/root/a") == b"1"
    with pytest.raises(BaleenError, match="is not a key"):
        connect_s3(root="a/../b")


@pytest.mark.usefixtures("buckets")
def test_versioning_is_switched_on_once_and_again(connect_s3: MakeS3) -> None:
    """To switch versioning on twice changes nothing, and stored objects stay."""
    store = connect_s3(bucket=VERSIONED)
    store.put("a", b"1")
    store.enable_versioning()
    store.enable_versioning()
    store.put("a", b"2")
    assert store.get("a") == b"2"
    shown = store._client.list_object_versions(Bucket=VERSIONED, Prefix=f"{store.root}a")
    assert len(shown["Versions"]) == 2


def test_secrets_show_nowhere(connect_s3: MakeS3) -> None:
    """Neither a repr nor an error with all its causes shows the secret key."""
    store = connect_s3(secret_key="the-secret-value")
    assert "the-secret-value" not in repr(store)
    with pytest.raises(UnavailableError) as raised:
        store.check()
    assert "the-secret-value" not in "".join(traceback.format_exception(raised.value))


def test_no_proxy_leads_to_loopback(connect_s3: MakeS3, monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy that the environment names is not used for the embedded store."""
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    connect_s3(attempts=1).check()


def test_an_upload_that_breaks_off_leaves_nothing(connect_s3: MakeS3) -> None:
    """The parts of an upload that failed are deleted."""

    def broken() -> Iterator[bytes]:
        yield bytes(20 << 20)
        raise RuntimeError("no more")

    store = connect_s3()
    with pytest.raises(RuntimeError, match="no more"):
        store.put_chunks("a", broken(), 30 << 20)
    shown = store._client.list_multipart_uploads(Bucket=store.bucket, Prefix=store.root)
    assert shown.get("Uploads", []) == []


@pytest.mark.parametrize("refusal", [(403, "AccessDenied"), (501, "NotImplemented")])
def test_a_copy_that_the_service_does_not_make(connect_s3: MakeS3, refusal: tuple[int, str]) -> None:
    """A copy that the service refuses or cannot make returns False: the caller copies the bytes itself."""
    status, code = refusal
    with answering(lambda _: (status, f"<Error><Code>{code}</Code></Error>".encode())) as url:
        store = connect_s3(endpoint_url=url, attempts=1)
        store._head = lambda key: {"ContentLength": 1, "ETag": "x"}  # type: ignore[method-assign]
        assert store.copy_from(store, "a", "b") is False


RULE = b"""
<LifecycleConfiguration><Rule><ID>far-away</ID><Status>Enabled</Status><Filter><Prefix></Prefix></Filter>
<%(what)s><%(days)s>1</%(days)s><StorageClass>%(storage)s</StorageClass></%(what)s></Rule></LifecycleConfiguration>
"""


@pytest.mark.parametrize(
    ("what", "days"), [("Transition", "Days"), ("NoncurrentVersionTransition", "NoncurrentDays")], ids=["all", "old"]
)
@pytest.mark.parametrize(
    ("storage", "refused"), [("GLACIER", True), ("DEEP_ARCHIVE", True), ("GLACIER_IR", False), ("STANDARD_IA", False)]
)
def test_a_bucket_that_archives(connect_s3: MakeS3, what: str, days: str, storage: str, refused: bool) -> None:
    """A rule that moves hidden bytes to an archive is refused; one to a class that can be read at once is not."""
    rule = RULE % {b"what": what.encode(), b"days": days.encode(), b"storage": storage.encode()}
    enabled = b"<VersioningConfiguration><Status>Enabled</Status></VersioningConfiguration>"
    with answering(lambda path: (200, rule if "lifecycle" in path else enabled)) as url:
        store = connect_s3(endpoint_url=url, attempts=1)
        if refused:
            with pytest.raises(UnsafeStoreError, match=r"'far-away' of bucket .* archives below all prefixes"):
                store.keeps_versions()
        else:
            assert store.keeps_versions()


def test_stores_of_two_services(connect_s3: MakeS3) -> None:
    """Between two services nothing is copied by either."""
    here, there = connect_s3(), connect_s3(endpoint_url="http://127.0.0.1:9")
    assert here.copy_from(there, "a", "b") is False
    assert there.copy_from(here, "a", "b") is False


def test_an_endpoint_that_boto3_finds(connect_s3: MakeS3, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no endpoint, region and keys are given, those of boto3's own environment are used."""
    store = connect_s3()
    store.put("a", b"1")
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", store.endpoint)
    monkeypatch.delenv("AWS_REGION", raising=False)
    monkeypatch.delenv("AWS_DEFAULT_REGION", raising=False)
    found = connect_s3(root=store.root, endpoint_url=None, region=None)
    assert found.endpoint == store.endpoint
    assert found.get("a") == b"1"


MARKED = b"""
<ListVersionsResult><IsTruncated>%s</IsTruncated>%s<DeleteMarker><Key>a</Key><VersionId>1</VersionId>
<IsLatest>true</IsLatest><LastModified>2026-01-01T00:00:00Z</LastModified></DeleteMarker></ListVersionsResult>
"""


def test_a_marker_that_another_one_takes_away_first(connect_s3: MakeS3) -> None:
    """A marker that another process removed after it was listed is no error."""

    def answer(path: str) -> tuple[int, bytes]:
        if "versionId" in parse_qs(urlsplit(path).query):
            return 404, b"<Error><Code>NoSuchVersion</Code></Error>"
        return 200, MARKED % (b"false", b"")

    with answering(answer) as url:
        assert not connect_s3(endpoint_url=url, root="").remove_marker("a", "1")


@pytest.mark.parametrize("after", [b"", b"<NextKeyMarker>a</NextKeyMarker>"])
def test_states_of_a_key_of_which_there_is_more_and_not_where(connect_s3: MakeS3, after: bytes) -> None:
    """A truncated list of versions without a place to continue at is an outage."""
    with answering(lambda _: (200, MARKED % (b"true", after))) as url:
        assert "how to continue its list" in refused(
            lambda store: store.list_versions("a"), connect_s3(endpoint_url=url, root="")
        )
