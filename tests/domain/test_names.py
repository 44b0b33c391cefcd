"""Names of the OCI distribution specification."""

import contextlib

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from coordinator.domain.names import (
    REPOSITORY_NAME_LIMIT,
    Digest,
    format_digest,
    parse_digest,
    parse_pod,
    parse_repository,
)
from coordinator.errors import InvalidNameError

component = st.from_regex(r"[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*", fullmatch=True)


@given(st.binary(min_size=32, max_size=32))
def test_digest_round_trip(raw: bytes) -> None:
    """A digest is formatted as it was parsed."""
    assert parse_digest(format_digest(Digest(raw))) == raw


@pytest.mark.parametrize(
    "text",
    [
        "",
        "sha256:",
        "a" * 64,
        "sha256:" + "a" * 63,
        "sha256:" + "a" * 65,
        "sha256:" + "A" * 64,
        "sha256:" + "g" * 64,
        "SHA256:" + "a" * 64,
        "sha512:" + "a" * 128,
        " sha256:" + "a" * 64,
        "sha256:" + "a" * 64 + "\n",
        "sha256:" + "\u0661" * 64,
    ],
)
def test_no_digest(text: str) -> None:
    """Anything but sha256 and 64 lower-case hex digits is refused."""
    with pytest.raises(InvalidNameError):
        parse_digest(text)


@settings(max_examples=30)
@given(st.lists(component, min_size=1, max_size=5).map("/".join).filter(lambda t: len(t) <= REPOSITORY_NAME_LIMIT))
def test_repository(text: str) -> None:
    """A path of components is a repository name, unchanged."""
    assert parse_repository(text) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "/",
        "a/",
        "/a",
        "a//b",
        "A",
        "a b",
        "a_",
        "_a",
        "a..b",
        "a._b",
        "a___b",
        "-a",
        "a-",
        "a\n",
        "a/../b",
        "\u00e4",
        "\u0661",
        "a\0",
        "\ud800",
        "a:b",
        "a@b",
        "a" * (REPOSITORY_NAME_LIMIT + 1),
    ],
)
def test_no_repository(text: str) -> None:
    """A name that the specification does not allow is refused, and the message can be written anywhere."""
    with pytest.raises(InvalidNameError) as refused:
        parse_repository(text)
    str(refused.value).encode()


@pytest.mark.parametrize("text", ["a", "pod-a", "0", "a" * 63, "a--b"])
def test_pod(text: str) -> None:
    """A DNS label is a pod's name."""
    assert parse_pod(text) == text


@pytest.mark.parametrize("text", ["", "-", "-a", "a-", "A", "a.b", "a/b", "a_b", "a" * 64, "a\n", "\u00e4"])
def test_no_pod(text: str) -> None:
    """Anything that is no DNS label is refused."""
    with pytest.raises(InvalidNameError):
        parse_pod(text)


@given(st.text())
@example("a" * 300)
def test_any_text(text: str) -> None:
    """Any text is either accepted unchanged or refused with InvalidNameError."""
    for parse in (parse_repository, parse_pod):
        with contextlib.suppress(InvalidNameError):
            assert parse(text) == text
    with contextlib.suppress(InvalidNameError):
        assert format_digest(parse_digest(text)) == text
