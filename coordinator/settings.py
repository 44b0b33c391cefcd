"""Settings, and the only place that reads the environment.

Precedence: `BALEEN_…` in the environment, then `baleen.toml`, then what a running `baleen up` wrote to its
data directory (`stack.json`), then the defaults below. An unknown or malformed setting is an error that names it.
Secrets are wrapped, so that no `repr`, log line or traceback shows them.
"""

import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import msgspec

from coordinator.errors import SettingsError

PREFIX = "BALEEN_"
FILE = "baleen.toml"
DATA_DIR = ".baleen"

_DURATION = re.compile(r"([0-9]+(?:\.[0-9]+)?)(ms|s|m|h|d)")
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


class Secret:
    """A string that shows itself only when asked to by `reveal`."""

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        self._value = value

    def reveal(self) -> str:
        return self._value

    def __repr__(self) -> str:
        return "Secret(…)"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and other._value == self._value

    __hash__ = None  # type: ignore[assignment]


class Duration(float):
    """Seconds, written like `24h`, `90s`, `1.5m`."""

    @classmethod
    def parse(cls, text: str) -> Self:
        if (match := _DURATION.fullmatch(text.strip())) is None:
            raise ValueError("write a number and ms, s, m, h or d, such as 24h")
        return cls(float(match[1]) * _SECONDS[match[2]])

    def __str__(self) -> str:
        for unit in ("d", "h", "m", "s"):
            if self >= _SECONDS[unit] and self % _SECONDS[unit] == 0:
                return f"{round(self / _SECONDS[unit])}{unit}"
        return f"{round(self * 1000)}ms"


HOUR = 3600.0


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Every setting, by the name it has after `BALEEN_`, in lower case."""

    database_url: Secret | None = None

    kafka_bootstrap: str | None = None
    kafka_security_protocol: str = "PLAINTEXT"
    kafka_sasl_mechanism: str = "PLAIN"
    kafka_sasl_username: str | None = None
    kafka_sasl_password: Secret | None = None
    kafka_ca_file: str | None = None
    kafka_partitions: int = 8
    kafka_retention: Duration = Duration(7 * 24 * HOUR)

    s3_endpoint_url: str | None = None
    s3_bucket: str | None = None
    s3_root: str = ""
    s3_region: str = "us-east-1"
    #: Where these two are absent, boto3 finds credentials in its usual places.
    s3_access_key: str | None = None
    s3_secret_key: Secret | None = None

    #: What the command presents to the API, and where it finds it.
    token: Secret | None = None
    url: str | None = None

    #: A removal must be newer than the addition by more than this to be believed without a look at storage.
    safety_clock_skew: Duration = Duration(300)
    #: How long a direct link keeps a blob alive in a pod of mode `manifest`: longer than the longest push.
    safety_link_grace: Duration = Duration(24 * HOUR)
    #: How long one request of a registry may run: what a process began before it died has ended after this.
    safety_request_bound: Duration = Duration(HOUR)
    #: Allows times below their documented floors; for tests and demonstrations only.
    unsafe_times: bool = False

    #: Every registry process is asked for a known manifest so often; its event proves that all before it arrived.
    probe_every: Duration = Duration(10)
    #: A process that has not been heard for so long is told as silent. It freezes its pod's watermark either way.
    probe_silence: Duration = Duration(60)
    #: Who asks at registries that want to know: user name and password, for them or for their token issuer.
    registry_username: str | None = None
    registry_password: Secret | None = None
    #: A pod's links in storage are compared with the table at least so often.
    reconcile_every: Duration = Duration(24 * HOUR)

    #: A request body at ingest beyond this is dead-lettered. Distribution's largest event is a manifest's.
    ingest_body_limit: int = 8 * 1024 * 1024
    #: Bytes of request bodies that ingest holds at once; beyond it a registry is asked to come again (503).
    ingest_memory_limit: int = 64 * 1024 * 1024
    #: A webhook that waits longer for Kafka is answered 503.
    ingest_timeout: Duration = Duration(5)

    #: Records that one transaction applies at most, over all partitions of a worker.
    worker_batch: int = 2000
    #: Workers of one group share the partitions. The embedded broker never forgets a member that was killed, so there
    #: `baleen up` gives each worker that it starts a group of its own.
    worker_group: str = "baleen-reference-processor"
    #: Prometheus metrics of a worker are served here on loopback; 0 serves none.
    worker_metrics_port: int = 0
    log_format: str = "auto"
    log_level: str = "info"

    data_dir: str = DATA_DIR


#: Below these, and not with UNSAFE_TIMES, a setting is refused: setting, floor, reason.
FLOORS: tuple[tuple[str, float, str], ...] = (
    ("safety_clock_skew", 1.0, "clocks of registries are seldom closer than that"),
    ("safety_link_grace", HOUR, "a push may take that long between its layers and its manifest"),
    ("safety_request_bound", 60.0, "a registry's last write may take that long to land"),
)


def load(environ: Mapping[str, str] | None = None, directory: Path | None = None) -> Settings:
    """Read the settings; raises SettingsError that names the setting at fault."""
    environ = os.environ if environ is None else environ
    directory = Path() if directory is None else directory
    values: dict[str, Any] = {}
    file = directory / FILE
    if file.exists():
        try:
            values |= tomllib.loads(file.read_text())
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise SettingsError(f"{FILE} is not valid TOML: {error}.") from error
    values |= {name.removeprefix(PREFIX).lower(): value for name, value in environ.items() if name.startswith(PREFIX)}
    data_dir = directory / str(values.get("data_dir", DATA_DIR))
    return build(_running_stack(data_dir) | values)


def build(values: Mapping[str, Any]) -> Settings:
    """Make settings from raw values, checking each; raises SettingsError."""
    fields = Settings.__annotations__
    for name in values:
        if name not in fields:
            raise SettingsError(
                f"{PREFIX}{name.upper()} is not a setting: see `baleen config show` for those that are."
            )
    converted: dict[str, Any] = {}
    for name, value in values.items():
        try:
            converted[name] = msgspec.convert(value, fields[name], strict=False, dec_hook=_decode)
        except (msgspec.ValidationError, ValueError) as error:
            # The value itself is not repeated: it may be a secret.
            raise SettingsError(f"{PREFIX}{name.upper()} is malformed: {error}.") from None
    settings = Settings(**converted)
    _check_floors(settings)
    return settings


def _check_floors(settings: Settings) -> None:
    if settings.unsafe_times:
        return
    for name, floor, reason in FLOORS:
        if getattr(settings, name) < floor:
            raise SettingsError(
                f"{PREFIX}{name.upper()} is below {Duration(floor)}, and {reason}: "
                f"raise it, or set {PREFIX}UNSAFE_TIMES=true where nothing may be lost by it."
            )


def _decode(kind: type, value: Any) -> Any:
    if kind is Secret:
        return Secret(str(value))
    if kind is Duration:
        return Duration.parse(str(value))
    raise NotImplementedError(kind)


def _running_stack(data_dir: Path) -> dict[str, Any]:
    """What `baleen up` left for commands beside it: addresses and the operator's token."""
    values: dict[str, Any] = {}
    try:
        values |= msgspec.json.decode((data_dir / "stack.json").read_bytes(), type=dict[str, Any])
        values["token"] = (data_dir / "token").read_text().strip()
    except FileNotFoundError:
        pass
    except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"{data_dir} cannot be read: {error}.") from error
    # The file tells more than settings, for whoever looks after the stack.
    return {name: values[name] for name in values.keys() & Settings.__annotations__.keys() if values[name] is not None}


def shown(settings: Settings) -> dict[str, Any]:
    """Every setting as `config show` prints it: secrets only as set or not set."""
    return {name: _show(getattr(settings, name)) for name in Settings.__annotations__}


def _show(value: Any) -> Any:
    if isinstance(value, Secret):
        return "(set)"
    return str(value) if isinstance(value, Duration) else value
