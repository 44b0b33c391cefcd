"""What an operator gives with a change: why, and who makes it."""

from coordinator.errors import UsageError

WHY_LIMIT = 1000


def reason(text: str, what: str = "why", limit: int = WHY_LIMIT) -> str:
    """Return the text as it is kept; raises UsageError, which asks to say `what`, for one that says nothing."""
    if not text.strip() or len(text) > limit or "\0" in text:
        raise UsageError(f"Say {what}, in up to {limit} characters.")
    return text.strip()
