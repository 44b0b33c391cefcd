"""The hierarchy of errors that Baleen raises on purpose.

A message is one sentence that says what to do. `status` is the HTTP status of the API's answer, `exit_code` the exit
code of the command. Not here: rendering (api/problems.py, cli.py).
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import ClassVar


class BaleenError(Exception):
    """Something was refused or failed; the message says what to do about it."""

    status = 500
    exit_code = 1
    #: HTTP headers that belong to the answer.
    headers: ClassVar[Mapping[str, str]] = MappingProxyType({})


class UsageError(BaleenError):
    """The caller's input is wrong: syntax, a name or a setting."""

    status = 400
    exit_code = 2


class InvalidNameError(UsageError):
    """A digest, repository, pod or tag name that the OCI distribution specification does not allow."""


class SettingsError(UsageError):
    """A setting is unknown or malformed; the message names it."""


class UnconfiguredError(SettingsError):
    """A service has no address: there is no setting, and no `baleen up` runs here. The usage may be right."""

    exit_code = 1


class NotFoundError(BaleenError):
    """The requested object does not exist."""

    status = 404


class ConflictError(BaleenError):
    """The request contradicts the present state, for example a prefix that another pod owns."""

    status = 409


class UnauthorizedError(BaleenError):
    """No token, or an unknown one."""

    status = 401
    headers = MappingProxyType({"WWW-Authenticate": "Bearer"})


class ForbiddenError(BaleenError):
    """The token is known, but its role does not permit this call."""

    status = 403


class UnavailableError(BaleenError):
    """A service that Baleen needs (database, Kafka, object store) does not answer: try again later."""

    status = 503
    headers = MappingProxyType({"Retry-After": "1"})


class StackError(BaleenError):
    """The embedded stack cannot start here; the message says why and what to do."""
