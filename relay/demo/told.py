"""What the relay and the services are told about where everything is, in the form in which each of them reads it."""

import json
from collections.abc import Mapping


def relay_toml(amqp_url: str, dsns: Mapping[str, str], listen: str | None = None) -> str:
    """A configuration file for `relay run`, with a source for each database."""
    lines = ["[broker]", f"url = {json.dumps(amqp_url)}"]
    if listen is not None:
        lines += ["", "[http]", f"listen = {json.dumps(listen)}"]
    for name, dsn in dsns.items():
        lines += ["", "[[source]]", f'name = "{name}"', f"dsn = {json.dumps(dsn)}"]
    return "\n".join(lines) + "\n"


def service_settings(service: str, dsn: str, amqp_url: str) -> dict[str, str]:
    """A service's settings, by the names of its environment: see services/settings.py."""
    prefix = service.upper()
    return {f"{prefix}_DSN": dsn, f"{prefix}_AMQP_URL": amqp_url}
