"""The house rules of docs/ARCHITECTURE.md, held against the real imports."""

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("coordinator", "workers", "schemas")

#: Packages and modules of `coordinator` from the lowest up: each imports only those of earlier lines.
LAYERS = (
    ("errors",),
    ("domain",),
    ("settings",),
    ("telemetry", "client", "db", "storage", "registry", "router"),
    ("survey", "ingest"),
    ("kafka", "jobs"),
    ("table", "tokens"),
    ("dead_letters", "mounts", "pods"),
    ("gitlab", "stack", "reconcile"),
    ("gc",),
    ("leftovers", "lookup", "doctor"),
    ("audit", "kinds"),
    ("api",),
    ("compose",),
    ("demo",),
    ("commands",),
    ("cli",),
)
#: Of lines in one package: beyond that it is more than one subject.
PACKAGE_LINES = 4000

#: SQL stands beside the rule that it serves.
SQL = tuple(
    f"coordinator/{name}"
    for name in (
        "audit",
        "db",
        "dead_letters",
        "doctor",
        "gc",
        "gitlab",
        "jobs",
        "leftovers",
        "lookup",
        "mounts",
        "pods",
        "reconcile",
        "table",
        "tokens",
    )
)
#: Which folders may import a library that speaks to the outside. Nobody else may.
DRIVERS = {
    "sqlalchemy": SQL,
    "alembic": ("coordinator/db",),
    "psycopg": (*SQL, "workers/processor.py", "workers/build.py"),
    "boto3": ("coordinator/storage",),
    "botocore": ("coordinator/storage",),
    "kafka": ("coordinator/kafka",),
    "aiokafka": ("coordinator/kafka", "workers/transport.py"),
    "faust": ("workers",),
    "litestar": ("coordinator/api",),
    "uvicorn": ("coordinator/api",),
    "httpx": (
        "coordinator/registry",
        "coordinator/pods/prober.py",
        "coordinator/mounts",
        "coordinator/tokens",
        "coordinator/client.py",
        "coordinator/commands",
        "coordinator/cli.py",
    ),
    "jwt": ("coordinator/tokens",),
    "cryptography": ("coordinator/tokens",),
    "PIL": ("coordinator/commands/plot.py",),
    "typer": ("coordinator/cli.py", "coordinator/commands"),
    "rich": ("coordinator/cli.py", "coordinator/commands", "coordinator/demo"),
}

STANDARD_FOR_DOMAIN = {
    "collections",
    "dataclasses",
    "datetime",
    "enum",
    "functools",
    "hashlib",
    "ipaddress",
    "itertools",
    "json",
    "math",
    "re",
    "typing",
}


def sources(*folders: str) -> Iterator[tuple[str, ast.Module]]:
    for folder in folders:
        for path in sorted((ROOT / folder).rglob("*.py")):
            yield path.relative_to(ROOT).as_posix(), parsed(path)


@cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


@cache
def imports(tree: ast.Module) -> tuple[str, ...]:
    return tuple(_imports(tree))


def _imports(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def inside(path: str, folders: tuple[str, ...]) -> bool:
    return any(path == folder or path.startswith(f"{folder}/") for folder in folders)


@pytest.mark.parametrize("driver", DRIVERS)
def test_drivers_stay_in_their_package(driver: str) -> None:
    """A library that speaks to the outside is imported only in the package that owns it."""
    users = [path for path, tree in sources(*PACKAGES) if driver in {name.split(".")[0] for name in imports(tree)}]
    assert users, f"nobody imports {driver} any more: drop it from the table"
    assert [path for path in users if not inside(path, DRIVERS[driver])] == []


def test_imports_lead_down() -> None:
    """A package imports only those below it, so that there is no circle, and each is in the picture."""
    rank = {name: number for number, layer in enumerate(LAYERS) for name in layer}
    for path, tree in sources("coordinator"):
        here = Path(path).with_suffix("").parts[1]
        if here == "__init__":
            continue
        for name in imports(tree):
            package, _, rest = name.partition(".")
            there = rest.partition(".")[0]
            if package == "coordinator" and there in rank and there != here:
                assert rank[there] < rank[here], f"{path} imports {name}, which is not below it"
        assert here in rank, f"{path} has no layer"


def test_packages_are_of_one_subject() -> None:
    """No package has more lines than somebody reads in a day."""
    lines: dict[str, int] = {}
    for path, _ in sources("coordinator"):
        package = Path(path).parts[1]
        if "/migrations/" not in path:
            lines[package] = lines.get(package, 0) + len((ROOT / path).read_text().splitlines())
    assert {package: count for package, count in lines.items() if count > PACKAGE_LINES} == {}


def test_domain_is_pure() -> None:
    """The domain imports a few modules of the standard library, itself and the errors, and nothing that does I/O."""
    for path, tree in sources("coordinator/domain"):
        for name in imports(tree):
            own = name.startswith(("coordinator.domain", "coordinator.errors")) or name == "coordinator"
            assert own or name.split(".")[0] in STANDARD_FOR_DOMAIN, f"{path} imports {name}"


def test_coordinator_never_imports_workers() -> None:
    """Whoever asks for counts needs no stream processor."""
    for path, tree in sources("coordinator", "schemas"):
        assert not any(name.split(".")[0] == "workers" for name in imports(tree)), path


def test_schemas_know_nobody() -> None:
    """What crosses a process boundary can be read without the rest of Baleen."""
    for path, tree in sources("schemas"):
        assert not any(name.split(".")[0] in {"coordinator", "workers"} for name in imports(tree)), path


#: Context managers that give a connection of the database.
CONNECTIONS = {"reading", "writing", "changing", "use"}


def test_nothing_blocks_an_event_loop() -> None:
    """No asynchronous function uses a connection: it would block all others of its loop."""
    for path, tree in sources(*PACKAGES):
        for function in (node for node in ast.walk(tree) if isinstance(node, ast.AsyncFunctionDef)):
            managers = [item.context_expr for node in own_nodes(function, ast.With) for item in node.items]
            names = {ast.unparse(each.func).split(".")[-1] for each in managers if isinstance(each, ast.Call)}
            assert not names & CONNECTIONS, f"{path} {function.name}"


def test_handlers_that_await_nothing_run_in_threads() -> None:
    """A handler of the API is asynchronous only if it awaits something."""
    for path, tree in sources("coordinator/api"):
        for function in (node for node in ast.walk(tree) if isinstance(node, ast.AsyncFunctionDef)):
            awaits = list(own_nodes(function, ast.Await, ast.AsyncWith, ast.AsyncFor))
            calls = list(own_nodes(function, ast.Call))
            assert awaits or not calls or function.name in NEVER_BLOCK, f"{path} {function.name}"


#: Asynchronous functions of the API that wait for nothing.
NEVER_BLOCK = {"refuse_unknown_parameters", "get_keys", "healthz"}


def own_nodes(function: ast.AsyncFunctionDef, *kinds: type[Any]) -> Iterator[Any]:
    """The function's nodes of these kinds, without those of functions inside it."""
    waiting: list[ast.AST] = list(function.body)
    while waiting:
        node = waiting.pop()
        if isinstance(node, kinds):
            yield node
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            waiting += ast.iter_child_nodes(node)


def test_settings_alone_read_the_environment() -> None:
    """A setting has one door. The stack's child processes inherit the environment, which is not reading it."""
    for path, tree in sources(*PACKAGES):
        if path == "coordinator/settings.py" or path.startswith("coordinator/stack/"):
            continue
        names = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
        assert not names & {"environ", "getenv"}, path


def test_adapters_are_built_in_one_place() -> None:
    """Only compose/, and the worker's own, decide which real service stands behind a port."""
    builders = ("coordinator/compose", "workers/build.py", "coordinator/stack")
    adapters = {
        "S3ObjectStore",
        "FileObjectStore",
        "EventProducer",
        "LogInspector",
        "Connections",
        "KeyFile",
        "Issuers",
    }
    for path, tree in sources(*PACKAGES):
        if inside(path, builders):
            continue
        called = {
            node.func.id for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
        }
        assert not called & adapters, path


def test_every_module_says_what_it_is() -> None:
    """A module opens with what it decides."""
    for path, tree in sources(*PACKAGES):
        if "/migrations/versions/" not in path:
            assert ast.get_docstring(tree), path


#: Calls that replace an attribute or an entry of their first argument.
PATCHES = {"setattr", "delattr", "setitem", "delitem", "patch", "object", "dict", "multiple"}
#: It makes a whole process serial, and its clocks virtual, for good.
MAY_PATCH = {"tests/simulation/process.py"}


def test_tests_patch_nothing_of_ours() -> None:
    """Sizes, pauses, clocks and faults are arguments. A patched name is one that no refactoring may move.

    The simulation's mutants find what they switch off by its name, on purpose (tests/simulation/rules.py).
    """
    found = {path: lines for path, tree in sources("tests", "bench") if (lines := patched(tree))}
    assert found.keys() == MAY_PATCH, found


def test_a_patch_is_noticed() -> None:
    """Whether it names the product in words, by an import, or by an assignment; other libraries' names pass."""
    tree = ast.parse(
        "from coordinator.gc import view as queries\n"
        "import coordinator.gc.view\n"
        "import os\n"
        "monkeypatch.setattr(queries, 'WALK', 2)\n"
        "monkeypatch.setattr('coordinator.gc.view.WALK', 2)\n"
        "mock.patch.object(queries.FiguresReader, 'read')\n"
        "mock.patch('workers.app.run')\n"
        "queries.WALK = 2\n"
        "setattr(coordinator.gc.view, 'WALK', 2)\n"
        "monkeypatch.setattr(os, 'open', 2)\n"
        "queries.FiguresReader(2).read()\n"
    )
    assert list(patched(tree)) == [4, 5, 6, 7, 8, 9]


def patched(tree: ast.Module) -> list[int]:
    """The lines that replace an attribute of a module, class or object of ours."""
    ours = {
        alias.asname or alias.name.split(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in node.names
        if is_ours(node.module or "" if isinstance(node, ast.ImportFrom) else alias.name)
    }
    targets: list[tuple[int, ast.expr]] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and node.args and name_of(node.func) in PATCHES:
            targets.append((node.lineno, node.args[0]))
        elif isinstance(node, ast.Assign):
            targets += [(node.lineno, each) for each in node.targets if isinstance(each, ast.Attribute)]
    return sorted(line for line, target in targets if root_of(target) in ours or is_ours(root_of(target)))


def is_ours(name: str) -> bool:
    return name.split(".", maxsplit=1)[0] in PACKAGES


def name_of(function: ast.expr) -> str:
    return function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")


def root_of(target: ast.expr) -> str:
    """The name that an expression of attributes begins with, or the text of a string."""
    while isinstance(target, ast.Attribute):
        target = target.value
    if isinstance(target, ast.Constant):
        return str(target.value)
    return getattr(target, "id", "")
