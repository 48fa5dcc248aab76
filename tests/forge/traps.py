"""Traps for the forge: programs whose running binary is not quite what the sources say, and fixes that look harmless.

A trap ends in one of two ways, and both are asserted by tests: the patched program says what the fixed one says, or the
forge refuses with a code.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from midflight.forge.forge import ForgeResult, RefusedWithFindings
from midflight.forge.model import Build, CompiledObject
from tests.forge.selfpatching import Kit, Project, make_plan, run

MAIN = """
void selfpatch(const char *plan, void *anchor);
int before(void);
int work(void);
int main(int argc, char **argv) {
  (void)argc;
  before();
  if (argv[1][0] != '-') selfpatch(argv[1], (void *)selfpatch);
  return work();
}
"""
MAIN_CC = 'extern "C" {' + MAIN.replace("int main", "}\nint main")
"""Calls ``before``, is patched, calls ``work``, whose output counts."""
NOINLINE = "__attribute__((noinline))"


@dataclass(slots=True)
class Trap(Project):
    """A project whose running binary may be built otherwise than the captured one."""

    run_kit: Kit | None = None
    """Compiler, flags and link of what runs; None: those of the capture, without -ffunction-sections."""
    run_sources: Mapping[str, str] = field(default_factory=dict)
    """Sources that what runs was really built from."""
    after_link: tuple[str, ...] = ()
    """A command that what runs goes through after it is linked (strip …)."""
    environment: Mapping[str, str] = field(default_factory=dict)

    def _build(self, side: str, tree: Path, extra: tuple[str, ...]) -> Build:
        if side != "plain":
            return Project._build(self, side, tree, extra)
        kit, texts = self.kit, {name: (tree / name).read_text() for name in self.sources}
        self.kit = self.run_kit or kit
        for name, text in self.run_sources.items():
            (tree / name).write_text(text)
        try:
            made = Project._build(self, side, tree, extra)
        finally:
            self.kit = kit
            for name, text in texts.items():
                (tree / name).write_text(text)
        image = made.image
        full = image.with_suffix(".full")
        full.write_bytes(image.read_bytes())
        if self.after_link:
            run(*self.after_link, image, cwd=image.parent)
        return made

    def say(self, program: Path, plan: Path | str) -> str:
        """Run one of the programs; its whole output."""
        done = subprocess.run(
            [program, str(plan)],
            cwd=self.folder,
            capture_output=True,
            text=True,
            env={**os.environ, **self.environment},
        )
        return f"{done.stdout}{done.stderr}status {done.returncode}"

    def spring(self) -> Outcome:
        """Forge, patch, and compare; or the refusal."""
        try:
            result = self.forge()
        except RefusedWithFindings as refused:
            return Outcome(refusals=tuple((f.code, f.symbol, f.reason) for f in refused.findings))
        target = result.manifest.targets[0]
        plan = self.folder / "plan"
        image = self.folder / "plain" / ("libimage.full" if self.kit.library else "image.full")
        plan.write_text(make_plan(target, result.payloads[target.payload], image))
        plain = self.program("plain")
        return Outcome(
            result=result,
            before=self.say(plain, "-"),
            patched=self.say(plain, plan),
            fixed=self.say(self.program("post"), "-"),
        )


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a trap."""

    refusals: tuple[tuple[str, str, str], ...] = ()
    """(code, symbol, reason)"""
    result: ForgeResult | None = None
    before: str = ""
    patched: str = ""
    fixed: str = ""

    @property
    def codes(self) -> set[tuple[str, str]]:
        return {(code, symbol) for code, symbol, _ in self.refusals}

    @property
    def verdict(self) -> str:
        """works, wrong, vain (the fix changes nothing that is shown), or the codes."""
        if self.refusals:
            return " ".join(sorted({code for code, _, _ in self.refusals}))
        if self.patched != self.fixed:
            return "wrong"
        return "vain" if self.before == self.fixed else "works"


__all__ = ["MAIN", "MAIN_CC", "NOINLINE", "CompiledObject", "Outcome", "Trap"]
