"""Single records: manifests without references, unknown pods, garbage, and what the database refuses."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import pytest

from coordinator.db.engine import connect
from coordinator.domain.facts import ManifestPushed
from coordinator.domain.names import RepositoryName, parse_digest
from coordinator.domain.references import REFERENCES_LIMIT
from coordinator.ingest.normalise import LATEST, Accepted
from coordinator.kafka.topics import DEAD_LETTERS, EVENTS
from coordinator.storage.layout import blob_key
from coordinator.table import statements
from coordinator.table.apply import BatchApplier
from coordinator.table.batch import Item
from tests.oracle import Counts, Oracle
from tests.support.wait import eventually
from tests.workers.harness import (
    Log,
    Maker,
    Place,
    Table,
    apply_events,
    assert_all_applied,
    digest_of,
    encoded,
    publish,
    worker,
)
from workers.app import FETCH_BYTES

POD_A = frozenset({"pod-a"})


def manifest_of(*layers: str) -> str:
    document = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": {"digest": digest_of("config"), "size": 7},
        "layers": [{"digest": layer, "size": 7} for layer in layers],
    }
    return json.dumps(document)


def stored_manifest(place: Place, layers: Sequence[str]) -> str:
    """Put a manifest's bytes into shared storage; return its digest."""
    return stored(place, manifest_of(*layers).encode())


def stored(place: Place, body: bytes, digest: str | None = None) -> str:
    digest = digest or f"sha256:{hashlib.sha256(body).hexdigest()}"
    place.store().put(blob_key(parse_digest(digest)), body)
    return digest


def test_what_no_registry_reported_is_read_from_storage(place: Place, table: Table, log: Log, maker: Maker) -> None:
    """A manifest that is announced without its references counts what its bytes list."""
    layers = [digest_of("one"), digest_of("two")]
    manifests = [stored_manifest(place, [*layers, digest_of(f"own {number}")]) for number in range(40)]
    announced = [maker.manifest(f"pod-a/{number}", digest, None) for number, digest in enumerate(manifests)]
    apply_events(place, table, log, announced)
    contents = {
        digest: {digest_of("config"), *layers, digest_of(f"own {number}")} for number, digest in enumerate(manifests)
    }
    oracle = Oracle(contents=contents)
    assert table.counts() == oracle.take(maker.made).counts()
    assert table.dead_letters() == []


@pytest.mark.parametrize("together", [True, False])
def test_reports_of_another_pod(place: Place, table: Table, log: Log, maker: Maker, together: bool) -> None:
    """A pod's report of a manifest neither adds nor removes references: the manifest's bytes decide."""
    layer = digest_of("layer")
    digests = [stored_manifest(place, [layer, digest_of(f"own {number}")]) for number in range(2)]
    other = Maker("pod-b")
    wrong = [
        other.manifest("pod-b/x", digests[0], [digest_of("something else")]),
        other.manifest("pod-b/x", digests[1], []),
    ]
    right = [maker.manifest("pod-a/x", digest, None) for digest in digests]
    with worker(place):
        if not together:
            log.write_events(wrong)
            table.applied(log)
        log.write_events([*wrong, *right] if together else right)
        table.applied(log)
    counts = table.counts()
    assert counts[layer].reference_count == 4
    assert counts[digest_of("something else")].reference_count == 0
    assert table.dead_letters() == []


@pytest.mark.parametrize("there", [True, False])
def test_reports_of_an_unread_manifest(place: Place, table: Table, log: Log, there: bool) -> None:
    """An unread manifest is read or kept by links, whatever another pod reports of it."""
    layer = digest_of("layer")
    digest = stored_manifest(place, [layer]) if there else digest_of("nowhere")
    ((pod,),) = table.rows("UPDATE pods SET kind = 'link' WHERE name = 'pod-a' RETURNING id")
    found = ManifestPushed(RepositoryName("pod-a/x"), parse_digest(digest), datetime.now(UTC), None, None)
    with worker(place), connect(table.url, name="reconcile") as connection:
        statements.prepare_connection(connection)
        BatchApplier(connection, timedelta()).apply_stored([Item(0, 0, pod, found, None)])
        log.write_events([Maker("pod-b").manifest("pod-b/x", digest, [digest_of("something else")])])
        table.applied(log)
        eventually(lambda: table.rows("SELECT refs IS NULL, by_links FROM manifests") == [(False, not there)])
    assert table.dead_letters() == []
    if there:
        assert table.counts()[layer].reference_count == 2


def test_a_name_beyond_all_limits_holds_nothing_up(place: Place, table: Table, log: Log, maker: Maker) -> None:
    """A record that the database could never store becomes a dead letter, and the next one is applied."""
    good = maker.manifest("pod-a/x", digest_of("m"), [digest_of("layer")])
    bad = json.loads(encoded(good)) | {"pod": "p" * 12_000}
    with worker(place):
        log.write(EVENTS, [json.dumps(bad).encode(), encoded(good)], partition=0)
        table.applied(log)
    assert table.counts()[digest_of("layer")].reference_count == 1
    assert table.dead_letters() == [("", "not-owned")]


@pytest.mark.parametrize("per_second", [10**6, 10**9], ids=["microseconds", "nanoseconds"])
def test_a_record_with_an_impossible_time(place: Place, table: Table, log: Log, maker: Maker, per_second: int) -> None:
    """A malformed record with an impossible time becomes a dead letter that can be read."""
    good = maker.manifest("pod-a/x", digest_of("m"), [digest_of("layer")])
    with worker(place):
        log.write(EVENTS, [b"garbage"], key=b"pod-a/x", partition=0, timestamp_ms=1_790_000_000 * per_second)
        log.write(EVENTS, [encoded(good)], partition=0)
        table.applied(log)
    assert table.counts()[digest_of("layer")].reference_count == 1
    assert table.dead_letters() == [("pod-a", "malformed")]
    assert table.rows("SELECT received_at FROM dead_letters") == [(LATEST,)]


def of_layers(*, change: tuple[str, str] = ("", ""), more: str = "", layer: str = digest_of("layer")) -> bytes:
    """A manifest that lists a layer, with something that readers of JSON take in different ways."""
    text = manifest_of(layer)
    assert change[0] in text
    return (text.replace(*change)[:-1] + more + "}").encode()


@pytest.mark.parametrize(
    "body",
    [
        of_layers(change=('"layers"', '"Layers"')),
        of_layers(change=('"layers"', '"layers": [], "layers"')),
        of_layers(change=("sha256:", "\\u0073ha256:")),
        of_layers(more=', "x": ' + "[" * 9000 + "]" * 9000),
        of_layers(more=', "x": ' + "1" * 5000),
        of_layers(more=', "manifests": []'),
    ],
    ids=["other letters", "twice", "escaped", "deep", "long number", "two kinds"],
)
def test_an_ambiguous_manifest(place: Place, table: Table, log: Log, maker: Maker, body: bytes) -> None:
    """Attempt 14: a manifest that can be read in different ways needs every digest in it, and delays nothing."""
    digest = stored(place, body)
    apply_events(place, table, log, [maker.manifest("pod-a/app", digest, None)])
    assert table.dead_letters() == []
    counts = table.counts()
    assert [counts[each].reference_count for each in (digest, digest_of("config"), digest_of("layer"))] == [1, 1, 1]
    assert table.rows("SELECT verified, by_links FROM manifests") == [(True, False)]
    assert table.rows("SELECT FROM repository_manifests WHERE links_pending") == []


def test_an_index_that_is_empty_to_some_readers(place: Place, table: Table, log: Log, maker: Maker) -> None:
    """Attempt 14: an empty index that says `Manifests` needs nothing, and is no dead letter."""
    body = b'{"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "Manifests": []}'
    digest = stored(place, body)
    apply_events(place, table, log, [maker.manifest("pod-a/app", digest, None)])
    assert (table.dead_letters(), table.rows("SELECT refs, by_links FROM manifests")) == ([], [([], False)])


def link(place: Place, key: str, content: str) -> None:
    place.store().put(f"docker/registry/v2/repositories/{key}/link", content.encode())


def layer_of(digest: str) -> str:
    return f"pod-a/app/_layers/{digest.replace(':', '/')}"


@pytest.mark.parametrize(
    "wrong",
    [
        "absent",
        *(
            pytest.param(each, marks=pytest.mark.lengthy)
            for each in ("other bytes", "not a manifest", "not JSON", "other media type")
        ),
    ],
)
def test_an_unreadable_manifest_is_kept_by_links(
    place: Place, table: Table, log: Log, maker: Maker, wrong: str
) -> None:
    """Attempt 14: an unreadable manifest keeps all that its repository links, and then no longer blocks GC."""
    table.do("UPDATE pods SET kind = 'link'")
    digest = {
        "absent": lambda: digest_of("nowhere"),
        "other bytes": lambda: stored(place, b"{}", digest_of("other")),
        "not a manifest": lambda: stored(place, b'{"hello": "world"}'),
        "not JSON": lambda: stored(place, b"[" * 100_000),
        "other media type": lambda: stored(place, b'{"schemaVersion": 2, "mediaType": "a/b", "config": {}}'),
    }[wrong]()
    linked = [digest_of("layer"), digest_of("under another name")]
    link(place, layer_of(linked[0]), linked[0])
    link(place, layer_of("sha512:" + "ab" * 64), linked[1])
    link(place, f"pod-a/app/_manifests/revisions/{digest.replace(':', '/')}", digest)
    link(place, "pod-a/other/_layers/" + digest_of("elsewhere").replace(":", "/"), digest_of("elsewhere"))
    with worker(place):
        log.write_events([maker.manifest("pod-a/app", digest, None), maker.blob("pod-a/app", digest_of("after"))])
        table.applied(log)
        eventually(lambda: not table.rows("SELECT FROM repository_manifests WHERE links_pending"))
    assert table.dead_letters() == []
    assert table.rows("SELECT refs, by_links, verified FROM manifests")[0][1] is True
    kept = table.rows(
        "SELECT 'sha256:' || encode(digest, 'hex') FROM repository_blobs JOIN blobs ON id = blob_id WHERE kept"
    )
    assert {each for (each,) in kept} == {*linked, digest, digest_of("after")}


@pytest.mark.parametrize("there", [True, False])
def test_a_layer_by_another_algorithm(place: Place, table: Table, log: Log, maker: Maker, there: bool) -> None:
    """Attempt 14: the blob that the repository's link names is kept; without that link, all that it links."""
    table.do("UPDATE pods SET kind = 'link'")
    other = "sha512:" + "cd" * 64
    digest = stored(place, of_layers(layer=other))
    link(place, layer_of(digest_of("unrelated")), digest_of("unrelated"))
    if there:
        link(place, layer_of(other), digest_of("layer"))
    with worker(place):
        log.write_events([maker.manifest("pod-a/app", digest, None)])
        table.applied(log)
        eventually(lambda: not table.rows("SELECT FROM repository_manifests WHERE links_pending"))
    counts = table.counts()
    wanted = digest_of("layer") if there else digest_of("unrelated")
    assert {each for each, count in counts.items() if count.link_count} == {wanted}
    assert (counts[digest_of("config")].reference_count, table.dead_letters()) == (1, [])


def test_strangers_and_intruders_are_dead_letters(place: Place, table: Table, log: Log, maker: Maker) -> None:
    """Events of an unregistered pod, or of a repository that the pod does not own, become dead letters."""
    events = [
        Maker(pod="pod-x").blob("pod-x/app", digest_of("one")),
        maker.blob("pod-b/app", digest_of("two")),
        maker.blob("nobody/app", digest_of("three")),
        maker.blob("pod-a/app", digest_of("four")),
    ]
    apply_events(place, table, log, events, partition=0)
    assert table.dead_letters() == [("pod-x", "not-owned"), ("pod-a", "not-owned"), ("pod-a", "not-owned")]
    assert table.counts() == {digest_of("four"): Counts(0, 1, frozenset({"pod-a/app"}), POD_A)}


@pytest.mark.parametrize("kind", ["name", "namespace"])
def test_repositories_below_a_renamed_one(place: Place, table: Table, log: Log, maker: Maker, kind: str) -> None:
    """Repositories below a renamed one move with it, so that a delete at the old name removes nothing of them."""
    manifest, layer = digest_of("manifest"), digest_of("layer")
    rename = {"type": kind, "source": "pod-a/app", "destination": "pod-a/new"}
    events = [
        maker.manifest("pod-a/app", manifest, [layer]),
        maker.manifest("pod-a/app/cache", manifest, [layer]),
        maker.event(action="rename", repository="pod-a/app", rename=rename),
        maker.manifest("pod-a/app/cache", manifest, [layer]),
        maker.delete("pod-a/app/cache", manifest),
    ]
    apply_events(place, table, log, events, partition=0)
    assert table.counts()[layer].reference_count == 2
    assert table.rows(
        "SELECT r.name FROM repositories r JOIN repository_manifests h ON h.repository_id = r.id ORDER BY r.name"
    ) == [("pod-a/new",), ("pod-a/new/cache",)]


def test_the_key_says_whose_an_undecodable_record_is(place: Place, table: Table, log: Log) -> None:
    """A record that cannot be decoded is a dead letter of the pod in its key, if that has one."""
    pods = {b"pod-a/app": "pod-a", b"pod-a": "pod-a", None: "", b"Not A Pod/app": "", b"\xff/app": "", b"/": ""}
    with worker(place):
        for key in pods:
            log.write(EVENTS, [b'{"action": "push", "pod": "\xff'], key=key, partition=0)
        table.applied(log)
    assert table.dead_letters() == [(pod, "malformed") for pod in pods.values()]


def garbage(maker: Maker) -> list[bytes]:
    """Values that are no event to any reader of registry.events."""
    good = encoded(maker.blob("pod-a/bad", digest_of("bad")))
    event = json.loads(good)
    return [
        b"",
        b"\x00\xff\xfe",
        b"null",
        b"[]",
        b"{",
        b"\xef\xbb\xbf{}",
        b'{"x":' + b"[" * 100_000,
        good[:-1],
        *(
            json.dumps(event | change).encode()
            for change in (
                {"action": "explode"},
                {"digest": "sha256:zz"},
                {"digest": None},
                {"digest": "sha512:" + "0" * 128},
                {"size": -1},
                {"size": 2**63},
                {"timestamp": "yesterday"},
                {"timestamp": "2026-11-24T12:00:00"},
                {"timestamp": "0001-01-01T00:00:00+14:00"},
                {"timestamp": "9999-12-31T23:59:59-14:00"},
                {"repository": "UPPER"},
                {"repository": "pod-a/\x00"},
                {"repository": "pod-a/" + "a" * 300},
                {"pod": "pod-a\x00"},
                {"action": "rename"},
                {"action": "rename", "rename": {"type": "name", "source": "pod-a/x", "destination": "pod-b/x"}},
                {"action": "rename", "rename": {"type": "name", "source": "pod-a/x", "destination": "../x"}},
            )
        ),
    ]


def test_malformed_records(place: Place, table: Table, log: Log, maker: Maker) -> None:
    """Each malformed record in either topic is a dead letter, and the records around it are applied."""
    bad = garbage(maker)
    good = [maker.blob("pod-a/good", digest_of(f"good {number}")) for number in range(len(bad) + 1)]
    values = [encoded(good[0])]
    for number, value in enumerate(bad, 1):
        values += [value, encoded(good[number])]
    with worker(place):
        log.write(EVENTS, values, key=b"pod-a/good", partition=0)
        log.write(DEAD_LETTERS, bad, partition=0)
        table.applied(log)
    assert len(table.dead_letters()) == 2 * len(bad)
    assert set(table.counts()) == {digest_of(f"good {number}") for number in range(len(good))}
    assert len(table.rows("SELECT received_at, payload, detail FROM dead_letters")) == 2 * len(bad)


def refuse(table: Table, digest: str, message: str) -> None:
    """Let the database refuse one digest, as an unforeseen constraint would."""
    table.do(
        f"""
        CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
            IF NEW.digest = '\\x{digest[7:]}' THEN {message}; END IF; RETURN NEW; END $$
        """
    )
    table.do("CREATE TRIGGER refuse BEFORE INSERT ON blobs FOR EACH ROW EXECUTE FUNCTION refuse()")


@pytest.mark.parametrize(
    "message",
    [
        "RAISE EXCEPTION 'bad' USING ERRCODE = 'numeric_value_out_of_range'",
        "RAISE EXCEPTION 'bad' USING ERRCODE = 'check_violation'",
        "RETURN NULL",  # a row that silently is not there: the apply finds that the state is another, for ever
    ],
)
def test_a_record_that_the_database_refuses(place: Place, table: Table, log: Log, maker: Maker, message: str) -> None:
    """A record that the database refuses is a dead letter; its batch and its partition go on."""
    refuse(table, digest_of("poison"), message)
    before = [maker.blob("pod-a/app", digest_of(f"before {number}")) for number in range(5)]
    poison = Maker().blob("pod-a/app", digest_of("poison"))
    after = [maker.blob("pod-a/app", digest_of(f"after {number}")) for number in range(5)]
    with worker(place):
        log.write_events([*before, poison, *after], partition=0)
        log.write_events([maker.blob("pod-a/other", digest_of("other"))], partition=1)
        table.applied(log)
        log.write_events([maker.blob("pod-a/app", digest_of("last"))], partition=0)
        table.applied(log)
    assert table.dead_letters() == [("pod-a", "unappliable")]
    assert_all_applied(table, maker)


@pytest.mark.lengthy
def test_the_largest_record_comes_through(place: Place, table: Table, log: Log, maker: Maker) -> None:
    """A manifest with the most references permitted, more than one fetch brings, is applied like others."""
    layers = [f"sha256:{number:064x}" for number in range(REFERENCES_LIMIT)]
    maker.blob("pod-a/app", digest_of("before"))
    assert len(encoded(maker.manifest("pod-a/app", digest_of("big"), layers))) > FETCH_BYTES
    maker.blob("pod-a/app", digest_of("after"))
    with worker(place):
        publish(place.settings(), [Accepted(event) for event in maker.made])
        table.applied(log)
    counts = table.rows("SELECT count(*), sum(reference_count), sum(link_count) FROM blobs")
    assert counts == [(REFERENCES_LIMIT + 3, REFERENCES_LIMIT + 1, 2)]
