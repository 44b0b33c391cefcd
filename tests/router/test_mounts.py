"""Every request that a registry would read as a mount goes to Baleen, in whatever way it is written; no other does."""

from urllib.parse import quote, urlsplit

import httpx
import pytest

from tests.router.harness import DEADLINE_S, LAYER, Answer, World, request

pytestmark = pytest.mark.registry

FORM = "Content-Type: application/x-www-form-urlencoded"
MULTIPART = "Content-Type: multipart/form-data; boundary=xyz"


def parts(**fields: str) -> bytes:
    """The fields as a form in parts."""
    sent = [f'--xyz\r\nContent-Disposition: form-data; name="{k}"\r\n\r\n{v}\r\n' for k, v in fields.items()]
    return "".join([*sent, "--xyz--\r\n"]).encode()


def mounts(digest: str, repository: str) -> dict[str, tuple[str, list[str], bytes]]:
    """Ways to write the same mount: the query, headers, and the body."""
    plain = f"mount={digest}&from={repository}"
    return {
        "plain": (f"?{plain}", [], b""),
        "another order": (f"?from={repository}&mount={digest}", [], b""),
        "without a source": (f"?mount={digest}", [], b""),
        "name encoded": (f"?%6dount={digest}&from={repository}", [], b""),
        "name encoded wholly": (f"?%6D%6F%75%6E%74={digest}&from={repository}", [], b""),
        "value encoded": (f"?mount={quote(digest, safe='')}&from={quote(repository, safe='')}", [], b""),
        "twice": (f"?mount=&mount={digest}&from={repository}", [], b""),
        "after another": (f"?n=1&mount={digest}&from={repository}", [], b""),
        "after a digest": (f"?digest={digest}&mount={digest}&from={repository}", [], b""),
        "separated by semicolons": (f"?from={repository};mount={digest}", [], b""),
        "after another question mark": (f"??&mount={digest}&from={repository}", [], b""),
        "chunked, with nothing in it": (f"?{plain}", ["Transfer-Encoding: chunked"], b"0\r\n\r\n"),
        "a body beside it": (f"?{plain}", ["Content-Type: application/octet-stream"], b"something"),
        "a form": ("", [FORM], plain.encode()),
        "a form with a query": ("?n=1", [FORM], plain.encode()),
        "a form with parameters": ("", [f"{FORM}; charset=utf-8"], plain.encode()),
        "a form in capitals": ("", [FORM.upper()], plain.encode()),
        "a form of names encoded": ("", [FORM], f"%6dount={digest}&from={repository}".encode()),
        "a form after asking": ("", [FORM, "Expect: 100-continue"], plain.encode()),
    }


@pytest.mark.parametrize("beside", ["\xff", "%ff", "%00", "%"])
def test_a_mount_beside_what_is_no_text(world: World, source: tuple[str, str], beside: str) -> None:
    """Bytes that are no characters hide no mount: Baleen gets it, or it is refused."""
    repository = world.repository("pod-a")
    answer = begin(world, f"/v2/{repository}/blobs/uploads/?{beside}&mount={source[1]}&from={source[0]}", [], b"")
    assert answer.status == (202 if world.coordinator.taken() else 400)
    with world.client("pod-a") as client:
        assert not client.has_blob(repository, source[1])


def begin(world: World, target: str, headers: list[str], body: bytes) -> Answer:
    return world.router.raw(request(f"POST {target} HTTP/1.1", *headers, body=body))


@pytest.mark.parametrize("way", mounts("", ""))
@pytest.mark.parametrize("slash", ["/", ""])
def test_a_mount_goes_to_baleen(world: World, source: tuple[str, str], way: str, slash: str) -> None:
    """Baleen gets the mount with its query and body and the client's address, and no pod does."""
    query, headers, body = mounts(source[1], source[0])[way]
    repository = world.repository("pod-a")
    sent = [*headers, "Authorization: Bearer t", "X-Forwarded-For: 10.1.1.1"]
    answer = begin(world, f"/v2/{repository}/blobs/uploads{slash}{query}", sent, body)
    (asked,) = world.coordinator.taken()
    assert asked.target == f"/v2/{repository}/blobs/uploads/{query}"
    assert asked.body == (b"" if body.startswith(b"0\r\n") else body)
    assert asked.headers["host"] == "router.example:5000"
    assert asked.headers["authorization"] == "Bearer t"
    assert asked.headers["x-forwarded-proto"] == "http"
    assert asked.headers["x-forwarded-for"] == "127.0.0.1"
    # What Baleen has handed on is the client's answer.
    assert answer.status == 202
    assert answer.headers["x-baleen-mount"] == "forwarded"
    assert [(each.method, each.target) for each in world.seen()["pod-a"]] == [
        ("POST", f"/v2/{repository}/blobs/uploads/")
    ]


def test_no_client_names_another_client(world: World) -> None:
    """Headers with underscores cannot name another client."""
    spoofed = ["X_Forwarded_For: 10.1.1.1", "X_Forwarded-Proto: ftp", "X_Real_IP: 10.1.1.1"]
    begin(world, f"/v2/{world.repository('pod-a')}/blobs/uploads/?mount=x", spoofed, b"")
    (asked,) = world.coordinator.taken()
    forwarded = [(name.replace("_", "-"), value) for name, value in asked.headers.items()]
    assert sorted(each for each in forwarded if each[0].startswith(("x-forwarded-", "x-real-"))) == [
        ("x-forwarded-for", "127.0.0.1"),
        ("x-forwarded-host", "router.example:5000"),
        ("x-forwarded-proto", "http"),
        ("x-real-ip", "127.0.0.1"),
    ]


@pytest.mark.parametrize("way", ["name encoded", "twice", "a form", "a form of names encoded", "parts"])
def test_registries_do_read_these_as_mounts(world: World, source: tuple[str, str], way: str) -> None:
    """Directly at a pod these requests are mounts, which the tests beside this one rely on."""
    known = mounts(source[1], source[0]) | {
        "twice": (f"?mount={source[1]}&mount=&from={source[0]}", [], b""),
        "parts": ("", [MULTIPART], parts(**{"mount": source[1], "from": source[0]})),
    }
    query, headers, body = known[way]
    answer = httpx.post(
        f"{world.pods['pod-a'].url}/v2/{world.repository('pod-a')}/blobs/uploads/{query}",
        headers=dict(each.split(": ", 1) for each in headers),
        content=body,
        timeout=DEADLINE_S,
        trust_env=False,
    )
    assert answer.status_code == 201


def long_form(digest: str, repository: str) -> bytes:
    return f"mount={digest}&from={repository}&x=".encode() + b"x" * 200_000


@pytest.mark.parametrize("way", ["parts", "chunked", "long", "two types", "two types the other way", "mixed parts"])
def test_no_other_form_is_one(world: World, source: tuple[str, str], way: str) -> None:
    """A form that Baleen cannot get whole begins an upload at the pod, and mounts nothing there."""
    plain = f"mount={source[1]}&from={source[0]}".encode()
    in_parts = parts(**{"mount": source[1], "from": source[0]})
    headers, body = {
        "parts": ([MULTIPART], in_parts),
        "mixed parts": ([MULTIPART.replace("form-data", "mixed")], in_parts),
        "chunked": ([FORM, "Transfer-Encoding: chunked"], b"%x\r\n%s\r\n0\r\n\r\n" % (len(plain), plain)),
        "long": ([FORM], long_form(source[1], source[0])),
        "two types": (["Content-Type: application/octet-stream", FORM], plain),
        "two types the other way": ([FORM, "Content-Type: application/octet-stream"], plain),
    }[way]
    repository = world.repository("pod-a")
    answer = begin(world, f"/v2/{repository}/blobs/uploads/", headers, body)
    assert answer.status == 202
    with world.client("pod-a") as client:
        assert not client.has_blob(repository, source[1])


def test_an_upload_that_goes_on_is_no_mount(world: World, source: tuple[str, str]) -> None:
    """A POST to an upload's own address, which distribution would mount, is refused."""
    repository = world.repository("pod-a")
    with world.client() as client:
        session = client.begin_upload(repository)
        answer = begin(world, f"{session}&mount={source[1]}&from={source[0]}", [], b"")
        assert answer.status == 405
        assert b"UNSUPPORTED" in answer.body
        client.finish_upload(session, source[1], iter([LAYER]), len(LAYER))
    assert world.coordinator.taken() == []


@pytest.mark.parametrize(
    ("query", "headers", "body"),
    [
        ("", [], b""),
        ("?n=1", [], b""),
        ("", ["Transfer-Encoding: chunked"], b"0\r\n\r\n"),
        ("", ["Content-Type: application/octet-stream"], b"mount=x&from=y"),
        # A blob in one request, as `curl --data-binary` sends it: some registries take it.
        (f"?digest=sha256:{'0' * 64}", [FORM], b"mount=x&from=y"),
        (f"?digest=sha256:{'0' * 64}", [FORM, "Expect: 100-continue"], b"z" * 200_000),
    ],
)
def test_what_is_no_mount_goes_straight_to_the_pod(world: World, query: str, headers: list[str], body: bytes) -> None:
    """An upload goes to the pod with its query, and not to Baleen."""
    repository = world.repository("pod-a")
    answer = begin(world, f"/v2/{repository}/blobs/uploads/{query}", headers, body)
    assert answer.status == 202
    assert world.coordinator.taken() == []
    assert [each.target for each in world.seen()["pod-a"]] == [f"/v2/{repository}/blobs/uploads/{query}"]


def test_a_mount_for_nobody_reaches_nobody(world: World, source: tuple[str, str]) -> None:
    """A mount in a repository that no pod owns does not reach Baleen."""
    answer = begin(world, f"/v2/nobody/app/blobs/uploads/?mount={source[1]}", [], b"")
    assert answer.status == 404
    assert world.coordinator.taken() == []


def test_a_mount_with_much_beside_it_is_refused(world: World, source: tuple[str, str]) -> None:
    """A mount with a body beyond the limit is refused with its size as the reason."""
    answer = begin(world, f"/v2/team/app/blobs/uploads/?mount={source[1]}", [], b"x" * 200_000)
    assert answer.status == 413
    assert b"SIZE_INVALID" in answer.body
    assert world.coordinator.taken() == []


@pytest.mark.parametrize("pod", ["pod-a", "pod-c"])
def test_an_upload_is_finished_where_it_began(world: World, pod: str) -> None:
    """An upload's address leads through the router, whether the registry writes a path or a URL."""
    repository = world.repository(pod)
    answer = world.router.ask("POST", f"/v2/{repository}/blobs/uploads/")
    location = urlsplit(answer.headers["Location"])
    assert (location.netloc == world.router.address) == (pod == "pod-c")
    with world.client() as client:
        digest = client.push_blob(repository, LAYER)
        assert client.get_blob(repository, digest) == LAYER
