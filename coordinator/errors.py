"""The one tree of errors that Baleen raises on purpose.

A message is one sentence that says what to do. `status` is the HTTP status with which the refcount API
answers, `exit_code` the one with which the command ends. Not here: rendering (api/problems.py, cli.py).
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import ClassVar


class BaleenError(Exception):
    """Something was refused or failed, and the message says what to do about it."""

    status = 500
    exit_code = 1
    #: HTTP headers that belong to the answer.
    headers: ClassVar[Mapping[str, str]] = MappingProxyType({})


class UsageError(BaleenError):
    """The caller asked for something that cannot be meant: wrong syntax, wrong name, wrong setting."""

    status = 400
    exit_code = 2


class InvalidNameError(UsageError):
    """A digest, repository, pod or tag name that the OCI distribution specification does not allow."""


class SettingsError(UsageError):
    """A setting is unknown or malformed; the message names it."""


class UnconfiguredError(SettingsError):
    """Nothing says where a service is: no setting, and no `baleen up` that runs here. The usage may be right."""

    exit_code = 1


class NotFoundError(BaleenError):
    """What was asked for is not in the table."""

    status = 404


class ConflictError(BaleenError):
    """What was asked for contradicts what is there, for example a prefix that another pod owns."""

    status = 409


class UnauthorizedError(BaleenError):
    """No token, or one that is not known."""

    status = 401
    headers = MappingProxyType({"WWW-Authenticate": "Bearer"})


class ForbiddenError(BaleenError):
    """The token is known, and its role does not allow this call."""

    status = 403


class UnavailableError(BaleenError):
    """A service that Baleen needs (database, Kafka, object store) does not answer: try again later."""

    status = 503
    headers = MappingProxyType({"Retry-After": "1"})


class StackError(BaleenError):
    """The embedded stack cannot be started here; the message says why and what to do."""
