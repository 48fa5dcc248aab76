"""What must not be done is not done, with a reason; the target goes on with what it ran."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest

from midflight.errors import ProcessError, ProcessGone
from midflight.process.windows import WindowsProcess
from tests.wine.harness import PROGRAMS, ROOT, TRUST, Target, applied, clean, hotpatch_file, load, midflight, refused


def test_another_build_is_not_touched() -> None:
    with Target("hotprologue.exe", "2") as target:
        assert "does not run this baseline" in refused(target, load("both2"))
        assert target.ask() == "1 10 0"
        clean(target)


def test_code_that_is_not_the_expected_one() -> None:
    with Target("threads.exe", "0") as target:
        hotpatch = load("both2")
        at = 0x140000000 + hotpatch.manifest.targets[0].functions[0].entry.vaddr
        with WindowsProcess(target.pid) as process:
            before = process.read(at, 1)
            process.write(at + 1, b"\x09")  # the function returns 9 now
            assert target.ask() == "9 10 0"
            assert "not the code that this hotpatch was made for" in refused(target, hotpatch)
            assert target.ask() == "9 10 0"
            report = midflight("check", "--pid", str(target.pid), "--json", status=1).json["processes"][0]
            assert [(d["start"], d["size"], d["found"]) for d in report["differences"]] == [(at + 1, 1, "09")]
            process.write(at + 1, b"\x01")
            assert process.read(at, 1) == before
        applied(target, hotpatch)
        assert target.ask() == "2 20 0"


def test_an_entry_that_somebody_changed_is_not_reverted() -> None:
    with Target("threads.exe", "0") as target:
        hotpatch = load("both2")
        applied(target, hotpatch)
        at = 0x140000000 + hotpatch.manifest.targets[0].functions[0].entry.vaddr
        with WindowsProcess(target.pid) as process:
            jump = process.read(at, 5)
            process.write(at, b"\xb8\x05\0\0\0")
            assert "nothing was reverted" in midflight("revert", "--every", "--pid", str(target.pid), status=1).out
            assert target.ask() == "5 20 0"
            process.write(at, jump)
        midflight("revert", "--every", "--pid", str(target.pid))
        assert target.ask() == "1 10 0"


def test_a_thread_that_never_leaves_is_named() -> None:
    with Target("odd.exe") as target:
        reason = refused(target, load("forever"))
        assert "forever" in reason and "thread" in reason
        assert target.ask() == "5 0 1"
        clean(target)
        assert target.ask("e") == "5 1 0"
        applied(target, load("forever"))
        assert target.ask() == "5 2 0"


def test_the_entry_policy_lets_it_finish_the_old_version() -> None:
    with Target("odd.exe") as target:
        applied(target, load("lenient"))
        assert target.ask() == "5 0 1"
        assert target.ask("e") == "5 2 0"


def test_a_fiber_that_waits_in_the_function_is_seen() -> None:
    with Target("fibers.exe") as target:
        reason = refused(target, load("parked"))
        assert "fibers" in reason and "parked" in reason
        assert target.ask() == "0"
        clean(target)


def test_a_process_that_does_not_exist() -> None:
    with Target("threads.exe", "0") as target:
        pid = target.pid
    done = midflight("apply", hotpatch_file("both2"), "--pid", str(pid), *TRUST, status=2)
    assert f"there is no process {pid}" in done.err


def test_this_program_itself_is_not_touched() -> None:
    assert WindowsProcess(os.getpid()).untouchable() == "it is this program itself"


def test_no_rights(monkeypatch: pytest.MonkeyPatch) -> None:
    # Wine lets everybody open everything, so the answer of Windows (ERROR_ACCESS_DENIED) is given in its place.
    from midflight.process import win32

    with Target("threads.exe", "0") as target:
        process = WindowsProcess(target.pid)
        real = win32.api()

        class Denied:
            def __getattr__(self, name: str) -> object:
                return (lambda *_: 0) if name == "OpenProcess" else getattr(real, name)

        monkeypatch.setattr(win32, "api", Denied)
        monkeypatch.setattr(win32, "last_error", lambda: win32.ACCESS_DENIED)
        reason = process.untouchable()
        assert reason is not None and "administrator" in reason
        with pytest.raises(ProcessError, match="administrator"):
            WindowsProcess(target.pid)


@pytest.mark.parametrize("after", range(0, 120, 8))
def test_a_target_that_exits_during_the_apply(after: int) -> None:
    with Target("threads.exe", "4", "soon", str(after)) as target:
        code = (
            "import sys; sys.path.insert(0, sys.argv[2])\n"
            "from tests.wine.harness import *\n"
            "from midflight.errors import ProcessGone\n"
            "try:\n"
            "    with WindowsProcess(int(sys.argv[1])) as p, Files() as f: o = apply(p, load('both2'), f, Limits())\n"
            "    print(o.outcome, o.reason)\n"
            "except ProcessGone: print('skipped')\n"
        )
        done = subprocess.run(
            [sys.executable, "-c", code, str(target.pid), str(ROOT)],
            capture_output=True,
            text=True,
            timeout=120,
            stdin=subprocess.DEVNULL,
        )
        assert done.stdout.startswith(("skipped", "applied")), done
        assert target.process.wait(30) == 7, "it did not end as it would have"


def test_it_exits_while_we_hold_it_open() -> None:
    with Target("threads.exe", "0") as target, WindowsProcess(target.pid) as process:
        target.stop()
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline and process.untouchable() is None:
            time.sleep(0.01)
        with pytest.raises(ProcessGone):
            process.maps()
        with pytest.raises(ProcessGone):
            process.read(0x140000000, 16)
        with pytest.raises(ProcessGone):
            process.stop(1).__enter__()
    assert PROGRAMS.is_dir()
