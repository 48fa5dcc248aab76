"""The same work on many processes: taking hotpatches out wherever they are, and clearing up after killed engines."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

from midflight.engine import journal
from midflight.engine.inventory import find_ledgers
from midflight.engine.ledger import Ledger
from midflight.engine.modules import Files
from midflight.engine.recover import recover
from midflight.engine.revert import revert
from midflight.engine.transaction import Limits, Outcome
from midflight.errors import MidflightError
from midflight.process.model import Process


def carriers(processes: Iterable[Process], chosen: Callable[[Ledger], bool]) -> Iterator[Process]:
    """Processes that carry a hotpatch that ``chosen`` says, and those whose record is damaged."""
    for process in processes:
        try:
            if any(chosen(ledger) for ledger in find_ledgers(process)):
                yield process
        except MidflightError:
            # A damaged ledger is reported by whoever works on the process.
            if not _hidden(process):
                yield process
        finally:
            # A machine has more processes than we may have open files.
            process.close()


def _hidden(process: Process) -> bool:
    """Whether a process cannot even be looked at: gone, or another user's."""
    try:
        process.maps()
    except MidflightError:
        return True
    return False


def revert_everywhere(
    processes: Iterable[Process], chosen: Callable[[Ledger], bool], files: Files, limits: Limits
) -> list[Outcome]:
    """Take the hotpatches in force that ``chosen`` says out of all processes that carry them; one outcome for each."""
    found = (revert(process, files, limits, chosen) for process in carriers(processes, chosen))
    return [outcome for outcome in found if outcome.outcome != "nothing"]


def recover_everywhere(
    processes: Sequence[Process], files: Files, limits: Limits, ours: Callable[[int], bool] = lambda pid: True
) -> list[Outcome]:
    """Finish or undo what killed engines left, anywhere; the outcomes of those processes where there was something.

    Args:
        ours: which processes, by number, are worked on.
    """
    announced = {(a.pid, a.start_time) for a in journal.announced()}
    mine = [process for process in processes if ours(process.pid)]
    left = {(p.pid, p.start_time) for p in carriers(mine, lambda _: True)} | announced
    outcomes = []
    for process in mine:
        if (process.pid, process.start_time) in left:
            outcomes.append(recover(process, files, limits))
            process.close()
    alive = {(process.pid, process.start_time) for process in processes}
    journal.sweep(lambda pid, start: (pid, start) in alive)
    return [outcome for outcome in outcomes if outcome.outcome != "nothing"]
