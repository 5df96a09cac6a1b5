"""The operation: what must happen at most once, whatever is sent twice."""

from dataclasses import dataclass
from typing import Final, Self
from uuid import UUID

from relay.messaging import Unprocessable

ACTION: Final = "action"
"""The branch of a step's own command."""


@dataclass(frozen=True, slots=True)
class Operation:
    """A step of a saga, as commands name it and replies repeat it: saga id / step / branch."""

    saga_id: UUID
    step: str
    branch: str = ACTION

    def __str__(self) -> str:
        return f"{self.saga_id}/{self.step}/{self.branch}"

    @classmethod
    def parse(cls, text: str | None) -> Self:
        """Read an operation. Raises Unprocessable when it is none: without it, nobody knows what is answered."""
        match (text or "").split("/"):
            case [saga_id, step, branch] if step and branch:
                try:
                    return cls(UUID(saga_id), step, branch)
                except ValueError:
                    pass
        raise Unprocessable(f"the reply repeats no operation like saga id/step/branch: {text!r}")
