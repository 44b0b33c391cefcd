"""Settings, and the only place that reads the environment.

Precedence: `BALEEN_…` in the environment, then `baleen.toml`, then what a running `baleen up` wrote to its
data directory (`stack.json`), then the defaults below. An unknown or malformed setting is an error that names it, and
says what is allowed. Secrets are wrapped, so that no `repr`, log line or traceback shows them.
"""

import difflib
import os
import re
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, NamedTuple, Self, get_args

import msgspec

from coordinator.domain.findings import Check
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


class SomeOf(OneOf):
    """Marks a setting that is any number of these words, separated by commas."""

    def taken(self, value: str) -> str:
        words = [super(SomeOf, self).taken(word.strip()) for word in value.split(",")] if value.strip() else []
        return ",".join(dict.fromkeys(words))

    def __str__(self) -> str:
        return f"some of {', '.join(self._words.values())}, separated by commas"


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
LINE = Text(r"[^\x00-\x1f\x7f]{1,255}", "a line of text")
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

    #: Whose tokens are believed, and for whom they are: `iss` and `aud`. Baleen's own say the same.
    jwt_issuer: Annotated[str | None, LINE] = None
    jwt_audience: Annotated[str | None, LINE] = None
    #: Keys that clients' tokens are proved with: PEM (certificates or public keys) or JWKS. Where this is absent, those
    #: of the next.
    jwt_keys: Annotated[str | None, FILE_NAME] = None
    #: Private keys (PEM) that Baleen signs tokens with: the first signs, the others are only published. Without any,
    #: Baleen makes no tokens.
    jwt_signing_keys: Annotated[str | None, FILE_NAME] = None
    #: How long a token lives that Baleen signs. Old clients know no `expires_in`, and take it for a minute.
    jwt_lifetime: Annotated[Duration, Time(MINUTE, HOUR)] = Duration(5 * MINUTE)

    #: A removal must be newer than the addition by more than this to be believed without a look at storage.
    safety_clock_skew: Annotated[Duration, SAFETY] = Duration(5 * MINUTE)
    #: How long a direct link keeps a blob alive in a pod of mode `manifest`: longer than the longest push.
    safety_link_grace: Annotated[Duration, SAFETY] = Duration(DAY)
    #: How long one request of a registry may run: what a process began before it died has ended after this.
    safety_request_bound: Annotated[Duration, SAFETY] = Duration(HOUR)
    #: A blob that nothing references is hidden no sooner.
    safety_grace: Annotated[Duration, SAFETY] = Duration(DAY)
    #: A hidden blob is deleted no sooner: as long it can be had back.
    safety_quarantine: Annotated[Duration, SAFETY] = Duration(DAY)
    #: What the object store has not done so long after it was let go, it will not do: a store refuses a signature that
    #: is older than 15 minutes by its clock, which may be 15 minutes off ours, and may then take some time.
    safety_delete_bound: Annotated[Duration, SAFETY] = Duration(HOUR)
    #: Allows times below their documented floors; for tests and demonstrations only.
    unsafe_times: bool = False
    #: Checks of the doctor that hold garbage collection no more once they were found to be refuted or unproved; only
    #: with `unsafe_times`, where nothing may be lost by it. `cannot-delete` stands for all checks of the pod's key.
    unsafe_findings: Annotated[str, SomeOf(*Check)] = ""

    #: Every registry process is probed with a known manifest so often; its event proves that all before it arrived.
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

    #: Garbage is collected so often, while the switch is on.
    gc_every: Annotated[Duration, Time(1, 365 * DAY)] = Duration(HOUR)
    #: A run that would take more of the blobs, or of their bytes, is refused: something is probably wrong.
    gc_limit_percent: Annotated[int, Whole(1, 100, "percent")] = 10
    #: The same of one that would take so many times more than any run of late.
    gc_limit_history: Annotated[int, Whole(1, 1_000_000, "times")] = 10
    #: Blobs that are hidden or purged, and objects of leftovers that are deleted, in a second at most; 0 sets no limit.
    gc_rate: Annotated[int, Whole(0, 1_000_000, "blobs")] = 0

    #: What registries leave behind beside blobs is looked for so often: it takes a listing of the registries' tree.
    leftovers_every: Annotated[Duration, Time(1, 365 * DAY)] = Duration(DAY)
    #: An upload session is deleted once nothing in it was modified for so long: longer than the longest upload.
    leftovers_uploads: Annotated[Duration, SAFETY] = Duration(7 * DAY)
    #: An upload in parts that nobody ended is given up so long after its begin.
    leftovers_parts: Annotated[Duration, SAFETY] = Duration(7 * DAY)
    #: In a bucket with versions: what an upload that ended has left, a copy of its bytes, is deleted after this.
    leftovers_versions: Annotated[Duration, SAFETY] = Duration(DAY)
    #: In a bucket with versions: the links of a blob are deleted so long after its purge.
    leftovers_links: Annotated[Duration, SAFETY] = Duration(7 * DAY)

    #: Mounts across pods: for clients whose token may, for everybody where registries ask nobody who they are, or not.
    mounts: Annotated[str, OneOf("token", "open", "off")] = "token"
    #: A mount that is not made by then is handed on to the pod, and the client uploads.
    mount_timeout: Annotated[Duration, Time(0.1, 10 * MINUTE)] = Duration(30)
    #: A larger blob is not sent to a pod of linker `relay`: its client would wait too long.
    mount_relay_limit: Annotated[int, Whole(0, 2**50, BYTES)] = 2**30

    #: A request body at ingest beyond this is dead-lettered. Distribution's largest event is a manifest's.
    ingest_body_limit: Annotated[int, Whole(1024, 2**30, BYTES)] = 8 * 1024 * 1024
    #: Bytes of request bodies that ingest holds at once; beyond it a registry is asked to come again (503).
    ingest_memory_limit: Annotated[int, Whole(1024, 2**40, BYTES)] = 64 * 1024 * 1024
    #: Open dead letters of one pod that are kept, and bytes of their payloads: enough to find a cause by. A gap that a
    #: reconcile closes stands for the others. As many that reconciles have resolved are kept, too.
    dead_letters_limit: Annotated[int, Whole(1, 1_000_000, "dead letters")] = 1000
    dead_letters_bytes: Annotated[int, Whole(1024, 2**40, BYTES)] = 64 * 1024 * 1024
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
    ("safety_grace", HOUR, "a push may take that long between its layers and its manifest"),
    ("safety_quarantine", HOUR, "nobody would notice a mistake in time"),
    ("safety_delete_bound", 31 * MINUTE, "the object store may still do what was asked of it"),
    ("leftovers_uploads", DAY, "an upload may take that long"),
    ("leftovers_parts", DAY, "an upload may take that long"),
    ("leftovers_versions", HOUR, "a registry may still be moving the upload to its place"),
    ("leftovers_links", DAY, "nobody would notice a mistake in time"),
)


def load(environ: Mapping[str, str] | None = None, directory: Path | None = None) -> Settings:
    """Read the settings; raises SettingsError that names the setting at fault, and where it stands."""
    environ = os.environ if environ is None else environ
    directory = Path() if directory is None else directory
    file = directory / FILE
    written = _file(file)
    given = {name.removeprefix(PREFIX).lower(): value for name, value in environ.items() if name.startswith(PREFIX)}
    stack = directory / str((written | given).get("data_dir", DATA_DIR)) / "stack.json"
    left = _running_stack(stack)

    def called(name: str) -> str:
        if name in given or name not in left | written:
            return _variable(name)
        return f"{name} in {file if name in written else stack}"

    return build(left | written | given, called)


def _file(file: Path) -> dict[str, Any]:
    """What is written in `baleen.toml`, if there is one."""
    try:
        values = tomllib.loads(file.read_text())
    except FileNotFoundError:
        return {}
    except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"{file} cannot be read as TOML: {error}.") from error
    for name in values:
        if name.upper().startswith(PREFIX):
            raise SettingsError(
                f"{file} names {name}, and names there have no prefix: write {name[len(PREFIX) :].lower()}."
            )
    return values


def _variable(name: str) -> str:
    return PREFIX + name.upper()


def build(values: Mapping[str, Any], called: Callable[[str], str] = _variable) -> Settings:
    """Make settings from raw values, checking each; raises SettingsError, with a setting's name as it is `called`."""
    for name in values:
        if name not in Settings.__annotations__:
            raise SettingsError(f"{called(name)} is not a setting: {_meant(name, called)}")
    settings = Settings(**{name: _converted(name, value, called) for name, value in values.items()})
    _check_floors(settings, called)
    if settings.unsafe_findings and not settings.unsafe_times:
        raise SettingsError(
            f"{called('unsafe_findings')} lets garbage be collected against what a doctor found, and blobs that are "
            f"needed may be lost by it: take it out, or set {_variable('unsafe_times')}=true where nothing of value is."
        )
    if settings.ingest_memory_limit < settings.ingest_body_limit:
        raise SettingsError(
            f"{called('ingest_memory_limit')} is below {called('ingest_body_limit')}, and a larger body would be "
            "refused for ever: raise it, or lower that."
        )
    for name in ("leftovers_uploads", "leftovers_parts"):
        if getattr(settings, name) < settings.safety_request_bound and not settings.unsafe_times:
            raise SettingsError(
                f"{called(name)} is below {called('safety_request_bound')}, and one request may take that long to "
                "upload: raise it, or lower that."
            )
    # A process that is silent for half of the bound may have been paused, and purges wait: two probes must fit into it.
    # A process that takes over an address is known by the next probe, long before the watermark covers what it did.
    if settings.probe_every > settings.safety_request_bound / 4 and not settings.unsafe_times:
        raise SettingsError(
            f"{called('probe_every')} is more than a quarter of {called('safety_request_bound')}, and each process "
            "would count as paused between two probes: lower it, or raise that."
        )
    return settings


def _meant(name: str, called: Callable[[str], str]) -> str:
    """What somebody may have meant who wrote a name that is none; written as that was."""
    known = list(Settings.__annotations__)
    near = difflib.get_close_matches(name, known) or [each for each in known if each.startswith(f"{name}_")]
    if not near:
        return "take it out, or see docs/SETTINGS.md for those that are."
    if called(name) == _variable(name):
        near = [_variable(each) for each in near]
    return f"did you mean {' or '.join(near)}?"


def _converted(name: str, value: Any, called: Callable[[str], str]) -> Any:
    kind = Settings.__annotations__[name]
    allowed = _allowed(kind)
    try:
        converted = msgspec.convert(value, kind, strict=False, dec_hook=_decode)
        return converted if allowed is None or converted is None else allowed.taken(converted)
    except (msgspec.ValidationError, ValueError):
        # The value itself is not repeated: it may be a secret.
        words = allowed or ("true or false" if kind is bool else "text")
        raise SettingsError(f"{called(name)} is malformed: write {words}{_example(name)}.") from None


def _allowed(kind: Any) -> Any:
    """What stands beside a type and says what is allowed."""
    return next((mark for mark in get_args(kind) if isinstance(mark, Allowed)), None)


def _example(name: str) -> str:
    """The default, where it shows how such a setting is written."""
    default = getattr(Settings(), name)
    return f", such as {default}" if default and isinstance(default, Duration | int) else ""


def _check_floors(settings: Settings, called: Callable[[str], str]) -> None:
    if settings.unsafe_times:
        return
    for name, floor, reason in FLOORS:
        if getattr(settings, name) < floor:
            raise SettingsError(
                f"{called(name)} is below {Duration(floor)}, and {reason}: "
                f"raise it, or set {_variable('unsafe_times')}=true where nothing may be lost by it."
            )


def _decode(kind: type, value: Any) -> Any:
    if kind is Secret:
        return Secret(str(value))
    if kind is Duration:
        return Duration.parse(str(value))
    raise NotImplementedError(kind)


def _running_stack(stack: Path) -> dict[str, Any]:
    """What `baleen up` left for commands beside it: addresses and the operator's token."""
    values: dict[str, Any] = {}
    token = stack.with_name("token")
    try:
        values |= _left(stack, lambda content: msgspec.json.decode(content, type=dict[str, Any]))
        values["token"] = _left(token, lambda content: content.decode().strip())
    except (FileNotFoundError, NotADirectoryError, ValueError):
        # Nothing is there, nor can be where the name is none (`embedded null byte`): that is refused as any setting.
        pass
    # The file tells more than settings, for whoever looks after the stack.
    return {name: values[name] for name in values.keys() & Settings.__annotations__.keys() if values[name] is not None}


def _left(file: Path, read: Callable[[bytes], Any]) -> Any:
    """Read a file of a running stack. If there is none the error is the system's."""
    try:
        return read(file.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        raise
    except OSError as error:
        raise SettingsError(f"{file} cannot be read ({error.strerror}): run as the user of `baleen up`.") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise SettingsError(
            f"{file} is not as `baleen up` writes it: delete it, and start `baleen up` again."
        ) from error


def shown(settings: Settings) -> dict[str, Any]:
    """Every setting as `config show` prints it: secrets only as set or not set."""
    return {name: _show(getattr(settings, name)) for name in Settings.__annotations__}


def _show(value: Any) -> Any:
    if isinstance(value, Secret):
        return "(set)"
    return str(value) if isinstance(value, Duration) else value
