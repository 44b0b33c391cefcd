"""The API does what its OpenAPI document says: schemathesis calls every operation, and finds no 5xx."""

from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis.checks import not_a_server_error
from schemathesis.schemas import APIOperation
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from coordinator.domain.references import ManifestKind
from tests.api.harness import OPERATE, Facts, Served, dead_letter

CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]
EXAMPLES = 12


@pytest.mark.lengthy
def test_the_document_is_kept(api: Served) -> None:
    """Every call that the document allows or forbids gets an answer that it describes."""
    facts = Facts(api.db)
    facts.manifest(0, ManifestKind.IMAGE, [10])
    facts.hold(facts.repository(0, "app"), 0)
    dead_letter(api.db, facts.pods[0], "{}", "text/plain")
    schema = schemathesis.openapi.from_url(f"{api.url}/schema", headers={"Authorization": f"Bearer {OPERATE}"})
    asked = [ask_all(result.ok()) for result in schema.get_all_operations()]
    assert len(asked) > 15


def ask_all(operation: APIOperation[Any, Any, Any, Any]) -> str:
    @settings(max_examples=EXAMPLES, database=None, suppress_health_check=list(HealthCheck))
    @given(case=operation.as_strategy())
    def ask(case: Any) -> None:
        case.call_and_validate(checks=CHECKS, headers={"Authorization": f"Bearer {OPERATE}"}, timeout=30)

    ask()
    return operation.label
