"""What verbs share that ask the databases of the sources: which ones, and what if one cannot be asked."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import click
import psycopg
from psycopg import Connection

from relay.config import SourceSettings
from relay.errors import ExitCode, RelayError
from relay.wal.connection import prepared, refusal

Answer = TypeVar("Answer")
Verb = TypeVar("Verb", bound=Callable[..., Any])


def source_option(envvar: str) -> Callable[[Verb], Verb]:
    """`--source NAME`."""
    return click.option(
        "--source", "source_name", metavar="NAME", envvar=envvar, show_envvar=True, help="One of several sources."
    )


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
        for source in sources:
            try:
                with connected(source, verb) as connection:
                    answer = question(connection)
            except RelayError as error:
                self._failures.append((source.name, error))
            else:
                yield source.name, answer

    def tell(self) -> ExitCode:
        """Say on standard error which sources could not be asked; the exit status."""
        for name, error in self._failures:
            click.echo(f"relay: {name}: {error}\n  {error.hint}".rstrip(), err=True)
        return ExitCode.SOURCE if self._failures else ExitCode.OK
