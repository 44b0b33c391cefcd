"""What Baleen relies on in a registry: storage, notifications and refusals, on the model and the real one."""

import re
from typing import Any

import httpx
import pytest

from coordinator.registry.client import RegistryClient, RegistryError
from coordinator.registry.images import DOCKER, OCI, Image, Index, Layer, make_image, make_index
from tests.support.artifacts import make_artifact
from tests.support.registries import REQUEST_S, TOKEN, RunningRegistry

BASE = "docker/registry/v2"
UNKNOWN = "sha256:" + "0" * 64


def blob_key(digest: str) -> str:
    encoded = digest.removeprefix("sha256:")
    return f"{BASE}/blobs/sha256/{encoded[:2]}/{encoded}/data"


def link_key(repository: str, kind: str, digest: str) -> str:
    return f"{BASE}/repositories/{repository}/{kind}/{digest.replace(':', '/')}/link"


def layer_key(repository: str, digest: str) -> str:
    return link_key(repository, "_layers", digest)


def revision_key(repository: str, digest: str) -> str:
    return link_key(repository, "_manifests/revisions", digest)


def tag_keys(repository: str, tag: str, *digests: str) -> set[str]:
    tag_path = f"_manifests/tags/{tag}"
    index = {link_key(repository, f"{tag_path}/index", digest) for digest in digests}
    return index | {f"{BASE}/repositories/{repository}/{tag_path}/current/link"}


def image_keys(repository: str, image: Image) -> set[str]:
    blobs = {blob.digest for blob in image.blobs}
    links = {layer_key(repository, digest) for digest in blobs} | {revision_key(repository, image.digest)}
    return links | {blob_key(digest) for digest in (*blobs, image.digest)}


def blob_target(repository: str, blob: Layer) -> dict[str, Any]:
    size = {"size": len(blob.content), "length": len(blob.content)} if blob.content else {}
    return {
        "mediaType": "application/octet-stream",
        **size,
        "digest": blob.digest,
        "repository": repository,
        "url": f"/v2/{repository}/blobs/{blob.digest}",
    }


def manifest_target(repository: str, image: Image | Index, tag: str | None = None) -> dict[str, Any]:
    listed = image.manifests if isinstance(image, Index) else (image.config, *image.layers)
    return {
        "mediaType": image.media_type,
        "size": len(image.content),
        "digest": image.digest,
        "length": len(image.content),
        "repository": repository,
        "url": f"/v2/{repository}/manifests/{image.digest}",
        **({"tag": tag} if tag else {}),
        "references": [{name: entry.descriptor[name] for name in ("mediaType", "size", "digest")} for entry in listed],
    }


def pushes(repository: str, image: Image, tag: str | None = None) -> list[tuple[str, str, dict[str, Any]]]:
    """What a first push of the image announces: action, HTTP method and target of each event."""
    blobs = [("push", "PUT", blob_target(repository, blob)) for blob in image.blobs]
    return [*blobs, ("push", "PUT", manifest_target(repository, image, tag))]


def summary(events: list[dict[str, Any]]) -> list[tuple[str, str, dict[str, Any]]]:
    return [(event["action"], event["request"]["method"], event["target"]) for event in events]


class Watch:
    """The events since the last call of `news`."""

    def __init__(self, registry: RunningRegistry) -> None:
        self._registry = registry
        self._seen = len(registry.events())

    def news(self) -> list[dict[str, Any]]:
        events = self._registry.events()
        fresh, self._seen = events[self._seen :], len(events)
        return fresh


@pytest.fixture
def watch(registry: RunningRegistry) -> Watch:
    return Watch(registry)


@pytest.mark.parametrize("kind", [OCI, DOCKER], ids=["oci", "docker"])
def test_push_of_an_image(registry: RunningRegistry, client: RegistryClient, watch: Watch, kind: Any) -> None:
    """An image's blobs and then its manifest are announced, linked and stored once."""
    image = make_image("app", kind=kind)
    assert client.push_image("team/app", image, "v1") == image.digest
    assert summary(watch.news()) == pushes("team/app", image, "v1")
    assert set(registry.stored()) == image_keys("team/app", image) | tag_keys("team/app", "v1", image.digest)
    assert registry.stored()[revision_key("team/app", image.digest)] == image.digest.encode()
    assert client.pull_image("team/app", "v1").digest == image.digest


@pytest.mark.parametrize("kind", [OCI, DOCKER], ids=["oci", "docker"])
def test_push_of_an_index(registry: RunningRegistry, client: RegistryClient, watch: Watch, kind: Any) -> None:
    """An index refers to its child manifests, which are held without a tag."""
    children = [make_image(f"app-{name}", kind=kind, architecture=name) for name in ("amd64", "arm64")]
    index = make_index(children, kind)
    client.push_image("team/multi", index, "v1")
    expected = [event for child in children for event in pushes("team/multi", child)]
    assert summary(watch.news()) == [*expected, ("push", "PUT", manifest_target("team/multi", index, "v1"))]
    keys = set().union(*(image_keys("team/multi", child) for child in children))
    keys |= {blob_key(index.digest), revision_key("team/multi", index.digest)}
    assert set(registry.stored()) == keys | tag_keys("team/multi", "v1", index.digest)
    assert [child.digest for child in client.pull_image("team/multi", "v1").children] == [
        child.digest for child in children
    ]


def test_subject_is_not_a_reference(client: RegistryClient, watch: Watch) -> None:
    """An artifact's subject need not exist and is not among the references that are announced."""
    artifact = make_artifact("signature", subject=make_image("absent").descriptor)
    client.push_image("team/app", artifact)
    assert summary(watch.news()) == pushes("team/app", artifact)


def test_shared_layer_is_stored_once(registry: RunningRegistry, client: RegistryClient) -> None:
    """Two repositories that push the same layer share its bytes and have a link each."""
    image = make_image("app")
    client.push_image("team/one", image)
    before = registry.stored()
    client.push_image("team/two", image)
    added = set(registry.stored()) - set(before)
    assert added == {key for key in image_keys("team/two", image) if "/blobs/" not in key}


@pytest.mark.parametrize("where", ["query", "body"])
def test_mount(registry: RunningRegistry, client: RegistryClient, watch: Watch, where: str) -> None:
    """A mount, named in the query or in a form, writes one link and is announced with its source."""
    layer = make_image("app").layers[0]
    client.push_blob("team/source", layer.content)
    before = set(registry.stored())
    watch.news()
    wanted = {"mount": layer.digest, "from": "team/source"}
    sent: dict[str, Any] = {"params" if where == "query" else "data": wanted}
    url = f"{registry.url}/v2/team/target/blobs/uploads/"
    answer = httpx.post(url, timeout=REQUEST_S, trust_env=False, **sent)
    assert answer.status_code == 201
    assert answer.headers["Docker-Content-Digest"] == layer.digest
    assert answer.headers["Location"] == f"/v2/team/target/blobs/{layer.digest}"
    assert summary(watch.news()) == [
        ("mount", "POST", blob_target("team/target", layer) | {"fromRepository": "team/source"})
    ]
    assert set(registry.stored()) - before == {layer_key("team/target", layer.digest)}


@pytest.mark.parametrize("source", ["team/nowhere", "team/without-link", "NOT A NAME", None])
def test_impossible_mount(registry: RunningRegistry, client: RegistryClient, watch: Watch, source: str | None) -> None:
    """A mount from where the blob is not linked becomes an upload: no link, no event, no refusal."""
    layer, other = make_image("app").layers
    client.push_blob("team/source", layer.content)
    client.push_blob("team/without-link", other.content)
    before = registry.stored()
    watch.news()
    assert not client.mount_blob("team/target", layer.digest, source)
    assert watch.news() == []
    assert registry.stored() == before


def test_unfinished_mount_leaves_an_upload(registry: RunningRegistry) -> None:
    """A mount that became an upload leaves a session in the storage until it is ended."""
    url = f"{registry.url}/v2/team/target/blobs/uploads/?mount={UNKNOWN}&from=team/source"
    upload = httpx.post(url, timeout=REQUEST_S, trust_env=False).headers["Docker-Upload-UUID"]
    assert any(key.endswith(f"_uploads/{upload}/startedat") for key in registry.objects())


def test_manifest_with_a_missing_blob(registry: RunningRegistry, client: RegistryClient, watch: Watch) -> None:
    """A manifest is refused, stored nowhere and not announced while the repository lacks one of its blobs."""
    image = make_image("app")
    client.push_blob("team/app", image.layers[0].content)
    client.push_image("team/other", image)  # linked there, which is of no use here
    before = registry.stored()
    watch.news()
    with pytest.raises(RegistryError) as refused:
        client.put_manifest("team/app", "v1", image.media_type, image.content)
    assert (refused.value.registry_status, refused.value.code) == (400, "MANIFEST_BLOB_UNKNOWN")
    assert watch.news() == []
    assert registry.stored() == before


def test_index_with_a_missing_child(client: RegistryClient) -> None:
    """An index one of whose children the repository does not hold is refused."""
    held, absent = make_image("held"), make_image("absent")
    client.push_image("team/app", held)
    index = make_index([held, absent])
    with pytest.raises(RegistryError) as refused:
        client.put_manifest("team/app", "v1", index.media_type, index.content)
    assert (refused.value.registry_status, refused.value.code) == (400, "MANIFEST_BLOB_UNKNOWN")


def test_child_that_is_only_linked_as_a_blob(client: RegistryClient, watch: Watch) -> None:
    """A manifest that was uploaded as a blob serves as a child, and is served as a manifest."""
    image = make_image("app")
    client.push_blob("team/app", image.content)
    client.push_image("team/app", Index(make_index([image]).content, OCI.index, ()), "v1")
    watch.news()
    assert client.get_manifest("team/app", image.digest).content == image.content
    assert summary(watch.news()) == [("pull", "GET", manifest_target("team/app", image))]


def test_retag(registry: RunningRegistry, client: RegistryClient, watch: Watch) -> None:
    """A tag that moves is announced for the new manifest only; the old one stays held."""
    old, new = make_image("old"), make_image("new")
    client.push_image("team/app", old, "v1")
    client.push_image("team/app", new)
    watch.news()
    client.put_manifest("team/app", "v1", new.media_type, new.content)
    assert summary(watch.news()) == [("push", "PUT", manifest_target("team/app", new, "v1"))]
    stored = registry.stored()
    keys = image_keys("team/app", old) | image_keys("team/app", new)
    assert set(stored) == keys | tag_keys("team/app", "v1", old.digest, new.digest)
    assert stored[f"{BASE}/repositories/team/app/_manifests/tags/v1/current/link"] == new.digest.encode()


def test_delete_of_a_manifest(registry: RunningRegistry, client: RegistryClient, watch: Watch) -> None:
    """A deleted manifest is announced, then each tag that pointed at it; bytes and layer links stay."""
    image, other = make_image("app"), make_image("other")
    for tag in ("v1", "v2"):
        client.push_image("team/app", image, tag)
    client.push_image("team/app", other, "v3")
    watch.news()
    client.delete_manifest("team/app", image.digest)
    first, *tags = watch.news()
    assert (first["action"], first["target"]) == (
        "delete",
        {"digest": image.digest, "repository": "team/app"},
    )
    assert sorted(event["target"]["tag"] for event in tags) == ["v1", "v2"]
    assert all(set(event["target"]) == {"repository", "tag"} for event in tags)
    assert {event["request"]["id"] for event in tags} == {first["request"]["id"]}
    left = (image_keys("team/app", image) - {revision_key("team/app", image.digest)}) | {
        *image_keys("team/app", other),
        *tag_keys("team/app", "v3", other.digest),
    }
    assert set(registry.stored()) == left
    assert not client.has_manifest("team/app", "v1")
    with pytest.raises(RegistryError) as refused:
        client.delete_manifest("team/app", image.digest)
    assert (refused.value.registry_status, refused.value.code) == (404, "MANIFEST_UNKNOWN")


def test_delete_of_a_manifest_takes_its_blob_link(registry: RunningRegistry, client: RegistryClient) -> None:
    """Deleting a manifest also removes a link of the same bytes as a blob, unannounced."""
    image = make_image("app")
    client.push_image("team/app", image)
    client.push_blob("team/app", image.content)
    client.delete_manifest("team/app", image.digest)
    assert layer_key("team/app", image.digest) not in registry.stored()


def test_delete_of_a_child(client: RegistryClient) -> None:
    """A child of an index can be deleted; the index is still served."""
    child = make_image("app")
    index = make_index([child])
    client.push_image("team/app", index, "v1")
    client.delete_manifest("team/app", child.digest)
    assert client.get_manifest("team/app", "v1").digest == index.digest


def test_delete_of_a_blob(registry: RunningRegistry, client: RegistryClient, watch: Watch) -> None:
    """A deleted blob loses this repository's link only, and its event looks like a manifest's."""
    image = make_image("app")
    client.push_image("team/app", image)
    client.push_image("team/other", image)
    before = set(registry.stored())
    watch.news()
    digest = image.layers[0].digest
    client.delete_blob("team/app", digest)
    assert summary(watch.news()) == [("delete", "DELETE", {"digest": digest, "repository": "team/app"})]
    assert before - set(registry.stored()) == {layer_key("team/app", digest)}
    assert not client.has_blob("team/app", digest)
    assert client.has_blob("team/other", digest)


def test_push_after_delete(registry: RunningRegistry, client: RegistryClient, watch: Watch) -> None:
    """An image that is pushed again after its deletion is announced and held again."""
    image = make_image("app")
    client.push_image("team/app", image, "v1")
    complete = registry.stored()
    client.delete_manifest("team/app", image.digest)
    client.delete_blob("team/app", image.layers[0].digest)
    watch.news()
    client.push_image("team/app", image, "v1")
    announced = [event for event in summary(watch.news()) if event[0] == "push"]
    assert announced == [
        ("push", "PUT", blob_target("team/app", image.layers[0])),
        ("push", "PUT", manifest_target("team/app", image, "v1")),
    ]
    assert registry.stored() == complete


def test_reading_is_announced_as_pull(client: RegistryClient, watch: Watch) -> None:
    """HEAD and GET of blobs and manifests are pull events with the request's method and User-Agent."""
    image = make_image("app")
    client.push_image("team/app", image, "v1")
    watch.news()
    layer = image.layers[0]
    client.has_blob("team/app", layer.digest)
    client.get_blob("team/app", layer.digest)
    client.has_manifest("team/app", "v1", user_agent="probe/7")
    client.get_manifest("team/app", image.digest)
    events = watch.news()
    assert summary(events) == [
        ("pull", "HEAD", blob_target("team/app", layer)),
        ("pull", "GET", blob_target("team/app", layer)),
        ("pull", "HEAD", manifest_target("team/app", image, "v1")),
        ("pull", "GET", manifest_target("team/app", image)),
    ]
    assert [event["request"]["useragent"] for event in events] == ["baleen", "baleen", "probe/7", "baleen"]


def test_reading_what_is_not_there_is_not_announced(client: RegistryClient, watch: Watch) -> None:
    """What is not found is not announced."""
    assert not client.has_blob("team/app", UNKNOWN)
    assert not client.has_manifest("team/app", "v1")
    assert watch.news() == []


def test_upload_in_chunks(registry: RunningRegistry, client: RegistryClient, watch: Watch) -> None:
    """An upload of several chunks, plain or with chunked encoding, is one blob and one event."""
    layer = Layer(b"one two three", "application/octet-stream")
    with httpx.Client(base_url=registry.url, timeout=REQUEST_S, trust_env=False) as http:
        started = http.post("/v2/team/app/blobs/uploads/")
        assert started.headers["Range"] == "0-0"
        first = http.patch(started.headers["Location"], content=b"one ")
        second = http.patch(first.headers["Location"], content=iter([b"two", b" "]))
        assert (second.status_code, second.headers["Range"]) == (202, "0-7")
        where = httpx.URL(second.headers["Location"]).copy_merge_params({"digest": layer.digest})
        finished = http.put(where, content=b"three")
    assert (finished.status_code, finished.headers["Docker-Content-Digest"]) == (201, layer.digest)
    assert summary(watch.news()) == [("push", "PUT", blob_target("team/app", layer))]
    assert client.get_blob("team/app", layer.digest) == layer.content


def test_digest_in_the_first_request_is_ignored(registry: RunningRegistry) -> None:
    """Distribution 2.8 knows no upload in a single POST: it opens a session, as the specification allows."""
    layer = make_image("app").layers[0]
    url = f"{registry.url}/v2/team/app/blobs/uploads/?digest={layer.digest}"
    headers = {"Content-Type": "application/octet-stream"}
    answer = httpx.post(url, content=layer.content, headers=headers, timeout=REQUEST_S, trust_env=False)
    assert answer.status_code == 202
    assert registry.stored() == {}


def test_upload_with_another_digest(registry: RunningRegistry, client: RegistryClient, watch: Watch) -> None:
    """Bytes that are not those of the digest are refused, stored nowhere, not announced."""
    with pytest.raises(RegistryError) as refused:
        client.push_blob("team/app", b"content", digest=UNKNOWN)
    assert (refused.value.registry_status, refused.value.code) == (400, "DIGEST_INVALID")
    assert registry.stored() == {}
    assert watch.news() == []


def test_empty_blob(client: RegistryClient, watch: Watch) -> None:
    """An empty blob's event has neither size nor length."""
    client.push_blob("team/app", b"")
    assert summary(watch.news()) == [("push", "PUT", blob_target("team/app", Layer(b"", "application/octet-stream")))]


@pytest.mark.parametrize("reference", ["v1", UNKNOWN])
def test_manifest_that_is_none(client: RegistryClient, reference: str) -> None:
    """A manifest that is not JSON, or not of the digest it is put under, is refused."""
    with pytest.raises(RegistryError) as refused:
        client.put_manifest("team/app", reference, OCI.manifest, b"junk")
    assert refused.value.registry_status == 400


def test_envelope(registry: RunningRegistry, client: RegistryClient) -> None:
    """Every event comes in a POST of its own, with the fields, content type and token of distribution 2.8."""
    client.push_image("team/app", make_image("app"), "v1")
    registry.events()
    deliveries = registry.sink.deliveries
    for delivery in deliveries:
        assert delivery.content_type == "application/vnd.docker.distribution.events.v1+json"
        assert delivery.authorization == f"Bearer {TOKEN}"
        assert set(delivery.envelope) == {"events"}
        (event,) = delivery.events
        assert list(event) == ["id", "timestamp", "action", "target", "request", "actor", "source"]
        assert set(event["request"]) == {"id", "addr", "host", "method", "useragent"}
        assert event["actor"] == {}
        assert set(event["source"]) == {"addr", "instanceID"}
        assert event["request"]["host"] == registry.url.removeprefix("http://")
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,9})?Z", event["timestamp"])
    events = registry.sink.accepted
    assert len({event["id"] for event in events}) == len(events)
    assert len({event["source"]["instanceID"] for event in events}) == 1


@pytest.mark.parametrize("status", [400, 404, 503])
def test_refused_notifications_wait(
    registry: RunningRegistry, client: RegistryClient, watch: Watch, status: int
) -> None:
    """A refused event is sent again unchanged, before any later one, until it is accepted; pushes go on."""
    registry.sink.answer = status
    image = make_image("app")
    client.push_image("team/app", image, "v1")
    registry.sink.wait(lambda sink: len([each for each in sink.deliveries if each.status == status]) >= 3)
    refused = [delivery.envelope for delivery in registry.sink.deliveries if delivery.status == status]
    assert all(envelope == refused[0] for envelope in refused)
    registry.sink.answer = 200
    events = watch.news()
    assert summary(events) == pushes("team/app", image, "v1")
    assert events[0] == refused[0]["events"][0]
