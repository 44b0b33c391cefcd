"""Commands print what the API says, exit 0, 1 or 2, and err in one sentence."""

import subprocess
import sys

import pytest
import yaml

from coordinator.domain.references import ManifestKind
from tests.api.harness import READ, Facts, Served, dead_letter
from tests.cli.conftest import Command, Done, program_environment
from tests.pods.registries import running_model
from tests.pods.sink import NotificationSink

UNKNOWN = f"sha256:{'0' * 64}"


def errs(done: Done, code: int) -> str:
    """Check that a command failed as commands fail; return what it said."""
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


def test_a_pods_registries(api: Served, baleen: Command, facts: Facts) -> None:
    """Where a registry listens is checked and changed; its processes are shown, and one is retired with a reason."""
    pod = facts.pods[0]
    with NotificationSink() as sink, running_model(sink) as registry:
        baleen("pods", "set-registries", pod, "--registry", registry.url, "--json")
        elsewhere = f"http://{'nowhere.invalid'}:5000"
        assert "name is not known" in errs(baleen("pods", "set-registries", pod, "--registry", elsewhere), 1)
        # Something else listens there: the API.
        assert "404" in errs(baleen("pods", "set-registries", pod, "--registry", api.url), 1)
        for wrong in ("127.0.0.1:5000", "http://user:secret@127.0.0.1:5000", "http://127.0.0.1:5000/v2/"):
            said = errs(baleen("pods", "set-registries", pod, "--registry", wrong), 2)
            assert "secret" not in said
        shown = baleen("pods", "show", pod, "--json").json
        assert (shown["registries"], shown["sources"], shown["endpoints"]) == ([registry.url], [], [])
        api.db.execute(
            "INSERT INTO sources (pod_id, instance_id, heard_at)"
            " SELECT id, 'the-process', now() FROM pods WHERE name = %s",
            (pod,),
        )
        api.db.execute(
            "INSERT INTO endpoints (pod_id, url, address, error, failing_since)"
            " SELECT id, %s, '127.0.0.1', 'what it said', now() FROM pods WHERE name = %s",
            (registry.url, pod),
        )
        told = baleen("pods", "show", pod).out
        assert "the-process" in told
        assert "what it said" in told
        assert errs(baleen("pods", "retire-source", pod, "the-process"), 2)
        baleen("pods", "retire-source", pod, "the-process", "--why", "it was seen to end", "--json")
        (source,) = baleen("pods", "show", pod, "--json").json["sources"]
        assert (source["state"], source["retired_why"]) == ("retired", "it was seen to end")
        assert "no process" in errs(baleen("pods", "retire-source", pod, "the-process", "--why", "again"), 1)


def test_dead_letters(api: Served, baleen: Command, facts: Facts) -> None:
    """Dead letters are listed, shown, retried in vain with the reason, and discarded with one."""
    number = str(dead_letter(api.db, facts.pods[0], "not json", "application/vnd.docker.distribution.events.v1+json"))
    listed = baleen("dead-letters", "list", "--pod", facts.pods[0], "--json").json
    assert [str(item["id"]) for item in listed["items"]] == [number]
    assert baleen("dead-letters", "show", number, "--json").json["payload"] == "not json"
    assert "still cannot be understood" in errs(baleen("dead-letters", "retry", number), 1)
    errs(baleen("dead-letters", "discard", number), 2)
    assert baleen("dead-letters", "discard", number, "--why", "a test", "--json").json["settled_why"] == "a test"
    assert baleen("dead-letters", "list", "--pod", facts.pods[0]).out.count("\n") == 1
    errs(baleen("dead-letters", "show", "0"), 2)


def test_tokens(api: Served, baleen: Command) -> None:
    """A token is printed once, works with its role, is listed without its secret, and ends when revoked."""
    made = baleen("tokens", "create", "ci.read", "--json").json
    assert made["role"] == "read"
    assert api.get("/v1/pods", made["token"]).status_code == 200
    listed = baleen("tokens", "list", "--json")
    assert made["token"] not in listed.out
    assert ("ci.read", "read") in [(item["name"], item["role"]) for item in listed.json["items"]]
    assert all(item["created_at"].endswith("Z") for item in listed.json["items"])
    assert "already" in errs(baleen("tokens", "create", "ci.read"), 1)
    errs(baleen("tokens", "create", "no good"), 2)
    assert baleen("tokens", "revoke", "ci.read").code == 0
    errs(baleen("tokens", "revoke", "ci.read"), 1)


def test_setup(baleen: Command) -> None:
    """Migrating and creating topics is harmless where all is there, and says what there is."""
    assert baleen("db", "migrate", "--json").json["revision"]
    names = {report["name"] for report in baleen("topics", "create", "--json").json["items"]}
    assert names == {"registry.events", "registry.dead-letters", "blob.lifecycle"}


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
    """Every setting is shown with its value, and of secrets only that they are set."""
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


@pytest.mark.parametrize(
    ("arguments", "settings", "code", "said"),
    [
        (["blob", "show", UNKNOWN], {}, 1, "yet"),
        (["blob", "show", "latest"], {}, 2, "not a digest"),
        (["blob", "refs", UNKNOWN, "--limit", "0"], {}, 2, "--limit"),
        (["blob", "show"], {}, 2, "DIGEST"),
        (["nonsense"], {}, 2, "nonsense"),
        (["pods", "add", "pod-x"], {}, 2, "--prefix"),
        (["pods", "add", "Pod", "--prefix", "x"], {}, 2, "pod name"),
        (["pods", "show", "../status"], {}, 2, "pod name"),
        (["pods", "retire-source", "pod-x", "a/b", "--why", "it ended"], {}, 1, "nothing at"),
        (["pods", "list"], {"token": "wrong"}, 1, "not known"),
        (["pods", "add", "pod-x", "--prefix", "x"], {"token": READ}, 1, "operate"),
        (["pods", "list"], {"url": "http://127.0.0.1:9"}, 1, "baleen up"),
        (["pods", "list"], {"url": "no url"}, 2, "BALEEN_URL"),
        (["pods", "list"], {"token": ""}, 2, "BALEEN_TOKEN"),
        (["pods", "list"], {"token": "two\nlines"}, 2, "BALEEN_TOKEN"),
        (["dead-letters", "list", "--pod", "nobody"], {}, 1, "no pod nobody"),
        (["dead-letters", "show", "one"], {}, 2, "'ID' must be a whole number (see `baleen dead-letters show --help`)"),
        (["dead-letters", "show", "0"], {}, 2, "'ID' must be 1 or more"),
        (["dead-letters", "discard", "1", "--why", ""], {}, 2, "`why` must be text of 1 to 1000 characters"),
        (["tokens", "create", "x", "--role", "king"], {}, 2, "'read', 'operate'"),
        (["pods", "add-prefix", "nobody", "x"], {}, 1, "no pod nobody"),
        (["pods", "add-prefix", "nobody"], {}, 2, "PREFIX"),
        (["pods", "config", "nobody"], {"s3_bucket": "b"}, 1, "no pod nobody"),
        (["pods", "list"], {"nonsense": "1"}, 2, "BALEEN_NONSENSE"),
        (["config", "show"], {"safety_clock_skew": "soon"}, 2, "BALEEN_SAFETY_CLOCK_SKEW"),
        (["tokens", "list"], {"database_url": "mysql://x"}, 2, "BALEEN_DATABASE_URL"),
        (["tokens", "list"], {"database_url": "postgresql://127.0.0.1:9/x"}, 1, "database"),
        (["check"], {"database_url": "postgresql://127.0.0.1:9/x"}, 1, "database"),
        (["api", "--port", "0"], {}, 2, "--port"),
    ],
)
def test_errors_are_one_sentence(
    baleen: Command, arguments: list[str], settings: dict[str, str], code: int, said: str
) -> None:
    """A refusal exits 1 and wrong usage 2, with one sentence on stderr and nothing on stdout."""
    assert said in errs(baleen(*arguments, **settings), code)


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
    """Where nothing says where a service is, a command exits 1: it names the setting, and what else would do."""
    said = errs(bare(*arguments), 1)
    assert f"set {setting}" in said
    assert "start `baleen up` in this directory" in said


def test_ctrl_c_while_it_begins(bare: Command) -> None:
    """Ctrl-C during the imports, which take their time, ends it as at any other time: one sentence and no trace."""
    (bare.directory / "typer.py").write_text("raise KeyboardInterrupt")
    done = subprocess.run(
        [sys.executable, "-c", "from coordinator.cli import main; main(['pods', 'list'])"],
        cwd=bare.directory,
        env=program_environment({}),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (1, "", "Interrupted.\n")


def test_status(api: Served, baleen: Command, facts: Facts) -> None:
    """`status` prints the API's answer, for programs and for people."""
    told = baleen("status", "--json").json
    assert told.keys() == api.get("/v1/status").json().keys()
    printed = baleen("status").out
    assert "caught up" in printed
    assert f"pod {facts.pods[0]}: never reconciled" in printed


def test_lists_go_on(api: Served, baleen: Command, facts: Facts) -> None:
    """A list that was cut says where to go on, and goes on there."""
    letters = [dead_letter(api.db, facts.pods[0], "{}", "text/plain") for _ in range(3)]
    cut = baleen("dead-letters", "list", "--pod", facts.pods[0], "--limit", "2")
    cursor = cut.err.split()[-1]
    assert "--cursor" in cut.err
    rest = baleen("dead-letters", "list", "--pod", facts.pods[0], "--cursor", cursor, "--json").json
    assert [item["id"] for item in rest["items"]] == letters[2:]
    first = baleen("pods", "list", "--limit", "1", "--json").json
    rest = baleen("pods", "list", "--cursor", first["next"], "--json").json
    assert first["items"][0]["name"] not in [item["name"] for item in rest["items"]]


def test_a_pod_is_given_a_prefix(baleen: Command, facts: Facts) -> None:
    """`pods add-prefix` says what the pod owns then."""
    pod = facts.pods[0]
    assert f"{facts.mark}/more" in baleen("pods", "add-prefix", pod, f"{facts.mark}/more").out
    shown = baleen("pods", "add-prefix", pod, f"{facts.mark}/a", f"{facts.mark}/b", "--json").json
    assert shown["prefixes"] == sorted([pod, *(f"{facts.mark}/{name}" for name in ("a", "b", "more"))])
    assert "overlaps" in errs(baleen("pods", "add-prefix", pod, f"{pod}/below"), 1)


def test_the_whole_configuration(baleen: Command, facts: Facts) -> None:
    """`pods config` prints a file for the pod's registry: its secrets only where they are asked for and known."""
    store = {
        "s3_bucket": "shared", "s3_root": "root", "s3_endpoint_url": "http://127.0.0.1:8333", "s3_region": "eu-1",
        "s3_access_key": "the-key", "s3_secret_key": "s3cr3t-key",
    }  # fmt: skip
    pod = facts.pods[0]
    baleen("pods", "set-registries", pod, "--registry", "http://127.0.0.1:5001", "--no-check", "--json")
    (baleen.directory / "token").write_text("the-token\n")
    printed = baleen("pods", "config", pod, **store).out
    assert "s3cr3t" not in printed
    known = yaml.safe_load(printed)
    assert known["storage"]["s3"] == {
        "bucket": "shared", "rootdirectory": "/root", "region": "eu-1", "regionendpoint": "http://127.0.0.1:8333",
        "secure": False, "accesskey": "the-key", "secretkey": "THE-PODS-SECRET-KEY",
    }  # fmt: skip
    assert "cache" not in known["storage"]
    assert known["storage"]["delete"]["enabled"]
    assert known["http"]["addr"] == "127.0.0.1:5001"
    (endpoint,) = known["notifications"]["endpoints"]
    assert endpoint["url"] == f"{baleen.environment['url']}/v1/events/{pod}"
    assert "ignore" not in endpoint
    whole = ("--with-secrets", "--token-file", "token")
    asked = [yaml.safe_load(baleen("pods", "config", each, *whole, **store).out) for each in facts.pods]
    assert asked[0]["storage"]["s3"]["secretkey"] == "s3cr3t-key"
    assert asked[0]["notifications"]["endpoints"][0]["headers"]["Authorization"] == ["Bearer the-token"]
    assert asked[0]["http"]["secret"] == asked[1]["http"]["secret"] != known["http"]["secret"]
    pods_own = baleen("pods", "config", pod, *whole, **store, pod_access_key="own", pod_secret_key="s3cr3t-own").out
    assert yaml.safe_load(pods_own)["storage"]["s3"]["secretkey"] == "s3cr3t-own"
    (baleen.directory / "token").write_text("two\nlines\n")
    assert "--token-file" in errs(baleen("pods", "config", pod, *whole, **store), 2)
    assert "BALEEN_S3_BUCKET" in errs(baleen("pods", "config", pod), 1)
