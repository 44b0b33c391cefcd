"""A registry is reached at a given address under its own name, and failures are named."""

import contextlib
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from coordinator.domain.hosts import is_address
from coordinator.errors import SettingsError, UnavailableError
from coordinator.pods.addresses import resolve
from coordinator.registry.client import RegistryClient, RegistryGoneError, RegistryUnreachableError
from coordinator.registry.images import sha256_digest
from tests.services.certificates import make_certificate
from tests.support.guarded_registry import GuardedRegistry

DIGEST = sha256_digest(b"content")
NAME = "registry.invalid"


@pytest.fixture
def ca_file(tmp_path: Path) -> Path:
    make_certificate(NAME, tmp_path / "server.pem", tmp_path / "ca.pem")
    return tmp_path / "ca.pem"


@pytest.fixture
def secured(ca_file: Path) -> Iterator[GuardedRegistry]:
    with GuardedRegistry(ca_file.with_name("server.pem")) as registry:
        registry.good = {None}
        yield registry


def test_at_an_address_under_its_name(secured: GuardedRegistry, ca_file: Path) -> None:
    """TLS and the Host header name the registry, whatever address is used, and its certificate is verified."""
    url = f"https://{NAME}:{secured.port}"
    with RegistryClient(url, address="127.0.0.1", ca_file=str(ca_file)) as client:
        assert client.has_manifest("a", DIGEST)
        client.push_blob("a", b"content")
    assert {request.host for request in secured.requests} == {f"{NAME}:{secured.port}"}
    assert set(secured.names) == {NAME}


@pytest.mark.parametrize(("name", "trusted"), [(NAME, False), ("another.invalid", True)])
def test_a_certificate_that_is_not_accepted(secured: GuardedRegistry, ca_file: Path, name: str, trusted: bool) -> None:
    """An untrusted certificate, or one of another name, is reported as that, and no request is sent."""
    ca = str(ca_file) if trusted else None
    with RegistryClient(f"https://{name}:{secured.port}", address="127.0.0.1", ca_file=ca) as client:
        with pytest.raises(RegistryUnreachableError, match="certificate is not accepted") as failed:
            client.has_manifest("a", DIGEST)
        assert not isinstance(failed.value, RegistryGoneError)
    assert secured.requests == []


def test_where_nobody_speaks_tls() -> None:
    """An https:// URL of a port without TLS is reported as that."""
    with GuardedRegistry() as plain:
        url = plain.url.replace("http://", "https://")
        with (
            RegistryClient(url) as client,
            pytest.raises(RegistryUnreachableError, match="does not speak TLS") as failed,
        ):
            client.ping()
        assert not isinstance(failed.value, RegistryGoneError)
        assert "EPERM" not in str(failed.value)
        assert plain.requests == []


def test_tls_that_ends_early() -> None:
    """A port that closes the connection is reported without an error of the system."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def end() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(65536)

        thread = threading.Thread(target=end)
        thread.start()
        url = f"https://127.0.0.1:{listener.getsockname()[1]}"
        with RegistryClient(url) as client, pytest.raises(RegistryUnreachableError, match="no TLS could be agreed"):
            client.ping()
        thread.join()


def test_where_nobody_listens() -> None:
    """A refused connection is distinguished from all other failures."""
    with GuardedRegistry() as gone:
        url = gone.url
    with RegistryClient(url) as client, pytest.raises(RegistryGoneError, match="ECONNREFUSED"):
        client.has_manifest("a", DIGEST)
    with RegistryClient(f"http://{NAME}:5000") as client:
        with pytest.raises(RegistryUnreachableError, match="name is not known") as failed:
            client.ping()
        assert not isinstance(failed.value, RegistryGoneError)


def test_a_redirect_to_where_nobody_listens() -> None:
    """A redirect to a port that refuses does not mean that the registry is gone."""
    with GuardedRegistry() as gone:
        url = gone.url
    with GuardedRegistry() as registry, RegistryClient(registry.url) as client:
        registry.good = {None}
        registry.redirects[f"/v2/a/manifests/{DIGEST}"] = f"{url}/there"
        with pytest.raises(RegistryUnreachableError) as failed:
            client.has_manifest("a", DIGEST)
        assert not isinstance(failed.value, RegistryGoneError)
        assert url in str(failed.value)


def test_the_certificates_file_is_missing(tmp_path: Path) -> None:
    """A file of certificates that cannot be read is reported by the setting's name."""
    (tmp_path / "empty.pem").write_text("nothing")
    for file in ("none.pem", "empty.pem"):
        with pytest.raises(SettingsError, match="BALEEN_REGISTRY_CA_FILE"):
            RegistryClient("https://registry", ca_file=str(tmp_path / file))


def test_names_are_looked_up() -> None:
    """An address resolves to itself, and an unknown name to nothing."""
    assert all(is_address(text) for text in ("127.0.0.1", "2001:db8::1"))
    assert not any(is_address(text) for text in ("registry", "1.2.3"))
    assert resolve("127.0.0.1", 80) == ["127.0.0.1"]
    assert "127.0.0.1" in resolve("localhost", 80)
    with contextlib.suppress(UnavailableError):  # where no resolver could know
        assert list(resolve(NAME, 80)) == []
