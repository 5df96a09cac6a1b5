"""What kinds of servers of our own there are."""

from typing import Final, Literal, get_args

Kind = Literal["private", "containers"]
KINDS: Final[tuple[Kind, ...]] = get_args(Kind)
