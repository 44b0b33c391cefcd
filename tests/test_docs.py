"""The pages are true of the program: their links, command lines, HTTP calls, settings, metrics, files and tasks."""

import ast
import re
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Final
from unittest.mock import Mock
from urllib.parse import unquote

import pytest

from coordinator.api.app import create_app
from coordinator.errors import SettingsError
from coordinator.settings import FLOORS, PREFIX, Settings, _convert_value
from tests import settings_table
from tests.support import command_lines
from tests.support.pages import ROOT, Found, Page, read_page, read_pages, slug_of

#: Every page, the decisions and the model's too.
ALL: Final = read_pages("docs", "docs/adr", "docs/model")
#: Those for users and operators.
MANUAL: Final = read_pages("docs")

#: Files that pages name and that are not in the repository, and why.
OTHER_FILES: Final = {
    ".baleen/stack.json": "`baleen up` writes it",
    "coordinator/db/migrations/versions/NNNN_what.py": "a placeholder",
    "docs/configuration.md": "a page of distribution",
}
#: Options in inline code that belong to other programs, and whose they are.
OTHER_OPTIONS: Final = {
    "--only": "python -m bench",
    "--quick": "python -m bench",
    "--report": "python -m bench",
    "--parent-shutdown-time-s": "Envoy",
}
#: Variables and codes in capitals that are no settings of Baleen, and what they are.
OTHER_CAPITALS: Final = {
    "AWS_CA_BUNDLE": "boto3",
    "BALEEN_DB_PASSWORD": "docker-compose.yml",
    "BALEEN_TEST_DISTRIBUTION": "tests/services/go_programs.py",
    "BALEEN_TEST_GITLAB_REGISTRY": "tests/gitlab/registry.py",
    "CHECKS_OF_KIND": "a constant of the code",
    "DEEP_ARCHIVE": "a storage class of S3",
    "HTTP_PROXY": "every HTTP client",
    "MANIFEST_BLOB_UNKNOWN": "an error code of the OCI distribution specification",
    "NAME_UNKNOWN": "an error code of the OCI distribution specification",
    "NO_PROXY": "every HTTP client",
    "REGISTRY_FF_ENFORCE_LOCKFILES": "GitLab's registry",
    "SOAK_SECONDS": ".ci/run",
    "T_H": "a constant of the code",
}
#: Names of this form that are no metrics, and what they are.
OTHER_METRICS: Final = {"baleen_router": "a log format of the router's configuration"}

_METRIC_KINDS: Final = frozenset({"Counter", "Gauge", "Histogram", "Summary", "Info", "Enum"})
_SETTING_NAME = re.compile(rf"\b{PREFIX}([A-Z][A-Z0-9_]*_(?=[…*])|[A-Z][A-Z0-9_]*[A-Z0-9]|(?=[…*]))")
_CAPITALS = re.compile(r"[A-Z][A-Z0-9]*(?:_[A-Z0-9]+)+(?:=\S+)?")
_ASSIGNED = re.compile(rf"\b{PREFIX}([A-Z0-9_]+)=(\"[^\"]*\"|'[^']*'|[^\s`#,;]*)")
_METRIC = re.compile(r"\bbaleen_[a-z0-9_]+(?:\{([^}]*)\})?")
_FILE = re.compile(
    r"(?<![\w./:<{-])(?:\.?[\w-]+/)+[\w.-]+\.(?:py|md|jsonl?|toml|lock|ya?ml|pml|mod)\b"
    r"|(?<![\w./:<{-])(?:coordinator|workers|schemas|tests|bench|docs)/(?:[\w-]+/)*(?=[\s`,;)])"
)
_METHODS = r"(?:GET|HEAD|POST|PUT|PATCH|DELETE)"
_CALL = re.compile(
    # After a method, at the begin of a word, or after the port that the API has by default.
    rf"(?:(?P<methods>{_METHODS}(?:\|{_METHODS})*) |(?<![\w.}}-])|(?<=:8640))"
    r"(?P<path>/(?:v1/|jwt/|\.well-known/|healthz|readyz|metrics|schema)[^\s\"'`?,;)\u2500-\u25ff]*)"
    r"(?:\?(?P<query>[^\s\"'`)]*))?"
)
_SERIES = re.compile(r"_(bucket|sum|count)$")
_PLACEHOLDER = re.compile(r"[…$<]|\.\.\.|\bhost:port\b")
_UNITS = {"ms": 0.001, "s": 1.0, "min": 60.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def none(problems: list[str]) -> None:
    """Fail with all problems, one a line."""
    if problems:
        pytest.fail("\n".join(problems), pytrace=False)


def test_links_lead_somewhere() -> None:
    """Every relative link leads to a file of the repository, and every anchor to a heading of it."""
    none([problem for each in ALL for problem in broken_links(each)])


def broken_links(source: Page) -> Iterator[str]:
    for line, target in source.links:
        if re.match(r"[a-z][a-z0-9+.-]*:", target):
            continue
        name, _, anchor = target.partition("#")
        path = (source.path.parent / unquote(name)).resolve() if name else source.path
        if not path.is_relative_to(ROOT) or not path.exists():
            yield f"{source.name}:{line}: {target}: there is no such file"
        elif anchor and path.suffix == ".md" and anchor not in read_page(path).anchors:
            yield f"{source.name}:{line}: {target}: there is no such heading"


@pytest.mark.parametrize(
    ("heading", "slug"),
    [
        ("What holds garbage collection", "what-holds-garbage-collection"),
        ("A registry on `baleen up`", "a-registry-on-baleen-up"),
        ("Who, what & why: it's [here](x.md)", "who-what--why-its-here"),
        ("R1: snake_case, and-hyphens", "r1-snake_case-and-hyphens"),
    ],
)
def test_slugs(heading: str, slug: str) -> None:
    """An anchor is the heading in lower case, without punctuation, with hyphens for spaces."""
    assert slug_of(heading) == slug


def test_code_names_pages_that_exist() -> None:
    """A message, comment or docstring that names a page or a section of it names one that exists."""
    wrong = []
    for path in sources():
        text = path.read_text(encoding="utf-8")
        if "docs/" not in text:
            continue
        names = {name for name in re.findall(r"docs/[A-Za-z0-9_/.-]+\.md", text) if not (ROOT / name).is_file()}
        wrong += [f"{path.relative_to(ROOT)}: there is no {name}" for name in names]
        for string in strings(path):
            for heading, name in re.findall(r"`([^`]+)` in (docs/[A-Za-z0-9_/.-]+\.md)", string):
                if (ROOT / name).is_file() and slug_of(heading) not in read_page(ROOT / name).anchors:
                    wrong.append(f"{path.relative_to(ROOT)}: {name} has no section {heading!r}")
    none(wrong)


def test_files_that_pages_name_exist() -> None:
    """Every file and folder that a page names exists: from the root, from coordinator/, or beside the page."""
    wrong = []
    for each in ALL:
        for number, line in enumerate(each.source.split("\n"), 1):
            for name in _FILE.findall(line):
                places = (ROOT / name, ROOT / "coordinator" / name, each.path.parent / name)
                if name not in OTHER_FILES and not any(place.exists() for place in places):
                    wrong.append(f"{each.name}:{number}: {name}")
    none(wrong)


def test_tasks_that_pages_name_exist() -> None:
    """Every target of `make` and every stage of the gate that a page names exists."""
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    stages = set(re.findall(r"^stage_([a-z_]+)\(\)", (ROOT / ".ci/run").read_text(encoding="utf-8"), re.MULTILINE))
    wrong = []
    for each in ALL:
        texts = [*each.codes, *(Found(block.line, line) for block in each.blocks for line in block.lines)]
        for line, text in texts:
            if match := re.match(r"make ([a-z][a-z-]*)(?: |$)", text):
                wrong += [f"{each.name}:{line}: `{text}`"] if match[1] not in targets else []
            if match := re.search(r"STAGES=\"?([a-z_ ]+)|\.ci/run ([a-z_ ]+)", text):
                named = (match[1] or match[2]).split()
                wrong += [f"{each.name}:{line}: there is no stage {name}" for name in named if name not in stages]
    contributing = read_page(ROOT / "CONTRIBUTING.md")
    for line, cells in rows(contributing):
        for name in re.findall(r"`([a-z_]+)`", cells.get("stage", "")):
            wrong += [f"{contributing.name}:{line}: there is no stage {name}"] if name not in stages else []
    none(wrong)


def test_calls_that_pages_name_exist() -> None:
    """Every HTTP call that a page names exists, with its method and the parameters of its query."""
    wrong = []
    for each in MANUAL:
        texts = [*each.codes, *(Found(block.line, line) for block in each.blocks for line in block.lines)]
        wrong += [
            f"{each.name}:{line}: {match[0]}"
            for line, text in texts
            for match in _CALL.finditer(text)
            if not is_call(match)
        ]
    none(wrong)


def is_call(match: re.Match[str]) -> bool:
    """Whether each method that was written with this path exists, and takes what is in the query."""
    path = match["path"].rstrip("/.…")
    ways = [way for route, way in calls().items() if re.fullmatch(re.sub(r"\{[^}]+\}", "[^/]+", route), path)]
    if path == "/v1":
        return True
    query = set(re.findall(r"(?:^|&)([a-z_]+)=", match["query"] or ""))
    wanted = (match["methods"] or "").lower().split("|")
    return any(all((not each or each in way) and query <= allowed(way, each) for each in wanted) for way in ways)


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("GET /v1/pods/POD", True),
        ("GET /v1/blobs?state=missing&pod=", True),
        ("GET|PUT|DELETE /v1/pins/{digest}", True),
        ("curl http://127.0.0.1:8640/v1/status", True),
        ("/v1/…", True),
        ("PUT /v1/pods/POD", False),
        ("GET|PATCH /v1/pins/{digest}", False),
        ("GET /v1/blobs?colour=", False),
        ("/v1/states", False),
        ("curl http://127.0.0.1:8640/v1/states", False),
    ],
)
def test_wrong_calls_are_found(text: str, *, right: bool) -> None:
    """A path, a method or a parameter that the API does not have is found."""
    match = _CALL.search(text)
    assert match
    assert is_call(match) is right


def allowed(way: dict[str, frozenset[str]], method: str) -> frozenset[str]:
    """Return the parameters that a call takes in its query; without a method those of all."""
    return way[method] if method else frozenset().union(*way.values())


def test_every_call_is_documented() -> None:
    """Every call of the HTTP API is named with its method in docs/API.md."""
    named = {
        (method.lower(), re.sub(r"\{[^}]+\}", "{}", match["path"]))
        for _, code in read_page(ROOT / "docs" / "API.md").codes
        for match in _CALL.finditer(code)
        for method in (match["methods"] or "").split("|")
    }
    known = {(method, re.sub(r"\{[^}]+\}", "{}", route)) for route, way in calls().items() for method in way}
    none(sorted(f"{method.upper()} {path}" for method, path in known - named))


@cache
def calls() -> dict[str, dict[str, frozenset[str]]]:
    """Return the query parameters of every call of the HTTP API, by path and method."""
    paths = create_app(Mock()).openapi_schema.to_schema()["paths"]
    found = {
        path: {
            method: frozenset(each["name"] for each in call.get("parameters", []) if each["in"] == "query")
            for method, call in ways.items()
            if isinstance(call, dict)
        }
        for path, ways in paths.items()
    }
    return found | {"/schema": {"get": frozenset[str]()}}


def test_command_lines_in_blocks_are_complete() -> None:
    """Every command line of `baleen` in a code block is one that the command accepts."""
    wrong = [
        f"{each.name}:{block.line + 1 + offset}: baleen {' '.join(words)}: {problem}"
        for each in ALL
        for block in each.blocks
        for offset, words in command_lines.find_command_lines(block.lines)
        if (problem := command_lines.describe_error(words, complete=True))
    ]
    none(wrong)


def test_commands_in_sentences_exist() -> None:
    """Every command that a sentence names exists, with its options; `gc off` stands for `baleen gc off`."""
    wrong = [
        f"{each.name}:{line}: `{code}`: {problem}"
        for each in ALL
        for line, code in each.codes
        for words in named_commands(code)
        if (problem := command_lines.describe_error(words, complete=False))
    ]
    none(wrong)


def named_commands(code: str) -> Iterator[list[str]]:
    words = code.split()
    if len(words) > 1 and words[0] in command_lines.find_groups():
        yield words
    else:
        yield from command_lines.split_commands(code)


def test_options_in_sentences_exist() -> None:
    """Every long option that a sentence names is one of some command, or of another program that is listed here."""
    known = command_lines.find_options() | OTHER_OPTIONS.keys()
    wrong = [
        f"{each.name}:{line}: `{code}`"
        for each in ALL
        for line, code in each.codes
        if (match := re.match(r"\[?(--[a-z][a-z-]*)", code)) and match[1] not in known
    ]
    none(wrong)


@pytest.mark.parametrize(
    ("text", "complete", "problem"),
    [
        ("baleen gc of --why …", False, "No such command 'of'"),
        ("baleen gcs", False, "No such command 'gcs'"),
        ("baleen gc off --wy x", True, "No such option: --wy"),
        ("baleen gc off", True, "--why"),
        ("baleen status now", True, "unexpected extra argument (now)"),
        ("baleen tokens create ops --role king", True, "king"),
        ("baleen pods list --limit many", True, "--limit"),
        ("true && X=1 .venv/bin/baleen gc nothing | head", True, "No such command 'nothing'"),
        ("baleen pods add|lisst", False, "No such command 'lisst'"),
        ("baleen audit [--repair] [--sampel N]", False, "No such option: --sampel"),
        ('(umask 077; echo "$T" | baleen pods config pod-a --nothing > pod-a.yml)', True, "No such option: --nothing"),
        ("x=$(baleen nothing)", True, "No such command 'nothing'"),
        ("baleen --nothing", True, "No such option: --nothing"),
    ],
)
def test_wrong_command_lines_are_found(text: str, *, complete: bool, problem: str) -> None:
    """A command, option, argument or value that the command does not accept is found."""
    found = [command_lines.describe_error(words, complete=complete) for words in command_lines.split_commands(text)]
    assert [each for each in found if each and problem in each], found


@pytest.mark.parametrize(
    ("text", "complete"),
    [
        ("baleen pods", False),
        ("baleen gc off", False),
        ("baleen pods config --token-file", False),
        ("baleen …", False),
        ("baleen COMMAND --help", True),
        ("baleen gc off --help", True),
        ("baleen --version", True),
        ("baleen gc on|off --why …", True),
        ("baleen blob show <digest>   # what needs it", True),
        ("baleen pods doctor NAME [--wait 30s]", True),
        ("baleen survey s3://a/root file:///b --plot saving.svg > out.txt", True),
    ],
)
def test_right_command_lines_are_accepted(text: str, *, complete: bool) -> None:
    """Placeholders, alternatives, optional parts, comments and redirections are understood."""
    found = [command_lines.describe_error(words, complete=complete) for words in command_lines.split_commands(text)]
    assert found, "there is no command line"
    assert found == [None] * len(found)


def test_settings_that_pages_name_exist() -> None:
    """Every setting that a page names exists, with its prefix anywhere and without it in inline code."""
    wrong = []
    for each in ALL:
        for number, line in enumerate(each.source.split("\n"), 1):
            names = _SETTING_NAME.finditer(line)
            wrong += [f"{each.name}:{number}: {match[0]}" for match in names if unknown(match[1])]
        for number, code in each.codes:
            if each in MANUAL and _CAPITALS.fullmatch(code) and unknown(code.partition("=")[0].removeprefix(PREFIX)):
                wrong.append(f"{each.name}:{number}: `{code}`")
    none(wrong)


def unknown(name: str) -> bool:
    """Whether a name in capitals, or a prefix that ends with an underscore, is of no setting."""
    if name in OTHER_CAPITALS or PREFIX + name in OTHER_CAPITALS or name in settings_table.choices():
        return False
    return not any(
        each == name.lower() or (name[-1:] in {"", "_"} and each.startswith(name.lower()))
        for each in settings_table.NAMES
    )


def test_settings_have_values_that_are_accepted() -> None:
    """Every value that a page gives to a setting is one that the setting accepts."""
    wrong = []
    for each in ALL:
        for number, line in enumerate(each.source.split("\n"), 1):
            for name, value in _ASSIGNED.findall(line):
                if (
                    name.lower() not in settings_table.NAMES
                    or not value
                    or re.search(r"[…$<]|\.\.\.|\bhost:port\b", value)
                ):
                    continue
                try:
                    _convert_value(name.lower(), value.strip("\"'"), lambda _: PREFIX + name)  # noqa: B023 - called now
                except SettingsError as error:
                    wrong.append(f"{each.name}:{number}: {error}")
    none(wrong)


def test_settings_table_is_current() -> None:
    """The settings table has every setting once, with its default and its allowed values, and says what each is for."""
    places = [(each, match) for each in MANUAL for match in settings_table.MARKED.finditer(each.source)]
    shown = Counter(name for _, match in places for name in settings_table.selected(match["patterns"]))
    wrong = [f"{name.upper()} is in {shown[name]} tables" for name in settings_table.NAMES if shown[name] != 1]
    meanings: dict[str, str] = {}
    for each, match in places:
        meanings |= settings_table.meanings_of(match["table"])
        if each.source != settings_table.rewritten(each.source):
            wrong.append(f"{each.name} is not current")
    wrong += [f"{name.upper()} is not described" for name in meanings if meanings[name] in settings_table.UNDESCRIBED]
    repeated = {meaning for meaning, times in Counter(meanings.values()).items() if times > 1}
    wrong += [f"{name.upper()} has the meaning of another setting" for name in meanings if meanings[name] in repeated]
    if wrong:
        none([*sorted(wrong), "Run `.venv/bin/python -m tests.settings_table PAGE`, and see its docstring."])


def test_settings_table_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The writer keeps what a page says of a setting, corrects the rest, and marks what nobody has described."""
    path = tmp_path / "page.md"
    path.write_text(
        "<!-- settings: gc_every gc_limit_* -->\n<!-- end of settings -->\n\n"
        "| setting | default | what it is |\n|---|---|---|\n"
        "| `GC_EVERY` | 5 | how often; see [a](b.md) |\n"
    )
    monkeypatch.setattr("sys.argv", ["settings_table", str(path)])
    settings_table.main()
    written = path.read_text()
    assert "| `GC_EVERY` | `1h` | 1s to 365d | how often; see [a](b.md) |\n" in written
    assert f"| `GC_LIMIT_PERCENT` | `10` | 1 to 100 percent | {settings_table.UNDESCRIBED} |\n" in written
    assert settings_table.rewritten(written) == written


def test_defaults_and_floors_in_other_tables() -> None:
    """A table with a column `default` or `floor` beside settings has those of the code, in any unit."""
    floors = {name: floor for name, floor, _ in FLOORS}
    wrong = []
    for each in MANUAL:
        for line, names, cells in setting_rows(each):
            for column, values in (("default", vars_of(Settings())), ("floor", floors)):
                if (cell := cells.get(column)) is None:
                    continue
                given = [quantity(part) for part in cell.replace("`", "").split(", ")]
                given = given * len(names) if len(given) == 1 else given
                wrong += [
                    f"{each.name}:{line}: {column} of {name}: {cell}"
                    for name, value in zip(names, given, strict=False)
                    if name in values and not agrees(value, values[name])
                ]
    none(wrong)


def setting_rows(source: Page) -> Iterator[tuple[int, list[str], dict[str, str]]]:
    """Yield the line, the settings, and the cells by column of each row that begins with settings."""
    marked = {
        source.source.count("\n", 0, match.start()) + 1 + offset
        for match in settings_table.MARKED.finditer(source.source)
        for offset in range(match[0].count("\n") + 1)
    }
    for number, cells in rows(source):
        names = [name.lower() for name in re.findall(rf"`(?:{PREFIX})?([A-Z][A-Z0-9_]+)`", next(iter(cells.values())))]
        names = [name for name in names if name in settings_table.NAMES]
        if names and number not in marked:
            yield number, names, cells


def rows(source: Page) -> Iterator[tuple[int, dict[str, str]]]:
    """Yield the line and the cells by column of each row of each table."""
    head: list[str] = []
    for number, line in enumerate(source.text.split("\n"), 1):
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] if line.startswith("|") else []
        if cells and head:
            yield number, dict(zip(head, cells, strict=False))
        else:
            head = [cell.lower() for cell in cells]


def quantity(text: str) -> float | str | None:
    """Return seconds of a time, a number, a word, or nothing where a cell says that there is no default."""
    text = text.strip()
    if match := re.fullmatch(r"([0-9.]+) ?(ms|s|min|m|h|d)", text):
        return float(match[1]) * _UNITS[match[2]]
    if re.fullmatch(r"[0-9]+", text):
        return float(text)
    return None if text in {"", "-", settings_table.NOTHING} else text


def agrees(given: float | str | None, value: object) -> bool:
    if value is None or value == "":
        # Words say where the value comes from then.
        return not isinstance(given, float)
    if isinstance(value, bool):
        return given == str(value).lower()
    return given == value


def vars_of(values: Settings) -> dict[str, object]:
    return {name: getattr(values, name) for name in settings_table.NAMES}


def test_metrics_that_pages_name_exist() -> None:
    """Every metric that a page names exists in the code, with the labels that the page gives it."""
    known = metrics()
    wrong = []
    for each in ALL:
        for number, line in enumerate(each.source.split("\n"), 1):
            for match in _METRIC.finditer(line):
                name = match[0].partition("{")[0]
                labels = known.get(name, known.get(_SERIES.sub("", name)))
                if name in OTHER_METRICS:
                    continue
                named = set(re.findall(r"([a-z_]+)\s*(?:=~?|!=|!~|,|$)", re.sub(r'"[^"]*"', "", match[1] or "")))
                if labels is None:
                    wrong.append(f"{each.name}:{number}: there is no metric {name}")
                elif named - labels:
                    wrong.append(f"{each.name}:{number}: {name} has no label {', '.join(sorted(named - labels))}")
    none(wrong)


def test_every_metric_is_documented() -> None:
    """Every metric of the code is named in a page for operators."""
    named = {match[0].partition("{")[0] for each in MANUAL for match in _METRIC.finditer(each.source)}
    named |= {_SERIES.sub("", name) for name in named}
    none(sorted(metrics().keys() - named))


@cache
def metrics() -> dict[str, frozenset[str]]:
    """Return the labels of every metric, by its name, as the code declares them."""
    found: dict[str, frozenset[str]] = {}
    for path in sources("coordinator", "workers"):
        text = path.read_text(encoding="utf-8")
        if "from prometheus_client import" not in text:
            continue
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in _METRIC_KINDS:
                given = [ast.literal_eval(each) for each in node.args if isinstance(each, ast.Constant | ast.List)]
                found[given[0]] = frozenset(next((each for each in given if isinstance(each, list)), []))
    return found


def sources(*folders: str) -> Iterator[Path]:
    for folder in folders or ("coordinator", "workers", "schemas", "bench"):
        yield from sorted((ROOT / folder).rglob("*.py"))


def strings(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield " ".join(node.value.split())
