"""`baleen pods doctor` as an operator runs it."""

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

from coordinator.registry.images import OCI
from tests.cli.conftest import program_environment
from tests.doctor.harness import Clinic, Wrap, model
from tests.doctor.store import POD
from tests.support.wait import DEADLINE_S, eventually

pytestmark = pytest.mark.lengthy


@pytest.fixture
def command(clinic: Clinic) -> Callable[..., subprocess.Popen[str]]:
    """Start the command beside a running `baleen up`, with the pod's key in the environment."""

    def start(*arguments: str) -> subprocess.Popen[str]:
        settings = {"data_dir": str(clinic.data_dir), "safety_clock_skew": "1s"}
        key = {"pod_access_key": POD.access, "pod_secret_key": POD.secret}
        return subprocess.Popen(
            [sys.executable, "-m", "coordinator.cli", "pods", *arguments],
            env=program_environment(settings | key),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    return start


def noting(pushed: list[str]) -> Wrap:
    """Send nothing, and record the media types of the doctor's pushes."""

    def emit(action: str, target: dict[str, Any], _request: dict[str, str]) -> None:
        if action == "push" and "/baleen-doctor-" in target["repository"]:
            pushed.append(target["mediaType"])

    return lambda _: emit


def test_what_it_prints(clinic: Clinic, command: Callable[..., subprocess.Popen[str]]) -> None:
    """The findings are one JSON document, or text with the unproved ones and their fixes first; exit 1 means that
    not all are proved.
    """
    pod = clinic.admit("shown")
    with clinic.models(pod, model()):
        running = command("doctor", pod.name, "--json")
        out, err = running.communicate(timeout=DEADLINE_S)
        assert running.returncode == 1, err
        document: dict[str, Any] = json.loads(out)
        assert (document["pod"], document["proved"], document["not_taken_away"]) == (pod.name, False, [])
        assert [found["check"] for found in document["items"] if found["result"] != "proved"] == ["kafka-durable"]
    table = command("doctor", pod.name)
    out, err = table.communicate(timeout=DEADLINE_S)
    assert table.returncode == 1, err
    blocks = out.split("\n\n")
    assert blocks[0].startswith(f"Pod {pod.name}: ")
    assert any(each.startswith("kafka-durable is refuted: ") and "\n  to fix it:\n" in each for each in blocks)
    (versioned,) = [each for each in blocks if each.startswith("versioned is proved: ")]
    assert "\n  evidence: bucket " in versioned
    assert out.index("kafka-durable is refuted") < out.index("versioned is proved")
    assert POD.secret not in out + err
    shown, _ = command("show", pod.name).communicate(timeout=DEADLINE_S)
    assert "kafka-durable is refuted" in shown.partition("findings")[2]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted(clinic: Clinic, command: Callable[..., subprocess.Popen[str]], number: signal.Signals) -> None:
    """Ctrl-C ends a waiting visit; what it made is removed, and no finding is written."""
    pod = clinic.admit(f"ended-{number.value}")
    before = clinic.everything()
    pushed: list[str] = []
    with clinic.models(pod, model(wrap=noting(pushed))):
        running = command("doctor", pod.name, "--wait", "50s")
        # A last blob follows the image. Then no request is under way whose write could land after the end.
        eventually(lambda: OCI.manifest in pushed[:-1])
        running.send_signal(number)
        _, err = running.communicate(timeout=DEADLINE_S)
        assert running.returncode != 0
        assert "removing the scratch images" in err
        assert clinic.everything() == before
    assert clinic.baleen.pod(pod)["findings"] == []


def test_what_it_refuses(command: Callable[..., subprocess.Popen[str]]) -> None:
    """An unknown pod and a malformed time are refused in one sentence."""
    missing = command("doctor", "nobody-at-all")
    _, err = missing.communicate(timeout=DEADLINE_S)
    assert (missing.returncode, err.strip().splitlines()[-1]) == (
        1,
        "There is no pod nobody-at-all: see `baleen pods list`.",
    )
    malformed = command("doctor", "nobody-at-all", "--wait", "soon")
    _, err = malformed.communicate(timeout=DEADLINE_S)
    assert malformed.returncode == 2
    assert "--wait is malformed" in err
