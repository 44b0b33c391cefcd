"""Logging: one line per event, as JSON or for a terminal, with secrets redacted.

The drivers' log lines, from the standard library's logging, go the same way. Not here: metrics (each package has its
own).
"""

import logging
import re
import sys
from collections.abc import MutableMapping
from typing import Any

import structlog

from coordinator.settings import Settings

#: Values under such names never reach a log.
_SECRET_NAME = re.compile(r"token|authorization|password|secret|credential|api_?key|access_?key", re.IGNORECASE)
_SECRET_TEXT = re.compile(r"(Bearer\s+)[A-Za-z0-9._~+/=-]+|((?:://)[^:/@\s]*:)[^@/\s]+(?=@)", re.IGNORECASE)
REDACTED = "(redacted)"

LEVELS = {"debug": 10, "info": 20, "warning": 30, "error": 40}


def configure_logging(settings: Settings) -> None:
    """Set up logging to stderr for this process."""
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.PositionalArgumentsFormatter(),
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.StackInfoRenderer(),
    ]
    console = settings.log_format == "console" or (settings.log_format == "auto" and sys.stderr.isatty())
    # Tracebacks become text before they are redacted, and never show local variables.
    rendering: list[Any] = [
        structlog.processors.format_exc_info,
        redact,
        structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)
        if console
        else structlog.processors.JSONRenderer(),
    ]
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *rendering],
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(LEVELS.get(settings.log_level.lower(), logging.INFO))
    # At level info the drivers log too much. Kafka's clients are silenced: Baleen itself logs a failed connection,
    # once and with its consequence.
    for noisy in ("botocore", "boto3", "urllib3", "httpx", "httpcore", "alembic"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    for noisy in ("kafka", "aiokafka"):
        logging.getLogger(noisy).setLevel(logging.CRITICAL)


def redact(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Redact values under secret names, and bearer tokens and URL passwords within texts."""
    for name, value in event.items():
        event[name] = REDACTED if _SECRET_NAME.search(name) else _redact_text(value)
    return event


def _redact_text(value: Any) -> Any:
    if isinstance(value, str):
        return _SECRET_TEXT.sub(lambda match: (match[1] or match[2]) + REDACTED, value)
    if isinstance(value, dict):
        return {k: REDACTED if _SECRET_NAME.search(str(k)) else _redact_text(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_redact_text(each) for each in value]
    return value
