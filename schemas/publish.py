"""Publish JSON Schemas (draft 2020-12) of notifications and Kafka records, made from the types that read them.

Route: `python -m schemas.publish` writes `schemas/json/<name>.json`; a test compares the files with the types.
The files say no more than the types do: what a reader checks beyond them (owned repositories, plausible times)
is in coordinator/ingest/normalise.py.
"""

import json
from pathlib import Path
from typing import Any, Final

import msgspec

from schemas.envelope import Event
from schemas.records import SCHEMAS

DIRECTORY = Path(__file__).parent / "json"
DIALECT = "https://json-schema.org/draft/2020-12/schema"


class NotificationEnvelope(msgspec.Struct, frozen=True):
    """What a registry posts: `application/vnd.docker.distribution.events.v1+json` or `…v2+json`."""

    # The reader first keeps each event raw (see Envelope in envelope.py).
    events: list[Event]


#: Type of each published file, by schema name and version.
PUBLISHED: Final[dict[str, type[msgspec.Struct]]] = {
    "registry.notification/1": NotificationEnvelope,
    **{name: record for record, name in SCHEMAS.items()},
}


def schema_of(name: str) -> dict[str, Any]:
    """Return the JSON Schema that is published under a name such as `registry.event/1`."""
    title, version = name.split("/")
    return {
        "$schema": DIALECT,
        "$id": f"urn:baleen:{title}:{version}",
        "title": title,
        "version": int(version),
        **_join_lines(msgspec.json.schema(PUBLISHED[name])),
    }


def inline_schema(name: str) -> dict[str, Any]:
    """Return the schema without `$ref`, for use inside another document such as OpenAPI."""
    schema = schema_of(name)
    definitions = schema.pop("$defs")
    body = _resolve_refs({"$ref": schema.pop("$ref")}, definitions)
    return {"title": schema["title"], **{key: value for key, value in body.items() if key != "title"}}


def published_files() -> dict[Path, str]:
    """Return every published file with its text: the same types always give the same bytes."""
    return {
        DIRECTORY / f"{name.split('/')[0]}.json": f"{json.dumps(schema_of(name), indent=2, ensure_ascii=False)}\n"
        for name in PUBLISHED
    }


def main() -> None:
    DIRECTORY.mkdir(exist_ok=True)
    for path, text in published_files().items():
        path.write_text(text, encoding="utf-8")


def _join_lines(node: Any) -> Any:
    # A docstring's line breaks are those of the source file.
    if isinstance(node, dict):
        return {
            key: " ".join(value.split()) if key == "description" and isinstance(value, str) else _join_lines(value)
            for key, value in node.items()
        }
    return [_join_lines(entry) for entry in node] if isinstance(node, list) else node


def _resolve_refs(node: Any, definitions: dict[str, Any]) -> Any:
    if isinstance(node, dict):
        if "$ref" in node:
            return _resolve_refs(definitions[node["$ref"].rpartition("/")[2]], definitions)
        return {key: _resolve_refs(value, definitions) for key, value in node.items()}
    return [_resolve_refs(entry, definitions) for entry in node] if isinstance(node, list) else node


if __name__ == "__main__":
    main()
