"""The doctor with pods of the model registry: what is right is proved, what is wrong refuted, and nothing is left."""

import itertools
import json

import pytest

from coordinator.compose import command as compose_command
from coordinator.compose import store as compose_store
from coordinator.db.locks import FACTS_LOCK, PODS_LOCK
from coordinator.doctor import table as findings
from coordinator.doctor.checks import CHECKS_OF_PROCESSES as ALL_OF_PROCESSES
from coordinator.doctor.examine import REMOVING
from coordinator.doctor.scratch import BY, Scratch
from coordinator.domain.findings import CHECKS_OF_KIND, KEY_CHECKS, Check, Result, checks_of_pod
from coordinator.domain.names import parse_digest, parse_pod, parse_repository
from coordinator.domain.pods import PodKind
from coordinator.errors import ConflictError, NotFoundError
from coordinator.registry.client import RegistryClient
from coordinator.registry.images import DOCKER, OCI
from coordinator.stack.seaweedfs import BUCKET
from coordinator.storage.layout import BASE, MARK, blob_key, repository_prefix
from tests.doctor.harness import (
    IMPATIENCE_S,
    CachingStorage,
    Clinic,
    Wrap,
    asking_no_delay,
    model,
    not_proved,
    of,
    refusing_deletes,
    swapping,
    without,
    without_references,
)
from tests.doctor.store import POD, ROOT, THIEF
from tests.support.wait import eventually

REFUTED, UNPROVED = Result.REFUTED, Result.UNPROVED
pytestmark = pytest.mark.lengthy
#: Those of pods of kind `link`.
CHECKS_OF_PROCESSES = ALL_OF_PROCESSES - CHECKS_OF_KIND[PodKind.GITLAB]
#: The broker that `baleen up` starts is not one to rely on.
EMBEDDED = {"kafka-durable": REFUTED}
_ports = itertools.count(1)


def unused() -> str:
    """An address where nobody listens, and that no other pod has."""
    return f"http://127.0.0.1:{next(_ports)}"


def test_a_pod_that_is_well(clinic: Clinic) -> None:
    """Everything is proved of a pod of two processes except the embedded broker, and nothing is left behind."""
    pod = clinic.admit("well")
    assert any("never examined" in reason for reason in clinic.baleen.pod(pod)["blocked_by"])
    before = clinic.everything()
    with clinic.models(pod, model(), model()):
        report = clinic.examine(pod)
        assert not_proved(report) == EMBEDDED
        assert report.problems == []
        assert clinic.everything() == before
        document = clinic.baleen.pod(pod)
    results = {found["check"]: found["result"] for found in document["findings"]}
    assert list(results) == [check.value for check in checks_of_pod(PodKind.LINK, managed=True)]
    assert {check: result for check, result in results.items() if result != "proved"} == EMBEDDED
    assert [reason for reason in document["blocked_by"] if reason.startswith("doctor:")] == [
        "doctor: kafka-durable is refuted: run `baleen pods doctor well`, which says what to repair"
    ]


def test_a_process_that_began_later(clinic: Clinic) -> None:
    """A process that is first heard after the visit blocks GC."""
    pod = clinic.admit("restarted")
    clinic.listed(pod, unused())
    clinic.examine(pod)
    assert not any("after the visit" in reason for reason in clinic.baleen.pod(pod)["blocked_by"])
    clinic.report(pod, "another")
    eventually(lambda: any("after the visit" in reason for reason in clinic.baleen.pod(pod)["blocked_by"]))


def test_a_process_that_begins_during_a_visit(clinic: Clinic) -> None:
    """Nothing is proved of a process that is first heard after the visit's pushes."""
    pod = clinic.admit("growing")

    def on_step(what: str) -> None:
        if what == Check.DELETES_ARRIVE:
            clinic.report(pod, "late")
            clinic.await_applied()

    with clinic.models(pod, model()):
        report = clinic.examine(pod, on_step=on_step)
        held = clinic.baleen.pod(pod)["blocked_by"]
    assert not_proved(report) == EMBEDDED | dict.fromkeys(map(str, CHECKS_OF_PROCESSES), UNPROVED)
    assert "process late: " in of(report, "processes-reached").proof
    assert f"baleen pods retire-process {pod.name} late" in of(report, "processes-reached").fix
    for check in CHECKS_OF_PROCESSES - {Check.PROCESSES_REACHED}:
        assert of(report, check).proof.startswith("not tried with process late: see `processes-reached`")
        assert of(report, check).fix == ""
    assert any("processes-reached is unproved" in reason for reason in held)


def test_registries_that_change_during_a_visit(clinic: Clinic) -> None:
    """A visit whose registries change meanwhile writes no findings and leaves nothing behind."""
    pod = clinic.admit("moving")
    before = clinic.everything()

    with clinic.models(pod, model()) as urls:
        assert clinic.examine(pod).findings

        def on_step(what: str) -> None:
            if what == Check.CANNOT_DELETE:
                clinic.listed(pod, *urls, unused())

        with pytest.raises(ConflictError, match="Run the doctor again"):
            clinic.examine(pod, on_step=on_step)
        assert clinic.baleen.pod(pod)["findings"] == []
        assert clinic.everything() == before


def test_nobody_is_added_while_findings_are_written(clinic: Clinic) -> None:
    """While findings are written, no process is added and no pod is changed."""
    pod = clinic.admit("quiet")
    with (
        compose_command.open_instruments(clinic.settings(), parse_pod(pod.name)) as instruments,
        instruments.connections.use() as connection,
    ):
        examined = findings.read_pod(connection, parse_pod(pod.name))
        with findings.lock_processes(connection, examined) as counting:
            assert counting == set()
            # As workers and `set-registries` take them.
            for lock in ("pg_try_advisory_xact_lock_shared", "pg_try_advisory_xact_lock"):
                key = FACTS_LOCK if lock.endswith("shared") else PODS_LOCK
                assert clinic.baleen.rows(f"SELECT {lock}(%s)", key) == [(False,)]


def test_faults_of_configuration(clinic: Clinic) -> None:
    """A cache (scenario 17), missing references and pulls, and a key that may delete (scenario 21) are each refuted
    with a fix.
    """
    pod = clinic.admit("misconfigured", probe="pull")
    clinic.report(pod, "not-listed")
    clinic.await_applied()
    before = clinic.everything()
    process = model(storage=CachingStorage, wrap=lambda emit: without_references()(without("pull")(emit)), key=THIEF)
    with clinic.models(pod, process):
        report = clinic.examine(pod, THIEF)
    wrong = {"no-descriptor-cache", "references-arrive", "probes-arrive", *map(str, KEY_CHECKS)}
    unreached = dict.fromkeys(map(str, CHECKS_OF_PROCESSES), UNPROVED)
    assert not_proved(report) == EMBEDDED | unreached | dict.fromkeys(wrong, REFUTED)
    assert "process not-listed: " in of(report, "processes-reached").proof
    assert all(found.fix for found in report.findings if found.result is REFUTED)
    assert of(report, "cannot-delete").proof.count("it is gone") == 4
    assert f"tried with the access key {THIEF.access}" in of(report, "cannot-delete").proof
    assert "policy's line ReadAndWriteBlobs does not allow it" in of(report, "cannot-delete").proof
    assert all(f"\nbaleen pods policy {pod.name}\n" in of(report, check).fix for check in KEY_CHECKS)
    assert "GET of a scratch object outside of every pod's prefixes: done" in of(report, "others-closed").proof
    assert THIEF.secret not in f"{report}"
    assert report.problems == []
    assert clinic.everything() == before


def test_faults_of_events(clinic: Clinic) -> None:
    """Reordered events, missing deletes, incomplete indexes and a wrong clock are each refuted by its own check."""
    pod = clinic.admit("disordered")
    before = clinic.everything()
    undescribed = without_references(OCI.index)
    with clinic.models(pod, model(wrap=lambda emit: swapping(without("delete")(undescribed(emit))), ahead_s=70)):
        report = clinic.examine(pod, safety_clock_skew=60.0, patience=IMPATIENCE_S)
    wrong = {"events-in-order", "deletes-arrive", "references-arrive", "clocks"}
    assert not_proved(report) == EMBEDDED | dict.fromkeys(wrong, REFUTED)
    assert "its clock is +" in of(report, "clocks").proof
    assert "the index's event does not say what it lists" in of(report, "references-arrive").proof
    assert "the manifest's event names the digests" in of(report, "references-arrive").proof
    stored, table = clinic.everything()
    assert stored == before[0]
    assert (table["holdings"], table["links"]) == (before[1]["holdings"], before[1]["links"])


def test_kinds_that_are_not_reported(clinic: Clinic) -> None:
    """An index without references, and a missing docker manifest list and mount, are refuted."""
    pod = clinic.admit("partial")
    before = clinic.everything()
    unreported = without("push", DOCKER.index)
    wrap: Wrap = lambda emit: unreported(without("mount")(without_references(DOCKER.manifest)(emit)))  # noqa: E731
    with clinic.models(pod, model(wrap=wrap)):
        report = clinic.examine(pod, patience=IMPATIENCE_S)
    wrong = {"events-arrive": REFUTED, "references-arrive": REFUTED, "events-in-order": UNPROVED}
    assert not_proved(report) == EMBEDDED | wrong
    assert "no event of docker manifest list, mount came, though" in of(report, "events-arrive").proof
    assert "the docker manifest's event does not say what it lists" in of(report, "references-arrive").proof
    stored, table = clinic.everything()
    assert stored == before[0]
    assert (table["holdings"], table["links"]) == (before[1]["holdings"], before[1]["links"])


def test_an_ingest_that_holds_nothing_back(clinic: Clinic) -> None:
    """If ingest ignores requested delays, as an older release does, the order is neither proved nor refuted."""
    pod = clinic.admit("hasty")
    with clinic.models(pod, model(wrap=asking_no_delay)):
        report = clinic.examine(pod)
    assert not_proved(report) == EMBEDDED | {"events-in-order": UNPROVED}
    assert "Check that each process of the API is of this release" in of(report, "events-in-order").proof


def test_a_key_that_is_not_known(clinic: Clinic) -> None:
    """A key that the store does not know is refused everything, which proves nothing."""
    pod = clinic.admit("keyless")
    clinic.listed(pod, unused())
    found = of(clinic.examine(pod, POD._replace(secret="another")), "cannot-delete")
    assert found.result is UNPROVED
    assert "Check that it is the key that the registry uses" in found.proof


def test_a_prefix_that_the_policy_does_not_have(clinic: Clinic) -> None:
    """A prefix that the key's policy lacks is named with the fix; with the new policy everything is proved."""
    pod = clinic.admit("widened")
    clinic.listed(pod, unused())
    clinic.baleen.ask("POST", f"/v1/pods/{pod.name}/prefixes", {"prefixes": ["widened-too"]})
    found = of(clinic.examine(pod), "others-closed")
    assert found.result is UNPROVED
    assert "below widened-too/, with the pod's key, beginning an upload: AccessDenied" in found.proof
    assert "line OwnRepositories of the policy" in found.proof
    assert f"\nbaleen pods policy {pod.name}\n" in found.fix
    clinic.store.restrain({POD: ["widened", "widened-too"]})
    report = clinic.examine(pod)
    assert {check for check in KEY_CHECKS if of(report, check).result is Result.PROVED} == KEY_CHECKS
    assert report.problems == []


def test_a_key_that_may_only_not_delete_blobs(clinic: Clinic) -> None:
    """A key that only may not delete blobs is proved by that check alone; trying it changes nothing."""
    # No prefix is before it.
    pod, neighbour = clinic.admit("old-policy"), clinic.admit("a-neighbour")
    clinic.listed(pod, unused())
    store, mark = clinic.store.client(), f"{ROOT}/{MARK}"
    arn = f"arn:aws:s3:::{BUCKET}"
    principal = {"AWS": [f"arn:aws:iam::000000000000:user/{POD.user}"]}
    old = [
        {"Effect": "Allow", "Action": ["s3:*"], "Resource": [arn, f"{arn}/*"]},
        {
            "Effect": "Deny",
            "Action": ["s3:DeleteObject", "s3:DeleteObjectVersion"],
            "Resource": [f"{arn}/{ROOT}/{BASE}/blobs/*"],
        },
        {"Effect": "Deny", "Action": ["s3:PutBucketVersioning", "s3:PutBucketPolicy"], "Resource": [arn]},
    ]
    statements = [each | {"Principal": principal, "Sid": f"Old{number}"} for number, each in enumerate(old)]
    store.put_object(Bucket=BUCKET, Key=mark, Body=b"the mark")
    before = clinic.everything()[0]
    store.put_bucket_policy(Bucket=BUCKET, Policy=json.dumps({"Version": "2012-10-17", "Statement": statements}))
    try:
        report = clinic.examine(pod)
        assert {check: of(report, check).result for check in KEY_CHECKS} == {
            "cannot-delete": Result.PROVED,
            "others-closed": REFUTED,
            "quarantine-closed": REFUTED,
            "bucket-closed": Result.PROVED,
        }
        assert (
            f"below {neighbour.name}/, which is another pod's, beginning an upload: done, DELETE: done"
            in of(report, "others-closed").proof
        )
        assert f"an upload of {MARK} that was begun and aborted: done" in of(report, "quarantine-closed").proof
        assert report.problems == []
        assert clinic.everything()[0] == before
        assert store.get_object(Bucket=BUCKET, Key=mark)["Body"].read() == b"the mark"
    finally:
        compose_store.make_trial_store(clinic.settings()).erase([MARK])


def test_repositories_that_no_pod_owns(clinic: Clinic) -> None:
    """Repositories without a pod are named with the fix; runs are blocked by what they see, not by the finding."""
    pod, store = clinic.admit("neighbourly"), compose_store.make_trial_store(clinic.settings())
    clinic.listed(pod, unused())
    names = [f"stranger-{number:02}" for number in range(12)]
    keys = [f"{repository_prefix(parse_repository(f'{name}/app'))}_manifests/x" for name in names]
    for key in keys:
        store.put(key, b"x")
    try:
        found = of(clinic.examine(pod), "repositories-owned")
        assert found.result is REFUTED
        assert found.proof == f"no pod owns {', '.join(names)}, which are stored in the root"
        assert "baleen pods add" in found.fix
        assert "baleen pods suggest-prefixes" in found.fix
        blocked_by = clinic.baleen.api.get("/v1/status").json()["gc"]["blocked_by"]
        assert any("no pod owns stranger-00, stranger-01" in reason for reason in blocked_by)
    finally:
        store.erase(keys)
    assert not any("repositories-owned" in reason for reason in clinic.baleen.pod(pod)["blocked_by"])
    assert of(clinic.examine(pod), "repositories-owned").result is Result.PROVED


def test_deletes_that_are_switched_off(clinic: Clinic) -> None:
    """A registry that refuses deletes is safe, and gets a hint."""
    pod = clinic.admit("keeping")
    before = clinic.everything()
    with clinic.models(pod, model(handler=refusing_deletes)):
        report = clinic.examine(pod)
    assert not_proved(report) == EMBEDDED
    assert "refuses deletes" in of(report, "deletes-arrive").meaning
    assert "delete: {enabled: true}" in of(report, "deletes-arrive").fix
    assert report.problems == []
    assert clinic.everything() == before


def test_a_registry_that_is_away(clinic: Clinic) -> None:
    """Of a registry that does not answer, and without the key, only what concerns the bucket alone is proved."""
    pod, (url, other) = clinic.admit("away"), (unused(), unused())
    clinic.listed(pod, url)
    report = clinic.examine(pod, None)
    assert {found.check for found in report.findings if found.result is Result.PROVED} == {
        "versioned",
        "repositories-owned",
    }
    assert of(report, "registry-answers").result is REFUTED
    assert "ECONNREFUSED" in of(report, "registry-answers").proof
    assert f"BALEEN_POD_SECRET_KEY=… baleen pods doctor {pod.name}" in of(report, "cannot-delete").fix
    fix = of(report, "registry-answers").fix
    assert url in fix
    assert f"baleen pods set-registries {pod.name} --registry URL" in fix
    for check in CHECKS_OF_PROCESSES - {Check.CLOCKS}:
        assert "see `registry-answers`" in of(report, check).proof
        assert "ECONNREFUSED" not in of(report, check).proof
        assert of(report, check).fix == ""

    # What was found out is of the addresses that were listed.
    clinic.listed(pod, url)
    assert clinic.baleen.pod(pod)["findings"]
    clinic.listed(pod, url, other)
    assert clinic.baleen.pod(pod)["findings"] == []


def test_a_wrong_token(clinic: Clinic) -> None:
    """A wrong token is named by one finding with the fix, to which others refer, and blocks nothing by itself."""
    pod = clinic.admit("mistaken")
    with clinic.models(pod, model(token="not-the-token")):
        report = clinic.examine(pod, patience=IMPATIENCE_S)
        document = clinic.baleen.pod(pod)
    found = of(report, "events-arrive")
    assert found.result is UNPROVED
    assert "events with a wrong token" in found.proof
    assert f"baleen pods rotate-token {pod.name}" in found.fix
    assert "Authorization: [Bearer THE-PODS-TOKEN]" in found.fix
    followers = CHECKS_OF_PROCESSES - {
        Check.EVENTS_ARRIVE,
        Check.SAME_ROOT,
        Check.UPLOAD_SECRET,
        Check.NO_DESCRIPTOR_CACHE,
    }
    for check in followers:
        assert of(report, check).result is UNPROVED
        assert "see `events-arrive`" in of(report, check).proof
        assert of(report, check).fix == ""
    assert "not-the-token" not in f"{report}{document}"
    assert "wrong token" in document["wrong_token"]["sentence"]
    assert not any("token" in reason for reason in document["blocked_by"])


class _Interrupted(BaseException):
    """As Ctrl-C."""


def test_a_visit_that_is_interrupted(clinic: Clinic) -> None:
    """An interrupted visit removes what it made, and leaves the earlier findings."""
    pod = clinic.admit("interrupted")
    before = clinic.everything()

    def on_step(what: str) -> None:
        if what == Check.CANNOT_DELETE:
            raise _Interrupted

    with clinic.models(pod, model()):
        with pytest.raises(_Interrupted):
            clinic.examine(pod, on_step=on_step)
        assert clinic.everything() == before
    assert clinic.baleen.pod(pod)["findings"] == []


def test_a_visit_that_was_killed(clinic: Clinic) -> None:
    """The next visit removes what a killed one left, except bytes, which garbage collection removes."""
    pod = clinic.admit("killed")
    before = clinic.everything()

    def on_step(what: str) -> None:
        if what == REMOVING:
            raise _Interrupted

    with clinic.models(pod, model()):
        with pytest.raises(_Interrupted):
            clinic.examine(pod, on_step=on_step)
        assert clinic.everything()[1]["links"] != before[1]["links"]
        assert any(key.endswith(f"{BY}{pod.name}") for key, _ in clinic.everything()[0] - before[0])
    clinic.listed(pod, unused())
    assert clinic.examine(pod).problems == []
    stored, table = clinic.everything()
    assert {key for key, _ in stored - before[0] if "/blobs/" not in key} == set()
    assert (table["holdings"], table["links"]) == (before[1]["holdings"], before[1]["links"])


def test_one_doctor_at_a_time(clinic: Clinic) -> None:
    """A second doctor is refused while the first visits the pod, and so is one for an unknown pod."""
    pod = clinic.admit("crowded")
    clinic.listed(pod, unused())

    def another(what: str) -> None:
        if what == Check.VERSIONED:
            with pytest.raises(ConflictError):
                clinic.examine(pod)

    clinic.examine(pod, on_step=another)
    with pytest.raises(NotFoundError):
        clinic.examine(pod.__class__("nobody", ""))


def test_what_others_need_is_not_touched(clinic: Clinic) -> None:
    """A blob that another repository needs, or that is not the visit's own, is neither hidden nor deleted."""
    pod = clinic.admit("careful")
    with (
        compose_command.open_instruments(clinic.settings(), parse_pod(pod.name)) as instruments,
        clinic.models(pod, model()) as (url,),
    ):
        with instruments.connections.use() as connection:
            examined = findings.read_pod(connection, parse_pod(pod.name))
        scratch = Scratch(examined, instruments.store, instruments.connections)
        foreign = Scratch(examined, instruments.store, instruments.connections).make_layer()
        with pytest.raises(ConflictError), scratch.remove_for_block(foreign):
            raise AssertionError
        shared = scratch.make_layer()
        with RegistryClient(url) as client:
            scratch.push_blob(client, shared)
            assert client.mount_blob(f"{pod.name}/app", shared.digest, scratch.repository)
            clinic.await_applied()
            with pytest.raises(ConflictError), scratch.remove_for_block(shared):
                raise AssertionError
            (problem,) = scratch.clean([client], lambda: True)
            assert "Other repositories need" in problem
            assert client.get_blob(f"{pod.name}/app", shared.digest) == shared.content
        assert instruments.store.head(blob_key(parse_digest(shared.digest))) is not None
