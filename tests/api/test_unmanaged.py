"""Pods whose registries send no events, as they are declared and shown."""

from typing import Any

from tests.api.harness import Served

DECLARED = {"why": "it moves next month", "by": "an operator"}


def add(api: Served, name: str, **others: Any) -> Any:
    return api.ask("POST", "/v1/pods", json={"name": name, "prefixes": [name], "unmanaged": DECLARED} | others)


def test_one_is_declared(api: Served) -> None:
    """An unmanaged pod gets no token, is shown with its declaration, and waits for a reconcile and no watermark."""
    answer = add(api, "unmanaged-a", registries=["http://unmanaged-a.test:5000"])
    assert answer.status_code == 201, answer.text
    assert answer.json()["event_token"] is None
    pod = api.get("/v1/pods/unmanaged-a").json()
    assert (pod["managed"], pod["unmanaged_why"], pod["unmanaged_by"]) == (False, *DECLARED.values())
    assert pod["waits_for"] == []
    assert len(pod["blocked_by"]) == 2
    assert "never reconciled" in pod["blocked_by"][0]
    assert "never examined" in pod["blocked_by"][1]
    assert api.ask("POST", "/v1/pods/unmanaged-a/token").status_code == 409


def test_one_must_have_its_links_in_storage(api: Served) -> None:
    """A pod of kind relay is known by its events alone, and cannot be unmanaged."""
    assert add(api, "unmanaged-r", kind="relay").status_code == 400
    assert api.ask(
        "POST", "/v1/pods", json={"name": "managed-r", "prefixes": ["managed-r"], "kind": "relay"}
    ).is_success
    asked = api.ask("PUT", "/v1/pods/managed-r/managed", json={"unmanaged": DECLARED})
    assert asked.status_code == 400


def test_one_becomes_managed_and_back(api: Served) -> None:
    """A pod has a valid token only while it is managed."""
    assert add(api, "unmanaged-b").is_success
    pod = api.ask("PUT", "/v1/pods/unmanaged-b/managed", json={"unmanaged": None})
    assert pod.is_success, pod.text
    assert (pod.json()["managed"], pod.json()["unmanaged_why"]) == (True, None)
    assert any("watermark" in reason for reason in pod.json()["blocked_by"])
    token = api.ask("POST", "/v1/pods/unmanaged-b/token").json()["event_token"]

    def is_its() -> bool:
        asked = api.ask("POST", "/v1/pods/unmanaged-b/token/check", json={"token": token})
        return bool(asked.json()["is_of_pod"])

    assert is_its()
    assert api.ask("PUT", "/v1/pods/unmanaged-b/managed", json={"unmanaged": DECLARED}).is_success
    assert not is_its()
    assert api.ask("PUT", "/v1/pods/nobody/managed", json={"unmanaged": None}).status_code == 404
