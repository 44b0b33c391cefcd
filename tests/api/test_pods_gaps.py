"""An operator resolves the gaps of pods that no reconcile can resolve, with a reason."""

from tests.api.harness import Facts, Served
from tests.support.tables import add_gap, id_of, set_kind


def test_gaps_are_resolved_with_a_reason(api: Served, facts: Facts) -> None:
    """The answer is the pod without its gaps; a missing reason and a pod that can be reconciled are refused."""
    elsewhere, here = facts.pods[0], facts.pods[1]
    set_kind(api.db, "relay", elsewhere)
    for pod in (elsewhere, here):
        add_gap(api.db, id_of(pod))
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
