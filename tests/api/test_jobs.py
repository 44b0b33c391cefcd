"""Jobs are requested, listed and shown; at most one of a kind is open for a pod."""

from typing import Any

from tests.api.harness import READ, Facts, Json, Served
from tests.support.tables import NOW, add_job, add_pod, id_of


def ask(api: Served, pod: str, **options: Any) -> Json:
    answer = api.ask("POST", f"/v1/pods/{pod}/reconcile", **options)
    assert answer.status_code == 202, answer.text
    return answer.json()


def pod_of(api: Served, facts: Facts, name: str, kind: str = "link") -> str:
    pod = f"{facts.mark}-{name}"
    add_pod(api.db, pod, kind=kind)
    return pod


def test_asking(api: Served, facts: Facts) -> None:
    """A reconcile is requested with a reason or without; while one is open, the answer is that one."""
    pod = pod_of(api, facts, "asked")
    job = ask(api, pod, json={"why": "a restore"})
    assert {**job, "id": 0, "asked_at": ""} == {
        "id": 0,
        "kind": "reconcile",
        "pod": pod,
        "why": "a restore",
        "state": "waiting",
        "asked_at": "",
        "began_at": None,
        "finished_at": None,
        "progress": {},
        "error": None,
    }
    assert ask(api, pod) == job
    assert api.get(f"/v1/jobs/{job['id']}").json() == job
    api.db.execute(
        "UPDATE jobs SET state = 'failed', finished_at = now(), error = 'Try again.', progress = '{\"keys\": 3}'"
        " WHERE id = %s",
        (job["id"],),
    )
    shown = api.get(f"/v1/jobs/{job['id']}").json()
    assert (shown["state"], shown["error"], shown["progress"]) == ("failed", "Try again.", {"keys": 3})
    again = ask(api, pod)
    assert again["id"] > job["id"]
    assert again["why"] == "an operator asked"


def test_refusals(api: Served, facts: Facts) -> None:
    """A reconcile is refused for a token of role read, an unknown pod and a pod whose links are elsewhere."""
    pod, relay = pod_of(api, facts, "plain"), pod_of(api, facts, "relay", "relay")
    assert api.ask("POST", f"/v1/pods/{pod}/reconcile", token=READ).status_code == 403
    assert api.ask("POST", "/v1/pods/nobody/reconcile").status_code == 404
    answer = api.ask("POST", f"/v1/pods/{relay}/reconcile")
    assert answer.status_code == 409
    assert "relay" in answer.json()["detail"]
    for body in ({"why": ""}, {"why": "x\0"}, {"what": "x"}, {"why": "x" * 1001}):
        assert api.ask("POST", f"/v1/pods/{pod}/reconcile", json=body).status_code == 400
    assert api.get("/v1/jobs/999999999").status_code == 404
    assert api.get("/v1/jobs", pod="nobody").status_code == 404
    assert api.get("/v1/jobs", pod=pod).json()["items"] == []
    assert api.get("/v1/jobs", kind="sweep").status_code == 400
    assert api.get("/v1/jobs", pods=pod).status_code == 400


def test_lists(api: Served, facts: Facts) -> None:
    """The newest job comes first, page by page, filtered by pod and kind."""
    pods = [pod_of(api, facts, f"listed{n}") for n in range(3)]
    for pod in pods:
        for kind in ("reconcile", "doctor"):
            for _ in range(2):
                add_job(api.db, id_of(pod), kind, state="done", finished_at=NOW)
    ours = [job["id"] for job in api.pages("/v1/jobs", limit=2) if job["pod"] in pods]
    assert len(ours) == 12
    assert ours == sorted(ours, reverse=True)
    assert {job["pod"] for job in api.pages("/v1/jobs", pod=pods[0], limit=1)} == {pods[0]}
    assert len(api.pages("/v1/jobs", pod=pods[0], limit=3)) == 4
    assert {job["kind"] for job in api.pages("/v1/jobs", pod=pods[1], kind="doctor")} == {"doctor"}
    assert len(api.pages("/v1/jobs", pod=pods[1], kind="doctor", limit=1)) == 2
