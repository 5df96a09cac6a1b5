"""A saga that runs in memory: no database, no broker, and time passes when a test says so."""

import heapq
import itertools
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from functools import reduce
from typing import Generic

from relay.messaging import Command
from relay.saga.definition import Saga
from relay.saga.log import LogEvent
from relay.saga.record import Record, evolve
from relay.saga.step import S
from relay.saga.stimulus import Act, Due, Send, SetTimer, Stimulus, Task, Timer, Undo
from relay.saga.task import due, load
from relay.saga.testing.clock import FakeClock
from relay.saga.testing.local import LocalWork, StandIn
from relay.saga.transition import decide


@dataclass(frozen=True, slots=True)
class Sent:
    """A command as a participant gets it. `compensates`: it is the one that undoes the step."""

    command: Command
    to: str
    step: str
    attempt: int
    compensates: bool


@dataclass(frozen=True, slots=True)
class Moment:
    """An event, and when it happened."""

    at_s: float
    event: LogEvent


class Rehearsal(Generic[S]):
    """Takes stimuli as the orchestrator does. Waits between attempts last as long as declared, without jitter."""

    def __init__(self, saga: Saga[S], stand_ins: Mapping[str, StandIn[S]]) -> None:
        saga.seal()
        self.saga = saga
        self.local = LocalWork(saga, stand_ins)
        self.record = Record()
        self.clock = FakeClock()
        self.story: list[Moment] = []
        self.sent: list[Sent] = []
        self._timers: list[tuple[float, int, Timer]] = []
        self._numbers = itertools.count()
        self._tasks: deque[Task[S]] = deque()

    @property
    def started(self) -> bool:
        """Whether anything has happened yet."""
        return bool(self.story)

    @property
    def state(self) -> S:
        """A copy of the saga's state."""
        return load(self.saga, self.record)

    def take(self, stimulus: Stimulus, *, starting: bool = False) -> bool:
        """Let this happen, and do what is to be done then; False when it is stale, and nothing has happened."""
        known = len(self.story)
        self._decide(stimulus)
        while self._tasks:
            came_of_it = self._do(self._tasks.popleft(), starting)
            if came_of_it is not None:
                self._decide(came_of_it)
        return len(self.story) > known

    def pass_time(self, seconds: float) -> None:
        """Let time pass, and fire the timers that become due, each at its moment."""
        end = self.clock.later(seconds)
        while self._timers and self._timers[0][0] <= end.now_s:
            at_s, _, timer = heapq.heappop(self._timers)
            self.clock = FakeClock(at_s)
            self.take(Due(timer))
        self.clock = end

    def _decide(self, stimulus: Stimulus) -> None:
        events = decide(self.saga, self.record, stimulus)
        self.record = reduce(evolve, events, self.record)
        self.story += [Moment(self.clock.now_s, event) for event in events]
        for event in events:
            self._tasks.extend(due(self.saga, self.record, event))

    def _do(self, task: Task[S], starting: bool) -> Stimulus | None:
        match task:
            case Act(step):
                return self.local.act(step, self.state, starting=starting)
            case Undo(step):
                return self.local.undo(step, self.state)
            case Send(step, command, attempt, compensates):
                self.sent.append(Sent(command, step.to, step.name, attempt, compensates))
            case SetTimer(timer, after_s):
                heapq.heappush(self._timers, (self.clock.now_s + after_s, next(self._numbers), timer))
        return None
