"""For tests of sagas: stories about a definition, without servers, and crashes everywhere, with them."""

from relay.saga.testing.clock import FakeClock
from relay.saga.testing.crash import CrashFailure, CrashReport, crash_everywhere
from relay.saga.testing.rehearsal import Sent
from relay.saga.testing.scenario import Scenario, given
from relay.saga.testing.world import World

__all__ = ["CrashFailure", "CrashReport", "FakeClock", "Scenario", "Sent", "World", "crash_everywhere", "given"]
