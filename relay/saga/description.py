"""What a definition says, as data, and the hash that tells one version of it from another."""

from collections.abc import Iterable
from hashlib import sha256
from typing import Any

from pydantic import JsonValue
from pydantic_core import to_json

from relay.duration import seconds
from relay.messaging import Command, Retry
from relay.messaging.message import type_of
from relay.saga.definition import Saga
from relay.saga.step import LOCAL_TIMEOUT, LocalStep, RemoteStep, Step


def describe(saga: Saga[Any]) -> dict[str, JsonValue]:
    """What the definition declares. Of steps and what undoes them it has the names, and of no function the code."""
    return {
        "name": saga.name,
        "state": saga.state.model_json_schema(),
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
    }
    if isinstance(step, LocalStep) and step.timeout_s != seconds(LOCAL_TIMEOUT):
        # Local steps have had no timeout once: where none is said, the hash is what it was.
        said["timeout_s"] = step.timeout_s
    if isinstance(step, RemoteStep):
        said["to"] = step.to
        said["timeout_s"] = step.timeout_s
        said["commands"] = _schemas(step.commands)
        said["compensating_commands"] = _schemas(step.undoing_commands)
        said["replies"] = {name: reply.model_json_schema() for name, reply in step.replies.items()}
        if step.principal is step:
            said["alternatives"] = [_step(saga, alternative) for alternative in step.alternatives]
    return said


def _schemas(commands: Iterable[type[Command]]) -> JsonValue:
    """By name, because a function returns A | B or B | A: that is the same."""
    return {type_of(command): command.model_json_schema() for command in commands}


def _retry(retry: Retry) -> JsonValue:
    return {"attempts": retry.attempts, "backoff": retry.backoff}


def _sorted(value: JsonValue) -> JsonValue:
    """JSON with the keys of its objects in order: the hash must not depend on the order of declarations in a model."""
    if isinstance(value, dict):
        return {key: _sorted(value[key]) for key in sorted(value)}
    return [_sorted(item) for item in value] if isinstance(value, list) else value
