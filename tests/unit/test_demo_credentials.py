"""The secrets of the compose stack: made once, each in one place, read by whom they are for."""

import base64
import hashlib
import json
from pathlib import Path

import pytest
from psycopg.conninfo import conninfo_to_dict

from relay.broker.topology import ServiceQueue
from relay.config import load
from relay.demo.access import RELAY, SERVICES
from relay.demo.credentials import POSTGRES, RABBITMQ, Credentials, SecretMissing
from services.settings import Listen, ServiceSettings, read


class OrdersSettings(ServiceSettings, env_prefix="ORDERS_"):
    listen: Listen = "127.0.0.1:8001"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    Credentials(tmp_path).make()
    return tmp_path


def content(folder: Path) -> dict[str, str]:
    return {str(file.relative_to(folder)): file.read_text() for file in folder.rglob("*") if file.is_file()}


def told_to_services(files: dict[str, str]) -> dict[str, str]:
    """Everything but the broker's file, in which a password looks different each time."""
    return {name: text for name, text in files.items() if not name.startswith(RABBITMQ)}


def broker_knows(folder: Path, user: str, password: str) -> bool:
    users = json.loads((folder / RABBITMQ / "definitions.json").read_text())["users"]
    (stored,) = (base64.b64decode(each["password_hash"]) for each in users if each["name"] == user)
    return stored[4:] == hashlib.sha256(stored[:4] + password.encode()).digest()


def test_everybody_has_a_password_of_their_own(folder: Path) -> None:
    credentials = Credentials(folder)
    passwords = [credentials.password(POSTGRES), *credentials.passwords.values()]
    assert len(set(passwords)) == len(passwords) == 5
    assert set(credentials.passwords) == {RELAY, *SERVICES}


def test_the_relay_reads_its_file(folder: Path) -> None:
    settings = load(folder / RELAY / "relay.toml", needs_broker=True)
    assert [source.name for source in settings.source] == list(SERVICES)
    password = Credentials(folder).password(RELAY)
    for source in settings.source:
        dsn = conninfo_to_dict(source.dsn.get_secret_value())
        assert (dsn["user"], dsn["password"], dsn["dbname"]) == (RELAY, password, source.name)
    assert settings.broker is not None
    assert settings.broker.url.get_secret_value() == f"amqp://relay:{password}@rabbitmq/%2F"


def test_a_service_reads_its_files(folder: Path) -> None:
    settings = read(OrdersSettings, folder / "orders")
    password = Credentials(folder).password("orders")
    assert settings.dsn.get_secret_value() == f"postgresql://orders:{password}@postgres/orders"
    assert settings.amqp_url.get_secret_value() == f"amqp://orders:{password}@rabbitmq/%2F"


def test_nobody_has_the_password_of_somebody_else(folder: Path) -> None:
    credentials = Credentials(folder)
    for owner, password in {**credentials.passwords, POSTGRES: credentials.password(POSTGRES)}.items():
        assert {name.partition("/")[0] for name, text in content(folder).items() if password in text} == {owner}


def test_the_broker_knows_everybody_and_has_the_queues_that_services_may_not_create(folder: Path) -> None:
    for user, password in Credentials(folder).passwords.items():
        assert broker_knows(folder, user, password)
    definitions = json.loads((folder / RABBITMQ / "definitions.json").read_text())
    queues = {queue["name"]: queue["arguments"] for queue in definitions["queues"]}
    for service in SERVICES:
        wanted = ServiceQueue(service).queue
        assert queues.pop(service) == dict(wanted.queues[0].arguments)
        assert queues.pop(f"{service}.dead") == dict(wanted.dead.arguments)
    assert not queues


def test_another_start_changes_nothing(folder: Path) -> None:
    before = content(folder)
    Credentials(folder).make()
    assert told_to_services(content(folder)) == told_to_services(before)
    assert broker_knows(folder, "orders", before["orders/password"])


def test_what_is_missing_is_made_and_the_rest_stays(folder: Path) -> None:
    before = content(folder)
    for file in (folder / "orders").iterdir():
        file.unlink()
    Credentials(folder).make()
    after = content(folder)
    assert after.keys() == before.keys()
    assert {name for name in before if after[name] != before[name]} == {
        "orders/orders_amqp_url", "orders/orders_dsn", "orders/password", "rabbitmq/definitions.json",
    }  # fmt: skip


def test_whose_password_is_gone_is_told(folder: Path) -> None:
    (folder / "orders" / "password").unlink()
    with pytest.raises(SecretMissing, match="no password of orders"):
        _ = Credentials(folder).passwords


def test_new_passwords_are_for_all_but_the_superuser(folder: Path) -> None:
    old = Credentials(folder).passwords
    superuser = Credentials(folder).password(POSTGRES)
    Credentials(folder).make(renew=True)
    new = Credentials(folder).passwords
    assert not {name for name in old if old[name] == new[name]}
    assert Credentials(folder).password(POSTGRES) == superuser
    assert new["orders"] in content(folder)["orders/orders_dsn"]
    assert broker_knows(folder, "orders", new["orders"])


def test_whoever_has_the_folder_can_read_it_and_nobody_can_write(folder: Path) -> None:
    assert {file.stat().st_mode & 0o777 for file in folder.rglob("*") if file.is_file()} == {0o444}
