"""What a definition says, as data, and the hash that tells one version of it from another."""

from collections.abc import Iterable
from hashlib import sha256
from typing import Any, Final

from pydantic import BaseModel, JsonValue
from pydantic_core import to_json

from relay.messaging import Retry
from relay.messaging.message import Message, type_of
from relay.saga.definition import Saga
from relay.saga.step import RemoteStep, Step

FOR_PEOPLE: Final = frozenset({"title", "description"})
"""What a JSON Schema says for people: pydantic takes it from names and docstrings."""

NAMING: Final = frozenset({"properties", "patternProperties", "$defs"})
"""Under these keys of a JSON Schema are schemas by names: a field may be called title."""

VALUES: Final = frozenset({"default", "const", "enum", "examples", "discriminator"})
"""Under these are values, which may look like schemas."""


def describe(saga: Saga[Any]) -> dict[str, JsonValue]:
    """What the definition declares. Of steps and what undoes them it has the names, and of no function the code."""
    return {
        "name": saga.name,
        "state": _schema(saga.state),
        "timeout_s": saga.timeout_s,
        "stages": [[_step(saga, step) for step in stage] for stage in saga.stages],
        "undo": [[step.name for step in stage if step.compensation] for stage in saga.undo_stages],
        "lock": None if saga.lock is None else {"on_locked": saga.on_locked, "timeout_s": saga.lock_timeout_s},
    }


def fingerprint(saga: Saga[Any]) -> str:
    """The SHA-256 of the description, in hexadecimal digits. Two processes with the same definition agree on it."""
    text = to_json(_sorted(describe(saga)))
    return sha256(text).hexdigest()


def _step(saga: Saga[Any], step: Step[Any]) -> dict[str, JsonValue]:
    said: dict[str, JsonValue] = {
        "name": step.name,
        "nature": saga.nature(step).value,
        "conditional": step.principal.condition is not None,
        "readonly": step.readonly,
        "retry": _retry(step.retry),
        "compensation": None if step.compensation is None else step.compensation.__name__,
        "compensation_retry": _retry(step.compensation_retry),
        "transient": [failure.__name__ for failure in step.transient],
        "timeout_s": step.timeout_s,
    }
    if isinstance(step, RemoteStep):
        said["to"] = step.to
        said["commands"] = _schemas(step.commands)
        said["compensating_commands"] = _schemas(step.undoing_commands)
        said["replies"] = _schemas(step.replies.values())
        if step.principal is step:
            said["alternatives"] = [_step(saga, alternative) for alternative in step.alternatives]
    return said


def _schemas(messages: Iterable[type[Message]]) -> JsonValue:
    """By name, because a function returns A | B or B | A: that is the same."""
    return {type_of(message): _schema(message) for message in messages}


def _schema(model: type[BaseModel]) -> JsonValue:
    """The JSON Schema of a model, without what changes nothing."""
    return _bare(model.model_json_schema())


def _bare(schema: JsonValue) -> JsonValue:
    """A schema, or schemas, without what is said for people, and with the required fields in order."""
    if isinstance(schema, list):
        return [_bare(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    return {key: _part(key, value) for key, value in schema.items() if key not in FOR_PEOPLE}


def _part(key: str, value: JsonValue) -> JsonValue:
    if key in NAMING and isinstance(value, dict):
        return {name: _bare(schema) for name, schema in value.items()}
    if key == "required" and isinstance(value, list):
        return sorted(value, key=str)
    return value if key in VALUES else _bare(value)


def _retry(retry: Retry) -> JsonValue:
    return {"attempts": retry.attempts, "backoff": retry.backoff}


def _sorted(value: JsonValue) -> JsonValue:
    """JSON with the keys of its objects in order: the hash must not depend on the order of declarations in a model."""
    if isinstance(value, dict):
        return {key: _sorted(value[key]) for key in sorted(value)}
    return [_sorted(item) for item in value] if isinstance(value, list) else value
