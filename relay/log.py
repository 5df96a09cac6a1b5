"""Log lines: for a person on a terminal, or one JSON object each for a machine. Every line carries an `action`."""

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Final, Literal

Format = Literal["console", "json"]

_STANDARD: Final = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime", "taskName"}


def configure(style: Format, level: str) -> None:
    """Send the log to standard error. pika's own lines say nothing that ours do not, at greater length."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if style == "json" else ConsoleFormatter())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    logging.getLogger("pika").setLevel(logging.CRITICAL)


def _at(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _fields(record: logging.LogRecord) -> dict[str, object]:
    """What the line was given by `extra`."""
    return {key: value for key, value in record.__dict__.items() if key not in _STANDARD}


class ConsoleFormatter(logging.Formatter):
    """Time, level, action, sentence; and the hint, where there is one."""

    def format(self, record: logging.LogRecord) -> str:
        """One line, and a traceback below it if there is one."""
        fields = _fields(record)
        line = f"{_at(record)} {record.levelname:<7} {fields.get('action', record.name)}: {record.getMessage()}"
        if fields.get("hint"):
            line += f" ({fields['hint']})"
        return line if record.exc_info is None else f"{line}\n{self.formatException(record.exc_info)}"


class JsonFormatter(logging.Formatter):
    """`at`, `level`, `action`, `message`, and whatever else the line is about."""

    def format(self, record: logging.LogRecord) -> str:
        """One line."""
        entry: dict[str, object] = {
            "at": _at(record),
            "level": record.levelname.lower(),
            "action": record.name,
            "message": record.getMessage(),
        } | _fields(record)
        if record.exc_info is not None:
            entry["traceback"] = self.formatException(record.exc_info)
        return json.dumps(entry, default=str, ensure_ascii=False)


class SourceLog:
    """What the relay says about one source. `action` is the stable key of a line, `words` are for a person."""

    def __init__(self, source: str, slot: str) -> None:
        self._fields = {"source": source, "slot": slot}
        self._logger = logging.getLogger("relay.source")

    def info(self, action: str, words: str, **fields: object) -> None:
        """Something happened as it should. `fields` are for machines, beside the words."""
        self._say(logging.INFO, action, words, fields)

    def warning(self, action: str, words: str, **fields: object) -> None:
        """Somebody should have a look."""
        self._say(logging.WARNING, action, words, fields)

    def _say(self, level: int, action: str, words: str, fields: dict[str, object]) -> None:
        extra = {"action": action, **self._fields, **fields}
        self._logger.log(level, "%s: %s", self._fields["source"], words, extra=extra)
