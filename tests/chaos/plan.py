"""What goes wrong, when and where: a plan of faults that a seed decides. Pure."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from random import Random

from tests.support.proxy import Direction

LEAST_OF_EACH = 15
"""Faults of each kind, in a plan that is long enough."""

LONGEST_PAUSE_S = 0.8
LONGEST_DELAY_S = 3.0
CRUMBLED_BYTES = 3000
"""As many bytes pass in pieces of at most MOST_CRUMB bytes."""
MOST_CRUMB = 7


class Kind(StrEnum):
    """Kinds of fault."""

    CUT_POSTGRES = "connection to PostgreSQL cut"
    CUT_RABBIT = "connection to RabbitMQ cut"
    TEAR_POSTGRES = "cut inside a message of PostgreSQL's protocol"
    TEAR_RABBIT = "cut inside an AMQP frame"
    DELAY = "held up"
    CRUMBLE = "handed on in crumbs"
    KILL = "relay killed and started again"
    TERMINATE = "relay terminated and started again"
    TAKEOVER = "active relay killed, the standby takes over"
    CRASH_POSTGRES = "PostgreSQL crashed and started again"
    RESTART_RABBIT = "RabbitMQ restarted"


CHEAP = tuple(kind for kind in Kind if kind not in (Kind.CRASH_POSTGRES, Kind.RESTART_RABBIT, Kind.TAKEOVER))
"""Kinds that take no more than a few seconds: the rest of a plan, once there is enough of each kind."""

HARMLESS = frozenset({Kind.DELAY, Kind.CRUMBLE})
"""Faults that break nothing: no message may arrive twice because of them."""

ACKNOWLEDGEMENT_BYTES = 100
CHANGES_BYTES = 20_000
"""How far ahead a cut may be: in a stream of confirms, status updates and the like, and in one of rows or messages."""


class Line(StrEnum):
    """What connection a fault is about."""

    REPLICATION = "replication connection"
    SQL = "SQL connection"
    POSTGRES = "PostgreSQL"
    """All of them."""
    AMQP = "RabbitMQ"


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault, with all that is decided about it beforehand. What its kind has no use for is not looked at."""

    number: int
    kind: Kind
    line: Line
    direction: Direction
    after_bytes: int
    reset: bool
    gentle: bool
    """Rather than SIGKILL: RabbitMQ is stopped in good order, and PostgreSQL by an immediate shutdown."""
    seconds: float
    dice: int
    """Seed of what is decided while it lasts."""
    pause_s: float
    """Before it strikes."""
    recovered: bool
    """Whether the fault before it is over first: a message that was committed after it has arrived."""

    @property
    def _details(self) -> str:
        where = f"{self.line}, {self.direction}"
        match self.kind:
            case Kind.CUT_POSTGRES | Kind.CUT_RABBIT | Kind.TEAR_POSTGRES | Kind.TEAR_RABBIT:
                return f" ({where}, after {self.after_bytes} bytes, by {'RST' if self.reset else 'FIN'})"
            case Kind.DELAY:
                return f" ({where}, for {self.seconds:.2f} s)"
            case Kind.CRUMBLE:
                return f" ({where})"
            case Kind.CRASH_POSTGRES:
                return f" ({'immediate shutdown' if self.gentle else 'SIGKILL'})"
            case Kind.RESTART_RABBIT:
                return f" ({'in good order' if self.gentle else 'SIGKILL'})"
        return ""

    def __str__(self) -> str:
        when = "recovered, then" if self.recovered else "not waiting,"
        return f"{self.number:>4}  {when} {self.pause_s:.2f} s  {self.kind}{self._details}"


def plan(seed: int, count: int) -> list[Fault]:
    """So many faults in an order of chance: of each kind LEAST_OF_EACH, or an equal share where that is less."""
    dice = Random(seed)
    kinds = list(Kind) * min(LEAST_OF_EACH, count // len(Kind))
    kinds += dice.choices(CHEAP, k=count - len(kinds))
    dice.shuffle(kinds)
    return [_fault(number, kind, dice) for number, kind in enumerate(kinds, 1)]


def tally(faults: Iterable[Fault]) -> str:
    """How many of each kind, a line each."""
    counts = Counter(fault.kind for fault in faults)
    return "\n".join(f"{counts[kind]:>5}  {kind}" for kind in Kind)


def announce(seed: int, faults: Sequence[Fault]) -> str:
    """What is about to happen, and how to have it again."""
    return f"\n{len(faults)} faults, SEED={seed}\n{tally(faults)}"


def _fault(number: int, kind: Kind, dice: Random) -> Fault:
    line = _line(kind, dice)
    direction = dice.choice(tuple(Direction))
    rows = (line, direction) in ((Line.REPLICATION, Direction.BACK), (Line.AMQP, Direction.FORTH))
    return Fault(
        number,
        kind,
        line,
        direction,
        after_bytes=dice.randint(1, CHANGES_BYTES if rows else ACKNOWLEDGEMENT_BYTES),
        reset=dice.random() < 0.5,
        gentle=dice.random() < 0.5,
        seconds=dice.uniform(0.1, LONGEST_DELAY_S),
        dice=dice.getrandbits(32),
        pause_s=dice.uniform(0, LONGEST_PAUSE_S),
        recovered=dice.random() < 0.6,
    )


def _line(kind: Kind, dice: Random) -> Line:
    match kind:
        case Kind.CUT_RABBIT | Kind.TEAR_RABBIT:
            return Line.AMQP
        case Kind.CUT_POSTGRES | Kind.TEAR_POSTGRES:
            return dice.choice((Line.REPLICATION, Line.SQL))
    return dice.choice((Line.POSTGRES, Line.AMQP))
