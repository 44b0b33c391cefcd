"""Settings, and the only place that reads the environment.

Precedence: `BALEEN_…` in the environment, then `baleen.toml`, then what a running `baleen up` wrote to its
data directory (`stack.json`), then the defaults below. An unknown or malformed setting is an error that names it, and
says what is allowed. Secrets are wrapped, so that no `repr`, log line or traceback shows them.
"""

import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, NamedTuple, Self, get_args

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
DAY = 24 * HOUR
MINUTE = 60.0


class Whole(NamedTuple):
    """Marks a setting that is a whole number, from the least to the most."""

    least: int
    most: int
    unit: str = ""

    def taken(self, value: int) -> int:
        if not self.least <= value <= self.most:
            raise ValueError
        return value

    def __str__(self) -> str:
        return f"a whole number{f' of {self.unit}' if self.unit else ''} from {self.least} to {self.most}"


class Time(NamedTuple):
    """Marks a setting that is a duration, from the least to the most seconds."""

    least: float
    most: float

    def taken(self, value: Duration) -> Duration:
        if not self.least <= value <= self.most:
            raise ValueError
        return value

    def __str__(self) -> str:
        units = "a number and its unit ms, s, m, h or d"
        return f"{units}, from {Duration(self.least)} to {Duration(self.most)}"


class OneOf:
    """Marks a setting that is one of these words, in whatever case."""

    def __init__(self, *words: str) -> None:
        self._words = {word.lower(): word for word in words}

    def taken(self, value: str) -> str:
        if value.lower() not in self._words:
            raise ValueError
        return self._words[value.lower()]

    def __str__(self) -> str:
        return f"one of {', '.join(self._words.values())}"


class Text(NamedTuple):
    """Marks a setting that is text of this form, in words for whoever wrote another."""

    pattern: str
    words: str

    def taken(self, value: Any) -> Any:
        if re.fullmatch(self.pattern, value.reveal() if isinstance(value, Secret) else value, re.ASCII) is None:
            raise ValueError
        return value

    def __str__(self) -> str:
        return self.words


#: What may stand beside a setting's type, and says what is allowed.
Allowed = Whole | Time | OneOf | Text

_HOST = r"(?:\[[0-9A-Fa-f:.]+\]|[^\s,:/\[\]]+)"
BYTES, PORT = "bytes", Whole(0, 65535)
NAME = Text(r"\S{1,255}", "a name without spaces")
FILE_NAME = Text(r"[^\0]+", "the name of a file")
HTTP_URL = Text(
    rf"https?://{_HOST}(?::[0-9]{{1,5}})?(?:/\S*)?", "a URL as http://host:port, with http:// or https:// before it"
)
BROKERS = Text(rf"\s*{_HOST}(?::[0-9]{{1,5}})?(?:\s*,\s*{_HOST}(?::[0-9]{{1,5}})?)*\s*", "host:port,host:port")
TOKEN = Text("[!-~]+", "the token alone, without spaces and line breaks")
#: The floors are below.
SAFETY = Time(0, 365 * DAY)


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Every setting, by the name it has after `BALEEN_`, in lower case."""

    database_url: Secret | None = None

    kafka_bootstrap: Annotated[str | None, BROKERS] = None
    kafka_security_protocol: Annotated[str, OneOf("PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL")] = "PLAINTEXT"
    kafka_sasl_mechanism: Annotated[str, OneOf("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512")] = "PLAIN"
    kafka_sasl_username: str | None = None
    kafka_sasl_password: Secret | None = None
    kafka_ca_file: Annotated[str | None, FILE_NAME] = None
    kafka_partitions: Annotated[int, Whole(1, 10_000, "partitions")] = 8
    kafka_retention: Annotated[Duration, Time(1, 3650 * DAY)] = Duration(7 * DAY)

    s3_endpoint_url: Annotated[str | None, HTTP_URL] = None
    s3_bucket: Annotated[str | None, NAME] = None
    s3_root: str = ""
    s3_region: Annotated[str, NAME] = "us-east-1"
    #: Where these two are absent, boto3 finds credentials in its usual places.
    s3_access_key: str | None = None
    s3_secret_key: Secret | None = None
    #: The key of a pod's registry, for `baleen pods doctor` alone: it tries what that key is let do.
    pod_access_key: str | None = None
    pod_secret_key: Secret | None = None

    #: What the command presents to the API, and where it finds it.
    token: Annotated[Secret | None, TOKEN] = None
    url: Annotated[str | None, HTTP_URL] = None

    #: A removal must be newer than the addition by more than this to be believed without a look at storage.
    safety_clock_skew: Annotated[Duration, SAFETY] = Duration(5 * MINUTE)
    #: How long a direct link keeps a blob alive in a pod of mode `manifest`: longer than the longest push.
    safety_link_grace: Annotated[Duration, SAFETY] = Duration(DAY)
    #: How long one request of a registry may run: what a process began before it died has ended after this.
    safety_request_bound: Annotated[Duration, SAFETY] = Duration(HOUR)
    #: Allows times below their documented floors; for tests and demonstrations only.
    unsafe_times: bool = False

    #: Every registry process is asked for a known manifest so often; its event proves that all before it arrived.
    probe_every: Annotated[Duration, Time(0.01, DAY)] = Duration(10)
    #: A process that has not been heard for so long is told as silent. It freezes its pod's watermark either way.
    probe_silence: Annotated[Duration, Time(0.01, 30 * DAY)] = Duration(MINUTE)
    #: Who asks at registries that want to know: user name and password, for them or for their token issuer.
    registry_username: str | None = None
    registry_password: Secret | None = None
    #: Certificates to trust at registries and their token issuers beside the system's, as PEM.
    registry_ca_file: Annotated[str | None, FILE_NAME] = None
    #: A pod's links in storage are compared with the table at least so often.
    reconcile_every: Annotated[Duration, Time(1, 365 * DAY)] = Duration(DAY)

    #: A request body at ingest beyond this is dead-lettered. Distribution's largest event is a manifest's.
    ingest_body_limit: Annotated[int, Whole(1024, 2**30, BYTES)] = 8 * 1024 * 1024
    #: Bytes of request bodies that ingest holds at once; beyond it a registry is asked to come again (503).
    ingest_memory_limit: Annotated[int, Whole(1024, 2**40, BYTES)] = 64 * 1024 * 1024
    #: A webhook that waits longer for Kafka is answered 503.
    ingest_timeout: Annotated[Duration, Time(0.1, 10 * MINUTE)] = Duration(5)

    #: Records that one transaction applies at most, over all partitions of a worker.
    worker_batch: Annotated[int, Whole(1, 1_000_000, "records")] = 2000
    #: Workers of one group share the partitions. The embedded broker never forgets a member that was killed, so there
    #: `baleen up` gives each worker that it starts a group of its own.
    worker_group: Annotated[str, NAME] = "baleen-reference-processor"
    #: Prometheus metrics of a worker are served here on loopback; 0 serves none.
    worker_metrics_port: Annotated[int, PORT] = 0
    #: The same of a scheduler.
    scheduler_metrics_port: Annotated[int, PORT] = 0
    log_format: Annotated[str, OneOf("auto", "json", "console")] = "auto"
    log_level: Annotated[str, OneOf("debug", "info", "warning", "error")] = "info"

    data_dir: Annotated[str, FILE_NAME] = DATA_DIR


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
        for name in values:
            if name.upper().startswith(PREFIX):
                raise SettingsError(
                    f"{FILE} names {name}, and names there have no prefix: write {name[len(PREFIX) :].lower()}."
                )
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
    settings = Settings(**{name: _converted(name, value) for name, value in values.items()})
    _check_floors(settings)
    if settings.ingest_memory_limit < settings.ingest_body_limit:
        raise SettingsError(
            f"{PREFIX}INGEST_MEMORY_LIMIT is below {PREFIX}INGEST_BODY_LIMIT, and a larger body would be refused for "
            "ever: raise it, or lower that."
        )
    return settings


def _converted(name: str, value: Any) -> Any:
    kind = Settings.__annotations__[name]
    allowed = _allowed(kind)
    try:
        converted = msgspec.convert(value, kind, strict=False, dec_hook=_decode)
        return converted if allowed is None or converted is None else allowed.taken(converted)
    except (msgspec.ValidationError, ValueError):
        # The value itself is not repeated: it may be a secret.
        words = allowed or ("true or false" if kind is bool else "text")
        raise SettingsError(f"{PREFIX}{name.upper()} is malformed: write {words}{_example(name)}.") from None


def _allowed(kind: Any) -> Any:
    """What stands beside a type and says what is allowed."""
    return next((mark for mark in get_args(kind) if isinstance(mark, Allowed)), None)


def _example(name: str) -> str:
    """The default, where it shows how such a setting is written."""
    default = getattr(Settings(), name)
    return f", such as {default}" if default and isinstance(default, Duration | int) else ""


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
