"""Which pod owns a repository."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.domain.names import PodName, RepositoryName
from coordinator.domain.pods import check_prefixes, owner_of, parse_registry, parse_token_url, prefixes_of
from coordinator.errors import ConflictError, UsageError

A, B = PodName("pod-a"), PodName("pod-b")
OWNERS = {"team": A, "other/deep": B}

paths = st.lists(st.sampled_from("ab"), min_size=1, max_size=3).map(lambda parts: RepositoryName("/".join(parts)))


@pytest.mark.parametrize(
    ("repository", "owner"),
    [
        ("team", A),
        ("team/app", A),
        ("team/app/deep", A),
        ("teams", None),
        ("team-a/app", None),
        ("a/team", None),
        ("other", None),
        ("other/deep", B),
        ("other/deep/er", B),
        ("other/deeper", None),
    ],
)
def test_owner(repository: str, owner: PodName | None) -> None:
    """A prefix owns itself and what is below it, never a name that merely begins like it."""
    assert owner_of(RepositoryName(repository), OWNERS) == owner


def test_prefixes_of() -> None:
    """Every prefix that would own a repository, the longest first."""
    assert prefixes_of(RepositoryName("a/b/c")) == ["a/b/c", "a/b", "a"]


@pytest.mark.parametrize("wanted", [["team"], ["team/app"], ["other"], ["other/deep"], ["new", "new/x"], ["n", "n"]])
def test_overlap(wanted: list[str]) -> None:
    """A prefix that contains, or lies in, one that is owned or in the same request is refused."""
    with pytest.raises(ConflictError, match=wanted[-1]):
        check_prefixes([RepositoryName(name) for name in wanted], OWNERS)


def test_overlap_with_what_is_its_own() -> None:
    """A pod that adds a prefix below or above its own gets a message that says so, not the advice to choose another."""
    with pytest.raises(ConflictError, match="owns 'team/app' already: its prefix is 'team'"):
        check_prefixes([RepositoryName("team/app")], OWNERS, A)
    with pytest.raises(ConflictError, match="owns 'other/deep' already, which lies in 'other'"):
        check_prefixes([RepositoryName("other")], OWNERS, B)
    with pytest.raises(ConflictError, match="choose another"):
        check_prefixes([RepositoryName("team/app")], OWNERS, B)


@pytest.mark.parametrize("wanted", [["new", "new/x"], ["new/x", "new"], ["new", "new"]])
def test_overlap_within_a_request(wanted: list[str]) -> None:
    """Of two overlapping prefixes in one request the message names the one that contains both."""
    with pytest.raises(ConflictError, match="name 'new' alone"):
        check_prefixes([RepositoryName(name) for name in wanted], OWNERS)


def test_no_overlap() -> None:
    """Names that merely begin alike do not overlap."""
    check_prefixes([RepositoryName(name) for name in ("teams", "tea", "other/dee", "other/deeper")], OWNERS)


@given(st.lists(paths, max_size=4), paths)
def test_no_two_owners(wanted: list[RepositoryName], repository: RepositoryName) -> None:
    """With accepted prefixes no repository has two owners."""
    try:
        check_prefixes(wanted, {})
    except ConflictError:
        return
    assert sum(prefix in wanted for prefix in prefixes_of(repository)) <= 1


hosts = st.from_regex(r"[a-z0-9][a-z0-9.-]{0,20}", fullmatch=True) | st.ip_addresses(v=6).map(lambda ip: f"[{ip}]")


@given(st.sampled_from(["http", "https"]), hosts, st.none() | st.integers(1, 65535))
def test_a_registry_is_written_in_one_way(scheme: str, host: str, port: int | None) -> None:
    """A registry's URL parses to the same value in any case and with a final slash, and formats to itself."""
    text = f"{scheme}://{host}" + ("" if port is None else f":{port}")
    read = parse_registry(text)
    assert parse_registry(str(read)) == read == parse_registry(text.upper()) == parse_registry(f"{text}/")
    assert (read.scheme, read.host, read.port) == (scheme, host.strip("[]"), port or {"http": 80, "https": 443}[scheme])


@pytest.mark.parametrize(
    "text",
    [
        "",
        "registry:5000",
        "http://",
        "http://u:secret@h",
        "http://h/v2",
        "http://h:0",
        "http://h:65536",
        "http://h?q",
        "http://[1:2:3]:5000",
    ],
)
def test_what_is_no_registry(text: str) -> None:
    """A URL with a path, a user or without a host is refused, and a password in it is not repeated."""
    with pytest.raises(UsageError) as refused:
        parse_registry(text)
    assert "secret" not in str(refused.value)
    assert ("leave out the path" in str(refused.value)) == text.endswith("/v2")


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("https://GitLab.example/jwt/auth", "https://gitlab.example/jwt/auth"),
        ("http://127.0.0.1:80/A/b", "http://127.0.0.1/A/b"),
        ("https://[::1]:5000/", "https://[::1]:5000/"),
        ("https://gitlab.example", "https://gitlab.example/"),
    ],
)
def test_where_tokens_are_made(text: str, url: str) -> None:
    """A token issuer's URL is written as a registry's, with its path as it is."""
    assert parse_token_url(text) == url == parse_token_url(url)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "gitlab.example/jwt/auth",
        "ftp://gitlab.example/jwt/auth",
        "https://user:secret@gitlab.example/jwt/auth",
        "https://gitlab.example/jwt/auth?service=x",
        "https://gitlab.example/jwt/auth#x",
        "https://gitlab.example:99999/jwt/auth",
        "https://gitlab.example/jwt auth",
        "https:///jwt/auth",
        "https://gitlab.example/jwt/auth\n",
    ],
)
def test_where_no_tokens_are_made(text: str) -> None:
    """Anything else is refused, and the message does not repeat it: it may hold a password."""
    with pytest.raises(UsageError) as refused:
        parse_token_url(text)
    assert "secret" not in str(refused.value)
