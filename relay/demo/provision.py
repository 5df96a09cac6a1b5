"""`python -m relay.demo.provision`: roles, databases and tables, before the first start and after an upgrade."""

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import quote

import click
import psycopg
from psycopg.conninfo import make_conninfo

from relay.demo.access import RELAY, SERVICES, create_database, create_role
from relay.demo.credentials import POSTGRES, Credentials
from relay.demo.program import run
from relay.errors import RelayError
from relay.schema import migrate
from relay.wal.connection import prepared, refusal


class ServicesMissing(RelayError):
    """The services of the demo are not there: they come with the repository, not with the package."""

    hint = "Clone the repository and run `make demo` there."


def provision(server: str, passwords: Mapping[str, str]) -> dict[str, list[str]]:
    """Give each service a role and a database, which the relay's role owns, so that it can publish what is in it.

    `server` is the superuser's DSN, `passwords` are by role. Whatever is there is brought up to date, passwords too.
    Returns the migrations that were applied, by database. Raises SourceError, SourceAway or MigrationFailed.
    """
    try:
        with psycopg.connect(prepared(server, "saga-relay provision"), autocommit=True) as connection:
            for role, password in passwords.items():
                create_role(connection, role, password, "LOGIN REPLICATION" if role == RELAY else "LOGIN")
            for service in SERVICES:
                create_database(connection, service, RELAY, [service])
    except psycopg.Error as error:
        raise refusal(error, server) from error
    applied = {}
    for service in SERVICES:
        owner = make_conninfo(server, dbname=service, user=RELAY, password=passwords[RELAY])
        applied[service] = migrate(owner, tables(service), service_role=service)
    return applied


def tables(service: str) -> Path:
    """The folder of a service's own migrations, in `sql` beside the package `services`. Raises ServicesMissing."""
    found = importlib.util.find_spec("services")
    if found is None or found.origin is None:
        raise ServicesMissing("the demo's services come with the repository, not with the package")
    return Path(found.origin).parent.parent / "sql" / service


@click.command()
@click.argument("secrets", type=click.Path(path_type=Path, file_okay=False, exists=True))
def provision_command(secrets: Path) -> None:
    """Set up the stack's PostgreSQL, or bring it up to date, with the passwords of a folder of secrets."""
    credentials = Credentials(secrets)
    superuser = f"postgresql://postgres:{quote(credentials.password(POSTGRES), safe='')}@{POSTGRES}/postgres"
    for database, applied in provision(superuser, credentials.passwords).items():
        click.echo(f"{database}: " + (", ".join(applied) if applied else "up to date"))


if __name__ == "__main__":
    run(provision_command)
