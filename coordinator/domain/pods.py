"""Find the pod that owns a repository, and parse the URLs of its registries and token issuer.

Pods own name prefixes, and no two prefixes overlap.
Prefix `team` owns `team` and `team/…`, never `teams`.
"""

import ipaddress
import re
from collections.abc import Iterable, Mapping
from enum import StrEnum
from typing import Final, NamedTuple

from coordinator.domain.names import PodName, RepositoryName
from coordinator.errors import ConflictError, UsageError

_REGISTRY = re.compile(
    r"(https?)://(\[[0-9a-f:.]{2,45}\]|[a-z0-9_](?:[a-z0-9_.-]{0,252}))(?::([0-9]{1,5}))?/?", re.ASCII
)
_WITH_PATH = re.compile(_REGISTRY.pattern.removesuffix("?") + r"[^\s@]+", re.ASCII)
_DEFAULT_PORTS = {"http": 80, "https": 443}


class RegistryUrl(NamedTuple):
    """The address where a registry listens, in one normal form, so that equal URLs compare as equal."""

    scheme: str
    #: A name or an address; of version 6 without its brackets.
    host: str
    port: int

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}" + ("" if self.port == _DEFAULT_PORTS[self.scheme] else f":{self.port}")


def parse_registry(text: str) -> RegistryUrl:
    """Parse a registry's URL; raises UsageError. It must not have a user or a password, since it is shown."""
    match = _REGISTRY.fullmatch(text.lower())
    port = 0 if match is None else int(match[3] or _DEFAULT_PORTS[match[1]])
    if match is None or not 0 < port < 2**16 or not _is_host(match[2]):
        # The text may have a password, so the error does not repeat it.
        if _WITH_PATH.fullmatch(text.lower()):
            raise UsageError(
                "A registry's URL ends with its host and its port, such as http://10.0.0.7:5000: leave out the path."
            )
        raise UsageError(
            "A registry's URL is http:// or https://, its host and its port, such as http://10.0.0.7:5000."
        )
    return RegistryUrl(match[1], match[2].strip("[]"), port)


def _is_host(text: str) -> bool:
    if not text.startswith("["):
        return True
    try:
        ipaddress.IPv6Address(text.strip("[]"))
    except ValueError:
        return False
    return True


_TOKEN_URL = re.compile(r"(https?://[^/?#@]{1,300})(/[A-Za-z0-9/._~%-]{0,500})?", re.ASCII | re.IGNORECASE)


class TokenIssuer(NamedTuple):
    """The issuer of the tokens for a pod's registry: the values of the registry's `auth.token`, and the keys."""

    url: str
    #: `iss` of its tokens.
    issuer: str
    #: `aud` of its tokens.
    service: str
    #: Public keys, as PEM or JWKS.
    keys: str
    #: Their ids, as tokens name them.
    key_ids: tuple[str, ...] = ()


def parse_token_url(text: str) -> str:
    """Parse the URL of a token issuer; raises UsageError. It must not name a user: clients send credentials there."""
    match = _TOKEN_URL.fullmatch(text)
    if match is None:
        raise UsageError(
            "A token issuer's URL is http:// or https://, its host, port and path, such as https://gitlab.example/jwt/auth."
        )
    return f"{parse_registry(match[1])}{match[2] or '/'}"


class PodMode(StrEnum):
    """What references a blob in a pod."""

    #: Manifests do; a direct link counts only for a grace period, since registries rarely report its removal.
    MANIFEST = "manifest"
    #: Links count until a delete event: for registries that emit only blob pushes and deletes.
    LINK = "link"


class PodKind(StrEnum):
    """Where a pod's registry keeps its links, and so: what shows them to Baleen, and how a mount reaches the pod."""

    #: In the shared bucket, in distribution's layout.
    LINK = "link"
    #: Elsewhere: only its events show what it holds.
    RELAY = "relay"
    #: In the metadata database of a GitLab Container Registry, which Baleen reads.
    GITLAB = "gitlab"

    @property
    def links_in_store(self) -> bool:
        """Whether its links are in the shared bucket, where anybody who reads the bucket sees them."""
        return self in LINKS_IN_STORE

    @property
    def is_reconcilable(self) -> bool:
        """Whether something other than its events shows all that it holds."""
        return self in RECONCILABLE

    @property
    def has_registry_database(self) -> bool:
        """Whether its registry has a metadata database, which needs settings, a key and a mode of its own."""
        return self in WITH_REGISTRY_DATABASE

    @property
    def is_uploaded_to(self) -> bool:
        """Whether a mounted blob may have to be sent to it through the upload API, with the client's token."""
        return self in UPLOADED_TO

    @property
    def confirms_by_rows(self) -> bool:
        """Whether its registry answers a mount, or a manifest that lists a blob, with 201 because its database has the
        blob's row, whatever storage has. Only HEAD and GET of a blob look at storage.
        """
        return self in WITH_REGISTRY_DATABASE

    @property
    def reports_blob_deletes(self) -> bool:
        """Whether its registry sends an event when a client deletes a blob from a repository."""
        return self not in WITH_REGISTRY_DATABASE


#: Columns of `pods` say the same to SQL (db/schema/pods.py).
LINKS_IN_STORE: Final = frozenset({PodKind.LINK})
RECONCILABLE: Final = frozenset({PodKind.LINK, PodKind.GITLAB})
UPLOADED_TO: Final = frozenset({PodKind.RELAY, PodKind.GITLAB})

WITH_REGISTRY_DATABASE: Final = frozenset({PodKind.GITLAB})


def check_reconcilable(pod: PodName, kind: PodKind) -> None:
    """Raise ConflictError if nothing but its events shows what a pod holds."""
    if not kind.is_reconcilable:
        raise ConflictError(f"Only its events show what pod {pod} holds (kind {kind}): it cannot be reconciled.")


class ProbeMethod(StrEnum):
    """How Baleen asks a registry process how far it has reported (pods/prober.py)."""

    #: The known manifest is pushed again. The registry need not send pull events, so that pulls do not delay pushes.
    PUSH = "push"
    #: The known manifest is pulled, where Baleen may not push. The registry must send an event for every pull.
    PULL = "pull"


def prefixes_of(repository: RepositoryName) -> list[str]:
    """Return every prefix that would own the repository, the longest first: `a/b/c`, `a/b`, `a`."""
    parts = repository.split("/")
    return ["/".join(parts[:n]) for n in range(len(parts), 0, -1)]


def owner_of(repository: RepositoryName, owners: Mapping[str, PodName]) -> PodName | None:
    """Return the pod whose prefix owns the repository, or None; `owners` maps prefix to pod."""
    for prefix in prefixes_of(repository):
        if (pod := owners.get(prefix)) is not None:
            return pod
    return None


def check_prefixes(
    wanted: Iterable[RepositoryName], owners: Mapping[str, PodName], asking: PodName | None = None
) -> None:
    """Raise ConflictError if a wanted prefix contains, or lies in, an owned one, even one of the same pod `asking`."""
    taken: dict[str, PodName | None] = dict(owners)
    for prefix in wanted:
        for other, pod in taken.items():
            if prefix != other and not prefix.startswith(f"{other}/") and not other.startswith(f"{prefix}/"):
                continue
            if pod is not None and pod == asking:
                if prefix.startswith(other):
                    raise ConflictError(f"Pod {pod} owns {prefix!r} already: its prefix is {other!r}.")
                raise ConflictError(
                    f"Pod {pod} owns {other!r} already, which lies in {prefix!r}: name only prefixes beside it."
                )
            if pod is not None:
                raise ConflictError(f"Prefix {prefix!r} overlaps {other!r} of pod {pod}: choose another.")
            outer = min(prefix, other, key=len)
            raise ConflictError(
                f"Prefixes {prefix!r} and {other!r} overlap: name {outer!r} alone, which owns all below it."
            )
        # Prefixes of one request must not overlap either.
        taken[prefix] = None
