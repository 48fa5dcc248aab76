"""Observes hotpatches after they came into force on this machine: probes after 1, 5 and 15 minutes."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

from midflight.agent import health
from midflight.agent.health import Watch
from midflight.agent.orders import Key
from midflight.agent.probes import ProbeRound
from midflight.agent.settings import Settings
from midflight.agent.state import State

_POLL = 0.1
_NEVER = 3600.0


class Observation:
    """What is under observation, and the probes that run now. Times are seconds of uptime."""

    def __init__(self, settings: Settings, state: State) -> None:
        self._settings, self._state = settings, state
        self._watches = {(watch.name, watch.sequence): watch for watch in state.watches()}
        self._round: ProbeRound | None = None
        self._tested: list[Key] = []

    def begin(self, key: Key, now: float) -> None:
        """A hotpatch came into a process; the first time counts."""
        if key not in self._watches:
            self._watches[key] = Watch(*key, now, 0)
            self._state.watch(*key, now)

    def end(self, key: Key) -> None:
        """It is out again."""
        if self._watches.pop(key, None) is not None:
            self._state.unwatch(*key)

    def keep(self, keys: Collection[Key]) -> None:
        """Only these are in force."""
        for key in [key for key in self._watches if key not in keys]:
            self.end(key)

    def pause(self, now: float) -> float:
        """Seconds until there is something to do."""
        if self._round is not None:
            return _POLL
        if not self._settings.probes:
            return _NEVER
        times = [health.next_due(watch, self._settings.checks) for watch in self._watches.values()]
        return max(0.0, min((at - now for at in times if at is not None), default=_NEVER))

    def step(self, now: float, carriers: Callable[[Key], Sequence[int]]) -> tuple[list[Key], str] | None:
        """Go on; a failed probe gives the hotpatches that were tested, and why it failed."""
        if self._round is None:
            self._begin(now, carriers)
        if self._round is None:
            return None
        result = self._round.step()
        if result is None:
            return None
        self._round = None
        tested = [key for key in self._tested if key in self._watches]
        if result:
            return (tested, result) if tested else None
        for key in tested:
            watch = self._watches[key]
            passed = health.due(watch, now, self._settings.checks)
            self._watches[key] = Watch(*key, watch.since, passed)
            self._state.watch(*key, watch.since, passed)
        return None

    def _begin(self, now: float, carriers: Callable[[Key], Sequence[int]]) -> None:
        if not self._settings.probes:
            return
        checks = self._settings.checks
        self._tested = [key for key, watch in self._watches.items() if health.due(watch, now, checks) > watch.passed]
        if self._tested:
            pids = sorted({pid for key in self._tested for pid in carriers(key)})
            self._round = ProbeRound(self._settings.probes, pids, self._settings.probe_timeout)

    def close(self) -> None:
        """End the probes that run."""
        if self._round is not None:
            self._round.close()
