"""Which role each call needs, and how a refusal looks: always problem+json, never a trace."""

from concurrent.futures import ThreadPoolExecutor
from typing import NoReturn

import pytest

from coordinator.tokens.table import hash_token
from tests.api.collecting import World
from tests.api.harness import OPERATE, READ, Facts, Served
from tests.support.wait import eventually

OPEN = ("/healthz", "/readyz", "/metrics", "/schema")
#: Registries' clients come there, whom issuers know and the API does not (test_token_service.py).
TOKEN_SERVICE = ("/jwt/auth", "/.well-known/jwks.json")


def test_every_route_has_a_role(api: Served) -> None:
    """Every route but the open ones needs a known bearer token, and one that changes something the role operate."""
    unknown = ({}, {"Authorization": "Bearer wrong"}, {"Authorization": f"Basic {READ}"}, {"Authorization": READ})
    document = api.get("/schema", None).json()
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            if path in OPEN + TOKEN_SERVICE:
                continue
            filled = path.replace("{digest}", f"sha256:{'0' * 64}").replace("{number}", "1")
            for name in ("name", "pod_name", "pod"):
                filled = filled.replace(f"{{{name}}}", "nobody")
            assert operation["security"] == [{"bearer": []}], path
            for headers in unknown:
                answer = api.client.request(method.upper(), filled, headers=headers)
                assert answer.status_code == 401, (method, path)
                assert answer.headers["www-authenticate"] == "Bearer"
                assert answer.headers["content-type"] == "application/problem+json"
            if method == "get":
                assert {api.get(filled, token).status_code for token in (READ, OPERATE)} <= {200, 404}, path
            elif "lookup" not in path and "events" not in path:
                refused = api.ask(method.upper(), filled, READ)
                assert (refused.status_code, refused.json()["status"]) == (403, 403), (method, path)


def test_pods_tokens_open_nothing_but_events(api: Served, facts: Facts) -> None:
    """A pod's event token is no API token."""
    added = api.ask("POST", "/v1/pods", json={"name": f"{facts.mark}-p", "prefixes": [f"{facts.mark}-p"]}).json()
    assert api.get("/v1/pods", added["event_token"]).status_code == 401


@pytest.mark.lengthy
def test_tokens_work_at_once_and_end_soon(api: Served) -> None:
    """A new token is valid at its first use; a revoked one is refused within seconds."""
    token = f"fresh-{id(api)}"
    assert api.get("/v1/pods", token).status_code == 401
    api.db.execute(
        "INSERT INTO api_tokens (name, role, token_sha256) VALUES ('fresh', 'read', %s)", (hash_token(token),)
    )
    eventually(lambda: api.get("/v1/pods", token).status_code == 200, "the token is known", seconds=10)
    api.db.execute("DELETE FROM api_tokens WHERE name = 'fresh'")
    eventually(lambda: api.get("/v1/pods", token).status_code == 401, "the token is refused")


@pytest.mark.parametrize("path", OPEN)
def test_open_routes(api: Served, path: str) -> None:
    """Health, readiness, metrics and the API's description need no token."""
    # Not ready is also who has waited too long once for a service that is busy.
    eventually(lambda: api.get(path, None).status_code == 200, "it is answered")


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/nothing/here", 404),
        ("GET", "/v1/pods/nobody", 404),
        ("PUT", "/v1/blobs", 405),
        ("DELETE", "/v1/status", 405),
        ("GET", "/v1/blobs/sha256:1", 400),
        ("GET", f"/v1/blobs/sha256:{'A' * 64}", 400),
        ("GET", "/v1/blobs?limit=0", 400),
        ("GET", "/v1/blobs?limit=1001", 400),
        ("GET", "/v1/blobs?limit=ten", 400),
        ("GET", "/v1/blobs?state=asleep", 400),
        ("GET", "/v1/blobs?sort=size", 400),
        ("GET", "/v1/blobs?min_references=-1", 400),
        ("GET", "/v1/blobs?statee=live", 400),
        ("GET", "/v1/blobs?pod=nobody", 404),
        ("GET", "/v1/blobs?pod=No+Body", 400),
        ("GET", "/v1/blobs?pod=nobody&sort=references", 400),
        ("GET", "/v1/blobs?sort=references&cursor=x", 400),
        ("GET", "/v1/repositories?prefix=Team", 400),
        ("GET", "/v1/repositories?prefix=", 400),
        ("GET", "/v1/repositories?pod=nobody", 404),
        ("GET", "/v1/repositories/Upper", 400),
        ("GET", "/v1/repositories/team%00", 400),
        ("GET", "/v1/dead-letters/0", 400),
        ("GET", "/v1/dead-letters/9223372036854775807", 404),
        ("GET", "/v1/dead-letters/9223372036854775808", 400),
        ("GET", "/v1/dead-letters/one", 404),
        ("GET", "/healthz?x=1", 400),
        ("GET", "/v1/blobs?state=live&state=hidden", 400),
        ("GET", "/v1/blobs?limit=1&limit=1", 400),
        ("POST", "/v1/blobs/lookup", 400),
        ("POST", "/v1/pods", 400),
    ],
)
def test_refusals_are_problems(api: Served, method: str, path: str, status: int) -> None:
    """Every refusal is problem+json with one sentence, whichever layer refuses."""
    answer = api.ask(method, path)
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    problem = answer.json()
    assert set(problem) == {"type", "title", "status", "detail"}
    assert problem["status"] == status
    assert problem["detail"]
    assert "Traceback" not in answer.text
    assert (answer.headers.get("allow") is not None) == (status == 405)


@pytest.mark.parametrize(
    ("method", "path", "body", "text"),
    [
        ("GET", "/v1/blobs/sha256:abc", None, "`digest` must be sha256: and 64 lower-case hex digits."),
        ("GET", "/v1/blobs?sort=x", None, "`sort` must be one of first_seen, unreferenced_since, references."),
        (
            "GET",
            "/v1/blobs?state=x",
            None,
            "`state` must be one of live, unreferenced, hidden, purged, missing, hiding, purging.",
        ),
        ("GET", "/v1/blobs?limit=5000", None, "`limit` must be a whole number from 1 to 1000."),
        ("GET", "/v1/blobs?limit=ten", None, "`limit` must be a whole number from 1 to 1000."),
        ("GET", "/v1/dead-letters?resolved=perhaps", None, "`resolved` must be true or false."),
        ("POST", "/v1/dead-letters/1/discard", {"why": ""}, "`why` must be text of 1 to 1000 characters."),
        ("POST", "/v1/dead-letters/1/discard", {}, "`why` is missing: it must be text of 1 to 1000 characters."),
        ("POST", "/v1/pods/x/reconcile", {"why": ""}, "`why` must be text of 1 to 1000 characters."),
        ("POST", "/v1/pods", {"name": "a", "prefixes": []}, "`prefixes` must be a list of 1 to 1000 items."),
        ("POST", "/v1/pods", {"name": "a", "prefixes": ["a"], "mode": "x"}, "`mode` must be one of manifest, link."),
        ("POST", "/v1/pods", {"name": "a", "prefixes": ["a"], "registries": ["no"]}, "such as http://10.0.0.7:5000."),
        (
            "POST",
            "/v1/pods",
            {"nam": "a"},
            "it takes name, prefixes, registries, mode, kind, probe, token_issuer, unmanaged.",
        ),
        ("POST", "/v1/pods", ["a"], "must be a JSON object: it takes name, prefixes"),
        ("POST", "/v1/blobs/lookup", {"digests": ["x"]}, "Each of `digests` must be sha256: and 64"),
        ("POST", "/v1/pods", {"name": "a", "prefixes": ["b", "b/c"]}, "name 'b' alone"),
    ],
)
def test_a_refusal_says_what_is_allowed(api: Served, method: str, path: str, body: object, text: str) -> None:
    """A refusal names the value that does not fit and what would, without the words of a library."""
    detail = api.ask(method, path, json=body).json()["detail"]
    assert text in detail
    assert "Expected" not in detail


def test_what_is_refused_is_not_repeated(api: Served) -> None:
    """A refusal does not repeat what was sent, which may be a secret in the wrong place."""
    for path, body in (("/v1/pods", {"name": "a", "prefixes": ["a"], "mode": "s3cr3t"}), ("/v1/pods", "s3cr3t")):
        answer = api.ask("POST", path, json=body)
        assert answer.status_code == 400
        assert "s3cr3t" not in answer.text


@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize("host", ["x:y:z", "h:99999999999", "[", "[::1", ""])
def test_a_host_that_is_none(api: Served, facts: Facts, method: str, host: str) -> None:
    """A request with a malformed Host is answered, and adds a pod only if it returns the pod's token."""
    assert api.ask(method, "/nothing", headers={"Host": host}).status_code == 404
    name = f"{facts.mark}-host"
    answer = api.ask("POST", "/v1/pods", json={"name": name, "prefixes": [name]}, headers={"Host": host})
    assert answer.status_code in {201, 400}, answer.text
    assert api.get(f"/v1/pods/{name}").status_code == (200 if answer.status_code == 201 else 404)


@pytest.mark.parametrize(
    ("method", "path", "content"),
    [
        ("POST", "/v1/pods", b"[" * 100_000),
        ("PUT", "/v1/gc/switch", b'{"enabled":' * 1000),
        ("POST", "/v1/pods/nobody/processes/%00/retire", b'{"why": "it ended"}'),
    ],
)
def test_what_no_call_takes(api: Served, method: str, path: str, content: bytes) -> None:
    """A body that is nested without end, or has text that the table cannot hold, is refused with 400."""
    answer = api.ask(method, path, content=content)
    assert answer.status_code == 400, answer.text


def test_unknown_parameters_are_named(api: Served) -> None:
    """An unknown parameter is refused with its name and the known ones."""
    detail = api.get("/v1/blobs", minreferences=3).json()["detail"]
    assert "'minreferences'" in detail
    assert "min_references" in detail


def test_a_failure_of_ours_shows_nothing(world: World) -> None:
    """An unexpected error is 500 as a problem, without its message."""

    def broken(_: object) -> NoReturn:
        raise RuntimeError("secret inside")

    world.known(broken)
    answer = world.api.get("/v1/gc/plan")
    assert answer.status_code == 500
    assert answer.headers["content-type"] == "application/problem+json"
    assert "secret" not in answer.text


def test_a_database_with_another_schema_is_503(api: Served) -> None:
    """A database that was not migrated is 503 with Retry-After and the command that migrates it."""
    api.db.execute("ALTER TABLE dead_letters RENAME TO elsewhere")
    try:
        answer = api.get("/v1/dead-letters")
    finally:
        api.db.execute("ALTER TABLE elsewhere RENAME TO dead_letters")
    assert answer.status_code == 503
    assert answer.headers["retry-after"] == "1"
    assert "baleen db migrate" in answer.json()["detail"]


def test_a_statement_that_is_cut_off_is_503(api: Served) -> None:
    """A call whose statement the database cancels is 503 and asks the caller to narrow it."""
    with api.db.transaction(), ThreadPoolExecutor(1) as pool:
        api.db.execute("LOCK TABLE dead_letters IN ACCESS EXCLUSIVE MODE")
        asked = pool.submit(api.get, "/v1/dead-letters")
        waiting = "FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND application_name = 'baleen-api'"
        eventually(lambda: api.db.execute(f"SELECT pid {waiting}").fetchall(), "the question waits")
        api.db.execute(f"SELECT pg_cancel_backend(pid) {waiting}")
        answer = asked.result()
    assert answer.status_code == 503
    assert "narrow it" in answer.json()["detail"]
