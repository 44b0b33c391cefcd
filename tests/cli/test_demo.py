"""The demo's round of garbage collection: which findings it accepts, and what it waits for."""

import contextlib
from pathlib import Path
from typing import cast

import pytest
from rich.console import Console

from coordinator.demo import gc as demo_gc
from coordinator.demo import run as demo
from coordinator.demo.gc import Plan, Wait, check_findings, find_wait
from coordinator.demo.world import UNSAFE_FINDINGS, DemoFailedError
from coordinator.domain.findings import Check, Finding, Result
from coordinator.domain.gc import Why
from coordinator.registry.images import make_image, make_layer
from coordinator.settings import load
from coordinator.stack.children import Children
from coordinator.stack.process import ManagedProcess

DIGEST = f"sha256:{'d' * 64}"


def finding(check: str, result: Result) -> Finding:
    return Finding(check, result, "means", "the proof")


def planned(step: str, why: Why | None = None) -> Plan:
    return Plan([], {DIGEST: {"step": step, "why": why, "detail": why and "the detail"}})


def test_what_the_doctor_may_print() -> None:
    """Findings that the embedded services cannot prove are accepted; any other unproved one fails the demo."""
    proved = [finding(check, Result.PROVED) for check in Check if check not in UNSAFE_FINDINGS]
    expected = [finding(check, Result.REFUTED) for check in UNSAFE_FINDINGS]
    assert check_findings("pod-a", [*proved, *expected]) == expected
    with pytest.raises(DemoFailedError, match=r"not safe for pod pod-a: clocks is unproved \(the proof\)"):
        check_findings("pod-a", [*expected, finding("clocks", Result.UNPROVED)])


def test_the_demos_settings_are_settings(tmp_path: Path) -> None:
    """The demo's file is read as any other, and accepts the findings that it names."""
    (tmp_path / "baleen.toml").write_text(demo.SETTINGS)
    assert load({}, tmp_path).unsafe_findings == ",".join(UNSAFE_FINDINGS)


def test_the_users_services_are_not_the_demos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The demo ignores the settings of the environment, so that it touches no service of the user."""

    class Starts(Exception):  # noqa: N818 - what the test looks at
        pass

    class Recording:
        def start(self, process: ManagedProcess) -> None:
            raise Starts(process.env)

    monkeypatch.setenv("BALEEN_DATABASE_URL", "postgresql://production.invalid/baleen")
    monkeypatch.setenv("BALEEN_S3_BUCKET", "production")
    monkeypatch.setenv("SSL_CERT_DIR", "/certificates")
    with contextlib.ExitStack() as started, pytest.raises(Starts) as found:
        demo._start_all(tmp_path, cast("Children", Recording()), Console(quiet=True), started)
    (environment,) = found.value.args
    assert environment is not None
    assert not [name for name in environment if name.startswith("BALEEN_")]
    assert environment["SSL_CERT_DIR"] == "/certificates"


def test_what_it_waits_for() -> None:
    """The demo waits with the plan's own reason, and requests a reconcile only where that is the reason."""
    assert find_wait(planned("hide"), DIGEST, "hide") is None
    assert "still counts" in (find_wait(Plan([], {}), DIGEST, "hide") or Wait("")).what
    assert find_wait(planned("keep", Why.GRACE), DIGEST, "hide") == Wait("the detail")
    unlisted = find_wait(planned("keep", Why.NOT_RECONCILED), DIGEST, "purge")
    assert unlisted == Wait("the detail", asks_reconcile=True)
    assert find_wait(planned("hide")._replace(blocked_by=["a gap"]), DIGEST, "hide") == Wait("a gap")


def test_an_images_own_blobs() -> None:
    """An image's shared base layer is not among the blobs that are collected with it."""
    base, layer = make_layer("base"), make_layer("own")
    image = make_image("image", [base, layer])
    assert demo_gc.own_digests(image) == [image.digest, image.config.digest, layer.digest]
