"""Ingest while Kafka is away, comes back, or accepts less than it should."""

import asyncio
import datetime as dt
from pathlib import Path
from typing import Any

import httpx
import pytest
from kafka import KafkaAdminClient

from coordinator.errors import UnavailableError
from coordinator.ingest.normalise import DeadLettered, Origin, Outcome, normalise_body
from coordinator.kafka.producer import EventProducer
from coordinator.kafka.topics import DEAD_LETTERS, EVENTS, ensure_topics
from coordinator.settings import Settings, make_settings
from tests.ingest.harness import TOKENS, V1, Tape, envelope, event, run_broker, serve_ingest
from tests.support.wait import eventually

HEADERS = {"Authorization": f"Bearer {TOKENS['pod-a']}", "Content-Type": V1}
#: Short, so that a test that waits for it is short.
TIMEOUT = "500ms"
ORIGIN = Origin("pod-a", {"pod-a"}, dt.datetime(2026, 11, 24, tzinfo=dt.UTC), V1)


def post(url: str, identity: str) -> httpx.Response:
    body = envelope(event(id=identity))
    return httpx.post(f"{url}/v1/events/pod-a", content=body, headers=HEADERS, timeout=30)


def accepted(url: str, identity: str) -> bool:
    return post(url, identity).status_code == 202


async def written(producer: EventProducer, outcomes: list[Outcome]) -> list[Outcome]:
    """Publish as a registry sends: again until it is accepted, as a busy machine may need longer than TIMEOUT."""
    async with asyncio.timeout(20):
        while True:
            try:
                return await producer.publish(outcomes)
            except UnavailableError:
                await asyncio.sleep(0.01)


def stored_ids(tape: Tape) -> list[str]:
    """Ids as stored, without what was stored more than once in a row."""
    ids = [record.value["id"] for record in tape.events()]
    return [each for at, each in enumerate(ids) if at == 0 or ids[at - 1] != each]


def settings_for(bootstrap: str) -> Settings:
    return make_settings({"kafka_bootstrap": bootstrap, "kafka_partitions": 2, "ingest_timeout": TIMEOUT})


def test_broker_stops_and_starts(tmp_path: Path) -> None:
    """Without its broker ingest answers 503; when it is back the event is accepted, in order."""
    with run_broker(tmp_path) as bootstrap:
        ensure_topics(settings_for(bootstrap))
        serve = serve_ingest(settings_for(bootstrap))
        url = serve.__enter__()
        eventually(lambda: accepted(url, "1"))
    try:
        away = post(url, "2")
        assert (away.status_code, away.headers["Retry-After"]) == (503, "1")
        assert post(url, "2").status_code == 503
        with run_broker(tmp_path) as again:
            assert again == bootstrap
            eventually(lambda: accepted(url, "2"))
            eventually(lambda: accepted(url, "3"))
            with Tape(bootstrap) as tape:
                tape.from_the_beginning()
                assert stored_ids(tape) == ["1", "2", "3"]
    finally:
        serve.__exit__(None, None, None)


def test_broker_away_at_start(tmp_path: Path) -> None:
    """Ingest starts without its broker, answers 503, and takes events once broker and topics are there."""
    with run_broker(tmp_path) as bootstrap:
        pass  # its port stays the same
    with serve_ingest(settings_for(bootstrap)) as url:
        assert post(url, "1").status_code == 503
        pull = envelope(event(action="pull"))
        assert httpx.post(f"{url}/v1/events/pod-a", content=pull, headers=HEADERS).json()["dropped"] == 1
        with run_broker(tmp_path):
            assert post(url, "1").status_code == 503
            ensure_topics(settings_for(bootstrap))
            eventually(lambda: accepted(url, "1"))


def test_topics_are_never_made_by_writing(tmp_path: Path) -> None:
    """Where the topics are missing nothing is written, since a topic that a write creates has one partition."""
    with run_broker(tmp_path) as bootstrap:
        with serve_ingest(settings_for(bootstrap)) as url:
            assert post(url, "1").status_code == 503
        admin = KafkaAdminClient(bootstrap_servers=bootstrap)
        assert not {EVENTS, DEAD_LETTERS} & set(admin.list_topics())
        admin.close()


def test_topic_takes_only_small_records(tmp_path: Path) -> None:
    """An event that Kafka refuses as too large is written without its references, which its bytes have, too."""
    with run_broker(tmp_path) as bootstrap:
        small = {"num_partitions": 1, "replication_factor": 1, "configs": {"max.message.bytes": "20000"}}
        admin = KafkaAdminClient(bootstrap_servers=bootstrap)
        admin.create_topics({EVENTS: small, DEAD_LETTERS: small})
        admin.close()
        settings = make_settings({"kafka_bootstrap": bootstrap})
        listed = [{"digest": f"sha256:{n:064x}"} for n in range(1000)]
        manifest = "application/vnd.oci.image.manifest.v1+json"
        posted = [event(id="1"), event(id="2", mediaType=manifest, references=listed), event(id="3")]
        with serve_ingest(settings) as url, Tape(bootstrap) as tape:
            answer = httpx.post(f"{url}/v1/events/pod-a", content=envelope(*posted), headers=HEADERS, timeout=30)
            assert answer.json() == {"accepted": 3, "dropped": 0, "dead_lettered": 0}
            assert stored_ids(tape) == ["1", "2", "3"]
            assert not tape.dead_letters()
            assert accepted(url, "4")


def test_nothing_is_left_for_later(tmp_path: Path) -> None:
    """What was answered with a failure is not written when the broker is back."""

    async def scenario() -> None:
        with run_broker(tmp_path) as bootstrap:
            ensure_topics(settings_for(bootstrap))
            producer = EventProducer(settings_for(bootstrap))
            await producer.start()
            await written(producer, normalise_body(envelope(event(id="first")), ORIGIN))
        with pytest.raises(UnavailableError):
            await producer.publish(normalise_body(envelope(event(id="lost")), ORIGIN))
        assert not producer.is_connected
        with run_broker(tmp_path):
            await asyncio.to_thread(eventually, lambda: producer.is_connected)
            taken = await written(producer, normalise_body(envelope(event(id="last"), event(action="?")), ORIGIN))
            assert isinstance(taken[1], DeadLettered)
            with Tape(bootstrap) as tape:
                tape.from_the_beginning()
                assert stored_ids(tape) == ["first", "last"]
            await producer.stop()

    asyncio.run(scenario())


def test_what_was_about_to_be_sent_is_not_sent_late(tmp_path: Path) -> None:
    """A record that was waiting for a connection is not sent after its request has failed."""

    async def scenario(settings: Settings) -> None:
        producer = EventProducer(settings)
        await producer.start()
        await written(producer, normalise_body(envelope(event(id="first")), ORIGIN))
        assert producer._client is not None
        given_up, reachable = producer._client, asyncio.Event()
        ready = given_up.client.ready

        async def ready_later(*arguments: Any, **more: Any) -> Any:
            await reachable.wait()
            return await ready(*arguments, **more)

        given_up.client.ready = ready_later
        with pytest.raises(UnavailableError):
            await producer.publish(normalise_body(envelope(event(id="lost")), ORIGIN))
        reachable.set()
        await written(producer, normalise_body(envelope(event(id="last")), ORIGIN))
        await producer.stop()
        with Tape(str(settings.kafka_bootstrap)) as tape:
            tape.from_the_beginning()
            assert stored_ids(tape) == ["first", "last"]

    with run_broker(tmp_path) as bootstrap:
        settings = settings_for(bootstrap)
        ensure_topics(settings)
        asyncio.run(scenario(settings))


def test_deleted_topic_stays_deleted(tmp_path: Path) -> None:
    """A topic that is deleted under a running producer is not created again by it."""

    async def scenario(bootstrap: str, admin: KafkaAdminClient) -> None:
        producer = EventProducer(settings_for(bootstrap))
        await producer.start()
        await written(producer, normalise_body(envelope(event()), ORIGIN))
        admin.delete_topics([EVENTS])
        assert producer._client is not None
        # What happens by itself now and then: the client looks at the cluster anew.
        await producer._client.client.force_metadata_update()
        for _ in range(2):
            with pytest.raises(UnavailableError):
                await producer.publish(normalise_body(envelope(event()), ORIGIN))
        assert EVENTS not in admin.list_topics()
        await producer.stop()

    with run_broker(tmp_path) as bootstrap:
        ensure_topics(settings_for(bootstrap))
        admin = KafkaAdminClient(bootstrap_servers=bootstrap)
        asyncio.run(scenario(bootstrap, admin))
        admin.close()
