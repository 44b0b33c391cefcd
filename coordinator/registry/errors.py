"""Errors of a registry, or of the issuer of its tokens."""

from coordinator.errors import BaleenError, NotFoundError, UnavailableError


class RegistryError(BaleenError):
    """The registry refused; `registry_status` and `code` are its HTTP status and its OCI error code, of `codes` the
    first.

    `challenged`: it answered with an authentication challenge, unlike some other server at that address.
    """

    status = 502

    def __init__(
        self,
        message: str,
        *,
        registry_status: int | None = None,
        codes: tuple[str, ...] = (),
        challenged: bool = False,
    ) -> None:
        super().__init__(message)
        self.registry_status = registry_status
        self.codes = codes
        self.code = codes[0] if codes else None
        self.challenged = challenged


class RegistryNotFoundError(NotFoundError, RegistryError):
    """The registry does not have this blob, manifest, repository or upload."""


class RegistryAuthenticationError(RegistryError):
    """The registry, or its token issuer, does not accept the credentials."""


class RegistryUnreachableError(UnavailableError, RegistryError):
    """The registry did not answer, or not in time."""


class RegistryGoneError(RegistryUnreachableError):
    """Nothing listens at the registry's address: the connection was refused."""


class RegistryContentError(RegistryError):
    """The registry's bytes do not have the requested digest."""
