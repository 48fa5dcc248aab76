"""What commands print: text and tables for people, or one JSON document; never both.

Names that come from binaries, processes and hotpatch files are printed with control characters made visible, so that
nothing in them can move the cursor or recolour a terminal.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TextIO

Style = Literal["good", "bad", "warn", "dim", "bold"]

_SGR: dict[str, str] = {"good": "32", "bad": "31", "warn": "33", "dim": "2", "bold": "1"}
_INVISIBLE = {
    code: f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"
    for code in (
        *range(0x20),
        *range(0x7F, 0xA0),
        0x200E,
        0x200F,
        *range(0x2028, 0x202F),
        *range(0x2066, 0x206A),
        0xFEFF,
    )
}
_NARROWEST = 6
"""Columns a table column keeps when a table has to shrink."""


@dataclass(frozen=True, slots=True)
class Styled:
    """A piece of text in a style; colour appears on terminals only."""

    text: str
    style: Style


Text = str | Styled


def clean(text: str) -> str:
    """``text`` with control characters and direction overrides shown as escapes."""
    return text.translate(_INVISIBLE)


class Output:
    """Where a command prints. In JSON mode only :meth:`result` (and errors) reach standard output."""

    def __init__(
        self, json: bool = False, quiet: bool = False, stdout: TextIO | None = None, stderr: TextIO | None = None
    ) -> None:
        self.json = json
        self.quiet = quiet
        self._stdout = stdout or sys.stdout
        self._stderr = stderr or sys.stderr
        self._document: dict[str, Any] | None = None
        self._progress_shown = ""
        self._progress_at = 0.0

    # --- for people ------------------------------------------------------------------------------------------------

    def line(self, *parts: Text) -> None:
        """Print one line made of the parts given; nothing in JSON mode."""
        if not self.json:
            self._write("".join(self._render(part, self._colour(self._stdout)) for part in parts))

    def table(self, headers: Sequence[str], rows: Sequence[Sequence[Text]], indent: int = 0) -> None:
        """Print a table that fits the terminal (80 columns elsewhere); long cells wrap. Nothing in JSON mode."""
        if self.json:
            return
        header: list[Text] = [Styled(text, "bold") for text in headers]
        lines = [header, *(list(row) for row in rows)]
        right = [all(_is_number(row[column]) for row in rows) and bool(rows) for column in range(len(headers))]
        widths = _fit([[len(_plain(cell)) for cell in row] for row in lines], self.width - indent)
        colour = self._colour(self._stdout)
        for row in lines:
            cells = [_wrap(cell, width) for cell, width in zip(row, widths, strict=True)]
            for number in range(max(len(cell) for cell in cells)):
                text = ""
                for cell, width, to_right in zip(cells, widths, right, strict=True):
                    piece = cell[number] if number < len(cell) else ""
                    space = " " * (width - len(_plain(piece)))
                    shown = self._render(piece, colour)
                    text += (space + shown if to_right else shown + space) + "  "
                self._write(" " * indent + text.rstrip())

    def warn(self, text: str) -> None:
        """Print one warning on standard error."""
        self._error_line(Styled("midflight: warning:", "warn"), " " + text)

    def progress(self, text: str) -> None:
        """Say what long work is at: one line that is overwritten on a terminal; elsewhere a line for each new thing
        (the text before a colon), and one every ten seconds."""
        terminal = self._stderr.isatty()
        if self.quiet or (self.json and not terminal):
            return
        now = time.monotonic()
        same = text.partition(":")[0] == self._progress_shown.partition(":")[0]
        if (same and not terminal and now - self._progress_at < 10) or (same and now - self._progress_at < 0.05):
            return
        self._progress_at, self._progress_shown = now, text
        if terminal:
            self._to(self._stderr, "\r\x1b[K" + clean(text)[: self.width - 1], end="")
        else:
            self._to(self._stderr, clean(text))

    def progress_done(self) -> None:
        """Take the progress line away."""
        if self._progress_shown and self._stderr.isatty():
            self._to(self._stderr, "\r\x1b[K", end="")
            self._progress_shown = ""

    @property
    def width(self) -> int:
        """Columns to fill: the terminal's, or 80."""
        try:
            columns = int(os.environ.get("COLUMNS", "")) or 80
        except ValueError:
            try:
                columns = os.get_terminal_size(self._stdout.fileno()).columns if self._stdout.isatty() else 80
            except (OSError, ValueError):
                columns = 80
        return max(columns, 40)

    # --- for programs ----------------------------------------------------------------------------------------------

    def result(self, document: Mapping[str, Any]) -> None:
        """Add to the one JSON document that is printed when the command ends; nothing unless in JSON mode."""
        self._document = {**(self._document or {}), **document}

    # --- the end ---------------------------------------------------------------------------------------------------

    def error(self, message: str, kind: str, exit_status: int) -> None:
        """Print an error on standard error: one line, and below it what a tool said (a compiler's message).

        In JSON mode it is in the document as well.
        """
        first, *more = message.splitlines() or [""]
        self._error_line(Styled("midflight:", "bad"), " " + first)
        for line in more:
            self._error_line(line)
        self.result({"error": {"kind": kind, "message": message, "exit_status": exit_status}})

    def finish(self) -> None:
        """Print the JSON document, when there is one, and flush."""
        self.progress_done()
        if self.json and self._document is not None:
            import json

            self._to(self._stdout, json.dumps(self._document, indent=2, default=str))
        self._to(self._stdout, "", end="")

    # --- inside ----------------------------------------------------------------------------------------------------

    def _write(self, text: str) -> None:
        self.progress_done()
        self._to(self._stdout, text)

    def _error_line(self, *parts: Text) -> None:
        self.progress_done()
        self._to(self._stderr, "".join(self._render(part, self._colour(self._stderr)) for part in parts))

    @staticmethod
    def _colour(stream: TextIO) -> bool:
        return "NO_COLOR" not in os.environ and os.environ.get("TERM") != "dumb" and stream.isatty()

    @staticmethod
    def _render(part: Text, colour: bool) -> str:
        if isinstance(part, str):
            return clean(part)
        return f"\x1b[{_SGR[part.style]}m{clean(part.text)}\x1b[0m" if colour else clean(part.text)

    @staticmethod
    def _to(stream: TextIO, text: str, end: str = "\n") -> None:
        # A reader that went away (midflight status | head) must not stop an apply half-way through its processes.
        try:
            stream.write(text + end)
            stream.flush()
        except BrokenPipeError:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, stream.fileno())
            os.close(nowhere)


def _plain(part: Text) -> str:
    return clean(part if isinstance(part, str) else part.text)


def _is_number(cell: Text) -> bool:
    text = _plain(cell).replace(",", "").replace(".", "", 1).removeprefix("-")
    return text.isdigit() or text in ("", "-")


def _fit(rows: Sequence[Sequence[int]], width: int) -> list[int]:
    """Column widths: natural ones, the widest columns shrunk until all fit."""
    widths = [max(column) for column in zip(*rows, strict=True)]
    while sum(widths) + 2 * (len(widths) - 1) > width and max(widths) > _NARROWEST:
        widths[widths.index(max(widths))] -= 1
    return widths


def _wrap(cell: Text, width: int) -> list[Text]:
    """Cut a cell into lines of at most ``width``, at spaces where there are any."""
    words = _plain(cell).split(" ")
    lines: list[str] = []
    current = ""
    for word in words:
        joined = f"{current} {word}" if current else word
        if len(joined) <= width:
            current = joined
            continue
        if current:
            lines.append(current)
        while len(word) > width:
            lines.append(word[:width])
            word = word[width:]
        current = word
    lines.append(current)
    return [line if isinstance(cell, str) else Styled(line, cell.style) for line in lines]
