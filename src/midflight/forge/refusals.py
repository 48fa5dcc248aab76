"""The registry of findings: every code, its kind, its meaning, its wording and its remedy, in one place.

Codes never change their meaning. Ranges: 100-109 objects and compilers, 110-119 and 150-159 differences, 120-129
function entries, 130-139 matching, 140-149 linking, 160-169 the whole build, 170-179 what is left to a person.

docs/reference/refusals.md is made from this.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from midflight.forge.model import Finding, FindingKind

_BASELINE = "Ship the fix as a baseline: install the fixed build and restart."
_SIGN = "record it with --override CODE:SYMBOL=REASON and --reviewer. Or ship the fix as a baseline."


@dataclass(frozen=True, slots=True)
class Refusal:
    """One kind of finding. ``reason`` is a format string for the details that :func:`finding` is given."""

    code: str
    title: str
    reason: str
    remedy: str
    overridable: bool = True
    kind: FindingKind = "refusal"


def _table(*rows: Refusal) -> dict[str, Refusal]:
    return {row.code: row for row in rows}


REFUSALS: dict[str, Refusal] = _table(
    # --- objects and compilers
    Refusal(
        "MF101",
        "Link-time optimisation",
        "the object was compiled for link-time optimisation, so its code is not the code that runs",
        "Build both trees without -flto (for Debian packages: DEB_BUILD_OPTIONS=optimize=-lto), and ship that build as "
        "the baseline.",
        overridable=False,
    ),
    Refusal(
        "MF102",
        "Another compiler",
        "the fixed object was made by {post}, the unfixed one by {pre}",
        "Build both trees with the compiler that made the baseline.",
        overridable=False,
    ),
    Refusal(
        "MF103",
        "Hand-written assembler changed",
        "{what}, and the object does not say where the code of this symbol ends",
        "Give the symbol .type and .size directives in both trees, or ship the fix as a baseline.",
    ),
    Refusal(
        "MF104",
        "No types to compare",
        "functions changed, but the {side} object has no debug information, so changed structures and signatures "
        "cannot be seen",
        "Build with -g.",
    ),
    Refusal(
        "MF105",
        "Unclear object",
        "{what}",
        "Compile this source file with -ffunction-sections -fdata-sections, or ship the fix as a baseline.",
        overridable=False,
    ),
    # --- Windows
    Refusal(
        "MF180",
        "A distance from the base of the image",
        "at +{offset:#x} it holds a distance from the image base (ADDR32NB), which code and data of a payload cannot "
        "have: the payload lies elsewhere",
        f"{_BASELINE} Or write it so that the compiler makes no such table (for the MSVC ABI they are made for RTTI).",
        overridable=False,
    ),
    Refusal(
        "MF181",
        "A PE image without base relocations",
        "the image has no base relocations, so that its pointers cannot be told from numbers",
        "Link it with --dynamicbase (lld and MSVC: /DYNAMICBASE, without /FIXED), and ship that build as the baseline.",
        overridable=False,
    ),
    Refusal(
        "MF182",
        "C++ exceptions of the MSVC ABI",
        "the new code {what}",
        f"{_BASELINE} Or throw a type that the program throws already.",
        overridable=False,
    ),
    Refusal(
        "MF183",
        "No symbols in the captured PE image",
        "the captured build of the unfixed tree has no symbols, so that nothing tells which functions the linker "
        "folded into one",
        "Let the build link with lld-link or a MinGW linker from the PATH, without stripping in a step of its own.",
        overridable=False,
    ),
    Refusal(
        "MF184",
        "Hooks in a Windows program",
        "the author's hooks would have to be called in the process, which Midflight does on Linux alone: on Windows no "
        "thread can be borrowed at a point where it is sure to hold no lock",
        f"Make the fix without hooks. {_BASELINE}",
        overridable=False,
    ),
    # --- differences
    Refusal(
        "MF110",
        "Initial value of existing data changed",
        "existing data has another initial value ({what}), but the running program has long changed or copied it",
        f"{_BASELINE} Or set the new value in an after_apply hook, and override this finding with that reason.",
    ),
    Refusal(
        "MF111",
        "Layout of a type changed",
        "{what}",
        f"{_BASELINE} Objects of this type live in the running program in the old layout.",
    ),
    Refusal(
        "MF112",
        "Signature of a function changed",
        "the signature changed from {pre} to {post}, and {callers} with the old one",
        f"{_BASELINE} Or give the new signature a new name.",
    ),
    Refusal(
        "MF113",
        "New thread-local variable",
        "{what}; threads that run already have no room for it",
        f"{_BASELINE} Or keep the value elsewhere than in thread-local storage.",
        overridable=False,
    ),
    Refusal(
        "MF114",
        "Code that runs only at start-up",
        "{what}, which the running program has already behind it",
        f"{_BASELINE} Or do the work in an after_apply hook, and override this finding with that reason.",
    ),
    Refusal(
        "MF115",
        "Shared read-only data changed",
        "read-only data changed, and {who} would go on using the old one",
        _BASELINE,
    ),
    Refusal(
        "MF116",
        "Size or alignment of existing data changed",
        "{what}, but the variable of the running program stays as it is",
        _BASELINE,
        overridable=False,
    ),
    Refusal(
        "MF117",
        "main changed",
        "main changed, but it is called once and the running program never comes back to its beginning",
        f"{_BASELINE} If only a function that main calls needs the fix, keep it from being inlined (noinline).",
    ),
    Refusal(
        "MF118",
        "Variable cannot be told apart",
        "{what}, and nothing tells whether the new one is one of the old ones",
        "Rename the new variable in the fix, so that the names tell them apart.",
    ),
    Refusal(
        "MF119",
        "Function gone that may still be called",
        "the fix removes or renames this function, but {who}",
        "Keep the function under its old name, calling the new code.",
    ),
    Refusal(
        "MF150",
        "Value of an enumerator changed",
        "{what}",
        f"{_BASELINE} Values stored by the running program have the old meaning.",
    ),
    Refusal(
        "MF151",
        "Entry in a table that the linker collects",
        "{what} in section {section}, which the program reads as a whole at start-up or through its bounds",
        _BASELINE,
    ),
    Refusal(
        "MF152",
        "Table of pointers changed",
        "read-only pointers changed ({what}), and objects of the running program may hold the address of the old table",
        f"{_BASELINE} If no live object keeps the table's address, override this finding with that reason.",
    ),
    Refusal(
        "MF153",
        "Another kind of storage",
        "existing {pre} became {post}",
        _BASELINE,
        overridable=False,
    ),
    # --- function entries
    Refusal(
        "MF120",
        "No room at the entry",
        "{what}",
        f"{_BASELINE} If only a caller of it needs the fix, patch the caller.",
        overridable=False,
    ),
    Refusal(
        "MF121",
        "Resolver of an IFUNC changed",
        "the function chooses an implementation when the program starts, and has long chosen",
        _BASELINE,
        overridable=False,
    ),
    # --- matching
    Refusal(
        "MF130",
        "Run is not pre",
        "run was not built from this source, or with other flags or another compiler: {difference}",
        "Give the source and the build command from which the running binary was made, with the same compiler version.",
        overridable=False,
    ),
    Refusal(
        "MF131",
        "Ambiguous match",
        "{count} places in the running image fit ({places}), and nothing tells which one it is",
        "Give a running binary that has its symbol table.",
        overridable=False,
    ),
    Refusal(
        "MF132",
        "Not found in run",
        "nothing in the running image fits",
        "Give the source and the build command from which the running binary was made, or one that has its symbol "
        "table.",
        overridable=False,
    ),
    Refusal(
        "MF133",
        "Contradiction",
        "{what}",
        "Give the source and the build command from which the running binary was made, with the same compiler version.",
        overridable=False,
    ),
    Refusal(
        "MF134",
        "Code shared by several functions",
        "the linker folded it with {others} into one, so that replacing it would replace those too",
        "Link the baseline without --icf=all.",
    ),
    Refusal(
        "MF135",
        "One witness only",
        "it is at {places}, but there is only one witness of that ({how})",
        "Give a running binary that has its symbol table, or its external debug file; or override this finding when "
        "you have checked the address yourself.",
    ),
    Refusal(
        "MF139",
        "Source that does not fit as a whole",
        "this source was made from that of {base}, and {count} functions of the objects concerned are not what runs: "
        "{names}",
        "Give the exact source of what runs with --source, or plan a restart.",
        overridable=False,
    ),
    # --- linking
    Refusal(
        "MF140",
        "Relocation of an unknown kind",
        "at +{offset:#x} there is a relocation {kind} that cannot be carried over here",
        "Compile the file with the default code model and TLS dialect.",
        overridable=False,
    ),
    Refusal(
        "MF141",
        "Reference that leads nowhere",
        "it refers to {target}, {why}",
        _BASELINE,
        overridable=False,
    ),
    Refusal(
        "MF142",
        "Thread-local variable out of reach",
        "it uses the thread-local variable {target} in a way that the running image does not",
        f"{_BASELINE} Or use it in the way that the unfixed code does.",
        overridable=False,
    ),
    Refusal(
        "MF143",
        "Another address for an imported function",
        "it takes the address of {target}, which this position-dependent image does not do so far: the address differs "
        "from the one that libraries see",
        "Override this finding when the address is only called, and never compared.",
    ),
    Refusal(
        "MF144",
        "Hook that is none",
        "{what}",
        "Define int midflight_before_apply(void), midflight_after_apply, midflight_before_revert or "
        "midflight_after_revert; 0 means success.",
        overridable=False,
    ),
    # --- the whole build
    Refusal(
        "MF160",
        "Nothing to patch",
        "the fix changes no code that is compiled into this image",
        "Check that the fix belongs to this version and configuration; nothing needs to be applied.",
        overridable=False,
    ),
    Refusal(
        "MF161",
        "No build-id",
        "the running image has no build-id, by which processes that run it could be told",
        "Link the baseline with -Wl,--build-id.",
        overridable=False,
    ),
    Refusal(
        "MF162",
        "Override without a finding",
        "the override of {what} overrides nothing",
        "Leave it out: an override that is not needed hides the next change.",
        overridable=False,
    ),
    Refusal(
        "MF163",
        "Already fixed",
        "the running image does not have the code before the fix, but the code after it",
        "Nothing needs to be applied. To patch processes that still run an older build, give that build as the running "
        "binary.",
        overridable=False,
    ),
    # --- left to a person
    Refusal(
        "MF170",
        "Ownership of memory changed",
        "{what}; no tool can prove that objects which the old code made, or still holds, fit the new rule",
        "Let a person who knows the program follow objects from before the hotpatch through the new code (and those "
        f"from the new code through a revert), and {_SIGN}",
        kind="sign-off",
    ),
    Refusal(
        "MF171",
        "Hash or ordering changed",
        "{what}; tables and lists that the running program has built stand in the old order",
        f"Let a person find out whether anything live was placed by the old result, and {_SIGN}",
        kind="sign-off",
    ),
    Refusal(
        "MF172",
        "Locking changed",
        "{what}",
        "Check that the order of locks stays the same for all threads, and that none is held twice or left held.",
        overridable=False,
        kind="warning",
    ),
    Refusal(
        "MF173",
        "Runs with a lock held",
        "{caller} holds a lock ({lock}) when it calls this function",
        "Nothing needs to be done: the hotpatch waits for threads in the function, and the lock stays held meanwhile "
        "as it would be anyway.",
        overridable=False,
        kind="note",
    ),
    Refusal(
        "MF174",
        "Inlined",
        "the fix changes {source}, which the compiler put into this function",
        "Nothing needs to be done: the function is replaced because of that, though its own source is the same.",
        overridable=False,
        kind="note",
    ),
    Refusal(
        "MF175",
        "When it runs is unknown",
        "{what}, so it may be behind the running program for good, and the hotpatch may do nothing",
        "Let a person find out when this code runs: what must be done again, an after_apply hook can do; else restart.",
        overridable=False,
        kind="note",
    ),
    Refusal(
        "MF176",
        "New import",
        "the new code uses {what}, which the image does not use so far; {library} has it",
        "Nothing needs to be done: it is looked up in each process, which is left alone when it is not there.",
        overridable=False,
        kind="note",
    ),
    Refusal(
        "MF177",
        "New import from another library",
        "the new code uses {what} of {library}, which the image does not ask for",
        "Check that the processes to be patched have loaded that library; those that have not are left alone.",
        overridable=False,
        kind="warning",
    ),
)


def finding(code: str, file: Path | str, symbol: str, **detail: object) -> Finding:
    """A finding of a registered kind: ``detail`` fills the braces of its reason."""
    refusal = REFUSALS[code]
    return Finding(
        code=code,
        file=str(file),
        symbol=symbol,
        reason=refusal.reason.format(**detail),
        remedy=refusal.remedy,
        overridable=refusal.overridable,
        kind=refusal.kind,
    )


_OVERRIDES = {True: "Can be overridden with a written reason.", False: "Cannot be overridden."}
_ANSWERS = {
    "sign-off": "Needs a written reason and a reviewer's name.",
    "warning": "Does not block.",
    "note": "Does not block.",
}


def reference_page() -> str:
    """The Markdown text of docs/reference/refusals.md."""
    lines = [
        "# Findings and refusals",
        "",
        "`midflight build` refuses a change that cannot be made in a running program safely, and `midflight assess`",
        "tells that without making anything. Each finding names its code, the file, the symbol, the reason and what to",
        "do. Codes never change their meaning. There are four kinds:",
        "",
        "- **refusal**: the change cannot be hotpatched safely. Those that can be overridden need a written reason,",
        "  which becomes a part of the signed manifest;",
        "- **sign-off**: no tool can prove it either way. Nothing is written before each has a written reason, and a",
        "  reviewer's name (`--reviewer`); both become a part of the signed manifest;",
        "- **warning** and **note**: something to know. They never block.",
    ]
    for row in sorted(REFUSALS.values(), key=lambda item: item.code):
        lines += [
            "",
            f"## {row.code}: {row.title}" + ("" if row.kind == "refusal" else f" ({row.kind})"),
            "",
            f"Reason given: {row.reason.replace('{', '*').replace('}', '*')}.",
            "",
            f"Remedy: {row.remedy}",
            "",
            _ANSWERS[row.kind] if row.kind != "refusal" else _OVERRIDES[row.overridable],
        ]
    return "\n".join(lines) + "\n"
