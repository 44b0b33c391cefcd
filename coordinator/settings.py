"""Settings, and the only place that reads the environment.

Precedence: `BALEEN_…` in the environment, then `baleen.toml`, then what a running `baleen up` wrote to its
data directory (`stack.json`), then the defaults below. An unknown or malformed setting is an error that names it and
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
    """A string that only `reveal` shows."""

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


class WholeNumber(NamedTuple):
    """Marks a setting that is a whole number from `minimum` to `maximum`."""

    minimum: int
    maximum: int
    unit: str = ""

    def parse(self, value: int) -> int:
        if not self.minimum <= value <= self.maximum:
            raise ValueError
        return value

    def __str__(self) -> str:
        return f"a whole number{f' of {self.unit}' if self.unit else ''} from {self.minimum} to {self.maximum}"


class TimeRange(NamedTuple):
    """Marks a setting that is a duration from `minimum` to `maximum` seconds."""

    minimum: float
    maximum: float

    def parse(self, value: Duration) -> Duration:
        if not self.minimum <= value <= self.maximum:
            raise ValueError
        return value

    def __str__(self) -> str:
        units = "a number and its unit ms, s, m, h or d"
        return f"{units}, from {Duration(self.minimum)} to {Duration(self.maximum)}"


class OneOf:
    """Marks a setting that is one of these words; case does not matter."""

    def __init__(self, *choices: str) -> None:
        self._choices = {word.lower(): word for word in choices}

    def parse(self, value: str) -> str:
        if value.lower() not in self._choices:
            raise ValueError
        return self._choices[value.lower()]

    def __str__(self) -> str:
        return f"one of {', '.join(self._choices.values())}"


class SomeOf(OneOf):
    """Marks a setting that is any number of these words, separated by commas."""

    def parse(self, value: str) -> str:
        parts = [super(SomeOf, self).parse(part.strip()) for part in value.split(",")] if value.strip() else []
        return ",".join(dict.fromkeys(parts))

    def __str__(self) -> str:
        return f"some of {', '.join(self._choices.values())}, separated by commas"


class TextForm(NamedTuple):
    """Marks a setting that is text of this form; `description` describes the form in error messages."""

    pattern: str
    description: str

    def parse(self, value: Any) -> Any:
        if re.fullmatch(self.pattern, value.reveal() if isinstance(value, Secret) else value, re.ASCII) is None:
            raise ValueError
        return value

    def __str__(self) -> str:
        return self.description


#: The annotations of a setting's type that say which values are allowed.
AllowedValues = WholeNumber | TimeRange | OneOf | TextForm

_HOST = r"(?:\[[0-9A-Fa-f:.]+\]|[^\s,:/\[\]]+)"
BYTES, PORT = "bytes", WholeNumber(0, 65535)
NAME = TextForm(r"\S{1,255}", "a name without spaces")
FILE_NAME = TextForm(r"[^\0]+", "the name of a file")
HTTP_URL = TextForm(
    rf"https?://{_HOST}(?::[0-9]{{1,5}})?(?:/\S*)?", "a URL as http://host:port, with http:// or https:// before it"
)
BROKERS = TextForm(rf"\s*{_HOST}(?::[0-9]{{1,5}})?(?:\s*,\s*{_HOST}(?::[0-9]{{1,5}})?)*\s*", "host:port,host:port")
LINE = TextForm(r"[^\x00-\x1f\x7f]{1,255}", "a line of text")
TOKEN = TextForm("[!-~]+", "the token alone, without spaces and line breaks")
#: The floors are below.
SAFETY_TIME = TimeRange(0, 365 * DAY)


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Every setting; a field's name is the variable's name without `BALEEN_`, in lower case."""

    database_url: Secret | None = None

    kafka_bootstrap: Annotated[str | None, BROKERS] = None
    kafka_security_protocol: Annotated[str, OneOf("PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL")] = "PLAINTEXT"
    kafka_sasl_mechanism: Annotated[str, OneOf("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512")] = "PLAIN"
    kafka_sasl_username: str | None = None
    kafka_sasl_password: Secret | None = None
    kafka_ca_file: Annotated[str | None, FILE_NAME] = None
    kafka_partitions: Annotated[int, WholeNumber(1, 10_000, "partitions")] = 8
    kafka_retention: Annotated[Duration, TimeRange(1, 3650 * DAY)] = Duration(7 * DAY)

    s3_endpoint_url: Annotated[str | None, HTTP_URL] = None
    s3_bucket: Annotated[str | None, NAME] = None
    s3_root: str = ""
    s3_region: Annotated[str, NAME] = "us-east-1"
    #: Without these two, boto3 looks for credentials in its usual places.
    s3_access_key: str | None = None
    s3_secret_key: Secret | None = None
    #: The key of a pod's registry, for `baleen pods doctor` only, which tries what that key is permitted to do.
    pod_access_key: str | None = None
    pod_secret_key: Secret | None = None

    #: The API token that the command line presents, and the API's URL.
    token: Annotated[Secret | None, TOKEN] = None
    url: Annotated[str | None, HTTP_URL] = None

    #: Trusted token issuer (`iss`) and audience (`aud`). Tokens that Baleen signs carry the same.
    jwt_issuer: Annotated[str | None, LINE] = None
    jwt_audience: Annotated[str | None, LINE] = None
    #: Keys that verify clients' tokens: PEM (certificates or public keys) or JWKS. Default: the keys of
    #: `jwt_signing_keys`.
    jwt_keys: Annotated[str | None, FILE_NAME] = None
    #: Private keys (PEM) that Baleen signs tokens with: the first signs, the others are only published. Without any,
    #: Baleen issues no tokens.
    jwt_signing_keys: Annotated[str | None, FILE_NAME] = None
    #: Lifetime of a token that Baleen signs. Old clients do not know `expires_in` and assume a minute.
    jwt_lifetime: Annotated[Duration, TimeRange(MINUTE, HOUR)] = Duration(5 * MINUTE)

    #: A removal must be newer than the addition by more than this; otherwise storage has to confirm it.
    safety_clock_skew: Annotated[Duration, SAFETY_TIME] = Duration(5 * MINUTE)
    #: How long a direct link keeps a blob alive in a pod of mode `manifest`. Set it longer than the longest push.
    safety_link_grace: Annotated[Duration, SAFETY_TIME] = Duration(DAY)
    #: How long one request of a registry may run. After this, nothing that a dead process had begun is still running.
    safety_request_bound: Annotated[Duration, SAFETY_TIME] = Duration(HOUR)
    #: How long a blob must be unreferenced before it is hidden.
    safety_grace: Annotated[Duration, SAFETY_TIME] = Duration(DAY)
    #: How long a hidden blob can be restored before it is deleted.
    safety_quarantine: Annotated[Duration, SAFETY_TIME] = Duration(DAY)
    #: After this time the object store no longer executes a delete that was sent to it. A store refuses a signature
    #: older than 15 minutes by its clock, that clock may be 15 minutes off ours, and executing takes some time.
    safety_delete_bound: Annotated[Duration, SAFETY_TIME] = Duration(HOUR)
    #: Allow times below their documented floors; for tests and demonstrations only.
    unsafe_times: bool = False
    #: Checks of the doctor that do not block GC when their finding is refuted or unproved. Only with `unsafe_times`,
    #: where no data of value can be lost. `cannot-delete` stands for all checks of the pod's key.
    unsafe_findings: Annotated[str, SomeOf(*Check)] = ""

    #: Interval of probes: each registry process is sent a known manifest, whose event proves that all earlier events
    #: arrived.
    probe_every: Annotated[Duration, TimeRange(0.01, DAY)] = Duration(10)
    #: A process without any event or echo for this time is reported as silent. It freezes its pod's watermark
    #: either way.
    probe_silence: Annotated[Duration, TimeRange(0.01, 30 * DAY)] = Duration(MINUTE)
    #: Credentials for registries that require login, or for their token issuers.
    registry_username: str | None = None
    registry_password: Secret | None = None
    #: Certificates (PEM) to trust at registries and token issuers in addition to the system's.
    registry_ca_file: Annotated[str | None, FILE_NAME] = None
    #: A directory with two files for each pod of kind `gitlab`: one named like the pod, with the URL of its registry's
    #: database; and `<pod>.debug`, with the debug address of each registry process, one a line, for the doctor.
    gitlab_databases: Annotated[str | None, FILE_NAME] = None
    #: The same for writing: mounts into a pod with a file here are made by rows in its registry's database.
    gitlab_writers: Annotated[str | None, FILE_NAME] = None
    #: How often, at least, a pod's links in storage are compared with the table.
    reconcile_every: Annotated[Duration, TimeRange(1, 365 * DAY)] = Duration(DAY)

    #: Interval of garbage collection while the switch is on.
    gc_every: Annotated[Duration, TimeRange(1, 365 * DAY)] = Duration(HOUR)
    #: A run that would take away more than this share of all blobs, or of their bytes, is refused.
    gc_limit_percent: Annotated[int, WholeNumber(1, 100, "percent")] = 10
    #: A run that would take away this many times more than any recent run is refused.
    gc_limit_history: Annotated[int, WholeNumber(1, 1_000_000, "times")] = 10
    #: Blobs hidden or purged, and objects of leftovers deleted, per second at most; 0 means no limit.
    gc_rate: Annotated[int, WholeNumber(0, 1_000_000, "blobs")] = 0

    #: Interval of the search for leftovers, which lists the registries' whole tree.
    leftovers_every: Annotated[Duration, TimeRange(1, 365 * DAY)] = Duration(DAY)
    #: An upload session is deleted after this time without a change. Set it longer than the longest upload.
    leftovers_uploads: Annotated[Duration, SAFETY_TIME] = Duration(7 * DAY)
    #: A multipart upload that is still unfinished this long after its start is aborted.
    leftovers_parts: Annotated[Duration, SAFETY_TIME] = Duration(7 * DAY)
    #: In a bucket with versions: the copy of the bytes that a finished upload leaves is deleted after this.
    leftovers_versions: Annotated[Duration, SAFETY_TIME] = Duration(DAY)
    #: In a bucket with versions: the links of a blob are deleted this long after its purge.
    leftovers_links: Annotated[Duration, SAFETY_TIME] = Duration(7 * DAY)

    #: Mounts across pods: `token` for clients whose token permits them, `open` for every client where registries do
    #: not authenticate, or `off`.
    mounts: Annotated[str, OneOf("token", "open", "off")] = "token"
    #: A mount that takes longer is forwarded to the pod, and the client uploads.
    mount_timeout: Annotated[Duration, TimeRange(0.1, 10 * MINUTE)] = Duration(30)
    #: A larger blob is not relayed to a pod of kind `relay`, because its client would wait too long.
    mount_relay_limit: Annotated[int, WholeNumber(0, 2**50, BYTES)] = 2**30

    #: A larger request body at ingest is dead-lettered. Distribution's largest event is that of a manifest.
    ingest_body_limit: Annotated[int, WholeNumber(1024, 2**30, BYTES)] = 8 * 1024 * 1024
    #: Bytes of request bodies that ingest holds at once. Beyond it, ingest answers 503 and the registry retries.
    ingest_memory_limit: Annotated[int, WholeNumber(1024, 2**40, BYTES)] = 64 * 1024 * 1024
    #: How many open dead letters are kept for one pod, and bytes of their payloads: enough to find a cause. A gap,
    #: which a reconcile closes, stands for the others. As many resolved ones are kept, too.
    dead_letters_limit: Annotated[int, WholeNumber(1, 1_000_000, "dead letters")] = 1000
    dead_letters_bytes: Annotated[int, WholeNumber(1024, 2**40, BYTES)] = 64 * 1024 * 1024
    #: A webhook that waits longer than this for Kafka is answered with 503.
    ingest_timeout: Annotated[Duration, TimeRange(0.1, 10 * MINUTE)] = Duration(5)

    #: Records that one transaction applies at most, across all partitions of a worker.
    worker_batch: Annotated[int, WholeNumber(1, 1_000_000, "records")] = 2000
    #: Workers of one group share the partitions. The embedded broker never forgets a member that was killed, so
    #: `baleen up` gives each worker that it starts its own group.
    worker_group: Annotated[str, NAME] = "baleen-reference-processor"
    #: Port on loopback for a worker's Prometheus metrics; 0 serves none.
    worker_metrics_port: Annotated[int, PORT] = 0
    #: The same for a scheduler.
    scheduler_metrics_port: Annotated[int, PORT] = 0
    log_format: Annotated[str, OneOf("auto", "json", "console")] = "auto"
    log_level: Annotated[str, OneOf("debug", "info", "warning", "error")] = "info"

    data_dir: Annotated[str, FILE_NAME] = DATA_DIR


#: A setting below its floor is refused unless `unsafe_times` is set: setting, floor, reason.
FLOORS: tuple[tuple[str, float, str], ...] = (
    ("safety_clock_skew", 1.0, "clocks of registries are rarely closer than that"),
    ("safety_link_grace", HOUR, "a push may take that long between its layers and its manifest"),
    ("safety_request_bound", 60.0, "a registry's last write may take that long to land"),
    ("safety_grace", HOUR, "a push may take that long between its layers and its manifest"),
    ("safety_quarantine", HOUR, "a mistake would not be noticed in time"),
    ("safety_delete_bound", 31 * MINUTE, "the object store may still do what was asked of it"),
    ("leftovers_uploads", DAY, "an upload may take that long"),
    ("leftovers_parts", DAY, "an upload may take that long"),
    ("leftovers_versions", HOUR, "a registry may still be moving the upload to its place"),
    ("leftovers_links", DAY, "a mistake would not be noticed in time"),
)


def load(environ: Mapping[str, str] | None = None, directory: Path | None = None) -> Settings:
    """Read the settings; raises SettingsError that names the setting at fault and where it was set."""
    environ = os.environ if environ is None else environ
    directory = Path() if directory is None else directory
    file = directory / FILE
    written = _read_file(file)
    given = {name.removeprefix(PREFIX).lower(): value for name, value in environ.items() if name.startswith(PREFIX)}
    stack = directory / str((written | given).get("data_dir", DATA_DIR)) / "stack.json"
    left = _read_running_stack(stack)

    def label(name: str) -> str:
        if name in given or name not in left | written:
            return _variable_name(name)
        return f"{name} in {file if name in written else stack}"

    return make_settings(left | written | given, label)


def _read_file(file: Path) -> dict[str, Any]:
    """Return the settings of `baleen.toml`, if there is one."""
    try:
        values = tomllib.loads(file.read_text())
    except FileNotFoundError:
        return {}
    except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"{file} cannot be read as TOML: {error}.") from error
    for name in values:
        if name.upper().startswith(PREFIX):
            raise SettingsError(
                f"{file} has {name}, but names in this file have no prefix: write {name[len(PREFIX) :].lower()}."
            )
    return values


def _variable_name(name: str) -> str:
    return PREFIX + name.upper()


def make_settings(values: Mapping[str, Any], label: Callable[[str], str] = _variable_name) -> Settings:
    """Make settings from raw values; raises SettingsError. `label` gives the name of a setting in messages."""
    for name in values:
        if name not in Settings.__annotations__:
            raise SettingsError(f"{label(name)} is not a setting: {_suggest_names(name, label)}")
    settings = Settings(**{name: _convert_value(name, value, label) for name, value in values.items()})
    _check_floors(settings, label)
    if settings.unsafe_findings and not settings.unsafe_times:
        raise SettingsError(
            f"{label('unsafe_findings')} runs GC in spite of a doctor's findings, and needed blobs may be lost: "
            f"remove it, or set {_variable_name('unsafe_times')}=true where no data is of value."
        )
    if settings.ingest_memory_limit < settings.ingest_body_limit:
        raise SettingsError(
            f"{label('ingest_memory_limit')} is below {label('ingest_body_limit')}, and a larger body would be "
            "refused forever: raise the first or lower the second."
        )
    for name in ("leftovers_uploads", "leftovers_parts"):
        if getattr(settings, name) < settings.safety_request_bound and not settings.unsafe_times:
            raise SettingsError(
                f"{label(name)} is below {label('safety_request_bound')}, and one request may take that long to "
                "upload: raise the first or lower the second."
            )
    # A process that is silent for half of the bound may have been paused, and purges wait: two probes must fit into
    # that half. The next probe finds a process that took over an address, long before the watermark covers its work.
    if settings.probe_every > settings.safety_request_bound / 4 and not settings.unsafe_times:
        raise SettingsError(
            f"{label('probe_every')} is more than a quarter of {label('safety_request_bound')}, and each process "
            "would count as paused between two probes: lower the first or raise the second."
        )
    return settings


def _suggest_names(name: str, label: Callable[[str], str]) -> str:
    """Advice for an unknown name: the settings with a similar name, written in the same way."""
    known = list(Settings.__annotations__)
    near = difflib.get_close_matches(name, known) or [each for each in known if each.startswith(f"{name}_")]
    if not near:
        return "remove it. docs/SETTINGS.md lists all settings."
    if label(name) == _variable_name(name):
        near = [_variable_name(each) for each in near]
    return f"did you mean {' or '.join(near)}?"


def _convert_value(name: str, value: Any, label: Callable[[str], str]) -> Any:
    kind = Settings.__annotations__[name]
    allowed = _allowed_values(kind)
    try:
        converted = msgspec.convert(value, kind, strict=False, dec_hook=_decode)
        return converted if allowed is None or converted is None else allowed.parse(converted)
    except (msgspec.ValidationError, ValueError):
        # The value itself is not repeated: it may be a secret.
        choices = allowed or ("true or false" if kind is bool else "text")
        raise SettingsError(f"{label(name)} is malformed: write {choices}{_format_example(name)}.") from None


def _allowed_values(kind: Any) -> Any:
    """Return the annotation of a type that says which values are allowed."""
    return next((mark for mark in get_args(kind) if isinstance(mark, AllowedValues)), None)


def _format_example(name: str) -> str:
    """The default as an example, where it shows how to write such a value."""
    default = getattr(Settings(), name)
    return f", such as {default}" if default and isinstance(default, Duration | int) else ""


def _check_floors(settings: Settings, label: Callable[[str], str]) -> None:
    if settings.unsafe_times:
        return
    for name, floor, reason in FLOORS:
        if getattr(settings, name) < floor:
            raise SettingsError(
                f"{label(name)} is below {Duration(floor)}, and {reason}: "
                f"raise it, or set {_variable_name('unsafe_times')}=true where no data is of value."
            )


def _decode(kind: type, value: Any) -> Any:
    if kind is Secret:
        return Secret(str(value))
    if kind is Duration:
        return Duration.parse(str(value))
    raise NotImplementedError(kind)


def _read_running_stack(stack: Path) -> dict[str, Any]:
    """Read what a running `baleen up` wrote for other commands: addresses and the operator's token."""
    values: dict[str, Any] = {}
    token = stack.with_name("token")
    try:
        values |= _read_stack_file(stack, lambda content: msgspec.json.decode(content, type=dict[str, Any]))
        values["token"] = _read_stack_file(token, lambda content: content.decode().strip())
    except (FileNotFoundError, NotADirectoryError, ValueError):
        # No stack runs here. A name that cannot be a path (`embedded null byte`) is refused later, as a setting.
        pass
    # The file holds more than settings.
    return {name: values[name] for name in values.keys() & Settings.__annotations__.keys() if values[name] is not None}


def _read_stack_file(file: Path, read: Callable[[bytes], Any]) -> Any:
    """Read a file of a running stack; raises the system's error if there is none, else SettingsError."""
    try:
        return read(file.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        raise
    except OSError as error:
        raise SettingsError(f"{file} cannot be read ({error.strerror}): run as the user of `baleen up`.") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"{file} is malformed: delete it and start `baleen up` again.") from error


def describe_settings(settings: Settings) -> dict[str, Any]:
    """Every setting as `config show` prints it; of a secret only whether it is set."""
    return {name: _describe_value(getattr(settings, name)) for name in Settings.__annotations__}


def _describe_value(value: Any) -> Any:
    if isinstance(value, Secret):
        return "(set)"
    return str(value) if isinstance(value, Duration) else value
