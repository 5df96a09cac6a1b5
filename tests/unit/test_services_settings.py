"""The settings of a service: all that are wrong are reported at once, and none of them is shown."""

import errno
import os
from pathlib import Path

import pytest

from relay.errors import ConfigError, ExitCode
from services.settings import Listen, ServiceSettings, read

DSN = "postgresql://orders:hunter2@127.0.0.1/orders"
AMQP_URL = "amqp://orders:hunter2@127.0.0.1:5672/"


class ShopSettings(ServiceSettings, env_prefix="SHOP_"):
    listen: Listen = "127.0.0.1:8009"


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    monkeypatch.setenv("SHOP_DSN", DSN)
    monkeypatch.setenv("SHOP_AMQP_URL", AMQP_URL)
    return monkeypatch


@pytest.mark.usefixtures("environment")
def test_what_is_not_said_has_a_default() -> None:
    settings = read(ShopSettings)
    assert (settings.address, settings.log_level, settings.log_format) == (("127.0.0.1", 8009), "INFO", "console")


@pytest.mark.usefixtures("environment")
def test_secrets_do_not_show() -> None:
    assert "hunter2" not in repr(read(ShopSettings))


def test_all_that_is_wrong_is_said_at_once_and_not_shown(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("SHOP_DSN", "orders:hunter2 nonsense")
    environment.setenv("SHOP_AMQP_URL", "http://orders:hunter2@somewhere")
    environment.setenv("SHOP_LISTEN", "8001")
    environment.setenv("SHOP_LOG_LEVEL", "LOUD")

    with pytest.raises(ConfigError) as wrong:
        read(ShopSettings)

    lines = str(wrong.value).splitlines()
    assert [line.partition(":")[0] for line in lines[1:]] == [
        "SHOP_DSN",
        "SHOP_AMQP_URL",
        "SHOP_LISTEN",
        "SHOP_LOG_LEVEL",
    ]
    assert "hunter2" not in str(wrong.value)
    assert wrong.value.exit_code is ExitCode.USAGE


@pytest.mark.parametrize("empty", [True, False])
def test_a_missing_setting_is_named(environment: pytest.MonkeyPatch, empty: bool) -> None:
    if empty:
        environment.setenv("SHOP_DSN", "")
    else:
        environment.delenv("SHOP_DSN")
    with pytest.raises(ConfigError, match="SHOP_DSN: Field required"):
        read(ShopSettings)


@pytest.mark.parametrize(
    ("listen", "address"),
    [("0.0.0.0:80", ("0.0.0.0", 80)), ("[::1]:8001", ("::1", 8001)), ("localhost:0", ("localhost", 0))],  # noqa: S104
)
def test_an_address_is_host_and_port(environment: pytest.MonkeyPatch, listen: str, address: tuple[str, int]) -> None:
    environment.setenv("SHOP_LISTEN", listen)
    assert read(ShopSettings).address == address


@pytest.mark.parametrize("listen", ["8001", ":8001", "localhost", "localhost:http", "localhost:65536", "[::zz]:80"])
def test_what_is_no_address_is_refused(environment: pytest.MonkeyPatch, listen: str) -> None:
    environment.setenv("SHOP_LISTEN", listen)
    with pytest.raises(ConfigError, match="SHOP_LISTEN"):
        read(ShopSettings)


@pytest.fixture
def secrets(tmp_path: Path) -> Path:
    (tmp_path / "shop_dsn").write_text(f"{DSN}\n")
    (tmp_path / "shop_amqp_url").write_text(AMQP_URL)
    return tmp_path


def test_secrets_may_be_files(secrets: Path) -> None:
    settings = read(ShopSettings, secrets)
    assert (settings.dsn.get_secret_value(), settings.amqp_url.get_secret_value()) == (DSN, AMQP_URL)


def test_the_environment_comes_before_files(secrets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHOP_DSN", "postgresql://shop@elsewhere/shop")
    assert read(ShopSettings, secrets).dsn.get_secret_value() == "postgresql://shop@elsewhere/shop"


def test_a_file_that_is_wrong_is_said_and_not_shown(secrets: Path) -> None:
    (secrets / "shop_amqp_url").write_text("http://orders:hunter2@somewhere")
    with pytest.raises(ConfigError, match="SHOP_AMQP_URL") as wrong:
        read(ShopSettings, secrets)
    assert "hunter2" not in str(wrong.value)


def test_a_file_that_may_not_be_read_is_named(secrets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, **_: object) -> str:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))  # root may read everything

    monkeypatch.setattr(Path, "read_text", refuse)
    with pytest.raises(ConfigError, match=r"Permission denied: .*shop_dsn"):
        read(ShopSettings, secrets)
