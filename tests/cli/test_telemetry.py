"""Logs are one JSON object a line, and no secret is in them."""

import json

from tests.cli.conftest import ROOT, python

SCRIPT = """
import logging, structlog
from coordinator import settings, telemetry
telemetry.configure_logging(settings.make_settings({"log_format": "json"}))
log = structlog.get_logger()
log.info("plain", digest="sha256:00", event_token="s3cr3t-1", nested={"password": "s3cr3t-2", "n": 1})
log.info("url", at="postgresql://baleen:s3cr3t-3@127.0.0.1/x", header="Bearer s3cr3t-4")
logging.getLogger("driver").warning("Authorization: %s", "Bearer s3cr3t-5")
def f():
    password = "s3cr3t-6"
    raise ValueError("postgresql://u:s3cr3t-7@h/x")
try:
    f()
except ValueError:
    log.exception("failed")
"""


def test_logs_are_json_without_secrets() -> None:
    """Values under secret names, bearer tokens and passwords in URLs are redacted, in traces and by drivers too."""
    err = python(ROOT, "-c", SCRIPT).err
    lines = [json.loads(line) for line in err.splitlines()]
    assert [line["event"] for line in lines] == ["plain", "url", "Authorization: Bearer (redacted)", "failed"]
    assert lines[0]["digest"] == "sha256:00"
    assert lines[0]["nested"]["n"] == 1
    assert "ValueError" in lines[3]["exception"]
    assert "s3cr3t" not in err.replace('password = "s3cr3t-6"', "")
