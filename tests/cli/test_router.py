"""`baleen router-config` writes the registered pods as a file that nginx or Envoy accepts."""

import itertools
import json
import re
import stat
import subprocess
from pathlib import Path

import pytest

from coordinator.stack import nginx
from tests.api.harness import Served
from tests.cli.conftest import Command
from tests.services import envoy

#: A registry is one pod's.
PORTS = itertools.count(20_001)


def add(baleen: Command, name: str, *registries: str) -> None:
    options = [option for url in registries for option in ("--registry", url)]
    baleen("pods", "add", name, "--prefix", f"{name}-of-router", "--no-check", *options).ok()


def add_another(baleen: Command) -> None:
    port = next(PORTS)
    add(baleen, f"router-{port}", f"http://127.0.0.1:{port}")


def test_registered_pods_are_routed(api: Served, baleen: Command) -> None:
    """The configuration has the pods and the address of Baleen; a pod without a registry is reported."""
    add(baleen, "router-a", "http://10.77.7.7:5001", "http://10.77.7.7:5002")
    add(baleen, "router-none")
    done = baleen("router-config").ok()
    assert '"~^router-a-of-router(?:/|\\z)" "http://pod_router-a";' in done.out
    assert "    server 10.77.7.7:5001 max_fails=0;\n    server 10.77.7.7:5002 max_fails=0;\n" in done.out
    assert f"server {api.url.removeprefix('http://')} max_fails=1" in done.out
    assert "router-none-of-router" not in done.out
    assert "Pod router-none has no registry" in done.err
    assert baleen.environment["token"] not in done.out
    document = baleen("router-config", "--json").json
    assert document["configuration"] == done.out
    assert "router-a" in document["pods"]
    assert "router-none" in document["without_registry"]


def test_baleen_is_waited_for_where_bytes_are_relayed(baleen: Command) -> None:
    """The router waits longer for a mount if there is a pod of kind relay, or as an option says."""
    add(baleen, "router-link", "http://10.77.7.7:5006")
    short = baleen("router-config").out
    baleen("pods", "add", "router-relay", "--prefix", "router-relay", "--kind", "relay", "--no-check").ok()
    long = baleen("router-config", mount_timeout="20s").out
    document = baleen("router-config", "--baleen-timeout", "7").out
    waits = [_wait(text) for text in (short, long, document)]
    assert waits[1:] == [25, 7]
    assert waits[0] in {5, 35}


def _wait(text: str) -> int:
    """Seconds that the router waits for a mount."""
    found = re.search(r"location = /\.router/mount \{.*?proxy_read_timeout (\d+)s;", text, re.DOTALL)
    assert found is not None
    return int(found[1])


def test_a_file_is_replaced_only_when_it_changes(baleen: Command) -> None:
    """The command says how to reload, or that nothing changed, and replaces the file atomically."""
    add(baleen, "router-b", "http://10.77.7.7:5003")
    file = baleen.directory / "router.conf"
    first = baleen("router-config", "--out", str(file), "--whole")
    assert first.code == 0
    assert f"`nginx -c {file}`" in first.err
    assert f"nginx -s reload -c {file}" in first.err
    assert stat.S_IMODE(file.stat().st_mode) == 0o644
    written = file.stat().st_ino
    again = baleen("router-config", "--out", str(file), "--whole", "--json")
    assert json.loads(again.out)["changed"] is False
    assert file.stat().st_ino == written
    link = baleen.directory / "enabled.conf"
    link.symlink_to(file)
    assert baleen("router-config", "--out", str(link)).code == 0
    assert link.is_symlink()
    assert file.stat().st_ino != written
    assert {path.name for path in baleen.directory.glob("*router.conf*")} == {"router.conf"}


def test_envoy_gets_the_same(api: Served, baleen: Command) -> None:
    """For Envoy the configuration is one JSON document, and the command says how to validate it."""
    add(baleen, "router-e", "http://10.77.7.7:5007")
    done = baleen("router-config", "--for", "envoy").ok()
    known = {each["name"]: each for each in json.loads(done.out)["static_resources"]["clusters"]}
    assert '"address": "10.77.7.7"' in json.dumps(known["pod_router-e"])
    assert f'"port_value": {api.url.rpartition(":")[2]}' in json.dumps(known["router_coordinator"])
    assert "/var/log/envoy/baleen-router.log" in done.out
    assert baleen.environment["token"] not in done.out
    file = baleen.directory / "router.json"
    written = baleen("router-config", "--for", "envoy", "--out", str(file))
    assert f"`envoy --mode validate -c {file}`" in written.err
    assert file.read_text() == done.out


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("--listen", "5000"), 2, "--listen"),
        (("--listen", "[::::]:5000"), 2, "--listen"),
        (("--for", "envoy", "--listen", "localhost:5000"), 2, "use an address, such as 127.0.0.1:5000"),
        (("--tls-cert", "/a.pem"), 2, "--tls-key"),
        (("--tls-cert", "a.pem", "--tls-key", "/a.key"), 2, "--tls-cert"),
        (("--issuer", "somebody"), 2, "--issuer"),
        (("--fallback-issuer", "http://issuer/jwt/auth"), 2, "--issuer baleen"),
        (("--baleen", "http://baleen/path"), 2, "--baleen"),
        (("--baleen", "http://a", "--baleen", "https://b"), 2, "--baleen"),
        (("--baleen-timeout", "0"), 2, "--baleen-timeout"),
        (("--out", "/nowhere/router.conf"), 1, "--out"),
    ],
)
def test_what_cannot_be_meant_is_reported(baleen: Command, arguments: tuple[str, ...], code: int, message: str) -> None:
    """A malformed option is refused with one sentence that names it."""
    add_another(baleen)
    done = baleen("router-config", *arguments)
    assert (done.code, done.out) == (code, "")
    assert message in done.err.splitlines()[-1]


def accepts(*command: str | Path) -> None:
    tried = subprocess.run(command, capture_output=True, text=True, check=False)
    assert tried.returncode == 0, tried.stderr
    assert "[warn" not in tried.stderr


options = pytest.mark.parametrize(
    "options",
    [
        (),
        ("--issuer", "baleen", "--fallback-issuer", "http://127.0.0.1:9/jwt/auth"),
        ("--issuer", "https://localhost/jwt/auth", "--public-scheme", "https", "--listen", "[::1]:5000"),
    ],
)


@pytest.mark.registry
@options
@pytest.mark.parametrize("whole", [True, False])
def test_nginx_takes_it(baleen: Command, tmp_path: Path, options: tuple[str, ...], whole: bool) -> None:
    """`nginx -t` accepts a whole file, and one that another includes."""
    add_another(baleen)
    file = tmp_path / "router.conf"
    places = ("--state-dir", str(tmp_path), "--log-file", str(tmp_path / "access.log"))
    kind = "--whole" if whole else "--server-only"
    baleen("router-config", "--out", str(file), kind, *places, *options).ok()
    if not whole:
        around = tmp_path / "nginx.conf"
        around.write_text(f'pid "{tmp_path}/nginx.pid"; events {{}} http {{ include "{file}"; }}')
        file = around
    accepts(nginx.require_program(), "-t", "-e", str(tmp_path / "error.log"), "-c", str(file))


@pytest.mark.registry
@options
def test_envoy_takes_it(baleen: Command, tmp_path: Path, options: tuple[str, ...]) -> None:
    """`envoy --mode validate` accepts the file."""
    add_another(baleen)
    file = tmp_path / "router.json"
    baleen("router-config", "--for", "envoy", "--out", str(file), "--log-file", str(tmp_path / "log"), *options).ok()
    accepts(envoy.require_program(), "--mode", "validate", "-c", str(file), "--log-level", "warning")
