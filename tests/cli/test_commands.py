"""Commands print what the API says, exit 0, 1, 2 or 130, and fail with one sentence."""

import json
import signal
import socket
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
import yaml

from coordinator.domain.lifecycle import BlobState
from coordinator.domain.references import ManifestKind
from coordinator.tokens.table import hash_token
from schemas.records import RECORD_CONTENT_TYPE
from tests.api.harness import READ, Facts, Served, dead_letter, envelope
from tests.cli.conftest import Command, Done, free_port, program_environment, python
from tests.services.http import Handler, HTTPServer
from tests.support.registries import running_model
from tests.support.sink import NotificationSink
from tests.support.tables import NOW, add_gap, add_process, id_of, insert, set_kind
from tests.support.wait import eventually
from tests.tokens import forge

UNKNOWN = f"sha256:{'0' * 64}"
NOTIFICATIONS = "application/vnd.docker.distribution.events.v1+json"


def errs(done: Done, code: int) -> str:
    """Check that a command failed as commands fail; return its message."""
    assert done.code == code, done
    assert done.out == ""
    assert len(done.err.strip().splitlines()) == 1, done.err
    assert "Traceback" not in done.err
    return done.err


def test_blob(api: Served, baleen: Command, facts: Facts) -> None:
    """`blob show` and `refs` print the API's answers, for programs and for people."""
    facts.manifest(0, ManifestKind.IMAGE, [10, 11])
    for name in ("one", "two", "three"):
        facts.hold(facts.repository(0, name), 0)
    digest = facts.digest(11)
    shown = baleen("blob", "show", digest, "--json").json
    assert shown | {"counted_at": ""} == api.get(f"/v1/blobs/{digest}").json() | {"counted_at": ""}
    assert "reference count     3" in baleen("blob", "show", digest).out
    refs = baleen("blob", "refs", digest, "--json").json
    assert [item["kind"] for item in refs["items"]] == ["layer"] * 3
    assert refs["next"] is None
    first = baleen("blob", "refs", digest, "--limit", "2", "--json").json
    rest = baleen("blob", "refs", digest, "--cursor", first["next"], "--json").json
    assert first["items"] + rest["items"] == refs["items"]
    table = baleen("blob", "refs", digest, "--limit", "2")
    assert facts.repository(0, "one") in table.out
    assert "--cursor" in table.err


def test_blobs(api: Served, baleen: Command, facts: Facts) -> None:
    """`blob list` prints what the API lists, by state, pod, references and order, and continues at a cursor."""
    facts.manifest(0, ManifestKind.IMAGE, [10, 11])
    facts.hold(facts.repository(0, "app"), 0)
    known = {facts.digest(number) for number in (0, 10, 11)}
    listed = baleen("blob", "list", "--pod", facts.pods[0], "--json").json
    assert {item["digest"] for item in listed["items"]} == known
    assert listed == api.get("/v1/blobs", pod=facts.pods[0], limit=1000).json()
    first = baleen("blob", "list", "--pod", facts.pods[0], "--limit", "1", "--json").json
    rest = baleen("blob", "list", "--pod", facts.pods[0], "--cursor", first["next"], "--json").json
    assert first["items"] + rest["items"] == listed["items"]
    table = baleen("blob", "list", "--pod", facts.pods[0], "--state", "live").out
    assert all(digest in table for digest in known)
    assert baleen("blob", "list", "--pod", facts.pods[0], "--min-references", "2").out == "none\n"
    assert baleen("blob", "list", "--sort", "references", "--limit", "1", "--json").json["counted_at"]


def test_repositories(api: Served, baleen: Command, facts: Facts) -> None:
    """`repositories` lists them by pod or prefix, and shows one with its bytes."""
    facts.manifest(0, ManifestKind.IMAGE, [10])
    facts.hold(facts.repository(0, "app"), 0)
    facts.hold(facts.repository(0, "below/app"), 0)
    name = facts.repository(0, "below/app")
    listed = baleen("repositories", "list", "--pod", facts.pods[0], "--json").json
    assert [item["name"] for item in listed["items"]] == [facts.repository(0, "app"), name]
    below = baleen("repositories", "list", "--prefix", name.removesuffix("/app"))
    assert name in below.out
    assert facts.repository(0, "app") not in below.out
    assert baleen("repositories", "show", name, "--json").json == api.get(f"/v1/repositories/{name}").json()
    assert f"name           {name}" in baleen("repositories", "show", name).out


def test_pods(baleen: Command, facts: Facts) -> None:
    """A pod is added, listed, shown, given another token and removed; its token is printed when it is made."""
    name = f"{facts.mark}-cli"
    options = ("--prefix", name, "--prefix", f"{facts.mark}/x", "--registry", "http://127.0.0.1:1", "--mode", "link")
    assert "--no-check" in errs(baleen("pods", "add", name, *options), 1)
    options = (*options, "--no-check")
    added = baleen("pods", "add", name, *options, "--json").json
    assert added["pod"] == name
    assert added["event_token"] in added["registry_config"]
    shown = baleen("pods", "show", name, "--json").json
    assert (shown["mode"], shown["prefixes"]) == ("link", sorted([name, f"{facts.mark}/x"]))
    listed = baleen("pods", "list", "--json").json
    assert name in [item["name"] for item in listed["items"]]
    assert name in baleen("pods", "list").out
    again = baleen("pods", "rotate-token", name).out
    assert added["event_token"] not in again
    assert "notifications:" in again
    assert "overlaps" in errs(baleen("pods", "add", f"{name}2", "--prefix", f"{name}/below"), 1)
    taken = ("--registry", "http://127.0.0.1:1/", "--no-check")
    assert f"pod {name}" in errs(baleen("pods", "add", f"{name}2", "--prefix", f"{name}2", *taken), 1)
    assert baleen("pods", "remove", name).code == 0
    assert "no pod" in errs(baleen("pods", "show", name), 1)


def test_a_pods_token_issuer(baleen: Command, facts: Facts, tmp_path: Path) -> None:
    """The four options go together, when a pod is added and later; the keys' names are shown, and a missing TLS is
    reported.
    """
    keys = tmp_path / "issuer.pem"
    keys.write_bytes(forge.public_pem(forge.rsa_key(0)))
    url = "http://gitlab.example/jwt/auth"
    options = ["--token-url", url, "--token-issuer", "gitlab", "--token-service", "registry", "--token-keys", str(keys)]
    name = f"{facts.mark}-cli"
    for left_out in range(0, 8, 2):
        some = options[:left_out] + options[left_out + 2 :]
        assert "belong together" in errs(baleen("pods", "add", name, "--prefix", name, *some), 2)
    added = baleen("pods", "add", name, "--prefix", name, *options, "--json")
    assert "has no TLS" in added.err
    shown = baleen("pods", "show", name, "--json").json["token_issuer"]
    names = [forge.kid(forge.rsa_key(0))]
    assert shown == {"url": url, "issuer": "gitlab", "service": "registry", "key_ids": names}
    assert names[0] in baleen("pods", "show", name).out
    assert "--none" in errs(baleen("pods", "set-issuer", name), 2)
    assert "--none" in errs(baleen("pods", "set-issuer", name, "--none", *options), 2)
    keys.write_bytes(forge.public_pem(forge.rsa_key(0), forge.ec_key(0)))
    assert forge.kid(forge.ec_key(0)) in baleen("pods", "set-issuer", name, *options).out
    keys.write_bytes(forge.private_pem(forge.ec_key(0)))
    assert "private key" in errs(baleen("pods", "set-issuer", name, *options, "--json"), 2)
    keys.unlink()
    assert "cannot be read" in errs(baleen("pods", "set-issuer", name, *options), 2)
    assert "No tokens" in baleen("pods", "set-issuer", name, "--none").out
    assert baleen("pods", "show", name, "--json").json["token_issuer"] is None


def test_a_pods_gaps(api: Served, baleen: Command, facts: Facts) -> None:
    """The gaps of a pod of kind relay are resolved with a reason; for any other pod the command names a reconcile."""
    pod, other = facts.pods[0], facts.pods[1]
    set_kind(api.db, "relay", pod)
    add_gap(api.db, id_of(pod))
    assert "no open gap" in baleen("pods", "resolve-gaps", pod, "--why", "it was compared").out
    add_gap(api.db, id_of(pod))
    assert baleen("pods", "resolve-gaps", pod, "--why", "again", "--json").json["gaps"]["open"] == 0
    assert f"baleen pods reconcile {other}" in errs(baleen("pods", "resolve-gaps", other, "--why", "I think so"), 1)


def test_a_registry_by_another_name(api: Served, baleen: Command, facts: Facts) -> None:
    """A registry that another pod has is refused, by whatever name; another port of its host is accepted."""
    pod, other = facts.pods[0], facts.pods[1]
    with NotificationSink() as sink, running_model(sink) as registry, running_model(sink) as second:
        named = registry.url.replace("127.0.0.1", "localhost")
        baleen("pods", "set-registries", pod, "--registry", registry.url)
        message = errs(baleen("pods", "set-registries", other, "--registry", named), 1)
        assert f"as {registry.url} of pod {pod} is" in message
        assert "--no-check" in message
        for url in (second.url, second.url.replace("127.0.0.1", "localhost")):
            assert baleen("pods", "set-registries", other, "--registry", url).code == 0
        # Of the pod itself, and of names that nobody knows.
        api.db.execute("UPDATE pods SET registries = %s WHERE name = %s", (["http://nowhere.invalid:1", "x"], other))
        assert baleen("pods", "set-registries", pod, "--registry", named, "--registry", second.url).code == 0
        assert baleen("pods", "set-registries", other, "--registry", registry.url, "--no-check").code == 0


@pytest.mark.parametrize("header", ["WWW-Authenticate", "Docker-Distribution-Api-Version", "Server"])
def test_a_server_that_answers_403(baleen: Command, facts: Facts, header: str) -> None:
    """A 403 is taken for a registry that requires a login only if it has a registry's headers."""
    handler = type("Forbidding", (Handler,), {"do_GET": lambda self: self.reply(403, headers={header: "x"})})
    with HTTPServer(handler) as server:
        done = baleen("pods", "set-registries", facts.pods[0], "--registry", server.address)
    if header == "Server":
        assert "not as a registry does" in errs(done, 1)
    else:
        assert done.code == 0
        assert "requires a login" in done.err


def test_a_pods_registries(api: Served, baleen: Command, facts: Facts) -> None:
    """A registry's address is checked and changed; its processes are shown, and one is retired with a reason."""
    pod = facts.pods[0]
    with NotificationSink() as sink, running_model(sink) as registry:
        baleen("pods", "set-registries", pod, "--registry", registry.url, "--json")
        elsewhere = f"http://{'nowhere.invalid'}:5000"
        assert "name is not known" in errs(baleen("pods", "set-registries", pod, "--registry", elsewhere), 1)
        # Something else listens there: the API.
        assert "404" in errs(baleen("pods", "set-registries", pod, "--registry", api.url), 1)
        for wrong in ("127.0.0.1:5000", "http://user:secret@127.0.0.1:5000", "http://127.0.0.1:5000/v2/"):
            message = errs(baleen("pods", "set-registries", pod, "--registry", wrong), 2)
            assert "secret" not in message
        shown = baleen("pods", "show", pod, "--json").json
        assert (shown["registries"], shown["processes"], shown["endpoints"]) == ([registry.url], [], [])
        add_process(api.db, id_of(pod), "the-process", echoed_at=NOW)
        failing = {"url": registry.url, "address": "127.0.0.1", "error": "what it said", "failing_since": NOW}
        insert(api.db, "endpoints", pod_id=id_of(pod), **failing)
        document = baleen("pods", "show", pod).out
        assert "the-process" in document
        assert "what it said" in document
        assert errs(baleen("pods", "retire-process", pod, "the-process"), 2)
        baleen("pods", "retire-process", pod, "the-process", "--why", "it was seen to end", "--json")
        (source,) = baleen("pods", "show", pod, "--json").json["processes"]
        assert (source["state"], source["retired_why"]) == ("retired", "it was seen to end")
        assert "There is no pod nope" in errs(baleen("pods", "retire-process", "nope", "i", "--why", "x"), 1)
        assert "no process" in errs(baleen("pods", "retire-process", pod, "the-process", "--why", "again"), 1)


def test_a_pod_of_which_much_is_to_be_shown(api: Served, baleen: Command, facts: Facts) -> None:
    """`pods show` fits a hundred columns and shows all that the watermark waits for, each finding and the refused
    token, without a reference to itself.
    """
    pod = facts.pods[0]
    for number in range(3):
        dead = {"echoed_at": NOW, "dead_since": NOW, "dead_why": "refused"}
        add_process(api.db, id_of(pod), f"9b2f6ad0-5c5e-4b1c-9f5e-0d5a0c8a7c0{number}", **dead)
    long = "a sentence of some length that says what is the matter, and what follows from it; " * 4
    for check, result, fix in (
        ("versioned", "proved", ""),
        ("same-root", "proved", ""),
        ("clocks", "refuted", f"Run a time service, since {long}\nBALEEN_SAFETY_CLOCK_SKEW=142s"),
    ):
        found = {"check": check, "result": result, "meaning": long, "proof": f"proof of {check}", "fix": fix}
        insert(api.db, "findings", pod_id=id_of(pod), **found)
    insert(api.db, "token_refusals", pod_id=id_of(pod), since=NOW, last_at=NOW)
    document = baleen("pods", "show", pod)
    lines = document.out.splitlines()
    assert max(map(len, lines)) <= 100, max(lines, key=len)
    assert "pods show" not in document.out + document.err
    assert "BALEEN_SAFETY_CLOCK_SKEW=142s" in lines
    assert "  evidence: proof of clocks" in lines
    assert "proved: versioned, same-root" in lines
    assert "proof of versioned" not in document.out
    waits = document.out.partition("waits for")[2].partition("GC blocked by")[0]
    assert all(f"7c0{number}" in waits for number in range(3))
    assert "more: see `waits_for`" in " ".join(document.out.split())
    refusals = " ".join(document.out.partition("\nwrong token\n")[2].split())
    assert "wrong token, or with none, have been refused since" in refusals


def test_dead_letters(api: Served, baleen: Command, facts: Facts) -> None:
    """Dead letters are listed, shown, not retried while malformed, and discarded with a reason."""
    number = str(dead_letter(api.db, facts.pods[0], "not json", NOTIFICATIONS))
    listed = baleen("dead-letters", "list", "--pod", facts.pods[0], "--json").json
    assert [str(item["id"]) for item in listed["items"]] == [number]
    assert baleen("dead-letters", "show", number, "--json").json["payload"] == "not json"
    assert "still cannot be understood" in errs(baleen("dead-letters", "retry", number), 1)
    errs(baleen("dead-letters", "discard", number), 2)
    assert baleen("dead-letters", "discard", number, "--why", "a test", "--json").json["resolved_why"] == "a test"
    assert baleen("dead-letters", "list", "--pod", facts.pods[0]).out == "none\n"
    errs(baleen("dead-letters", "show", "0"), 2)


def test_a_retry_that_may_come_back(api: Served, baleen: Command, facts: Facts) -> None:
    """A retry of an unreadable manifest says that a new dead letter follows if it still cannot be read."""
    pod = facts.pods[0]
    (prefix,) = baleen("pods", "show", pod, "--json").json["prefixes"]
    event = {
        "id": "e", "timestamp": "2026-01-01T00:00:00Z", "action": "push", "pod": pod,
        "repository": f"{prefix}/app", "digest": UNKNOWN,
    }  # fmt: skip
    number = dead_letter(api.db, pod, json.dumps(event), RECORD_CONTENT_TYPE, reason="unreadable-manifest")
    document = baleen("dead-letters", "retry", str(number)).out
    assert document == (
        f"Dead letter {number} is resolved: 1 event is published."
        " If its manifest still cannot be read, that is a new dead letter.\n"
    )


def test_many_dead_letters(api: Served, baleen: Command, facts: Facts) -> None:
    """Dead letters are resolved by their numbers, or all open ones that match; a refused one stops no other."""
    pod, later = facts.pods[0], f"{facts.mark}/later"
    bad = [dead_letter(api.db, pod, "not json", NOTIFICATIONS) for _ in range(3)]
    good = [dead_letter(api.db, pod, envelope(later), NOTIFICATIONS) for _ in range(3)]
    baleen("pods", "add-prefix", pod, later)
    for arguments in ((), ("1", "--pod", pod), ("1", "--reason", "x")):
        assert "or select open ones" in errs(baleen("dead-letters", "retry", *arguments), 2)
    some = baleen("dead-letters", "retry", str(bad[0]), str(good[0]), str(good[0]))
    assert some.code == 1
    assert some.out == f"Dead letter {good[0]} is resolved: 1 event is published.\n1 of 2 dead letters resolved.\n"
    assert f"Dead letter {bad[0]}: " in some.err
    listed = baleen("dead-letters", "list", "--pod", pod, "--json").json["items"]
    reasons = {item["reason"] for item in listed}
    assert len(reasons) == 1
    rest = baleen("dead-letters", "retry", "--pod", pod, "--reason", reasons.pop())
    assert (rest.code, rest.out) == (1, "2 of 5 dead letters resolved.\n")
    assert baleen("dead-letters", "discard", "--pod", pod, "--reason", "none", "--why", "x").out.startswith("0 of 0 ")
    done = baleen("dead-letters", "discard", "--pod", pod, "--why", "a test", "--json").json
    assert [(item["id"], item["resolved_why"]) for item in done["items"]] == [(number, "a test") for number in bad]


def test_tokens(api: Served, baleen: Command) -> None:
    """A token is printed once, works with its role, is listed without its secret, and is refused when revoked."""
    made = baleen("tokens", "create", "ci.read", "--json").json
    assert made["role"] == "read"
    # Unknown tokens are looked for twice a second: another test may just have tried one.
    eventually(lambda: api.get("/v1/pods", made["token"]).status_code == 200, "the token is known")
    listed = baleen("tokens", "list", "--json")
    assert made["token"] not in listed.out
    assert ("ci.read", "read") in [(item["name"], item["role"]) for item in listed.json["items"]]
    assert all(item["created_at"].endswith("Z") for item in listed.json["items"])
    assert "already" in errs(baleen("tokens", "create", "ci.read"), 1)
    errs(baleen("tokens", "create", "no good"), 2)
    assert baleen("tokens", "revoke", "ci.read").code == 0
    errs(baleen("tokens", "revoke", "ci.read"), 1)


def test_setup(baleen: Command) -> None:
    """Migrating and creating topics again changes nothing, and prints what there is."""
    assert baleen("db", "migrate", "--json").json["revision"]
    names = {report["name"] for report in baleen("topics", "create", "--json").json["items"]}
    assert names == {"registry.events", "registry.dead-letters", "blob.lifecycle"}
    assert "one copy, on one broker: use this for evaluation only" in baleen("topics", "create").err


def test_check(api: Served, baleen: Command, facts: Facts) -> None:
    """`check` exits 0 while counts agree with the facts, and 1 with the blob's digest when one does not."""
    facts.manifest(0, ManifestKind.IMAGE, [10])
    facts.hold(facts.repository(0, "app"), 0)
    assert baleen("check", "--json").json["agrees"]
    raw = bytes.fromhex(facts.digest(10)[7:])
    api.db.execute("UPDATE blobs SET reference_count = 5 WHERE digest = %s", (raw,))
    done = baleen("check", "--json")
    api.db.execute("UPDATE blobs SET reference_count = 1 WHERE digest = %s", (raw,))
    assert done.code == 1
    assert facts.digest(10)[7:] in done.out
    assert '"agrees":false' in done.out


def test_config_never_prints_a_secret(baleen: Command) -> None:
    """`config show` prints every setting, and of secrets only that they are set."""
    secrets = {"token": "s3cr3t-token", "s3_secret_key": "s3cr3t-key", "kafka_sasl_password": "s3cr3t-password"}
    for form in ([], ["--json"]):
        done = baleen("config", "show", *form, **secrets)
        assert done.code == 0
        assert "s3cr3t" not in done.out + done.err
        assert baleen.environment["database_url"] not in done.out
        assert "(set)" in done.out
        assert baleen.environment["url"] in done.out
    shown = baleen("config", "show", "--json", safety_link_grace="36h").json
    assert (shown["safety_link_grace"], shown["s3_bucket"]) == ("36h", None)


def test_the_version(baleen: Command) -> None:
    """`--version` prints the version of the installed distribution."""
    done = baleen("--version")
    assert (done.code, done.out) == (0, f"baleen {metadata.version('baleen-registry')}\n")


@pytest.mark.parametrize(
    ("arguments", "settings", "code", "message"),
    [
        (["blob", "show", UNKNOWN], {}, 1, "yet"),
        (["blob", "show", "latest"], {}, 2, "not a digest"),
        (["blob", "refs", UNKNOWN, "--limit", "0"], {}, 2, "--limit"),
        (["blob", "show"], {}, 2, "DIGEST"),
        (["nonsense"], {}, 2, "nonsense"),
        (["pods", "add", "pod-x"], {}, 2, "--prefix"),
        (["pods", "add", "Pod", "--prefix", "x"], {}, 2, "pod name"),
        (["pods", "show", "../status"], {}, 2, "pod name"),
        (["pods", "retire-process", "pod-x", "a/b", "--why", "it ended"], {}, 1, "nothing at"),
        (["pods", "list"], {"token": "wrong"}, 1, "unknown or revoked"),
        (["pods", "add", "pod-x", "--prefix", "x"], {"token": READ}, 1, "operate"),
        (["pods", "list"], {"url": "http://127.0.0.1:9"}, 1, "baleen up"),
        (["pods", "list"], {"url": "no url"}, 2, "BALEEN_URL"),
        (["pods", "list"], {"token": ""}, 2, "BALEEN_TOKEN"),
        (["pods", "list"], {"token": "two\nlines"}, 2, "BALEEN_TOKEN"),
        (["dead-letters", "list", "--pod", "nobody"], {}, 1, "no pod nobody"),
        (["dead-letters", "show", "one"], {}, 2, "'ID' must be a whole number (see `baleen dead-letters show --help`)"),
        (["dead-letters", "show", "0"], {}, 2, "'ID' must be 1 or more"),
        (["dead-letters", "show", "9" * 20], {}, 2, "'ID' must be 9223372036854775807 or less"),
        (["jobs", "show", "9" * 20], {}, 2, "'ID' must be 9223372036854775807 or less"),
        (["jobs", "show", str(2**63 - 1)], {}, 1, "no job"),
        (["jobs", "list", "--kind", "work"], {}, 2, "one of reconcile, doctor"),
        (["jobs", "list", "--pod", "Pod"], {}, 2, "pod name"),
        (["blob", "list", "--state", "lost"], {}, 2, "one of live, unreferenced, hidden, purged, missing"),
        (["blob", "list", "--sort", "size"], {}, 2, "one of first_seen, unreferenced_since, references"),
        (["blob", "list", "--min-references", "-1"], {}, 2, "--min-references"),
        (["repositories", "show", "nobody/nothing"], {}, 1, "nobody/nothing"),
        (["repositories", "show", "../status"], {}, 2, "repository name"),
        (["dead-letters", "discard", "1", "--why", ""], {}, 2, "`why` must be text of 1 to 1000 characters"),
        (["tokens", "create", "x", "--role", "king"], {}, 2, "'read', 'operate'"),
        (["pods", "add-prefix", "nobody", "x"], {}, 1, "no pod nobody"),
        (["pods", "add-prefix", "nobody"], {}, 2, "PREFIX"),
        (["pods", "resolve-gaps", "nobody", "--why", "no pod"], {}, 1, "no pod nobody"),
        (["pods", "resolve-gaps", "nobody"], {}, 2, "--why"),
        (["pods", "config", "nobody"], {"s3_bucket": "b"}, 1, "no pod nobody"),
        (["pods", "list"], {"nonsense": "1"}, 2, "BALEEN_NONSENSE"),
        (["config", "show"], {"safety_clock_skew": "soon"}, 2, "BALEEN_SAFETY_CLOCK_SKEW"),
        (["tokens", "list"], {"database_url": "mysql://x"}, 2, "BALEEN_DATABASE_URL"),
        (["tokens", "list"], {"database_url": "postgresql://127.0.0.1:9/x"}, 1, "database"),
        (["check"], {"database_url": "postgresql://127.0.0.1:9/x"}, 1, "database"),
        (["hold", "team", "--why", "\udcff"], {}, 2, "not valid UTF-8"),
        (["jobs", "list", "--pod", "\udcff"], {}, 2, "not valid UTF-8"),
        (["pods", "retire-process", "pod-x", "\udcff", "--why", "it ended"], {}, 2, "not valid UTF-8"),
        (["tokens", "list"], {"database_url": "postgresql://u:\udcff@127.0.0.1:9/x"}, 2, "not valid UTF-8"),
        (["api", "--port", "0"], {}, 2, "--port"),
        (["api", "--host", "192.0.2.1"], {}, 1, "192.0.2.1 cannot be listened on, since it is no address of this"),
        (["api", "--host", "name.invalid"], {}, 1, "that name is not known here"),
    ],
)
def test_errors(baleen: Command, arguments: list[str], settings: dict[str, str], code: int, message: str) -> None:
    """A refusal exits 1 and wrong usage 2, with one sentence on stderr and nothing on stdout."""
    assert message in errs(baleen(*arguments, **settings), code)


@pytest.mark.parametrize("message", ["<html>", "", "[]", "[" * 100_000])
def test_another_server_answers(bare: Command, message: str) -> None:
    """A server at BALEEN_URL that answers 200 and is not Baleen is reported as that."""

    class Portal(Handler):
        def do_GET(self) -> None:
            self.reply(200, message.encode())

        do_PUT = do_GET

    with HTTPServer(Portal) as server:
        for arguments in (["status"], ["gc", "off", "--why", "an incident"]):
            done = bare(*arguments, url=server.address, token="x")
            assert "but not as Baleen does: check BALEEN_URL" in errs(done, 1)


@pytest.mark.parametrize(
    "proxy", ["socks5://who:hidden@127.0.0.1:9", "no-proxy://who:hidden@127.0.0.1:9", "http://hidden:port"]
)
def test_a_proxy_that_cannot_be_used(baleen: Command, monkeypatch: pytest.MonkeyPatch, proxy: str) -> None:
    """An unusable proxy is reported by its variables' names, without its password, and the kill switch works without
    it.
    """
    monkeypatch.setenv("ALL_PROXY", proxy)
    elsewhere = "http://baleen.invalid:1"
    message = errs(baleen("status", url=elsewhere), 1)
    assert "ALL_PROXY" in message
    assert "hidden" not in message
    done = baleen("gc", "off", "--why", "an incident", url=elsewhere).ok()
    assert "in the database" in done.err


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_no_proxy_leads_to_this_machine(baleen: Command, monkeypatch: pytest.MonkeyPatch, host: str) -> None:
    """An API on loopback is called directly, whatever proxy the environment names."""
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    baleen("status", url=baleen.environment["url"].replace("127.0.0.1", host)).ok()


def test_a_terminal_without_the_characters(bare: Command) -> None:
    """Output that the terminal's encoding cannot show ends the command with 1 and one sentence."""
    environment = program_environment({"s3_root": "größe"}) | {"PYTHONIOENCODING": "ascii"}
    done = python(bare.directory, "-m", "coordinator.cli", "config", "show", env=environment)
    assert done.code == 1
    assert done.err == "The output cannot be written in ascii: set PYTHONIOENCODING=utf-8.\n"


@pytest.mark.parametrize(
    ("arguments", "setting"),
    [
        (["pods", "list"], "BALEEN_URL"),
        (["status"], "BALEEN_URL"),
        (["tokens", "list"], "BALEEN_DATABASE_URL"),
        (["db", "migrate"], "BALEEN_DATABASE_URL"),
        (["check"], "BALEEN_DATABASE_URL"),
        (["topics", "create"], "BALEEN_KAFKA_BOOTSTRAP"),
        (["api"], "BALEEN_DATABASE_URL"),
        (["scheduler"], "BALEEN_DATABASE_URL"),
    ],
)
def test_a_missing_setting_is_named(bare: Command, arguments: list[str], setting: str) -> None:
    """A command without a needed address exits 1 and names the setting and `baleen up`."""
    port = ["--port", str(free_port())] if arguments == ["api"] else []
    message = errs(bare(*arguments, *port), 1)
    assert f"set {setting}" in message
    assert "start `baleen up` in this directory" in message


def test_ctrl_c_while_it_begins(bare: Command) -> None:
    """Ctrl-C during the imports ends the command with one sentence and no trace."""
    (bare.directory / "typer.py").write_text("raise KeyboardInterrupt")
    done = python(bare.directory, "-c", "from coordinator.cli import main; main(['pods', 'list'])")
    assert done == (130, "", "Interrupted.\n")


@pytest.mark.parametrize(
    "command", ["pods list", "tokens list", "check", "audit", "survey s3://bucket/root", "db migrate", "topics create"]
)
def test_ctrl_c_while_it_waits(bare: Command, command: str) -> None:
    """Ctrl-C ends every waiting command with 130, one word, and no trace."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        here = f"127.0.0.1:{silent.getsockname()[1]}"
        settings = {
            "url": f"http://{here}", "token": "x", "database_url": f"postgresql://u@{here}/x", "s3_bucket": "b",
            "s3_endpoint_url": f"http://{here}", "s3_access_key": "k", "s3_secret_key": "k", "kafka_bootstrap": here,
        }  # fmt: skip
        process = subprocess.Popen(
            [sys.executable, "-m", "coordinator.cli", *command.split()],
            cwd=bare.directory,
            env=program_environment(settings),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        silent.settimeout(60)
        connection, _ = silent.accept()
        with connection:
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (130, "", "Interrupted.\n")


@pytest.mark.parametrize("arguments", [["config", "show"], ["config", "show", "--json"], ["--version"], ["--help"]])
def test_a_full_disk(bare: Command, arguments: list[str]) -> None:
    """Output that cannot be written ends the command with 1 and one sentence."""
    with Path("/dev/full").open("w") as full:
        done = python(bare.directory, "-m", "coordinator.cli", *arguments, stdout=full)
    assert done.code == 1
    assert done.err == "The output cannot be written (No space left on device): make room, or write it elsewhere.\n"


@pytest.mark.parametrize("command", [[], ["blob"], ["blob", "list"], ["up"]])
def test_the_short_form_of_help(bare: Command, command: list[str]) -> None:
    """`-h` is `--help`, for groups and commands alike."""
    done = bare(*command, "-h")
    assert (done.code, done.out) == (0, bare(*command, "--help").out)
    assert "Usage: baleen" in done.out


def test_status(api: Served, baleen: Command, facts: Facts) -> None:
    """`status` prints the API's answer, for programs and for people."""
    document = baleen("status", "--json").json
    assert document.keys() == api.get("/v1/status").json().keys()
    printed = baleen("status").out
    assert "caught up" in printed
    assert f"pod {facts.pods[0]}: never reconciled" in printed
    facts.manifest(0, ManifestKind.IMAGE, [10])
    digest = bytes.fromhex(facts.digest(10)[7:])
    api.db.execute("UPDATE blobs SET state = %s WHERE digest = %s", (BlobState.MISSING, digest))
    assert "baleen blob list --state missing" in baleen("status").out
    assert facts.digest(10) in baleen("blob", "list", "--state", "missing").out
    api.db.execute("UPDATE blobs SET state = %s WHERE digest = %s", (BlobState.LIVE, digest))


def test_lists_go_on(api: Served, baleen: Command, facts: Facts) -> None:
    """A list that was cut prints a cursor, and continues there."""
    dead_letters = [dead_letter(api.db, facts.pods[0], "{}", "text/plain") for _ in range(3)]
    cut = baleen("dead-letters", "list", "--pod", facts.pods[0], "--limit", "2")
    cursor = cut.err.split()[-1]
    assert "--cursor" in cut.err
    rest = baleen("dead-letters", "list", "--pod", facts.pods[0], "--cursor", cursor, "--json").json
    assert [item["id"] for item in rest["items"]] == dead_letters[2:]
    first = baleen("pods", "list", "--limit", "1", "--json").json
    rest = baleen("pods", "list", "--cursor", first["next"], "--json").json
    assert first["items"][0]["name"] not in [item["name"] for item in rest["items"]]


def test_a_pod_is_given_a_prefix(baleen: Command, facts: Facts) -> None:
    """`pods add-prefix` prints the prefixes that the pod owns now."""
    pod = facts.pods[0]
    assert f"{facts.mark}/more" in baleen("pods", "add-prefix", pod, f"{facts.mark}/more").out
    shown = baleen("pods", "add-prefix", pod, f"{facts.mark}/a", f"{facts.mark}/b", "--json").json
    assert shown["prefixes"] == sorted([pod, *(f"{facts.mark}/{name}" for name in ("a", "b", "more"))])
    assert f"Pod {pod} owns '{pod}/below' already" in errs(baleen("pods", "add-prefix", pod, f"{pod}/below"), 1)


def test_a_token_file_that_holds_none(baleen: Command, facts: Facts) -> None:
    """A token file of bytes, or one without end, is reported as malformed."""
    file = baleen.directory / "bytes"
    file.write_bytes(b"\xff\xfe")
    for name in (str(file), "/dev/zero"):
        message = errs(baleen("pods", "config", facts.pods[0], "--token-file", name, s3_bucket="b"), 2)
        assert "--token-file is malformed" in message


def test_the_whole_configuration(api: Served, baleen: Command, facts: Facts) -> None:
    """`pods config` prints a file for the pod's registry, with secrets only if they are requested and known."""
    store = {
        "s3_bucket": "shared", "s3_root": "root", "s3_endpoint_url": "http://127.0.0.1:8333", "s3_region": "eu-1",
        "s3_access_key": "the-key", "s3_secret_key": "s3cr3t-key",
    }  # fmt: skip
    pod = facts.pods[0]
    assert "port in `http.addr` is a placeholder" in baleen("pods", "config", pod, **store).err
    baleen("pods", "set-registries", pod, "--registry", "http://127.0.0.1:5001", "--no-check", "--json")
    (baleen.directory / "token").write_text("the-token\n")
    done = baleen("pods", "config", pod, **store)
    printed = done.out
    assert "s3cr3t" not in printed + done.err
    assert "placeholder" not in done.err
    known = yaml.safe_load(printed)
    assert known["storage"]["s3"] == {
        "bucket": "shared", "rootdirectory": "/root", "region": "eu-1", "regionendpoint": "http://127.0.0.1:8333",
        "secure": False, "forcepathstyle": True, "accesskey": "the-key", "secretkey": "THE-PODS-SECRET-KEY",
    }  # fmt: skip
    assert "cache" not in known["storage"]
    assert known["storage"]["delete"]["enabled"]
    assert known["http"]["addr"] == "127.0.0.1:5001"
    (endpoint,) = known["notifications"]["endpoints"]
    assert endpoint["url"] == f"{baleen.environment['url']}/v1/events/{pod}"
    assert endpoint["ignore"]["actions"] == ["pull"]
    # With it, some of GitLab's versions drop events that others would deliver.
    assert "maxretries" not in endpoint
    assert endpoint["queuepurgetimeout"] == "25s"
    whole = ("--with-secrets", "--token-file", "token")
    refused = errs(baleen("pods", "config", pod, *whole, **store), 1)
    assert f"does not have the token of pod {pod}" in refused
    assert "the-token" not in refused
    api.db.execute(
        "UPDATE pods SET event_token_sha256 = %s WHERE name = ANY(%s)", (hash_token("the-token"), list(facts.pods))
    )
    asked = [yaml.safe_load(baleen("pods", "config", each, *whole, **store).out) for each in facts.pods]
    assert asked[0]["storage"]["s3"]["secretkey"] == "s3cr3t-key"
    assert asked[0]["notifications"]["endpoints"][0]["headers"]["Authorization"] == ["Bearer the-token"]
    assert asked[0]["http"]["secret"] == asked[1]["http"]["secret"] != known["http"]["secret"]
    pods_own = baleen("pods", "config", pod, *whole, **store, pod_access_key="own", pod_secret_key="s3cr3t-own").out
    assert yaml.safe_load(pods_own)["storage"]["s3"]["secretkey"] == "s3cr3t-own"
    (baleen.directory / "token").write_text("two\nlines\n")
    assert "--token-file" in errs(baleen("pods", "config", pod, *whole, **store), 2)
    assert "BALEEN_S3_BUCKET" in errs(baleen("pods", "config", pod), 1)


@pytest.mark.usefixtures("api")
def test_the_configuration_of_a_registry_with_a_database(baleen: Command) -> None:
    """For kind `gitlab` the file names a database and switches its collection off; the row collector has no store."""
    wrong = errs(baleen("pods", "add", "gl", "--prefix", "gl", "--kind", "gitlab", "--mode", "link", "--no-check"), 2)
    assert "has mode manifest" in wrong
    added = baleen("pods", "add", "gl", "--prefix", "gl", "--kind", "gitlab", "--no-check", "--json")
    rotated = baleen("pods", "rotate-token", "gl", "--json")
    for shown in (added, rotated):
        section = yaml.safe_load(json.loads(shown.out)["registry_config"])["notifications"]
        assert section["endpoints"][0]["maxretries"] == section["endpoints"][0]["queuesizelimit"] == 1_000_000
    known = yaml.safe_load(baleen("pods", "config", "gl", s3_bucket="shared").out)
    assert known["database"]["enabled"]
    assert known["gc"] == {"disabled": True}
    assert known["http"]["debug"]["prometheus"]["enabled"]
    assert known["notifications"]["events"]["includereferences"]
    rows = yaml.safe_load(baleen("pods", "config", "gl", "--row-collector", s3_bucket="shared").out)
    assert rows["storage"] == {"inmemory": {}}
    assert rows["database"] == known["database"]
    assert rows["gc"] == {"disabled": False, "manifests": {"disabled": True}}
    assert "notifications" not in rows
    policy = json.loads(baleen("pods", "policy", "gl", s3_bucket="shared").out)
    assert "LockFiles" in [each["Sid"] for each in policy["Statement"]]


@pytest.mark.usefixtures("api")
def test_the_policy_of_a_key(baleen: Command, facts: Facts) -> None:
    """`pods policy` prints what a pod's key may do, with all of its prefixes; `add-prefix` says to print it again."""
    store = {"s3_bucket": "shared", "s3_root": "root"}
    first, second = list(facts.pods)[:2]

    def own(printed: str) -> list[list[str]]:
        return [each["Resource"] for each in json.loads(printed)["Statement"] if each["Sid"].startswith("OwnRep")]

    before = own(baleen("pods", "policy", first, **store).out)
    added = baleen("pods", "add-prefix", first, "another/part")
    assert f"`baleen pods policy {first}` prints now" in " ".join(added.err.split())
    (after,) = own(baleen("pods", "policy", first, **store).out)
    new = "arn:aws:s3:::shared/root/docker/registry/v2/repositories/another/part/*"
    assert sorted(after) == sorted([*before[0], new])
    of_bucket = baleen("pods", "policy", first, second, "--principal", "arn:user/{pod}", **store).out
    assert own(of_bucket)[0] == after
    assert {each["Principal"]["AWS"][0] for each in json.loads(of_bucket)["Statement"]} == {
        f"arn:user/{first}", f"arn:user/{second}",
    }  # fmt: skip
    for principal in ([], ["--principal", "arn:user/one"]):
        assert "{pod}" in errs(baleen("pods", "policy", first, second, *principal, **store), 2)
    assert "BALEEN_S3_BUCKET" in errs(baleen("pods", "policy", first), 1)
    assert "There is no pod" in errs(baleen("pods", "policy", "nobody", **store), 1)
