"""What reaches a terminal or a program: widths, escapes, one JSON document, readers that go away."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from midflight.cli.output import Output, Styled, clean


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def printed(*, json_mode: bool = False) -> tuple[Output, io.StringIO, io.StringIO]:
    out, err = io.StringIO(), io.StringIO()
    return Output(json=json_mode, stdout=out, stderr=err), out, err


@given(st.text())
def test_nothing_that_moves_a_cursor_gets_through(text: str) -> None:
    output, out, _ = printed()
    output.line(text)
    assert out.getvalue().endswith("\n")
    shown = out.getvalue()[:-1]
    assert not any(ord(char) < 0x20 or 0x7F <= ord(char) < 0xA0 for char in shown)
    assert not any(0x202A <= ord(char) <= 0x202E or 0x2066 <= ord(char) <= 0x2069 for char in shown)


def test_control_characters_stay_readable() -> None:
    assert clean("evil\x1b[2Jname\r\n") == "evil\\x1b[2Jname\\x0d\\x0a"


@given(
    st.lists(st.tuples(st.text(max_size=60), st.text(max_size=200), st.integers().map(str)), min_size=1, max_size=5),
    st.integers(min_value=40, max_value=200),
)
def test_tables_fit_and_lose_nothing(rows: list[tuple[str, str, str]], columns: int) -> None:
    output, out, _ = printed()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COLUMNS", str(columns))
        output.table(["name", "what", "bytes"], rows)
    lines = out.getvalue().splitlines()
    assert max(map(len, lines)) <= columns
    # Columns are cut into pieces, so compare what is there, letter by letter.
    expected = sorted(char for row in rows for cell in row for char in clean(cell) if not char.isspace())
    assert sorted(char for line in lines[1:] for char in line if not char.isspace()) == expected


def test_numbers_stand_to_the_right() -> None:
    output, out, _ = printed()
    output.table(["pid", "name"], [["7", "a"], ["4711", "b"]])
    assert out.getvalue().splitlines() == [" pid  name", "   7  a", "4711  b"]


def test_colour_is_for_terminals_that_want_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    for stream, environment, coloured in (
        (Terminal(), {}, True),
        (io.StringIO(), {}, False),
        (Terminal(), {"NO_COLOR": "1"}, False),
        (Terminal(), {"TERM": "dumb"}, False),
    ):
        with pytest.MonkeyPatch.context() as patch:
            for name, value in environment.items():
                patch.setenv(name, value)
            Output(stdout=stream).line("state: ", Styled("applied", "good"))
        assert ("\x1b[32mapplied\x1b[0m" in stream.getvalue()) == coloured
        assert "applied" in stream.getvalue()


def test_json_mode_prints_one_document_and_nothing_else() -> None:
    output, out, err = printed(json_mode=True)
    output.line("for people")
    output.table(["a"], [["b"]])
    output.progress("working")
    output.result({"processes": [1]})
    output.error("it failed\nbadly", "EngineError", 1)
    output.finish()
    assert json.loads(out.getvalue()) == {
        "processes": [1],
        "error": {"kind": "EngineError", "message": "it failed\nbadly", "exit_status": 1},
    }
    assert err.getvalue() == "midflight: it failed\nbadly\n"


def test_progress_is_one_line_on_a_terminal_and_gone_before_text() -> None:
    err = Terminal()
    output = Output(stdout=io.StringIO(), stderr=err)
    output.progress("building")
    output.line("done")
    assert err.getvalue() == "\r\x1b[Kbuilding\r\x1b[K"
    plain = io.StringIO()
    output = Output(stdout=io.StringIO(), stderr=plain)
    for seconds in range(3):
        output.progress(f"pre: {seconds} s")
    output.line("a result")
    output.progress("pre: 4 s")
    output.progress("post: 0 s")
    assert plain.getvalue() == "pre: 0 s\npost: 0 s\n"
    silent = io.StringIO()
    Output(quiet=True, stdout=io.StringIO(), stderr=silent).progress("building")
    assert silent.getvalue() == ""


def test_a_reader_that_goes_away_does_not_stop_the_work() -> None:
    program = (
        "import sys\nfrom midflight.cli.output import Output\nout = Output()\n"
        "for number in range(100000): out.line(str(number))\nout.finish()\nsys.stderr.write('all done')"
    )
    reader, writer = os.pipe()
    with subprocess.Popen([sys.executable, "-c", program], stdout=writer, stderr=subprocess.PIPE, text=True) as child:
        os.close(writer)
        os.read(reader, 10)
        os.close(reader)
        _, errors = child.communicate(timeout=60)
    assert (child.returncode, errors) == (0, "all done")
