"""`relay migrate`."""

from pathlib import Path

import click

from relay.cli.options import config_option, dsn_option, load_settings
from relay.schema import migrate as apply


@click.command()
@config_option
@dsn_option
@click.option(
    "--service-role",
    metavar="ROLE",
    envvar="RELAY_SERVICE_ROLE",
    show_envvar=True,
    help="Give this role the rights that a service needs in the schema relay.",
)
@click.option(
    "--sql",
    type=click.Path(path_type=Path, file_okay=False, exists=True),
    envvar="RELAY_SQL",
    show_envvar=True,
    help="A folder of your own numbered migrations, applied after the relay's.",
)
def migrate(config: Path | None, dsn: str | None, service_role: str | None, sql: Path | None) -> None:
    """Create the schema relay in the database of every source, or bring it up to date.

    Run it as the role that the relay connects as, or as the database's owner; it can be repeated at any time.
    """
    for source in load_settings(config, dsn).source:
        applied = apply(source.dsn.get_secret_value(), sql, service_role=service_role)
        click.echo(f"{source.name}: " + (", ".join(applied) if applied else "up to date"))
