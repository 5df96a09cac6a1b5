"""What verbs share that ask the databases of the sources: which ones, and what if one cannot be asked."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import click
import psycopg
from psycopg import Connection

from relay.cli.options import load_settings
from relay.config import SourceSettings
from relay.errors import ConfigError, ExitCode, RelayError
from relay.wal.connection import prepared, refusal

Answer = TypeVar("Answer")


def sources(config: Path | None, dsn: str | None, name: str | None) -> Sequence[SourceSettings]:
    """All sources, or the one of that name. Raises ConfigError when there is none."""
    return _named(load_settings(config, dsn).source, name)


def one_source(config: Path | None, dsn: str | None, name: str | None) -> SourceSettings:
    """The only source, or the one of that name. Raises ConfigError when there are several, or none."""
    return only(load_settings(config, dsn).source, name)


def only(configured: Sequence[SourceSettings], name: str | None) -> SourceSettings:
    """The same of settings that are loaded already."""
    chosen = _named(configured, name)
    if len(chosen) > 1:
        raise ConfigError("there are several sources", _pick(configured))
    return chosen[0]


def _named(configured: Sequence[SourceSettings], name: str | None) -> Sequence[SourceSettings]:
    chosen = [source for source in configured if name in (None, source.name)]
    if not chosen:
        raise ConfigError(f"there is no source {name}", _pick(configured))
    return chosen


def _pick(configured: Sequence[SourceSettings]) -> str:
    return f"Give one of these with --source: {', '.join(source.name for source in configured)}."


@contextmanager
def connected(source: SourceSettings, verb: str) -> Iterator[Connection]:
    """A connection to a source's database, in autocommit mode; `verb` is what pg_stat_activity shows.

    Whatever PostgreSQL refuses meanwhile is raised as SourceAway or another SourceError.
    """
    dsn = source.dsn.get_secret_value()
    try:
        with psycopg.connect(prepared(dsn, f"saga-relay {verb}"), autocommit=True) as connection:
            yield connection
    except psycopg.Error as error:
        raise refusal(error, dsn) from None


class Round:
    """All sources asked in turn. One that cannot be asked does not hide the others: it is told of afterwards."""

    def __init__(self) -> None:
        self._failures: list[tuple[str, RelayError]] = []

    def ask(
        self, sources: Iterable[SourceSettings], verb: str, question: Callable[[Connection], Answer]
    ) -> Iterator[tuple[str, Answer]]:
        """The name of each source that can be asked, and its answer."""

        def asked(source: SourceSettings) -> Answer:
            with connected(source, verb) as connection:
                return question(connection)

        return self.each(sources, asked)

    def each(
        self, sources: Iterable[SourceSettings], question: Callable[[SourceSettings], Answer]
    ) -> Iterator[tuple[str, Answer]]:
        """The same of a question that connects to the source by itself."""
        for source in sources:
            try:
                answer = question(source)
            except RelayError as error:
                self._failures.append((source.name, error))
            else:
                yield source.name, answer

    def tell(self) -> ExitCode:
        """Say on standard error which sources could not be asked; the exit status."""
        for name, error in self._failures:
            click.echo(f"relay: {name}: {error}\n  {error.hint}".rstrip(), err=True)
        return ExitCode.SOURCE if self._failures else ExitCode.OK
