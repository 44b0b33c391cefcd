"""A pod shows, durably, that its events are refused for a wrong token; that changes nothing else."""

from typing import Any

from tests.api.harness import Facts, Served
from tests.support.tables import ago, id_of, insert, value
from tests.support.wait import eventually


def show(api: Served, pod: str) -> dict[str, Any]:
    answer: dict[str, Any] = api.get(f"/v1/pods/{pod}").json()
    return answer


def refused(api: Served, pod: str) -> None:
    assert api.ask("POST", f"/v1/events/{pod}", "a-wrong-token", content=b"{}").status_code == 401


def noted(api: Served, pod: str, after: str = "") -> dict[str, Any]:
    """Post until it is noted: a new pod is not known to ingest at once, and one is not noted at each refusal."""

    def checked() -> dict[str, Any] | None:
        refused(api, pod)
        now: dict[str, Any] | None = show(api, pod)["wrong_token"]
        return now if now is not None and now["last"] > after else None

    found: dict[str, Any] = eventually(checked, "the refusal is noted")
    return found


def test_events_with_a_wrong_token_are_shown(api: Served, facts: Facts) -> None:
    """The pod shows since when and how to fix it, in lists too; nothing else of it changes; a new token ends it."""
    pod, other = facts.pods
    before = show(api, pod)
    assert before["wrong_token"] is None
    found = noted(api, pod)
    assert show(api, pod) == before | {"wrong_token": found}
    assert found["since"] <= found["last"]
    assert f"baleen pods rotate-token {pod}" in found["sentence"]
    assert "a-wrong-token" not in found["sentence"]
    listed = {each["name"]: each["wrong_token"] for each in api.pages("/v1/pods")}
    assert listed[pod] == found
    assert listed[other] is None
    assert f'baleen_ingest_refused_total{{pod="{pod}",reason="unauthorized"}} ' in api.get("/metrics", None).text
    assert api.ask("POST", f"/v1/pods/{pod}/token").is_success
    assert show(api, pod)["wrong_token"] is None


def test_a_refusal_of_long_ago(api: Served, facts: Facts) -> None:
    """A refusal of more than an hour ago is not shown, and the next one begins anew."""
    pod, other = facts.pods
    for name, last in ((pod, "2 hours"), (other, "1 minute")):
        insert(api.db, "token_refusals", pod_id=id_of(name), since=ago("5 hours"), last_at=ago(last))
    assert show(api, pod)["wrong_token"] is None
    recent = show(api, other)["wrong_token"]
    anew = noted(api, pod)
    assert anew["since"] == anew["last"]
    assert noted(api, other, after=recent["last"])["since"] == recent["since"]


def test_nobody_is_noted_who_is_not_there(api: Served, facts: Facts) -> None:
    """Events of pods that are not registered leave no row, and no label."""
    count = "SELECT count(*) FROM token_refusals"
    before = value(api.db, count)
    refused(api, f"{facts.pods[0]}-no")
    noted(api, facts.pods[0])
    assert value(api.db, count) == before + 1
    assert f"{facts.pods[0]}-no" not in api.get("/metrics", None).text
