"""Rights on repositories: what a client asks for (scopes), what an issuer grants, and what follows from both.

Route: `parse_scopes` reads the client's request -> an issuer's `Access` is `limit_to` it -> `|` joins those of
several issuers -> `permits` answers for one repository and one action.
Invariant: no function here adds a right that its input does not have. A grant names one repository exactly; the action
`*` stands for all. Other fields of a grant may restrict it (GitLab's protected tags do), so they stay with the grant.
Not here: verifying grants (coordinator/tokens); which pod owns a repository (pods.py).
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from coordinator.domain.names import REPOSITORY_NAME_LIMIT, parse_repository
from coordinator.errors import InvalidNameError, UsageError

REPOSITORY = "repository"
PULL, PUSH, ANY = "pull", "push", "*"

#: Scopes of one request, all parameters together. A cross-repository mount asks for two or three.
SCOPES_LIMIT = 100
#: Characters of one scope: a name with its host, and a few actions.
SCOPE_LENGTH_LIMIT = 2 * REPOSITORY_NAME_LIMIT
ACTIONS_LIMIT = 10

_TYPE = re.compile(r"([a-z0-9]{1,64})(?:\(([a-z0-9]{1,64})\))?")
_HOST = re.compile(r"(?:[A-Za-z0-9-]+\.)*[A-Za-z0-9-]+(?::[0-9]+)?")
_ACTIONS = re.compile(r"(?:[a-z]+|\*)(?:,(?:[a-z]+|\*))*")


@dataclass(frozen=True, slots=True)
class Scope:
    """A resource and the actions that a client requests on it, as the Docker registry token specification defines."""

    type: str
    name: str
    actions: frozenset[str]
    #: The kind of content, as in `repository(plugin)`. It is forwarded to the issuer, and rights do not depend on it.
    resource_class: str = ""

    def __str__(self) -> str:
        kind = f"{self.type}({self.resource_class})" if self.resource_class else self.type
        return f"{kind}:{self.name}:{','.join(sorted(self.actions))}"


def parse_scopes(parameters: Iterable[str]) -> list[Scope]:
    """Read the `scope` parameters of a request, each with any number of scopes between spaces; raises UsageError.

    `type:name:actions` (Docker registry token specification, "Token scope documentation"). A name may begin with a host
    and its port, so the type ends at the first colon and the actions begin after the last. Repeated scopes are merged;
    a scope without actions is ignored.
    """
    asked: dict[tuple[str, str, str], frozenset[str]] = {}
    number = 0
    for parameter in parameters:
        for text in _split_scopes(parameter):
            number += 1
            if number > SCOPES_LIMIT:
                raise UsageError(f"There are more than {SCOPES_LIMIT} scopes: ask for them in several requests.")
            scope = _parse_scope(text)
            key = (scope.type, scope.resource_class, scope.name)
            asked[key] = asked.get(key, frozenset()) | scope.actions
    return [Scope(kind, name, actions, more) for (kind, more, name), actions in asked.items() if actions]


def _split_scopes(parameter: str) -> Iterator[str]:
    if len(parameter) > SCOPES_LIMIT * (SCOPE_LENGTH_LIMIT + 1):
        raise UsageError(f"A scope parameter is too long: ask for up to {SCOPES_LIMIT} scopes.")
    return (part for part in parameter.split(" ") if part)


def _parse_scope(text: str) -> Scope:
    kind, first, rest = text.partition(":")
    name, last, actions = rest.rpartition(":")
    typed = _TYPE.fullmatch(kind)
    if (
        len(text) > SCOPE_LENGTH_LIMIT
        or not first
        or not last
        or typed is None
        or not _is_name(name)
        or (actions and _ACTIONS.fullmatch(actions) is None)
        or actions.count(",") >= ACTIONS_LIMIT
    ):
        raise UsageError(
            f"{text[:100]!r} is not a scope: write type:name:actions, such as repository:team/app:pull,push."
        )
    return Scope(typed[1], name, frozenset(actions.split(",")) if actions else frozenset(), typed[2] or "")


def _is_name(name: str) -> bool:
    host, slash, rest = name.partition("/")
    try:
        parse_repository(rest if slash and _HOST.fullmatch(host) is not None and rest else name)
    except InvalidNameError:
        return False
    return True


@dataclass(frozen=True, slots=True)
class Grant:
    """The actions that are permitted on one repository."""

    name: str
    actions: frozenset[str]
    #: Other fields of the grant, by their names in the token, unchanged.
    more: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Access:
    """All rights of a client. Grants of the same repository add up, as registries read them."""

    grants: tuple[Grant, ...] = ()
    _actions: Mapping[str, frozenset[str]] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        actions: dict[str, frozenset[str]] = {}
        for grant in self.grants:
            actions[grant.name] = actions.get(grant.name, frozenset()) | grant.actions
        object.__setattr__(self, "_actions", actions)

    def permits(self, repository: str, action: str) -> bool:
        """Whether this action is granted on the repository of exactly this name."""
        granted = self._actions.get(repository, frozenset())
        return action in granted or ANY in granted

    def pullable_repositories(self) -> list[str]:
        """Return the repositories that may be pulled from, in the order of the grants."""
        return [name for name in self._actions if self.permits(name, PULL)]

    def limit_to(self, asked: Iterable[Scope]) -> Self:
        """Return the part of these rights that was requested; `*` matches every action, on either side."""
        wanted: dict[str, frozenset[str]] = {}
        for scope in asked:
            if scope.type == REPOSITORY:
                wanted[scope.name] = wanted.get(scope.name, frozenset()) | scope.actions
        return type(self)(
            tuple(
                Grant(grant.name, both, grant.more)
                for grant in self.grants
                if (both := _common_actions(grant.actions, wanted.get(grant.name, frozenset())))
            )
        )

    def __or__(self, other: "Access") -> "Access":
        return Access(self.grants + other.grants)


def _common_actions(one: frozenset[str], other: frozenset[str]) -> frozenset[str]:
    if ANY in one:
        return other
    return one if ANY in other else one & other
