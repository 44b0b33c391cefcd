"""Validate the reason that an operator gives for a change."""

from coordinator.errors import UsageError

WHY_LIMIT = 1000


def check_reason(text: str, what: str = "why", limit: int = WHY_LIMIT) -> str:
    """Return the text to store; raises UsageError, which asks for `what`, if it is empty or too long."""
    if not text.strip() or len(text) > limit or "\0" in text:
        raise UsageError(f"Say {what}, in up to {limit} characters.")
    return text.strip()
