"""The published JSON Schema and the decoding types say the same."""

import copy
import datetime as dt
import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator, FormatChecker

from schemas.publish import PUBLISHED, inline_schema, published_files, schema_of

FIXTURE = Path(__file__).parents[1] / "fixtures" / "distribution-2.8.3-notifications.jsonl"

formats = FormatChecker(())


@formats.checks("date-time")
def _is_date_time(value: object) -> bool:
    """An oracle of its own: the standard library's reader, and a zone."""
    try:
        return not isinstance(value, str) or dt.datetime.fromisoformat(value).tzinfo is not None
    except ValueError:
        return False


VALIDATORS = {name: Draft202012Validator(schema_of(name), format_checker=formats) for name in PUBLISHED}
DECODERS = {name: msgspec.json.Decoder(kind) for name, kind in PUBLISHED.items()}


def agree(name: str, document: Any) -> bool:
    """Return whether both accept; fails where one does and the other does not."""
    by_schema = VALIDATORS[name].is_valid(document)
    try:
        DECODERS[name].decode(json.dumps(document))
        by_type = True
    except msgspec.ValidationError:
        by_type = False
    assert by_schema == by_type, document
    return by_type


text = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
digests = st.binary(min_size=32, max_size=32).map(lambda value: f"sha256:{value.hex()}")
sizes = st.integers(0, 2**63 - 1)
pods = st.from_regex(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", fullmatch=True)
repositories = st.from_regex(r"[a-z0-9]{1,9}(/[a-z0-9]{1,9}){0,3}", fullmatch=True)
# The minute and the day are always there, so that only clear-cut forms are compared.
times = st.datetimes(dt.datetime(1970, 1, 1), dt.datetime(2199, 1, 1), timezones=st.just(dt.UTC)).map(  # noqa: DTZ001
    lambda value: value.isoformat()
)


def some(required: dict[str, Any], optional: dict[str, Any]) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries(required, optional=optional)


references = some({"digest": digests}, {"size": st.none() | sizes, "media_type": text})
registry_event = some(
    {
        "id": text,
        "action": st.sampled_from(["push", "mount", "delete", "rename"]),
        "pod": pods,
        "repository": repositories,
        "timestamp": times,
    },
    {
        "digest": st.none() | digests,
        "media_type": st.none() | text,
        "size": st.none() | sizes,
        "tag": st.none() | text,
        "references": st.none() | st.lists(references, max_size=3),
        "from_repository": st.none() | text,
        "rename": st.none()
        | some(
            {
                "type": st.sampled_from(["name", "namespace"]),
                "source": repositories,
                "destination": repositories,
            },
            {},
        ),
        "process": text,
        "actor": text,
        "request_id": text,
        "a_later_field": text,
    },
)
dead_letter = some(
    {
        "pod": pods,
        "reason": st.sampled_from(["content-type", "oversized", "malformed", "not-owned", "invalid-name"]),
        "detail": text,
        "received_at": times,
        "payload": text,
        "payload_bytes": sizes,
    },
    {"content_type": text},
)
registry_watermark = some(
    {
        "action": st.just("watermark"),
        "pod": pods,
        "process": st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20),
        "nonce": st.binary(min_size=16, max_size=16).map(bytes.hex),
    },
    {
        "partitions": st.none() | st.integers(1, 10_000),
        "dead_letters_partition": st.none() | st.integers(0, 10_000),
    },
)
blob_lifecycle = some(
    {
        "digest": digests,
        "change": st.sampled_from(["live", "unreferenced", "hidden", "restored", "purged", "missing"]),
        "at": times,
        "id": st.integers(1, 2**63 - 1),
        "reference_count": st.integers(0, 2**31),
        "link_count": st.integers(0, 2**31),
    },
    {},
)
notification = some(
    {
        "events": st.lists(
            some(
                {
                    "id": text,
                    "timestamp": times,
                    "action": text,
                    "target": some(
                        {"repository": text},
                        {
                            "mediaType": st.none() | text,
                            "digest": st.none() | text,
                            "size": st.none() | st.integers(-9, 2**70),
                            "fromRepository": st.none() | text,
                            "references": st.none() | st.lists(some({"digest": text}, {"size": sizes})),
                            "rename": st.none() | some({"type": text, "from": text, "to": text}, {}),
                        },
                    ),
                },
                {"source": some({}, {"instanceID": text}), "actor": some({}, {"name": text}), "meta": text},
            ),
            max_size=3,
        )
    },
    {},
)
RECORDS = {
    "registry.event/1": registry_event,
    "registry.watermark/1": registry_watermark,
    "registry.dead-letter/1": dead_letter,
    "blob.lifecycle/1": blob_lifecycle,
    "registry.notification/1": notification,
}
#: Integral floats are left out: for JSON Schema 1.0 is an integer, for the decoder it is not.
JUNK = st.one_of(st.none(), st.booleans(), st.integers(-(2**70), 2**70), st.just(0.5), text, st.just([]), st.just({}))


def mutate(document: Any, data: st.DataObject) -> Any:
    """Return a copy in which one value, somewhere, is another or gone."""
    document = copy.deepcopy(document)
    at = document
    while True:
        keys = list(at) if isinstance(at, dict) else list(range(len(at)))
        if not keys:
            return document
        key = data.draw(st.sampled_from(keys))
        if isinstance(at[key], dict | list) and at[key] and data.draw(st.booleans()):
            at = at[key]
            continue
        if isinstance(at, dict) and data.draw(st.booleans()):
            del at[key]
        else:
            at[key] = data.draw(JUNK)
        return document


def test_published_files_equal_the_types() -> None:
    """`schemas/json` holds what `python -m schemas.publish` writes, and nothing else."""
    published = published_files()
    assert {path: path.read_text(encoding="utf-8") for path in published} == published
    assert set(next(iter(published)).parent.iterdir()) == set(published)


def test_schemas_are_valid_and_named() -> None:
    """Each file is a JSON Schema of its dialect with an id, a title and a version of its own."""
    schemas = [json.loads(text) for text in published_files().values()]
    for schema in schemas:
        Draft202012Validator.check_schema(schema)
        assert isinstance(schema["version"], int)
        assert schema["title"] in schema["$id"]
    assert len({schema["$id"] for schema in schemas}) == len(PUBLISHED)


@pytest.mark.lengthy
@pytest.mark.parametrize("name", PUBLISHED)
@settings(max_examples=150)
@given(data=st.data())
def test_schema_and_type_agree(name: str, data: st.DataObject) -> None:
    """Both accept every valid record; of a mutated one they say the same."""
    document = data.draw(RECORDS[name])
    assert agree(name, document)
    agree(name, mutate(document, data))


def test_captured_notifications_validate() -> None:
    """Every envelope that real registries sent is valid by schema, inlined schema and type."""
    inline = Draft202012Validator(inline_schema("registry.notification/1"), format_checker=formats)
    envelopes = [json.loads(line)["envelope"] for line in FIXTURE.read_text().splitlines()]
    assert len(envelopes) > 100
    for envelope in envelopes:
        assert agree("registry.notification/1", envelope)
        assert inline.is_valid(envelope)
