"""What the keys of pods permit in the shared layer, on docker-registry and a store that enforces the printed policy."""

import json
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest
from botocore.exceptions import ClientError

from coordinator.domain.names import parse_digest, parse_repository
from coordinator.registry.client import RegistryClient
from coordinator.registry.images import Image, Index, make_image, make_index, make_layer
from coordinator.stack.children import Children
from coordinator.stack.distribution import DistributionRegistry, Storage
from coordinator.stack.ports import Ports
from coordinator.stack.seaweedfs import BUCKET
from coordinator.storage.layout import BASE, MARK, MARK_COPY, QUARANTINE, blob_key, layer_link_key, revision_link_key
from tests.conftest import temporary_directory
from tests.doctor.store import OTHER_POD, POD, ROOT, THIEF, Key, Store
from tests.registries.harness import HOST, HTTP_SECRET
from tests.support.registries import collect_as_registry

pytestmark = pytest.mark.registry

PROGRAM_S = 60.0
#: S3 wants parts of so many bytes at least; distribution copies larger blobs in parts.
PART, LARGE = 5 << 20, 33 << 20


class Side(NamedTuple):
    """A pod's registry, with the pod's key."""

    registry: DistributionRegistry
    client: RegistryClient
    http: httpx.Client


class Perimeter(NamedTuple):
    """Two pods on one bucket that keeps versions, each with a key of its own."""

    store: Store
    directory: Path
    a: Side
    b: Side

    def put(self, key: str, content: bytes) -> str:
        """Store something with Baleen's key; return its version."""
        answer = self.store.client().put_object(Bucket=BUCKET, Key=f"{ROOT}/{key}", Body=content)
        return str(answer["VersionId"])

    def served(self) -> set[str]:
        """All keys below the root that are served."""
        pages = self.store.client().get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=f"{ROOT}/")
        return {entry["Key"].removeprefix(f"{ROOT}/") for page in pages for entry in page.get("Contents", [])}

    def collect(self, side: Side, key: Key | None = None) -> subprocess.CompletedProcess[str]:
        """Run the registry's own collection as the pod's operator would, with another key if one is named."""
        made, file = side.registry, None
        if key is not None:
            known = json.loads((made.directory / f"{made.name}.yml").read_text())
            known["storage"]["s3"] |= {"accesskey": key.access, "secretkey": key.secret}
            file = self.directory / "other-key.yml"
            file.write_text(json.dumps(known))
        return collect_as_registry(made, "-m", file=file)


@pytest.fixture(scope="module")
def perimeter() -> Iterator[Perimeter]:
    with ExitStack() as closing:
        directory = closing.enter_context(temporary_directory())
        children = closing.enter_context(Children())
        store = Store(directory)
        store.prepare()
        children.start(store.process())
        store.client().put_bucket_versioning(Bucket=BUCKET, VersioningConfiguration={"Status": "Enabled"})
        store.restrain({POD: ["pod-a"], OTHER_POD: ["pod-b"]})
        ports = Ports(directory / "ports.json", HOST)

        def side(name: str, key: Key) -> Side:
            registry = DistributionRegistry(
                name=name,
                directory=directory / name,
                port=ports.take(name),
                storage=Storage(
                    endpoint_url=store.url, bucket=BUCKET, root=ROOT, access_key=key.access, secret_key=key.secret
                ),
                http_secret=HTTP_SECRET,
            )
            children.start(registry.process())
            return Side(
                registry,
                closing.enter_context(RegistryClient(registry.url, timeout=PROGRAM_S)),
                closing.enter_context(httpx.Client(base_url=registry.url, timeout=PROGRAM_S, trust_env=False)),
            )

        yield Perimeter(store, directory, side("pod-a", POD), side("pod-b", OTHER_POD))


def push_index(side: Side, repository: str) -> Index:
    """Push a tagged index whose children no tag names."""
    index = make_index([make_image(f"{repository}/{arch}", architecture=arch) for arch in ("amd64", "arm64")])
    side.client.push_image(repository, index, "v1")
    return index


def links(repository: str, index: Index) -> set[str]:
    """The keys by which a repository holds an index and what it lists."""
    name = parse_repository(repository)
    images = [each for each in index.manifests if isinstance(each, Image)]
    manifests = [parse_digest(each.digest) for each in (index, *images)]
    blobs = [parse_digest(blob.digest) for image in images for blob in image.blobs]
    return {revision_link_key(name, each) for each in manifests} | {layer_link_key(name, each) for each in blobs}


@pytest.mark.parametrize("repository", ["pod-a", "pod-a/app/deep"])
def test_a_registry_with_its_own_key(perimeter: Perimeter, repository: str) -> None:
    """With the printed policy a registry pushes, pulls, mounts, lists tags and deletes, in the pod's own prefix."""
    image, side = make_image(f"own/{repository}"), perimeter.a
    side.client.push_image(repository, image, "v1")
    assert side.client.pull_image(repository, "v1").digest == image.digest
    assert side.http.get(f"/v2/{repository}/tags/list").json()["tags"] == ["v1"]
    assert side.client.mount_blob("pod-a/mounted", image.layers[0].digest, repository)
    assert side.client.get_blob("pod-a/mounted", image.layers[0].digest) == image.layers[0].content
    side.client.delete_manifest(repository, image.digest)
    side.client.delete_blob(repository, image.layers[0].digest)
    assert side.http.get(f"/v2/{repository}/manifests/v1").status_code == 404
    assert side.http.head(f"/v2/{repository}/blobs/{image.layers[0].digest}").status_code == 404
    assert blob_key(parse_digest(image.layers[0].digest)) in perimeter.served()


def test_uploads_with_its_own_key(perimeter: Perimeter) -> None:
    """An upload in pieces is resumed, also where its blob is so large that it is copied in parts; one is cancelled."""
    client, blob, name = perimeter.a.client, make_layer("large", LARGE), "pod-a/large"
    session, size = client.begin_upload(name), len(blob.content)
    assert size >= LARGE
    for start in range(0, size, size // 3):
        piece = blob.content[start : start + size // 3]
        session = client.append_upload(session, iter((piece,)), len(piece), start)
        session, received = client.upload_status(session)
        assert received == start + len(piece)
    client.finish_upload(session, blob.digest, iter(()), 0)
    assert client.get_blob(name, blob.digest) == blob.content
    session = client.append_upload(client.begin_upload(name), iter((b"x" * PART,)), PART, 0)
    assert perimeter.a.http.delete(session).status_code == 204
    begun = perimeter.store.client().list_multipart_uploads(Bucket=BUCKET).get("Uploads", [])
    assert [each["Key"] for each in begun if name in each["Key"]] == []


def test_attempt_11_a_client_asks_for_another_pods_repository(perimeter: Perimeter) -> None:
    """Attempt 11: a client of pod A's registry neither pulls, pushes nor deletes below pod B's prefix."""
    image = make_image("private")
    perimeter.b.client.push_image("pod-b/private", image, "v1")
    layer = image.layers[0].digest
    asked = [
        ("GET", "manifests/v1"),
        ("GET", f"blobs/{layer}"),
        ("HEAD", f"blobs/{layer}"),
        ("GET", "tags/list"),
        ("DELETE", f"manifests/{image.digest}"),
        ("DELETE", f"blobs/{layer}"),
        ("POST", "blobs/uploads/"),
    ]
    before = perimeter.served()
    for method, path in asked:
        answer = perimeter.a.http.request(method, f"/v2/pod-b/private/{path}")
        assert answer.status_code >= 400, (method, path)
        assert image.layers[0].content not in answer.content
    assert perimeter.a.http.get("/v2/_catalog").status_code >= 400
    assert not perimeter.a.client.mount_blob("pod-a/app", layer, "pod-b/private")
    assert not {key for key in before - perimeter.served() if "/_uploads/" not in key}
    assert perimeter.b.client.pull_image("pod-b/private", "v1").digest == image.digest


@pytest.mark.parametrize(
    ("name", "allowed"),
    [
        (f"{QUARANTINE}{'ab' * 32}/7", set()),
        (MARK, set()),
        (MARK_COPY, set()),
        (f"{BASE}/repositories/pod-b/app/_layers/sha256/{'ab' * 32}/link", set()),
        # A prefix that only begins like the pod's own.
        (f"{BASE}/repositories/pod-ab/app/_layers/sha256/{'ab' * 32}/link", set()),
        (f"{BASE}/blobs/sha256/ab/{'ab' * 32}/data", {"get", "put"}),
        (f"{BASE}/repositories/pod-a/app/_layers/sha256/{'ab' * 32}/link", {"get", "put", "delete", "delete many"}),
    ],
)
def test_attempt_12_what_a_pods_key_may_do(perimeter: Perimeter, name: str, allowed: set[str]) -> None:
    """Attempt 12: pod A's key neither reads, writes nor deletes hidden bytes, the mark, and other pods' links; it
    deletes no blob, and no version of anything.
    """
    version, key = perimeter.put(name, b"kept"), perimeter.store.client(POD)
    place: dict[str, Any] = {"Bucket": BUCKET, "Key": f"{ROOT}/{name}"}

    def delete_many(**which: str) -> None:
        objects: Any = [{"Key": place["Key"]} | which]
        for failed in key.delete_objects(Bucket=BUCKET, Delete={"Objects": objects}).get("Errors", []):
            raise ClientError({"Error": {"Code": failed["Code"]}}, "DeleteObjects")

    tried = {
        "get": lambda: key.get_object(**place),
        "put": lambda: key.put_object(**place, Body=b"kept"),
        "delete version": lambda: key.delete_object(**place, VersionId=version),
        "delete many versions": lambda: delete_many(VersionId=version),
        "delete": lambda: key.delete_object(**place),
        "delete many": delete_many,
    }
    refusals = {}
    for what, attempt in tried.items():
        try:
            attempt()
        except ClientError as error:
            refusals[what] = error.response["Error"]["Code"]
    assert refusals == dict.fromkeys(tried.keys() - allowed, "AccessDenied")
    assert perimeter.store.client().get_object(**place, VersionId=version)["Body"].read() == b"kept"


def test_attempt_3_a_registrys_own_collection(perimeter: Perimeter) -> None:
    """Attempt 3: `garbage-collect -m` with pod A's key unlinks nothing of pod B's, where a key that is only kept from
    deleting blobs, as Baleen's policy was, unlinks the children of B's index.
    """
    repository = "pod-b/index"
    index = push_index(perimeter.b, repository)
    wanted, before = links(repository, index), perimeter.served()
    assert wanted <= before
    assert perimeter.collect(perimeter.a).returncode != 0
    assert perimeter.served() == before
    assert perimeter.b.client.pull_image(repository, "v1").digest == index.digest

    kept = json.loads(perimeter.store.client().get_bucket_policy(Bucket=BUCKET)["Policy"])
    deny = {
        "Sid": "OnlyBlobs",
        "Effect": "Deny",
        "Principal": {"AWS": [f"arn:aws:iam::000000000000:user/{THIEF.user}"]},
        "Action": ["s3:DeleteObject", "s3:DeleteObjectVersion"],
        "Resource": [f"arn:aws:s3:::{BUCKET}/{ROOT}/{BASE}/blobs/*"],
    }
    only_blobs = kept | {"Statement": [*kept["Statement"], deny]}
    perimeter.store.client().put_bucket_policy(Bucket=BUCKET, Policy=json.dumps(only_blobs))
    perimeter.collect(perimeter.a, THIEF)
    gone = before - perimeter.served()
    assert gone & wanted
    assert not any("/blobs/" in key for key in gone)
