"""`python -m relay.demo.credentials FOLDER`: the passwords of the compose stack, and the files with them in.

No password is in the repository: the first start makes them. Each reader has a folder, which becomes its /run/secrets,
and with which it sees its own secrets alone. A password stands in one file, `password`, in the folder of whose it is;
everything else is written anew from it, so that a new version may want more or other files.
"""

import json
import secrets
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Final
from urllib.parse import quote

import click

from relay.broker.topology import ServiceQueue, wanted
from relay.demo.access import RELAY, SERVICES, relay_user, service_user
from relay.demo.program import run
from relay.demo.servers.definitions import BrokerUser, definitions
from relay.demo.told import relay_toml, service_settings
from relay.errors import RelayError

POSTGRES: Final = "postgres"
RABBITMQ: Final = "rabbitmq"
"""The hosts of the two servers, and the folders with their own secrets."""

PASSWORD: Final = "password"  # noqa: S105  a file's name

READABLE: Final = 0o444
"""The readers run as users of their own. Who may read is decided by who has the folder."""


class SecretMissing(RelayError):
    """A password of the stack is not there."""

    hint = "`docker compose up --wait --force-recreate` makes what is missing, and tells everybody."


class Credentials:
    """The passwords of a stack: of PostgreSQL's superuser, and of the relay and each service, on both servers."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def password(self, name: str) -> str:
        """The password of the superuser (`postgres`), of the relay or of a service. Raises SecretMissing."""
        try:
            return (self._folder / name / PASSWORD).read_text(encoding="utf-8").strip()
        except FileNotFoundError as error:
            raise SecretMissing(f"there is no password of {name}: {error.filename}") from None

    @property
    def passwords(self) -> dict[str, str]:
        """Those of the relay and the services, by role."""
        return {role: self.password(role) for role in (RELAY, *SERVICES)}

    def make(self, *, renew: bool = False) -> None:
        """Make the passwords that are missing, and write what has them in. `renew` makes new ones.

        The superuser's stays: PostgreSQL is given it once, when its data directory is made.
        """
        for name in (POSTGRES, RELAY, *SERVICES):
            if not (self._folder / name / PASSWORD).exists() or (renew and name != POSTGRES):
                self._write(name, PASSWORD, secrets.token_urlsafe(18))
        passwords = self.passwords
        users = (relay_user(), *map(service_user, SERVICES))
        self._write(RABBITMQ, "definitions.json", _definitions(users, passwords.__getitem__))
        dsns = {name: _dsn(RELAY, passwords[RELAY], name) for name in SERVICES}
        self._write(RELAY, "relay.toml", relay_toml(_amqp_url(RELAY, passwords[RELAY]), dsns))
        for name in SERVICES:
            told = service_settings(name, _dsn(name, passwords[name], name), _amqp_url(name, passwords[name]))
            for variable, value in told.items():
                self._write(name, variable.lower(), value)

    def _write(self, folder: str, name: str, text: str) -> None:
        """A file is there as a whole or not at all, whenever this is interrupted."""
        file = self._folder / folder / name
        file.parent.mkdir(exist_ok=True)
        new = file.with_name(f".{name}.new")
        new.unlink(missing_ok=True)
        new.write_text(text, encoding="utf-8")
        new.chmod(READABLE)
        new.replace(file)


def _definitions(users: tuple[BrokerUser, ...], password_of: Callable[[str], str]) -> str:
    """Users, their rights, and the queues of the services, which may not create them: see docs/setup.md."""
    queues = (ServiceQueue(name).queue for name in SERVICES)
    known = (replace(user, password=password_of(user.name)) for user in users)
    return json.dumps(definitions(known, wanted({}, queues)), indent=2)


def _dsn(role: str, password: str, database: str) -> str:
    return f"postgresql://{role}:{quote(password, safe='')}@{POSTGRES}/{database}"


def _amqp_url(user: str, password: str) -> str:
    return f"amqp://{user}:{quote(password, safe='')}@{RABBITMQ}/%2F"


@click.command()
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False, exists=True))
@click.option("--renew", is_flag=True, help="Make new passwords, except the superuser's. Start everything anew then.")
def credentials(folder: Path, renew: bool) -> None:
    """Make the passwords of the stack that are missing, and the files that they are read from."""
    Credentials(folder).make(renew=renew)
    click.echo("new passwords" if renew else "every password is there")


if __name__ == "__main__":
    run(credentials)
