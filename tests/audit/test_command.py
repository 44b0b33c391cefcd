"""`baleen audit` as a program: what it prints, how it ends, and what it refuses."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from coordinator import cli
from coordinator.domain.lifecycle import BlobState
from coordinator.stack.supervisor import StackEndpoints
from coordinator.storage.layout import BLOBS
from coordinator.storage.s3 import S3ObjectStore
from tests.audit.conftest import NewStore
from tests.audit.harness import World
from tests.cli.conftest import Done
from tests.storage.conftest import settings_of

UNKNOWN = f"sha256:{'0' * 64}"


@pytest.fixture
def store(new_store: NewStore) -> S3ObjectStore:
    store = new_store("s3-versioned")
    assert isinstance(store, S3ObjectStore)
    return store


@pytest.fixture
def stored(database: str, store: S3ObjectStore) -> Iterator[World]:
    """A table, and a root of its own in a bucket with versions."""
    with World(database, store) as world:
        yield world


Command = Callable[..., Done]


@pytest.fixture
def baleen(
    stored: World,
    store: S3ObjectStore,
    embedded_stack: StackEndpoints,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> Command:
    """Runs the command in this process, with settings of its own."""
    monkeypatch.chdir(tmp_path)
    names = {"database_url": stored.url, **settings_of(store, embedded_stack)}

    def run(*arguments: str, **changes: str) -> Done:
        capfd.readouterr()
        with monkeypatch.context() as changed:
            for name, value in (names | changes).items():
                changed.setenv(f"BALEEN_{name.upper()}", value)
            code = cli.run(arguments)
        return Done(code, *capfd.readouterr())

    return run


def errs(done: Done, code: int) -> str:
    assert done.code == code, done
    assert (done.out, len(done.err.strip().splitlines())) == ("", 1), done
    return done.err


def test_a_table_and_a_store_that_agree(stored: World, baleen: Command) -> None:
    """If everything needed is stored it exits 0, and prints what is left over."""
    stored.needed("one", "two")
    stored.put("left-over")
    stored.store.put(f"{BLOBS}ab/odd", b"1")
    document = baleen("audit", "--orphans-older-than", "0s", "--json").json
    assert (document["healthy"], document["content"]) == (True, None)
    compared = document["comparison"]
    assert [compared[name] for name in ("blobs", "needed", "objects")] == [2, 2, 3]
    orphans = compared["orphans"]
    assert (orphans["count"], orphans["bytes"]) == (1, len(stored.body("left-over")))
    assert compared["orphans"]["examples"][0]["digest"] == stored.text("left-over")
    shown = baleen("audit", "--verify-content", "--rate", "10MB")
    assert shown.code == 0
    assert "Everything that is needed is stored." in shown.out
    assert "3 blobs read" in shown.out
    assert stored.text("left-over") in shown.out


def test_what_is_lost(stored: World, baleen: Command) -> None:
    """Missing, masked or damaged blobs are printed and recorded, and it exits 1; `--repair` restores masked ones."""
    stored.needed("one", "two", "masked", "damaged")
    stored.store.delete(stored.key("masked"))
    stored.store.put(stored.key("damaged"), b"?" * len(stored.body("damaged")))
    done = baleen("audit", "--json")
    assert done.code == 1
    assert stored.text("masked") in done.out
    assert stored.state("masked") is BlobState.MISSING
    shown = baleen("audit")
    assert shown.code == 1
    assert "below a delete marker" in shown.out
    assert "restorable version" in shown.out
    repaired = baleen("audit", "--repair", "--json").json
    assert repaired["comparison"]["repaired"]["examples"][0]["digest"] == stored.text("masked")
    assert stored.state("masked") is BlobState.LIVE
    read = baleen("audit", "--verify-content", "--from", UNKNOWN)
    assert read.code == 1
    assert "damaged: the bytes do not have the digest" in read.out
    assert stored.text("damaged") in read.out
    assert "in the table" not in read.out


def test_what_it_refuses(baleen: Command) -> None:
    """Contradictory or impossible options are wrong usage, and the message names a right value."""
    for arguments, says in (
        (["--rate", "1MB"], "--verify-content"),
        (["--sample", "3"], "--verify-content"),
        (["--verify-content", "--rate", "fast"], "50MB"),
        (["--verify-content", "--rate", "0"], "50MB"),
        (["--verify-content", "--from", "abc"], "not a digest"),
        (["--verify-content", "--from", UNKNOWN, "--sample", "1"], "--sample or --from"),
        (["--verify-content", "--from", UNKNOWN, "--repair"], "--repair or --from"),
        (["--uploads-older-than", "a while"], "24h"),
        (["--uploads-older-than", "900000d"], "3650d"),
        (["--orphans-older-than", f"{'9' * 400}d"], "3650d"),
        (["--verify-content", "--sample", str(2**70)], "--sample"),
    ):
        assert says in errs(baleen("audit", *arguments), 2)


def test_what_is_away(baleen: Command) -> None:
    """A store, a bucket or a database that is not there is an error in one sentence."""
    assert "BALEEN_S3_BUCKET" in errs(baleen("audit", s3_bucket="not-there"), 1)
    assert "object store" in errs(baleen("audit", s3_secret_key="wrong"), 1)
    assert "database" in errs(baleen("audit", database_url="postgresql://127.0.0.1:9/x"), 1)
