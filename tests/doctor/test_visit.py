"""The doctor with pods of the model registry: what is right is proved, what is wrong refuted, nothing is left."""

import datetime as dt
from typing import Any

import pytest

from coordinator import bootstrap
from coordinator.db import findings
from coordinator.domain.findings import Check, Verdict
from coordinator.domain.names import parse_digest, parse_pod
from coordinator.errors import ConflictError, NotFoundError
from coordinator.pods.doctor.scratch import Scratch
from coordinator.pods.doctor.visit import Visit
from coordinator.pods.registry_client import RegistryClient
from coordinator.stack import model_notifications
from coordinator.storage.layout import blob_key
from tests.doctor.harness import (
    CachingStorage,
    Clinic,
    model,
    not_proved,
    of,
    refusing_deletes,
    swapping,
    without,
    without_references,
)
from tests.doctor.store import POD, THIEF
from tests.registries.harness import eventually

REFUTED, UNPROVED = Verdict.REFUTED, Verdict.UNPROVED
#: The broker that `baleen up` starts is not one to rely on.
EMBEDDED = {"kafka-durable": REFUTED}


def test_a_pod_that_is_well(clinic: Clinic) -> None:
    """All is proved of a pod of two processes but what the embedded broker cannot do, and nothing is left behind."""
    pod = clinic.admit("well")
    assert any("never examined" in reason for reason in clinic.baleen.pod(pod)["held_by"])
    before = clinic.everything()
    with clinic.models(pod, model(), model()):
        report = clinic.examine(pod)
        assert not_proved(report) == EMBEDDED
        assert report.left == []
        assert clinic.everything() == before
        told = clinic.baleen.pod(pod)
    assert [found["check"] for found in told["findings"]] == [check.value for check in Check]
    assert {found["check"]: found["verdict"] for found in told["findings"] if found["verdict"] != "proved"} == EMBEDDED
    assert [reason for reason in told["held_by"] if reason.startswith("doctor:")] == [
        "doctor: kafka-durable is refuted: `baleen pods doctor well` says what to mend"
    ]


@pytest.mark.parametrize(
    ("name", "process", "wrong"),
    [
        ("caching", model(storage=CachingStorage), {"no-descriptor-cache": REFUTED}),
        ("silent", model(wrap=without_references), {"references-arrive": REFUTED}),
        ("deaf", model(wrap=without("pull")), {"pulls-arrive": REFUTED}),
        ("swapping", model(wrap=swapping), {"events-in-order": REFUTED}),
        ("undeleting", model(wrap=without("delete")), {"deletes-arrive": REFUTED}),
        (
            "mute",
            model(wrap=without("push", "application/octet-stream")),
            {"events-arrive": REFUTED, "events-in-order": UNPROVED},
        ),
        (
            "elsewhere",
            model(root="elsewhere"),
            {"same-root": REFUTED, "no-descriptor-cache": UNPROVED, "deletes-arrive": UNPROVED},
        ),
    ],
)
def test_a_pod_with_one_fault(clinic: Clinic, name: str, process: Any, wrong: dict[str, Verdict]) -> None:
    """What is wrong with a registry is refuted by the check of that, which says what to mend; the others are proved."""
    pod = clinic.admit(name)
    before = clinic.everything()
    with clinic.models(pod, process):
        report = clinic.examine(pod, patience=3)
        assert not_proved(report) == EMBEDDED | wrong
    assert all(found.mend for found in report.findings if found.verdict is REFUTED)
    stored, table = clinic.everything()
    assert {key for key, _ in stored - before[0] if not key.startswith("elsewhere/")} == set()
    assert (table["holdings"], table["links"]) == (before[1]["holdings"], before[1]["links"])


def test_a_key_that_may_delete(clinic: Clinic) -> None:
    """A key that deletes blobs in any way is refuted, and the mend is the policy that forbids it (scenario 21)."""
    pod = clinic.admit("thieving")
    before = clinic.everything()
    with clinic.models(pod, model(key=THIEF)):
        report = clinic.examine(pod, THIEF)
    assert not_proved(report) == EMBEDDED | {"cannot-delete": REFUTED}
    found = of(report, "cannot-delete")
    assert found.proof.count("it is gone") == 4
    assert "s3:DeleteObjectVersion" in found.mend
    assert THIEF.secret not in f"{report}"
    assert clinic.everything() == before


def test_without_the_key(clinic: Clinic) -> None:
    """What cannot be tried is unproved, and says what to give; a key that the store does not know proves nothing."""
    pod = clinic.admit("keyless")
    with clinic.models(pod, model()):
        assert not_proved(clinic.examine(pod, None)) == EMBEDDED | {"cannot-delete": UNPROVED}
        report = clinic.examine(pod, POD._replace(secret="another"))
    assert not_proved(report) == EMBEDDED | {"cannot-delete": UNPROVED}
    assert "Is it the key that the registry uses?" in of(report, "cannot-delete").proof


def test_deletes_that_are_switched_off(clinic: Clinic) -> None:
    """A registry that deletes nothing is safe, and is told how to be of use."""
    pod = clinic.admit("keeping")
    before = clinic.everything()
    with clinic.models(pod, model(handler=refusing_deletes)):
        report = clinic.examine(pod)
    assert not_proved(report) == EMBEDDED
    assert "switched off" in of(report, "deletes-arrive").meaning
    assert "delete: {enabled: true}" in of(report, "deletes-arrive").mend
    assert report.left == []
    assert clinic.everything() == before


def test_a_clock_that_is_wrong(clinic: Clinic, monkeypatch: pytest.MonkeyPatch) -> None:
    """A registry whose clock is off by more than half of the allowed skew is refuted, with the difference."""
    known = model_notifications._now

    def ahead() -> str:
        return (dt.datetime.fromisoformat(known()) + dt.timedelta(seconds=70)).isoformat()

    monkeypatch.setattr(model_notifications, "_now", ahead)
    pod = clinic.admit("ahead")
    with clinic.models(pod, model()):
        report = clinic.examine(pod, safety_clock_skew=60.0)
    assert not_proved(report) == EMBEDDED | {"clocks": REFUTED}
    assert "its clock is +" in of(report, "clocks").proof


def test_a_process_that_was_not_reached(clinic: Clinic) -> None:
    """A process that counts for the watermark and is not among the listed addresses leaves the pod unproved."""
    pod = clinic.admit("hidden")
    with clinic.models(pod, model(), model()) as (url, other):
        with RegistryClient(other) as client:
            client.push_blob(f"{pod.name}/app", b"told by a process that is not listed later")
        clinic.await_applied()
        clinic.listed(pod, url)
        report = clinic.examine(pod)
    assert not_proved(report) == EMBEDDED | {"processes-reached": UNPROVED}
    assert "it counts for the watermark, and the visit did not reach it" in of(report, "processes-reached").proof


def test_a_registry_that_is_away(clinic: Clinic) -> None:
    """Of a registry that does not answer nothing is proved but what is of the services alone."""
    pod = clinic.admit("away")
    clinic.listed(pod, "http://127.0.0.1:1")
    report = clinic.examine(pod)
    proved = {found.check for found in report.findings if found.verdict is Verdict.PROVED}
    assert proved == {"versioned", "cannot-delete"}
    assert of(report, "registry-answers").verdict is REFUTED
    assert "ECONNREFUSED" in of(report, "registry-answers").proof


def test_a_new_address_is_not_examined(clinic: Clinic) -> None:
    """When a pod lists another URL nothing is proved of it any more."""
    pod = clinic.admit("moving")
    with clinic.models(pod, model()) as (url,):
        clinic.examine(pod)
        clinic.listed(pod, url)
        assert clinic.baleen.pod(pod)["findings"]
        clinic.listed(pod, url, "http://127.0.0.1:2")
        assert clinic.baleen.pod(pod)["findings"] == []


def test_a_new_process_is_not_examined(clinic: Clinic) -> None:
    """A process that begins after the visit may be configured in another way: it holds garbage collection."""
    pod = clinic.admit("restarted")
    with clinic.models(pod, model()):
        clinic.examine(pod)
        assert not any("after the visit" in reason for reason in clinic.baleen.pod(pod)["held_by"])
    with clinic.models(pod, model()):
        eventually(lambda: any("after the visit" in reason for reason in clinic.baleen.pod(pod)["held_by"]))
        clinic.examine(pod)
        assert not any("after the visit" in reason for reason in clinic.baleen.pod(pod)["held_by"])


class _Interrupted(BaseException):
    """As Ctrl-C."""


@pytest.mark.parametrize("check", [Check.EVENTS_ARRIVE, Check.CANNOT_DELETE])
def test_a_visit_that_is_interrupted(clinic: Clinic, check: Check) -> None:
    """A visit that ends early takes everything away, and leaves what was found before as it is."""
    pod = clinic.admit(f"interrupted-{check}")
    before = clinic.everything()

    def tell(what: str) -> None:
        if what == list(Check)[list(Check).index(check) + 1]:
            raise _Interrupted

    with clinic.models(pod, model()):
        with pytest.raises(_Interrupted):
            clinic.examine(pod, tell=tell)
        assert clinic.everything() == before
    assert clinic.baleen.pod(pod)["findings"] == []


def test_a_visit_that_was_killed(clinic: Clinic, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a killed visit left is taken away by the next one, but for bytes: those are left to garbage collection."""
    pod = clinic.admit("killed")
    before = clinic.everything()
    with clinic.models(pod, model()):
        with monkeypatch.context() as patched:
            patched.setattr(Visit, "clean", lambda visit: ["killed"])
            assert clinic.examine(pod).left == ["killed"]
        assert clinic.everything()[1]["links"] != before[1]["links"]
        assert clinic.examine(pod).left == []
    stored, table = clinic.everything()
    assert {key for key, _ in stored - before[0] if "/repositories/" in key} == set()
    assert (table["holdings"], table["links"]) == (before[1]["holdings"], before[1]["links"])


def test_one_doctor_at_a_time(clinic: Clinic) -> None:
    """A second doctor is turned away while the first is with the pod, and one that looks for no pod too."""
    pod = clinic.admit("crowded")
    clinic.listed(pod, "http://127.0.0.1:3")

    def another(what: str) -> None:
        if what == Check.VERSIONED:
            with pytest.raises(ConflictError):
                clinic.examine(pod)

    clinic.examine(pod, tell=another)
    with pytest.raises(NotFoundError):
        clinic.examine(pod.__class__("nobody", ""))


def test_what_others_need_is_not_touched(clinic: Clinic) -> None:
    """A blob that is not the visit's own, or that somebody else has got hold of, is neither hidden nor deleted."""
    pod = clinic.admit("careful")
    with bootstrap.doctor(clinic.settings(), parse_pod(pod.name)) as instruments, clinic.models(pod, model()) as (url,):
        with instruments.connections.use() as connection:
            examined = findings.examined(connection, parse_pod(pod.name))
        scratch = Scratch(examined, instruments.store, instruments.connections)
        foreign = Scratch(examined, instruments.store, instruments.connections).layer()
        with pytest.raises(ConflictError), scratch.vanished(foreign):
            raise AssertionError
        shared = scratch.layer()
        with RegistryClient(url) as client:
            scratch.push_blob(client, shared)
            assert client.mount_blob(f"{pod.name}/app", shared.digest, scratch.repository)
            clinic.await_applied()
            with pytest.raises(ConflictError), scratch.vanished(shared):
                raise AssertionError
            (problem,) = scratch.clean([client], lambda: True)
            assert "needed by others" in problem
            assert client.get_blob(f"{pod.name}/app", shared.digest) == shared.content
        assert instruments.store.head(blob_key(parse_digest(shared.digest))) is not None
