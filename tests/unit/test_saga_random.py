"""Sagas of chance, in a world that repeats, reorders, delays and refuses: all of it or nothing, and never stuck."""

from random import Random

from hypothesis import example, given, settings
from hypothesis import strategies as st

from relay.messaging import Compensated, OperationCancelled
from relay.saga.log import Happened
from relay.saga.record import Record, Status, rebuild
from relay.saga.stimulus import (
    Aborted,
    Acted,
    ActionFailed,
    Due,
    Held,
    Purpose,
    Replied,
    Started,
    Timer,
    UndoFailed,
    Undone,
)
from tests.unit.saga_model import Builder, Busy, No, Runner, Trail, World, Yes

SAGAS = 1_000
MOVES = 60

seeds = st.integers(0, 2**63)


def lived(seed: int) -> World:
    """A saga in the middle of its life."""
    chance = Random(seed)
    world = World(Builder(chance).build(), chance, troubles=chance.choice([0.0, 0.1, 0.3, 0.6]))
    if chance.random() < 0.1:
        world.feed(Held(Trail(), "order/7"))
        world.feed(Due(Timer(Purpose.LOCK)))
    else:
        world.start()
    for _ in range(chance.randrange(MOVES)):
        if chance.random() < 0.03:
            world.feed(Aborted("enough"))
        if not world.move():
            break
    return world


@settings(max_examples=SAGAS, deadline=None)
@given(seeds)
def test_whatever_happens_a_saga_is_completed_or_undone(seed: int) -> None:
    world = lived(seed)
    if world.finish():
        world.judge()


@settings(max_examples=SAGAS // 3, deadline=None)
@given(seeds)
def test_every_prefix_of_a_log_is_a_saga_that_was_there(seed: int) -> None:
    chance = Random(seed)
    world = World(Builder(chance).build(), chance, troubles=0.3)
    world.start()
    seen: list[tuple[int, Record]] = [(len(world.log), world.record)]
    for _ in range(MOVES):
        if not world.move():
            break
        seen.append((len(world.log), world.record))
    assert all(rebuild(world.log[:length]) == record for length, record in seen)


@settings(max_examples=SAGAS // 3, deadline=None)
@given(seeds)
def test_a_saga_that_is_cancelled_before_it_may_begin_leaves_nothing_behind(seed: int) -> None:
    chance = Random(seed)
    world = World(Builder(chance).build(), chance, troubles=0.0)
    world.feed(Held(Trail(), "order/7"))
    assert world.record.status is Status.WAITING

    world.feed(chance.choice([Aborted("enough"), Due(Timer(Purpose.LOCK_TIMEOUT))]))
    world.feed(Due(Timer(Purpose.LOCK)))

    assert world.record.status is Status.COMPENSATED
    assert not world.commands
    assert not world.effects


class Nonsense(Runner):
    """A saga that hears anything, from participants that keep to nothing."""

    def __init__(self, chance: Random) -> None:
        super().__init__(Builder(chance).build())
        self._chance = chance
        self._names = [step.name for step in self.saga.steps]

    def hear(self) -> None:
        chance, name = self._chance, self._chance.choice(self._names)
        attempt = chance.choice([None, 1, 1, 2, 3, 99])
        reply = chance.choice([Yes(product="x"), Yes(product="x"), No(), Busy(), Compensated(), OperationCancelled()])
        timer = Timer(chance.choice(list(Purpose)), chance.choice([name, None]), attempt)
        stimuli = [
            Replied(name, reply, attempt, chance.random() < 0.4),
            Replied(name, reply, attempt, chance.random() < 0.4),
            Due(chance.choice(self.timers) if self.timers else timer),
            Due(timer),
            chance.choice(
                [Acted(name, Trail()), ActionFailed(name, "so"), Undone(name, Trail()), UndoFailed(name, "so")]
            ),
            Aborted("enough") if chance.random() < 0.1 else Due(timer),
        ]
        self.feed(chance.choice(stimuli))


@settings(max_examples=SAGAS, deadline=None)
@given(seeds)
@example(0)
def test_no_nonsense_gets_a_saga_stuck_or_beyond_its_budgets(seed: int) -> None:
    chance = Random(seed)
    saga = Nonsense(chance)
    saga.feed(Started(Trail()))
    for _ in range(MOVES):
        saga.hear()  # checks every invariant that does not depend on what others do


@settings(deadline=None)
@given(seeds)
def test_a_seed_always_tells_the_same_story(seed: int) -> None:
    assert lived(seed).log == lived(seed).log


def test_the_stories_are_not_all_of_one_kind() -> None:
    """What the random tests are worth depends on what they meet."""
    worlds = [lived(seed) for seed in range(400)]
    for world in worlds:
        world.finish()
    ends = {world.record.status for world in worlds}
    happened = {event.what for world in worlds for event in world.log}
    assert ends >= {Status.COMPLETED, Status.COMPENSATED, Status.SUSPENDED}
    assert happened == set(Happened) - {Happened.OPERATOR_ACTION}
    assert any("late" in event.detail for world in worlds for event in world.log)
    assert any("pending" in event.detail for world in worlds for event in world.log)
    assert any("settled" in event.detail for world in worlds for event in world.log)
    assert any("timer" in event.detail for world in worlds for event in world.log)
