"""The settings of a service, from its environment, or from files where a container gets its secrets."""

from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Final, Literal, TypeAlias, TypeVar
from urllib.parse import urlsplit

from psycopg import ProgrammingError
from psycopg.conninfo import conninfo_to_dict
from pydantic import AfterValidator, SecretStr, ValidationError
from pydantic_settings import BaseSettings, SettingsError

from relay.errors import ConfigError
from relay.log import Format

MAX_PORT: Final = 65535

SECRETS: Final = Path("/run/secrets")
"""Where containers get their secrets: what the file `orders_dsn` says is ORDERS_DSN, unless that is set."""


def _dsn(value: SecretStr) -> SecretStr:
    try:
        conninfo_to_dict(value.get_secret_value())
    except ProgrammingError:
        # libpq's own words quote the string, and the password in it.
        raise ValueError("this is no PostgreSQL connection string or URL") from None
    return value


def _amqp_url(value: SecretStr) -> SecretStr:
    parts = urlsplit(value.get_secret_value())
    if parts.scheme not in ("amqp", "amqps") or not parts.hostname:
        raise ValueError("this is no URL like amqp://user:password@host:5672/vhost")
    return value


def _listen(value: str) -> str:
    host, colon, port = value.rpartition(":")
    if not colon or not host or not port.isascii() or not port.isdigit() or int(port) > MAX_PORT:
        raise ValueError("this is no address like 127.0.0.1:8001")
    if ":" in host:
        ip_address(host.removeprefix("[").removesuffix("]"))
    return value


Listen: TypeAlias = Annotated[str, AfterValidator(_listen)]
"""Host and port for HTTP. A default of a service is declared with this type, or nothing checks it."""


class ServiceSettings(BaseSettings, env_ignore_empty=True):
    """What every service needs. A service derives from it, with its own prefix and address."""

    dsn: Annotated[SecretStr, AfterValidator(_dsn)]
    amqp_url: Annotated[SecretStr, AfterValidator(_amqp_url)]
    listen: Listen
    log_format: Format = "console"
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"

    @property
    def address(self) -> tuple[str, int]:
        """Host and port to listen on; port 0 is any that is free."""
        host, _, port = self.listen.rpartition(":")
        return host.removeprefix("[").removesuffix("]"), int(port)


AnySettings = TypeVar("AnySettings", bound=ServiceSettings)


def read(settings_class: type[AnySettings], secrets: Path = SECRETS) -> AnySettings:
    """Read the environment, and the files in `secrets`, if there are any.

    Raises ConfigError with a line for each variable that is wrong, none of which shows it.
    """
    try:
        return settings_class(_secrets_dir=secrets if secrets.is_dir() else None)
    except SettingsError as error:  # a file that it may not read, or that is no text
        raise ConfigError(f"the secrets cannot be read: {error.__cause__ or error}") from None
    except ValidationError as error:
        prefix = settings_class.model_config.get("env_prefix", "")
        lines = (
            f"{prefix}{str(detail['loc'][0]).upper()}: {detail['msg'].removeprefix('Value error, ')}"
            for detail in error.errors(include_input=False, include_url=False)
        )
        hint = f"These are environment variables, or files in {secrets}, in lower case."
        raise ConfigError("\n".join(["wrong or missing settings", *lines]), hint) from None
