"""What the agent remembers: over restarts, next to commands that look at it, on a full or damaged disk."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from midflight.agent.state import FILE, Application, Bar, State, StateError, look, set_bar, take_bar
from midflight.errors import InputError


def application(pid: int, name: str = "x", outcome: str = "applied") -> Application:
    return Application(pid, pid * 10, "server", name, 1, "ab" * 32, outcome, "", 0.0002, 100.0)


def test_what_is_remembered_over_a_restart(tmp_path: Path) -> None:
    state = State(tmp_path, "boot1")
    state.note(application(1))
    state.note(application(2))
    state.ended(2, 20, "signal 15")
    state.watch("x", 1, 50.0, 2)
    state.bar("y", 3, "it crashed")
    state.fact("ordered", [["x", 1]])
    state.close()
    again = State(tmp_path, "boot1")
    assert [(one.pid, one.outcome) for one in again.alive()] == [(1, "applied")]
    assert [(w.name, w.since, w.passed) for w in again.watches()] == [("x", 50.0, 2)]
    assert again.bars()["y", 3].reason == "it crashed"
    assert again.ordered() == {("x", 1)}
    again.close()
    restarted = State(tmp_path, "boot2")
    assert restarted.alive() == [] and restarted.watches() == [], "all processes are others now"
    assert set(restarted.bars()) == {("y", 3)}, "but a bar holds until somebody looks"
    restarted.close()


def test_bars_are_changed_from_outside(tmp_path: Path) -> None:
    state = State(tmp_path, "boot")
    assert not state.reread_bars()
    state.bar("x", 1, "crashed")
    assert not state.reread_bars(), "its own bars are no news"
    set_bar(tmp_path, Bar("y", 2, "by hand", 1.0))
    assert state.reread_bars() and set(state.bars()) == {("x", 1), ("y", 2)}
    assert take_bar(tmp_path, "x", 7) == [] and take_bar(tmp_path, "x", None) == [("x", 1)]
    assert state.reread_bars() and set(state.bars()) == {("y", 2)}
    known = look(tmp_path, "boot")
    assert known.running and [bar.name for bar in known.bars] == ["y"]
    state.close()
    assert not look(tmp_path, "boot").running


def test_only_the_last_word_on_a_process_is_shown(tmp_path: Path) -> None:
    state = State(tmp_path, "boot")
    state.note(application(1, outcome="failed"))
    state.note(application(1))
    state.flush()
    assert [one.outcome for one in look(tmp_path, "boot").applications] == ["applied"]
    state.close()


def test_a_second_agent_is_refused(tmp_path: Path) -> None:
    state = State(tmp_path, "boot")
    with pytest.raises(StateError, match="another agent runs already"):
        State(tmp_path, "boot")
    state.close()
    State(tmp_path, "boot").close()


def test_a_full_disk_loses_nothing_but_time(tmp_path: Path) -> None:
    state = State(tmp_path, "boot")
    (pages,) = state._database.execute("PRAGMA page_count").fetchone()
    state._database.execute(f"PRAGMA max_page_count = {pages}")
    for pid in range(1, 400):
        state.note(application(pid))
    assert not state.flush() and "full" in state.trouble and state.dirty
    state.bar("x", 1, "crashed")
    assert set(state.bars()) == {("x", 1)}, "it holds all the same"
    assert not state.reread_bars() and set(state.bars()) == {("x", 1)}
    state._database.execute("PRAGMA max_page_count = 100000")
    assert state.flush() and not state.trouble
    assert len(state.alive()) == 399
    state.close()
    assert [bar.name for bar in look(tmp_path, "boot").bars] == ["x"]


def test_a_damaged_file_is_put_aside_and_told(tmp_path: Path) -> None:
    (tmp_path / FILE).write_bytes(b"no database" * 1000)
    state = State(tmp_path, "boot")
    assert "damaged" in state.lost and state.bars() == {}
    assert [path.read_bytes()[:11] for path in tmp_path.glob("*.damaged-*")] == [b"no database"]
    state.close()


def test_history_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("midflight.agent.state._KEPT", 10)
    state = State(tmp_path, "boot")
    for pid in range(1, 31):
        state.note(application(pid))
        if pid > 1:
            state.ended(pid, pid * 10, "status 0")
    state.prune()
    state.close()
    with sqlite3.connect(tmp_path / FILE) as database:
        pids = [row[0] for row in database.execute("SELECT pid FROM applications ORDER BY id")]
    assert pids == [1, *range(21, 31)], "who lives stays"


def test_where_no_agent_has_run(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no agent has run here"):
        look(tmp_path, "boot")
    with pytest.raises(InputError, match="no agent has run here"):
        take_bar(tmp_path, "x", 1)


def test_a_file_of_a_newer_version_is_left_alone(tmp_path: Path) -> None:
    State(tmp_path, "boot").close()
    with sqlite3.connect(tmp_path / FILE) as database:
        database.execute("PRAGMA user_version = 99")
    with pytest.raises(StateError, match="newer Midflight"):
        State(tmp_path, "boot")
