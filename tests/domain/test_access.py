"""Scopes are parsed as they are written, and no right is granted that an issuer did not grant."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.domain.access import ANY, SCOPES_LIMIT, Access, Grant, Scope, parse_scopes
from coordinator.errors import UsageError

NAMES = ["team/app", "team/base", "other/app"]
ACTIONS = ["pull", "push", "delete", ANY]

actions = st.frozensets(st.sampled_from(ACTIONS), min_size=1)
scopes = st.lists(st.builds(Scope, st.sampled_from(["repository", "registry"]), st.sampled_from(NAMES), actions))
accesses = st.builds(
    lambda grants: Access(tuple(grants)), st.lists(st.builds(Grant, st.sampled_from(NAMES), actions), max_size=5)
)


@pytest.mark.parametrize(
    ("parameters", "scopes"),
    [
        ([], []),
        ([""], []),
        (["repository:team/app:pull"], ["repository:team/app:pull"]),
        (["repository:team/app:push,pull"], ["repository:team/app:pull,push"]),
        (["repository:a/b:pull repository:c:pull"], ["repository:a/b:pull", "repository:c:pull"]),
        (["repository:a:pull", "repository:a:push"], ["repository:a:pull,push"]),
        (["repository:a:pull,pull"], ["repository:a:pull"]),
        (["repository:localhost:5000/team/app:pull"], ["repository:localhost:5000/team/app:pull"]),
        (["repository:Registry.Example:443/app:*"], ["repository:Registry.Example:443/app:*"]),
        (["repository(plugin):team/app:pull"], ["repository(plugin):team/app:pull"]),
        (["repository(plugin):a:pull repository:a:pull"], ["repository(plugin):a:pull", "repository:a:pull"]),
        (["registry:catalog:*"], ["registry:catalog:*"]),
        (["repository:team/app:"], []),
        (["  repository:a:pull   "], ["repository:a:pull"]),
    ],
)
def test_scopes(parameters: list[str], scopes: list[str]) -> None:
    """Several scopes in one parameter, several parameters, a port in the name, a class of the type are all parsed."""
    assert [str(scope) for scope in parse_scopes(parameters)] == scopes


@pytest.mark.parametrize(
    "text",
    [
        "repository",
        "repository:team/app",
        ":team/app:pull",
        "repository::pull",
        "repository:team/app:Pull",
        "repository:team/app:pull,",
        "repository:team/app:**",
        "repository:team/App:pull",
        "repository:/app:pull",
        "repository:team//app:pull",
        "repository:../app:pull",
        "repository:team/../app:pull",
        "repository:host:5000:pull",
        "repository:host:5000/:pull",
        "repository:a:b:c/d:pull",
        "re pository:a:pull".replace(" ", "\t"),
        "repository():a:pull",
        "repository:team/app\n:pull",
        f"repository:{'a' * 600}:pull",
        "repository:a:" + ",".join(["pull"] * 11),
        "x" * 100_000,
    ],
)
def test_what_is_no_scope(text: str) -> None:
    """Anything else is refused, and the message says how a scope is written."""
    with pytest.raises(UsageError, match=r"write type:name:actions|too long"):
        parse_scopes([text])


def test_the_number_of_scopes_is_bounded() -> None:
    """More scopes than the limit are refused, however they are spread over parameters."""
    assert len(parse_scopes(f"repository:a{n}:pull" for n in range(SCOPES_LIMIT))) == SCOPES_LIMIT
    with pytest.raises(UsageError, match="several requests"):
        parse_scopes(["repository:a:pull"] * (SCOPES_LIMIT + 1))
    with pytest.raises(UsageError):
        parse_scopes([" ".join(["repository:a:pull"] * (SCOPES_LIMIT + 1))])


@given(st.lists(st.text(alphabet="repositoy:/,*() pul0.-_A\n", max_size=60), max_size=4))
def test_reading_is_total(texts: list[str]) -> None:
    """Any text is parsed or refused; parsed scopes parse again as themselves."""
    try:
        found = parse_scopes(texts)
    except UsageError:
        return
    assert parse_scopes(map(str, found)) == found


@pytest.mark.parametrize(
    ("granted", "action", "may"),
    [
        ({"pull"}, "pull", True),
        ({"pull"}, "push", False),
        ({ANY}, "push", True),
        ({"pull"}, ANY, False),
        (set(), "pull", False),
    ],
)
def test_may(granted: set[str], action: str, may: bool) -> None:
    """An action is granted by its name, or by `*`, on the repository of just this name."""
    access = Access((Grant("team/app", frozenset(granted)),))
    assert access.permits("team/app", action) is may
    for other in ("team", "team/app/deep", "team/ap", "Team/app", "*", ""):
        assert not access.permits(other, action)


def test_pullable() -> None:
    """Grants of one repository are joined; each repository that may be pulled is named once."""
    grants = (("a", "push"), ("b", "push"), ("a", "pull"), ("c", ANY))
    access = Access(tuple(Grant(name, frozenset({action})) for name, action in grants))
    assert access.pullable_repositories() == ["a", "c"]


def test_what_else_a_grant_has_stays_with_it() -> None:
    """No operation removes or merges what an issuer adds to a grant: it may restrict the grant."""
    restricted = Grant("team/app", frozenset({"push", "pull"}), {"meta": {"deny": ["v.*"]}})
    access = Access((restricted,)) | Access((Grant("other/app", frozenset({"pull"})),))
    asked = parse_scopes(["repository:team/app:push"])
    assert access.limit_to(asked).grants == (Grant("team/app", frozenset({"push"}), {"meta": {"deny": ["v.*"]}}),)


@given(accesses, scopes, st.sampled_from([*NAMES, "stranger"]), st.sampled_from(["pull", "push", "delete"]))
def test_never_more_than_wanted_and_granted(access: Access, asked: list[Scope], name: str, action: str) -> None:
    """The limited access permits exactly what was both granted and requested."""
    wanted = [s.actions for s in asked if s.type == "repository" and s.name == name]
    asked_for = any(action in each or ANY in each for each in wanted)
    assert access.limit_to(asked).permits(name, action) == (access.permits(name, action) and asked_for)


@given(accesses, scopes)
def test_any_action_only_where_it_was_granted_and_wanted(access: Access, asked: list[Scope]) -> None:
    """`*` is in the limited access only where it was granted and requested."""
    for grant in access.limit_to(asked).grants:
        if ANY in grant.actions:
            assert any(ANY in each.actions for each in access.grants if each.name == grant.name)
            assert any(ANY in each.actions for each in asked if each.name == grant.name)


@given(st.lists(accesses, max_size=4), st.sampled_from(NAMES), st.sampled_from(["pull", "push", "delete"]))
def test_a_union_is_a_union(parts: list[Access], name: str, action: str) -> None:
    """The union of several accesses permits exactly what one of them permits."""
    union = Access()
    for part in parts:
        union |= part
    assert union.permits(name, action) == any(part.permits(name, action) for part in parts)
