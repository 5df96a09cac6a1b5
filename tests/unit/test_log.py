"""Log lines: one JSON object each, or one line for a person. Every one has an action."""

import json
import logging
import re
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from relay import log as relay_log
from relay.log import ConsoleFormatter, JsonFormatter

LOGGER = logging.getLogger("relay.daemon.supervisor")


@pytest.fixture(autouse=True)
def _logging_as_it_was() -> Iterator[None]:
    root, pika = logging.getLogger(), logging.getLogger("pika")
    handlers, level, pika_level = root.handlers[:], root.level, pika.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    pika.setLevel(pika_level)


def record(
    message: str = "shop: stopped", *args: object, level: int = logging.INFO, **extra: object
) -> logging.LogRecord:
    made = LOGGER.makeRecord(LOGGER.name, level, __file__, 1, message, args, None, extra=extra)
    made.created = 1748779200.25
    return made


def crashed() -> logging.LogRecord:
    try:
        raise LookupError("nothing there")
    except LookupError:
        made = record("shop has stopped", level=logging.ERROR, action="source_crashed")
        made.exc_info = sys.exc_info()
        return made


def as_json(given: logging.LogRecord) -> dict[str, Any]:
    line = JsonFormatter().format(given)
    assert "\n" not in line
    parsed: dict[str, Any] = json.loads(line)
    return parsed


def as_console(given: logging.LogRecord) -> str:
    return ConsoleFormatter().format(given)


def test_a_json_line_has_time_level_action_message_and_what_it_is_about() -> None:
    entry = as_json(
        record("%s: streaming from %s", "shop", "0/10", action="streaming", source="shop", slot="relay_shop")
    )
    assert entry == {
        "at": "2025-06-01T12:00:00.250Z",
        "level": "info",
        "action": "streaming",
        "message": "shop: streaming from 0/10",
        "source": "shop",
        "slot": "relay_shop",
    }


def test_numbers_stay_numbers_in_json() -> None:
    assert as_json(record(action="reconnecting", retry_in_s=0.25))["retry_in_s"] == 0.25


def test_what_json_does_not_know_is_written_as_text() -> None:
    assert as_json(record(action="odd", what={1}))["what"] == "{1}"


def test_a_message_of_several_lines_is_one_line_of_json() -> None:
    assert as_json(record("one\ntwo ✓"))["message"] == "one\ntwo ✓"


def test_a_traceback_is_one_field_of_the_line() -> None:
    entry = as_json(crashed())
    assert entry["action"] == "source_crashed"
    assert entry["traceback"].startswith("Traceback")
    assert "LookupError: nothing there" in entry["traceback"]


@pytest.mark.parametrize("level", ["debug", "info", "warning", "error"])
def test_a_line_of_another_library_has_its_name_for_an_action(level: str) -> None:
    entry = as_json(record(level=logging.getLevelName(level.upper())))
    assert (entry["action"], entry["level"]) == ("relay.daemon.supervisor", level)


def test_a_console_line_has_time_level_action_and_sentence() -> None:
    line = as_console(record("%s: stopped", "shop", action="stopped", source="shop"))
    assert line == "2025-06-01T12:00:00.250Z INFO    stopped: shop: stopped"


def test_the_console_shows_the_hint() -> None:
    line = as_console(record("shop has stopped", level=logging.ERROR, action="source_stopped", hint="Read the docs."))
    assert line.endswith("ERROR   source_stopped: shop has stopped (Read the docs.)")


@pytest.mark.parametrize("hint", [{"hint": ""}, {}], ids=["empty", "none"])
def test_the_console_shows_no_empty_hint(hint: dict[str, str]) -> None:
    assert as_console(record("away", action="reconnecting", **hint)).endswith("reconnecting: away")


def test_the_console_shows_the_traceback_below_the_line() -> None:
    first, *rest = as_console(crashed()).splitlines()
    assert first.endswith("source_crashed: shop has stopped")
    assert rest[0].startswith("Traceback")
    assert rest[-1] == "LookupError: nothing there"


@pytest.mark.parametrize(
    ("style", "pattern"),
    [("console", r"\S+Z INFO    stopped: shop: stopped"), ("json", r'\{"at": "\S+Z", "level": "info", .*\}')],
)
def test_the_log_goes_to_standard_error_in_the_style_asked_for(
    style: relay_log.Format, pattern: str, capsys: pytest.CaptureFixture[str]
) -> None:
    relay_log.configure(style, "info")
    LOGGER.info("shop: stopped", extra={"action": "stopped"})
    out, err = capsys.readouterr()
    assert out == ""
    assert re.fullmatch(pattern, err.rstrip("\n"))


@pytest.mark.parametrize("level", ["warning", "WARNING"])
def test_what_is_below_the_level_is_left_out(level: str, capsys: pytest.CaptureFixture[str]) -> None:
    relay_log.configure("console", level)
    LOGGER.info("quiet", extra={"action": "quiet"})
    LOGGER.warning("loud", extra={"action": "loud"})
    err = capsys.readouterr().err
    assert "loud" in err
    assert "quiet" not in err


def test_pika_does_not_say_at_length_what_we_say_in_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    relay_log.configure("console", "debug")
    logging.getLogger("pika.adapters.utils.connection_workflow").error("AMQPConnector - reporting failure")
    assert capsys.readouterr().err == ""
