"""What the shapes of responses have in common; each is in the `shapes.py` of its package.

A figure that is not known is null, never a guess. Sizes are in bytes, times are by the database's clock in UTC.
"""

from typing import Annotated

import msgspec
from msgspec import Meta

Next = Annotated[
    str | None,
    Meta(description="Pass it as `cursor` for the next page; null after the last. A page may be short."),
]


class View(msgspec.Struct, frozen=True, kw_only=True):
    """Something shown to a user."""
