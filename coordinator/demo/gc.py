"""The demo's garbage collection: two deleted images are hidden, one is pushed again, the other is purged.

Route: `push_garbage`, early, since the links of what it deletes must expire -> `collect_garbage`: the doctor's visits,
hide, restore, purge, and the history in the ledger. Each wait prints what it waits for, in the words of the plan.
Not here: what is counted (run.py), the rules (domain/gc.py).
"""

import time
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

from coordinator.compose import command as compose_command
from coordinator.demo.world import FOLLOW_S, PODS, UNSAFE_FINDINGS, Demo, DemoFailedError
from coordinator.doctor.examine import examine
from coordinator.domain.findings import Finding, Result, implied_checks
from coordinator.domain.gc import Why
from coordinator.domain.names import PodName, parse_digest
from coordinator.registry.images import Image, Layer, make_image, make_layer
from coordinator.storage.layout import blob_key

#: A worker removes expired links once a minute; everything else is done within seconds.
COLLECT_S = 120.0
#: Seconds between two reads of the plan.
STATE_POLL_S = 0.5
#: The demo has fewer blobs.
PLAN_LIMIT = 1000


class Garbage(NamedTuple):
    """Two deleted images of pod-a: one stays deleted, the other is pushed again."""

    old: Image
    again: Image


class Plan(NamedTuple):
    blocked_by: list[str]
    #: By digest.
    items: dict[str, dict[str, Any]]


class Wait(NamedTuple):
    what: str
    asks_reconcile: bool = False


def push_garbage(demo: Demo, base: Layer) -> Garbage:
    """Push two images and delete them. They share the base layer with other images, so that stays."""
    demo.show_step("push old and again to pod-a, and delete both: nothing references their own layers any more")
    old, again = (make_image(f"demo/{name}", [base, make_layer(f"demo/{name}", 50_000)]) for name in ("old", "again"))
    client = demo.pods["pod-a"].client
    for name, image in (("old", old), ("again", again)):
        client.push_image(f"pod-a/{name}", image, "v1")
        client.delete_manifest(f"pod-a/{name}", image.digest)
    return Garbage(old, again)


def collect_garbage(demo: Demo, garbage: Garbage) -> None:
    old, again = own_digests(garbage.old), own_digests(garbage.again)
    _examine_pods(demo)

    demo.show_step("show the plan, then turn garbage collection on: blobs are hidden, and their bytes are kept")
    _check_served(demo, "old", garbage.old, expected=True)
    _collect_until(demo, [*old, *again], "hide", "hidden")
    _check_served(demo, "old", garbage.old, expected=False)
    _check_served(demo, "again", garbage.again, expected=False)
    if any(not demo.store.list_versions(_blob_key(digest))[1:] for digest in old):
        raise DemoFailedError(
            f"Some of {len(old)} hidden blobs have no version below their delete marker: check the bucket's versioning."
        )
    demo.show_ok(
        f"{len(old) + len(again)} blobs are hidden: both registries answer 404, the bytes are kept below markers"
    )

    demo.show_step("push again to pod-b: the blobs that it references are restored")
    began = time.monotonic()
    demo.pods["pod-b"].client.push_image("pod-b/again", garbage.again, "v1")
    _await_state(demo, again, "live")
    took = time.monotonic() - began
    _check_served(demo, "again", garbage.again, expected=True)
    demo.show_ok(f"all blobs are live {took:.1f} s after the push began, and pod-a serves their layers again, too")

    demo.show_step("the other image is purged, once every registry process that could have seen it has reported")
    _collect_until(demo, old, "purge", "purged")
    left = [digest for digest in old if demo.store.list_versions(_blob_key(digest))]
    if left:
        raise DemoFailedError(f"{left} were purged, but storage still has them.")
    histories = [demo.api.get(f"/v1/blobs/{digest}/explain")["history"] for digest in old]
    freed = sum(history[-1]["evidence"]["freed_bytes"] for history in histories)
    demo.show_ok(f"storage has no version of its {len(old)} blobs any more; {freed:,} bytes are freed")

    demo.show_step("the history of a layer of each image")
    _check_explanation(demo, garbage.old.layers[1].digest, ["hide", "hidden", "purge", "purged"])
    _check_explanation(demo, garbage.again.layers[1].digest, ["hide", "hidden", "restored"])


def own_digests(image: Image) -> list[str]:
    """Return the digests that no other image of the demo has."""
    return [image.digest, image.config.digest, *(layer.digest for layer in image.layers[1:])]


def check_findings(pod: str, findings: Collection[Finding], unsafe: Collection[str] = UNSAFE_FINDINGS) -> list[Finding]:
    """Return the findings that are not proved; raises DemoFailedError for one that the demo does not expect."""
    found, expected = [each for each in findings if each.result is not Result.PROVED], implied_checks(unsafe)
    unexpected = [f"{each.check} is {each.result} ({each.proof})" for each in found if each.check not in expected]
    if unexpected:
        raise DemoFailedError(f"Garbage collection is not safe for pod {pod}: {'; '.join(unexpected)}.")
    return found


def _examine_pods(demo: Demo) -> None:
    demo.show_step("let the doctor examine both pods: a check that is not proved blocks garbage collection")

    def visit(name: str) -> list[Finding]:
        with compose_command.open_instruments(demo.settings, PodName(name)) as instruments:
            return examine(instruments, PodName(name)).findings

    with ThreadPoolExecutor(len(PODS)) as pool:
        visits = dict(zip(PODS, pool.map(visit, PODS), strict=True))
    unproved = {pod: check_findings(pod, findings) for pod, findings in visits.items()}
    proved = [f"{len(visits[pod]) - len(found)} checks of {pod}" for pod, found in unproved.items()]
    demo.show_ok(f"{' and '.join(proved)} are proved")
    for finding in unproved[PODS[0]]:
        demo.console.print(f"  {finding.check} is {finding.result}: {finding.proof}", highlight=False)
    demo.console.print(
        f"  These would block GC. The demo ignores them: BALEEN_UNSAFE_FINDINGS={','.join(UNSAFE_FINDINGS)}",
        highlight=False,
    )


# Garbage collection through the API


def _read_plan(demo: Demo) -> Plan:
    """Return the plan as if garbage collection were on."""
    answer = demo.api.get("/v1/gc/plan", despite_holds=True, limit=PLAN_LIMIT)
    held = [reason for reason in answer["blocked_by"] if not reason.startswith("switched off")]
    return Plan(held, {item["digest"]: item for item in answer["items"]})


def _run_collection(demo: Demo) -> None:
    """Run one collection, and wait for its end; raises DemoFailedError."""
    number = demo.api.post("/v1/gc/runs", {"why": "the demo"})["id"]
    run = demo.wait_until(
        lambda: demo.api.get(f"/v1/gc/runs/{number}"),
        lambda run: run["state"] not in {"waiting", "running"},
        lambda run: f"A collection did not end within {FOLLOW_S:.0f} s: {run}.",
    )
    if run["state"] != "done":
        raise DemoFailedError(f"A collection failed: {run['error']}")


# Waits and checks


def _collect_until(demo: Demo, digests: list[str], step: str, state: str) -> None:
    """Wait until the plan has this step for these blobs, and a collection, the demo's or a scheduler's, has done it."""
    deadline = time.monotonic() + COLLECT_S
    printed = ""
    while left := [
        digest for digest, answer in zip(digests, _read_states(demo, digests), strict=True) if answer != state
    ]:
        plan = _read_plan(demo)
        waits = [found for digest in left if (found := find_wait(plan, digest, step)) is not None]
        if not waits:
            demo.api.put("/v1/gc/switch", {"enabled": True, "why": "the demo has read the plan"})
            _run_collection(demo)
            continue
        if waits[0].what != printed:
            printed = waits[0].what
            demo.show_wait(printed)
        if waits[0].asks_reconcile:
            for pod in PODS:
                demo.api.post(f"/v1/pods/{pod}/reconcile", {"why": "the demo waits for it"})
        if time.monotonic() > deadline:
            raise DemoFailedError(f"Timed out: {left} are not {state}: {printed}.")
        time.sleep(STATE_POLL_S)


def find_wait(plan: Plan, digest: str, step: str) -> Wait | None:
    """Return what the plan waits for before this step of a blob; None if it does the step."""
    if plan.blocked_by:
        return Wait(plan.blocked_by[0])
    item = plan.items.get(digest)
    if item is None:
        return Wait("a link to one of the blobs still counts: a worker removes expired links once a minute")
    if item["step"] == step:
        return None
    if item["why"] is None:
        return Wait(f"a collection is about to {item['step']} one of the blobs")
    return Wait(item["detail"], asks_reconcile=item["why"] == Why.NOT_RECONCILED)


def _await_state(demo: Demo, digests: list[str], state: str) -> None:
    demo.wait_until(
        lambda: _read_states(demo, digests),
        lambda states: set(states) == {state},
        lambda states: f"{digests} should be {state}, and are {states}.",
    )


def _read_states(demo: Demo, digests: list[str]) -> list[str | None]:
    return [None if blob is None else blob["state"] for blob in demo.look_up(digests)]


def _check_served(demo: Demo, name: str, image: Image, *, expected: bool) -> None:
    """Check whether pod-a serves the blobs that only this image has, and that it serves the base layer."""
    client = demo.pods["pod-a"].client
    for digest in own_digests(image)[1:]:
        if client.has_blob(f"pod-a/{name}", digest) is not expected:
            raise DemoFailedError(f"pod-a {'does not serve' if expected else 'serves'} {digest} of {name}.")
    if not client.has_blob(f"pod-a/{name}", image.layers[0].digest):
        raise DemoFailedError(f"pod-a does not serve the base layer in {name}, although other images need it.")


def _check_explanation(demo: Demo, digest: str, expected: list[str]) -> None:
    answer = demo.api.get(f"/v1/blobs/{digest}/explain")
    demo.console.print(f"  {digest[:19]}… {answer['summary']}", highlight=False)
    for sentence in answer["sentences"]:
        demo.console.print(f"    {sentence}", highlight=False)
    decisions = [entry["decision"] for entry in answer["history"]]
    if decisions != expected:
        raise DemoFailedError(f"The ledger has {decisions} for {digest}, and not {expected}.")


def _blob_key(digest: str) -> str:
    return blob_key(parse_digest(digest))
