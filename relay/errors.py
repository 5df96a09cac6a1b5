"""The errors that end a command: a sentence for a person, a hint, and an exit status."""

from enum import IntEnum


class ExitCode(IntEnum):
    """What `relay` tells the shell. docs/cli.md lists them."""

    OK = 0
    """It did what it was asked."""
    FAILURE = 1
    """Something else went wrong: the message and its hint say what."""
    USAGE = 2
    """A setting, a flag or a file is wrong or missing."""
    SOURCE = 3
    """PostgreSQL cannot be reached, refuses, or lacks the slot, the publication or the schema."""
    BROKER = 4
    """RabbitMQ cannot be reached, or refuses."""


class RelayError(Exception):
    """What happened, and to what; `hint` says what to do about it.

    The docstring of a child says when it is raised. The message never holds a secret.
    """

    exit_code: ExitCode = ExitCode.FAILURE
    hint: str = ""

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        if hint is not None:
            self.hint = hint


class ConfigError(RelayError):
    """Settings are wrong or missing. The message has a line for each of them."""

    exit_code = ExitCode.USAGE


class SourceError(RelayError):
    """PostgreSQL refuses what the relay needs, and waiting does not mend it."""

    exit_code = ExitCode.SOURCE


class SourceAway(SourceError):
    """PostgreSQL cannot be reached just now; trying again may help."""


class BrokerError(RelayError):
    """RabbitMQ refuses what the relay needs, and waiting does not mend it."""

    exit_code = ExitCode.BROKER


class BrokerAway(BrokerError):
    """RabbitMQ cannot be reached just now; trying again may help."""
