"""Gaps of pods that no reconcile can resolve are resolved by an operator, with a reason."""

from tests.api.harness import Facts, Served


def test_gaps_are_resolved_with_a_reason(api: Served, facts: Facts) -> None:
    """The answer is the pod without its gaps; a reason is needed, and a pod that can be reconciled is refused."""
    elsewhere, here = facts.pods[0], facts.pods[1]
    api.db.execute("UPDATE pods SET kind = 'relay' WHERE name = %s", (elsewhere,))
    for pod in (elsewhere, here):
        api.db.execute(
            "INSERT INTO gaps (pod_id, topic, partition, reason, from_offset)"
            " SELECT id, 'registry.events', -1, 'log-cut', 0 FROM pods WHERE name = %s",
            (pod,),
        )
    path = f"/v1/pods/{elsewhere}/gaps/resolve"
    for body in ({}, {"why": ""}, {"why": " "}, {"why": "x", "who": "me"}):
        assert api.ask("POST", path, json=body).status_code == 400
    assert api.get(f"/v1/pods/{elsewhere}").json()["gaps"]["open"] == 1
    shown = api.ask("POST", path, json={"why": "its database was compared"})
    assert shown.status_code == 200, shown.text
    assert shown.json()["name"] == elsewhere
    assert shown.json()["gaps"] == {"open": 0, "oldest": None}
    refused = api.ask("POST", f"/v1/pods/{here}/gaps/resolve", json={"why": "I think so"})
    assert refused.status_code == 409
    assert "a reconcile resolves its gaps" in refused.json()["detail"]
    assert api.get(f"/v1/pods/{here}").json()["gaps"]["open"] == 1
    assert api.ask("POST", "/v1/pods/nobody/gaps/resolve", json={"why": "no pod"}).status_code == 404
