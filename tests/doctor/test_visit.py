"""The doctor with pods of the model registry: what is right is proved, what is wrong refuted, nothing is left."""

import datetime as dt
import itertools

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
_ports = itertools.count(1)


def unused() -> str:
    """An address where nobody listens, and that no other pod has."""
    return f"http://127.0.0.1:{next(_ports)}"


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


def test_a_process_that_began_later(clinic: Clinic) -> None:
    """One that is first heard after the visit may be configured in another way: it holds garbage collection."""
    pod = clinic.admit("restarted")
    clinic.listed(pod, unused())
    clinic.examine(pod)
    assert not any("after the visit" in reason for reason in clinic.baleen.pod(pod)["held_by"])
    clinic.let_tell(pod, "another")
    eventually(lambda: any("after the visit" in reason for reason in clinic.baleen.pod(pod)["held_by"]))


def test_faults_of_configuration(clinic: Clinic) -> None:
    """A cache (scenario 17), events without references and pulls, and a key that may delete (scenario 21): each is
    refuted by the check of it, with what mends it; a process that was not reached leaves it open; all else is proved.
    """
    pod = clinic.admit("misconfigured")
    clinic.let_tell(pod, "not-listed")
    clinic.await_applied()
    before = clinic.everything()
    process = model(storage=CachingStorage, wrap=lambda emit: without_references(without("pull")(emit)), key=THIEF)
    with clinic.models(pod, process):
        report = clinic.examine(pod, THIEF)
    wrong = {"no-descriptor-cache", "references-arrive", "pulls-arrive", "cannot-delete"}
    assert not_proved(report) == EMBEDDED | dict.fromkeys(wrong, REFUTED) | {"processes-reached": UNPROVED}
    assert "process not-listed: " in of(report, "processes-reached").proof
    assert all(found.mend for found in report.findings if found.verdict is REFUTED)
    assert of(report, "cannot-delete").proof.count("it is gone") == 4
    assert "s3:DeleteObjectVersion" in of(report, "cannot-delete").mend
    assert THIEF.secret not in f"{report}"
    assert report.left == []
    assert clinic.everything() == before


def test_faults_of_events(clinic: Clinic, monkeypatch: pytest.MonkeyPatch) -> None:
    """Events that overtake each other, untold deletes and a wrong clock are refuted, each by its own check."""
    known = model_notifications._now

    def ahead() -> str:
        return (dt.datetime.fromisoformat(known()) + dt.timedelta(seconds=70)).isoformat()

    monkeypatch.setattr(model_notifications, "_now", ahead)
    pod = clinic.admit("disordered")
    before = clinic.everything()
    with clinic.models(pod, model(wrap=lambda emit: swapping(without("delete")(emit)))):
        report = clinic.examine(pod, safety_clock_skew=60.0, patience=5)
    wrong = {"events-in-order", "deletes-arrive", "clocks"}
    assert not_proved(report) == EMBEDDED | dict.fromkeys(wrong, REFUTED)
    assert "its clock is +" in of(report, "clocks").proof
    stored, table = clinic.everything()
    assert stored == before[0]
    assert (table["holdings"], table["links"]) == (before[1]["holdings"], before[1]["links"])


def test_a_key_that_is_not_known(clinic: Clinic) -> None:
    """A key that the store does not know is refused everything, which proves nothing."""
    pod = clinic.admit("keyless")
    clinic.listed(pod, unused())
    found = of(clinic.examine(pod, POD._replace(secret="another")), "cannot-delete")
    assert found.verdict is UNPROVED
    assert "Is it the key that the registry uses?" in found.proof


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


def test_a_registry_that_is_away(clinic: Clinic) -> None:
    """Of a registry that does not answer nothing is proved but what is of the bucket alone; nor without the key."""
    pod, (url, other) = clinic.admit("away"), (unused(), unused())
    clinic.listed(pod, url)
    report = clinic.examine(pod, None)
    assert {found.check for found in report.findings if found.verdict is Verdict.PROVED} == {"versioned"}
    assert of(report, "registry-answers").verdict is REFUTED
    assert "ECONNREFUSED" in of(report, "registry-answers").proof
    assert "BALEEN_POD_ACCESS_KEY" in of(report, "cannot-delete").proof

    # What was found out is of the addresses that were listed.
    clinic.listed(pod, url)
    assert clinic.baleen.pod(pod)["findings"]
    clinic.listed(pod, url, other)
    assert clinic.baleen.pod(pod)["findings"] == []


class _Interrupted(BaseException):
    """As Ctrl-C."""


def test_a_visit_that_is_interrupted(clinic: Clinic) -> None:
    """A visit that ends early takes everything away, and leaves what was found before as it is."""
    pod = clinic.admit("interrupted")
    before = clinic.everything()

    def tell(what: str) -> None:
        if what == Check.CANNOT_DELETE:
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
    clinic.listed(pod, unused())
    assert clinic.examine(pod).left == []
    stored, table = clinic.everything()
    assert {key for key, _ in stored - before[0] if "/repositories/" in key} == set()
    assert (table["holdings"], table["links"]) == (before[1]["holdings"], before[1]["links"])


def test_one_doctor_at_a_time(clinic: Clinic) -> None:
    """A second doctor is turned away while the first is with the pod, and one that looks for no pod too."""
    pod = clinic.admit("crowded")
    clinic.listed(pod, unused())

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
