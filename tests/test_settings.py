"""Settings: one precedence, errors that name the setting, and no secret that shows itself."""

import json
import traceback
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.errors import SettingsError
from coordinator.settings import FLOORS, Duration, Secret, Settings, describe_settings, load, make_settings

SECRET = "hunter2-in-plain-sight"


def test_defaults(tmp_path: Path) -> None:
    """Without any setting there are the defaults, and they keep to their own floors."""
    assert load({}, tmp_path) == Settings()


def test_precedence(tmp_path: Path) -> None:
    """The environment wins over baleen.toml, which wins over what a running stack wrote."""
    (tmp_path / ".baleen").mkdir()
    stack = {"s3_bucket": "stack", "s3_region": "stack", "s3_root": "stack", "pid": 7, "url": None}
    (tmp_path / ".baleen" / "stack.json").write_text(json.dumps(stack))
    (tmp_path / ".baleen" / "token").write_text(f"{SECRET}\n")
    (tmp_path / "baleen.toml").write_text('s3_bucket = "file"\ns3_region = "file"\nworker_batch = 5\n')
    settings = load({"BALEEN_S3_BUCKET": "environment", "OTHER": "x", "BALEEN_UNSAFE_TIMES": "true"}, tmp_path)
    assert (settings.s3_bucket, settings.s3_region, settings.s3_root) == ("environment", "file", "stack")
    assert (settings.worker_batch, settings.unsafe_times, settings.url) == (5, True, None)
    assert settings.token is not None
    assert settings.token.reveal() == SECRET


@pytest.mark.parametrize(
    ("environ", "file"),
    [
        ({"BALEEN_NO_SUCH": "1"}, ""),
        ({"BALEEN_": "1"}, ""),
        ({"BALEEN_WORKER_BATCH": "many"}, ""),
        ({"BALEEN_UNSAFE_TIMES": "perhaps"}, ""),
        ({"BALEEN_SAFETY_CLOCK_SKEW": "5"}, ""),
        ({"BALEEN_SAFETY_CLOCK_SKEW": "-5s"}, ""),
        ({"BALEEN_SAFETY_LINK_GRACE": "59m"}, ""),
        ({"BALEEN_SAFETY_CLOCK_SKEW": "999ms"}, ""),
        ({}, "worker_batch = []"),
        ({}, "no_such = 1"),
        ({}, "s3_bucket = {a = 1}"),
        ({}, 'data_dir = "a\\u0000"'),
        ({"BALEEN_TOKEN": ""}, ""),
        ({"BALEEN_TOKEN": "two\nlines"}, ""),
        ({"BALEEN_URL": "foo"}, ""),
        ({"BALEEN_URL": "http://[::1"}, ""),
        ({"BALEEN_S3_ENDPOINT_URL": "127.0.0.1:8333"}, ""),
        ({"BALEEN_S3_BUCKET": ""}, ""),
        ({"BALEEN_KAFKA_BOOTSTRAP": "a b"}, ""),
        ({"BALEEN_INGEST_MEMORY_LIMIT": "1048576"}, ""),
        ({"BALEEN_LEFTOVERS_UPLOADS": "23h"}, ""),
        ({"BALEEN_JWT_ISSUER": ""}, ""),
        ({"BALEEN_JWT_AUDIENCE": "two\nlines"}, ""),
        ({"BALEEN_JWT_SIGNING_KEYS": ""}, ""),
        ({"BALEEN_LEFTOVERS_PARTS": "2d", "BALEEN_SAFETY_REQUEST_BOUND": "3d"}, ""),
        ({"BALEEN_PROBE_EVERY": "16m"}, ""),
    ],
)
def test_errors_name_the_setting(tmp_path: Path, environ: dict[str, str], file: str) -> None:
    """What is unknown, malformed or below its floor is refused by its name."""
    (tmp_path / "baleen.toml").write_text(file)
    name = next(iter(environ), rf"^{file.partition(' ')[0]} in .*baleen\.toml is ")
    with pytest.raises(SettingsError, match=name) as refused:
        load(environ, tmp_path)
    assert refused.value.exit_code == 2


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("s3_buket", "did you mean s3_bucket?"),
        ("s3", "did you mean s3_endpoint_url"),
        ("zzz", "remove it. docs/SETTINGS.md lists all settings"),
    ],
)
def test_what_may_have_been_meant(tmp_path: Path, name: str, near: str) -> None:
    """A name that is no setting is told with those that are near, as it would be written where it stands."""
    with pytest.raises(SettingsError) as refused:
        load({f"BALEEN_{name.upper()}": SECRET}, tmp_path)
    message = str(refused.value)
    assert f"BALEEN_{name.upper()} is not a setting: " in message
    assert f"did you mean BALEEN_{near[13:].upper()}" in message or "did you mean" not in near
    (tmp_path / "baleen.toml").write_text(f'{name} = "{SECRET}"')
    with pytest.raises(SettingsError) as refused:
        load({}, tmp_path)
    assert str(refused.value).startswith(f"{name} in {tmp_path / 'baleen.toml'} is not a setting: ")
    assert near in str(refused.value)
    assert SECRET not in str(refused.value) + message


def test_a_setting_is_reported_where_it_stands(tmp_path: Path) -> None:
    """Of one that stands in several places, the one that is in force is named."""
    (tmp_path / ".baleen").mkdir()
    (tmp_path / ".baleen" / "stack.json").write_text('{"url": "x"}')
    (tmp_path / ".baleen" / "token").write_text(SECRET)
    with pytest.raises(SettingsError, match=r"^url in .*stack\.json is malformed"):
        load({}, tmp_path)
    (tmp_path / "baleen.toml").write_text('url = "x"\nsafety_clock_skew = "1ms"')
    with pytest.raises(SettingsError, match=r"^url in .*baleen\.toml is malformed"):
        load({}, tmp_path)
    with pytest.raises(SettingsError, match=r"^BALEEN_URL is malformed"):
        load({"BALEEN_URL": "x"}, tmp_path)
    with pytest.raises(SettingsError, match=r"^safety_clock_skew in .*baleen\.toml is below 1s"):
        load({"BALEEN_URL": "http://here"}, tmp_path)


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("log_level", "loud", "one of debug, info, warning, error"),
        ("log_format", "xml", "one of auto, json, console"),
        ("kafka_security_protocol", "TLS", "one of PLAINTEXT, SSL, SASL_PLAINTEXT, SASL_SSL"),
        ("kafka_sasl_mechanism", "GSSAPI", "one of PLAIN, SCRAM-SHA-256, SCRAM-SHA-512"),
        ("worker_batch", "-5", "records from 1 to"),
        ("worker_batch", "many", "records from 1 to"),
        ("kafka_partitions", "0", "partitions from 1 to"),
        ("worker_metrics_port", "99999", "from 0 to 65535"),
        ("scheduler_metrics_port", "-1", "from 0 to 65535"),
        ("ingest_body_limit", "8 MiB", "bytes from 1024 to 1073741824, such as 8388608"),
        ("ingest_memory_limit", "0", "bytes from 1024"),
        ("ingest_timeout", "0s", "ms, s, m, h or d, from 100ms to 10m, such as 5s"),
        ("ingest_timeout", "5", "such as 5s"),
        ("probe_every", "0s", "from 10ms to 1d, such as 10s"),
        ("probe_silence", "400d", "from 10ms to 30d"),
        ("reconcile_every", "0ms", "from 1s to 365d"),
        ("kafka_retention", "0d", "from 1s to 3650d"),
        ("jwt_lifetime", "59s", "from 1m to 1h"),
        ("jwt_lifetime", "2h", "such as 5m"),
        ("safety_request_bound", "366d", "from 0ms to 365d"),
        ("unsafe_times", "perhaps", "true or false"),
        ("url", "127.0.0.1:8640", "http://"),
    ],
)
def test_what_is_allowed_is_shown(name: str, value: str, allowed: str) -> None:
    """A value out of range, or no choice, is refused in one sentence that says what is allowed, and in which unit."""
    with pytest.raises(SettingsError) as refused:
        make_settings({name: value})
    message = str(refused.value)
    assert f"BALEEN_{name.upper()} is malformed: write " in message
    assert allowed in message
    assert value not in message.partition("write")[0]


def test_bounds_are_allowed() -> None:
    """What is just at a bound is taken, and a choice in any case."""
    made = make_settings(
        {"worker_batch": "1", "worker_metrics_port": "65535", "log_level": "WARNING", "probe_every": "10ms"}
    )
    assert (made.worker_batch, made.worker_metrics_port, made.log_level) == (1, 65535, "warning")
    assert make_settings({"kafka_sasl_mechanism": "scram-sha-512"}).kafka_sasl_mechanism == "SCRAM-SHA-512"


def test_names_in_the_file_have_no_prefix(tmp_path: Path) -> None:
    """A setting that the file names as the environment does is refused with the name that it has there."""
    (tmp_path / "baleen.toml").write_text(f'BALEEN_TOKEN = "{SECRET}"')
    with pytest.raises(SettingsError, match=r"no prefix: write token\.") as refused:
        load({}, tmp_path)
    assert SECRET not in str(refused.value)


@pytest.mark.parametrize("content", [b"not toml", b"\xff\xfe", b"[a"])
def test_malformed_file(tmp_path: Path, content: bytes) -> None:
    """A baleen.toml that cannot be read is named."""
    (tmp_path / "baleen.toml").write_bytes(content)
    with pytest.raises(SettingsError, match=r"baleen\.toml"):
        load({}, tmp_path)


@pytest.mark.parametrize("content", [b"not json", b"\xff", b"[]", b"7"])
def test_malformed_stack(tmp_path: Path, content: bytes) -> None:
    """What a stack left, and cannot be read, is named."""
    (tmp_path / ".baleen").mkdir()
    (tmp_path / ".baleen" / "stack.json").write_bytes(content)
    (tmp_path / ".baleen" / "token").write_text("t")
    with pytest.raises(SettingsError, match=r"\.baleen/stack\.json is malformed: delete it"):
        load({}, tmp_path)


@pytest.mark.parametrize("name", [name for name, kind in Settings.__annotations__.items() if "Secret" in str(kind)])
def test_secrets_do_not_show(name: str) -> None:
    """No repr, printed setting or error shows a secret."""
    settings = make_settings({name: SECRET})
    assert getattr(settings, name).reveal() == SECRET
    assert SECRET not in repr(settings) + str(settings) + json.dumps(describe_settings(settings))
    assert describe_settings(settings)[name] == "(set)"
    assert describe_settings(Settings())[name] is None


def test_malformed_secrets_do_not_show() -> None:
    """A value that is refused is not repeated, nor is what it came from chained."""
    with pytest.raises(SettingsError) as refused:
        make_settings({"safety_clock_skew": SECRET})
    assert SECRET not in "".join(traceback.format_exception(refused.value))


@pytest.mark.parametrize(("name", "floor"), [(name, floor) for name, floor, _ in FLOORS])
def test_floors(name: str, floor: float) -> None:
    """A time at its floor is taken; below it only with UNSAFE_TIMES."""
    at_floor, below = f"{int(floor * 1000)}ms", f"{int(floor * 1000) - 1}ms"
    assert getattr(make_settings({name: at_floor}), name) == floor
    with pytest.raises(SettingsError, match="UNSAFE_TIMES"):
        make_settings({name: below})
    assert getattr(make_settings({name: below, "unsafe_times": "true"}), name) < floor


def test_unsafe_findings() -> None:
    """Checks that are to hold nothing are named one by one, in any case, and only where times may be unsafe, too."""
    made = make_settings({"unsafe_findings": " Kafka-Durable, cannot-delete,kafka-durable ", "unsafe_times": "true"})
    assert made.unsafe_findings == "kafka-durable,cannot-delete"
    assert make_settings({"unsafe_findings": ""}).unsafe_findings == ""
    with pytest.raises(SettingsError, match=r"BALEEN_UNSAFE_FINDINGS runs GC .* BALEEN_UNSAFE_TIMES=true"):
        make_settings({"unsafe_findings": "kafka-durable"})
    with pytest.raises(SettingsError, match=r"write some of registry-answers, .* separated by commas"):
        make_settings({"unsafe_findings": "kafka-durable,all", "unsafe_times": "true"})


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("24h", 86400), ("1.5m", 90), ("90s", 90), ("250ms", 0.25), ("7d", 604800), (" 2h ", 7200), ("0s", 0)],
)
def test_durations(text: str, seconds: float) -> None:
    """A duration is a number and a unit."""
    assert Duration.parse(text) == seconds


@pytest.mark.parametrize("text", ["", "5", "h", "1h30m", "-1h", "1 h", "1w", "1e3s", "nan", "inf", ".5h", "\u0663h"])
def test_no_duration(text: str) -> None:
    """Anything else is refused."""
    with pytest.raises(ValueError, match="such as 24h"):
        Duration.parse(text)


@given(st.integers(0, 10**12))
def test_duration_round_trip(milliseconds: int) -> None:
    """A duration is read as it is written."""
    duration = Duration(milliseconds / 1000)
    assert Duration.parse(str(duration)) == pytest.approx(duration, abs=0.001)


def test_secret() -> None:
    """A secret equals its like, and shows nothing in any form."""
    secret: Any = Secret(SECRET)
    assert secret == Secret(SECRET)
    assert secret != SECRET
    assert SECRET not in f"{secret} {secret!r} {[secret]} {secret!s}"
