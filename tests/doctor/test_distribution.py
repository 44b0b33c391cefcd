"""The doctor with pods of CNCF distribution: each fault is refuted by the check of it alone, and nothing is left."""

from typing import Any

import pytest

from coordinator.domain.findings import KEY_CHECKS, Result
from coordinator.registry.images import DOCKER
from coordinator.stack.distribution import DistributionRegistry
from tests.doctor.harness import (
    IMPATIENCE_S,
    Caching,
    Clinic,
    HalfDeaf,
    NoDeletes,
    OtherSecret,
    QueueForLists,
    Silent,
    Talkative,
    TwoQueues,
    not_proved,
    of,
)
from tests.doctor.store import POD, ROOT, THIEF, Key

pytestmark = pytest.mark.registry

PROVED, REFUTED, UNPROVED = Result.PROVED, Result.REFUTED, Result.UNPROVED
EMBEDDED = {"kafka-durable": REFUTED}


@pytest.mark.parametrize(
    ("name", "kinds", "key", "wrong"),
    [
        ("all-well", (DistributionRegistry, DistributionRegistry), POD, {}),
        ("inmemory", (Caching,), POD, {"no-descriptor-cache": REFUTED}),
        ("one-of-two", (DistributionRegistry, Caching), POD, {"no-descriptor-cache": REFUTED}),
        ("no-references", (Silent,), POD, {"references-arrive": REFUTED}),
        ("may-delete", (DistributionRegistry,), THIEF, dict.fromkeys(KEY_CHECKS, REFUTED)),
        ("two-secrets", (DistributionRegistry, OtherSecret), POD, {"upload-secret": REFUTED}),
        ("no-deletes", (NoDeletes,), POD, {}),
    ],
)
def test_one_fault(
    clinic: Clinic, name: str, kinds: tuple[type[DistributionRegistry], ...], key: Key, wrong: dict[str, Result]
) -> None:
    """A registry without a fault is proved; a cache (scenario 17), a key that may delete (scenario 21) and others
    are refuted.
    """
    pod = clinic.admit(f"d-{name}")
    before = clinic.everything()
    with clinic.distributions(pod, *kinds, key=key):
        report = clinic.examine(pod, key)
    assert not_proved(report) == EMBEDDED | wrong, report.findings
    assert report.problems == []
    assert clinic.everything() == before


def test_half_deaf(clinic: Clinic) -> None:
    """A registry that reports OCI's manifests, and neither docker's nor mounts, is refuted."""
    pod = clinic.admit("d-half-deaf")
    with clinic.distributions(pod, HalfDeaf):
        report = clinic.examine(pod, patience=IMPATIENCE_S)
    unknown = dict.fromkeys(("references-arrive", "events-in-order"), UNPROVED)
    assert not_proved(report) == EMBEDDED | {"events-arrive": REFUTED} | unknown
    found = of(report, "events-arrive")
    assert "no event of docker manifest, docker manifest list, mount came" in found.proof
    lines = [line.strip() for line in found.fix.splitlines()]
    assert "actions: [mount]" in lines
    assert {f"- {DOCKER.manifest}", f"- {DOCKER.index}"} <= set(lines)
    for check in unknown:
        assert "see `events-arrive`" in of(report, check).proof


@pytest.mark.parametrize(
    ("name", "probe", "kind", "result", "proof", "fix"),
    [
        ("d-quiet", "push", DistributionRegistry, PROVED, "no event of a pull came", ""),
        ("d-loud", "push", Talkative, PROVED, "an event of a pull came from", "actions: [pull]"),
        ("d-pulled", "pull", Talkative, PROVED, "a nonce that was sent to it came back", ""),
        ("d-deaf", "pull", DistributionRegistry, REFUTED, "did not come back", "set-probe d-deaf push"),
    ],
)
def test_probes(
    clinic: Clinic,
    name: str,
    probe: str,
    kind: type[DistributionRegistry],
    result: Result,
    proof: str,
    fix: str,
) -> None:
    """Attempt 15: a pod that is probed by pushes need not send pulls; one that is probed by pulls must."""
    pod = clinic.admit(name, probe=probe)
    with clinic.distributions(pod, kind):
        report = clinic.examine(pod)
    wrong = {} if result is PROVED else {"probes-arrive": REFUTED, "events-in-order": UNPROVED}
    assert not_proved(report) == EMBEDDED | wrong, report.findings
    found = of(report, "probes-arrive")
    assert proof in found.proof
    assert fix in found.fix
    assert bool(found.fix) == bool(fix)


@pytest.mark.parametrize(
    ("probe", "kind", "entry"),
    [
        ("pull", TwoQueues, "blob"),
        ("pull", QueueForLists, "docker manifest list"),
        ("push", QueueForLists, "docker manifest list"),
    ],
)
def test_two_queues(clinic: Clinic, probe: str, kind: type[DistributionRegistry], entry: str) -> None:
    """A registry whose probes do not wait for earlier events is refuted, and nothing is left."""
    pod = clinic.admit(f"d-{probe}-{kind.__name__.lower()}", probe=probe)
    before = clinic.everything()
    with clinic.distributions(pod, kind):
        report = clinic.examine(pod)
    assert not_proved(report) == EMBEDDED | {"events-in-order": REFUTED}, report.findings
    found = of(report, "events-in-order")
    assert f"a probe came back before the event of an earlier {entry}" in found.proof
    assert "Configure one endpoint for Baleen" in found.fix
    assert report.problems == []
    assert clinic.everything() == before


def test_another_root(clinic: Clinic) -> None:
    """A registry below another root is refuted, and leaves nothing in the shared one."""
    pod = clinic.admit("d-elsewhere", (ROOT, "d-elsewhere"))
    before = clinic.everything()
    with clinic.distributions(pod, DistributionRegistry, root="d-elsewhere"):
        report = clinic.examine(pod, patience=IMPATIENCE_S)
    wrong: dict[str, Any] = {"same-root": REFUTED, "no-descriptor-cache": UNPROVED, "deletes-arrive": UNPROVED}
    assert not_proved(report) == EMBEDDED | wrong
    assert "rootdirectory: /shared" in of(report, "same-root").fix
    stored, table = clinic.everything()
    assert {key for key, _ in stored - before[0] if not key.startswith("d-elsewhere/")} == set()
    assert (table["holdings"], table["links"]) == (before[1]["holdings"], before[1]["links"])
