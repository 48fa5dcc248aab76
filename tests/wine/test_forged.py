"""Hotpatches that the forge made of COFF objects, in the programs that they were made for."""

from __future__ import annotations

import pytest

from tests.wine.harness import Target, applied, clean, load, reverted


def answers(target: Target, question: str) -> list[str]:
    """Everything that comes back for one line: up to the number that the program ends it with."""
    found = [target.ask(question)]
    while not found[-1].lstrip("-")[:1].isdigit() and not found[-1].startswith("main: "):
        found.append(target.line())
    return found


@pytest.mark.parametrize("name", ["made-c", "made-clang"])
def test_a_c_program(name: str) -> None:
    """By gcc and GNU's linker; by clang and lld, stripped."""
    long = "x" * 40
    with Target(f"{name}.exe") as target:
        assert answers(target, long)[-1].startswith("40 16 ")
        for _ in range(5):
            applied(target, load(name))
            assert answers(target, long)[0] == "too long: word"
            assert answers(target, "hello")[0].startswith("5 ") and answers(target, "42")[0].startswith("42 ")
            clean(target)
            reverted(target)
            assert answers(target, long)[-1].startswith("40 ")


def test_exceptions_thrown_by_new_code() -> None:
    """Of a type that the program had, and of one that it had not; through frames of old code, caught, thrown again."""
    long = "x" * 30
    with Target("made-throw.exe") as target:
        assert answers(target, "!bang")[0] == "~parse" and answers(target, long) == ["~parse", "32"]
        for _ in range(5):
            applied(target, load("made-throw"))
            assert answers(target, "!bang") == ["~parse", "other bang", "main: bang"]
            assert answers(target, long) == ["~parse", f"caught much too long: {long} 8", "-8"]
            clean(target)
            reverted(target)
            assert answers(target, "!bang")[0] == "~parse"


def test_exceptions_caught_by_new_code() -> None:
    long = "x" * 50
    with Target("made-catch.exe") as target:
        assert answers(target, long) == ["~parse", f"caught too long: {long} 7", "-7"]
        for _ in range(5):
            applied(target, load("made-catch"))
            assert answers(target, long) == ["~parse", f"caught too long: {long} 7", "-107"]
            clean(target)
            reverted(target)
            assert answers(target, long)[-1] == "-7"


def test_exceptions_of_the_msvc_abi() -> None:
    """C++ exceptions thrown, passed on with destructors run, caught, and thrown again by new code; __except with a
    filter that works in the new frame; __finally; dynamic_cast to and from a class that only the new code has."""
    before = {
        "hello": "~parse ~guarded 5 3 finally 8 -1",
        "!": "~parse ~guarded int -105 3 finally 8 -1",
        "?": "~parse ~guarded caught other -200 3 finally 8 -1",
        "x" * 30: "~parse ~guarded 30 3 finally 8 -1",
        "x" * 50: "~parse ~guarded caught -7 3 finally 8 -1",
        "*": "~parse ~guarded 1 fault 41 finally 6 -1",
        "#": "~parse ~guarded 1 3 finally 8 4",
    }
    after = {
        "hello": "~parse ~guarded 5 3 finally 63 big 77",
        "!": "~parse ~guarded int -105 3 finally 63 big 77",
        "?": "~parse ~guarded caught other -200 3 finally 63 big 77",
        "x" * 30: "~parse ~guarded caught -1008 3 finally 63 big 77",
        "x" * 50: "~parse ~guarded caught -1008 3 finally 63 big 77",
        "*": "~parse ~guarded 1 fault 59 finally 61 big 77",
        "#": "~parse ~guarded 1 3 finally 63 4",
    }
    with Target("made-msvc.exe") as target:
        assert {question: target.ask(question) for question in before} == before
        for _ in range(3):
            applied(target, load("made-msvc"))
            for _ in range(2):
                assert {question: target.ask(question) for question in after} == after
            clean(target)
            reverted(target)
            assert {question: target.ask(question) for question in before} == before
