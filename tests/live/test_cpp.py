"""What C++ does, changed while it runs: classes, templates, exceptions, statics; and unwinding through new code."""

from __future__ import annotations

import re

import pytest

from tests.live.harness import Lab, Target
from tests.live.story import Story, finish, source, tell

pytestmark = pytest.mark.live

REVIEWED = "nothing that the program holds is older than the rule"

FLAGS = {
    "O2": "g++ -O2",
    "static": "g++ -O2 -static",
    "clang": "clang++ -O1",
}


@pytest.fixture(scope="module", params=FLAGS)
def cpp(request: pytest.FixtureRequest, lab: Lab) -> Story:
    """What the program said, for one set of flags."""
    name = f"cpp-{request.param}"
    before, after = source("cpp.cc")
    make = f"{FLAGS[request.param]} -pthread -o target cpp.cc"
    questions = re.findall(r"\bE\((\w\w+)\)", before["cpp.cc"])
    return tell(lab.fix(name, before, after, make=make, reviewed=REVIEWED), questions)


def test_methods_and_virtual_methods_of_objects_that_exist(cpp: Story) -> None:
    assert cpp.says("methods") == ("square 9 8 ", "a square of side 3 1009 13 ")


def test_templates(cpp: Story) -> None:
    assert cpp.says("templates") == ("7 3.5 ababc", "8 4 ababcc")


def test_lambdas_that_are_held_and_passed(cpp: Story) -> None:
    assert cpp.says("lambdas") == ("71 21 123", "72 22 321")


def test_standard_library_templates_that_are_new(cpp: Story) -> None:
    assert cpp.says("strings") == ("hello!", "e1h1l2o1")


def test_new_class_with_virtual_methods_and_type_information(cpp: Story) -> None:
    assert cpp.says("newclass") == ("square 1 0", "circle 0 1")


def test_exceptions_out_of_through_caught_in_and_rethrown_from_new_code(cpp: Story) -> None:
    assert cpp.says("exceptions") == ("pold 1 0 prold 2 -77-1", "range:Pnew 1 0 PRnew 2 -154-2")


def test_exceptions_of_a_new_type(cpp: Story) -> None:
    assert cpp.says("newerror") == ("none", "brand new")


def test_threads_that_throw_all_the_time(cpp: Story) -> None:
    assert cpp.says("threads") == ("0", "0")


def test_guards_of_static_locals_old_and_new(cpp: Story) -> None:
    assert (cpp.before["guards"], cpp.after["guards"], cpp.reverted["guards"]) == ("6 0 1", "106 501 2", "107 0 2")


def test_thread_local_objects_with_constructors(cpp: Story) -> None:
    said = cpp.before["threadlocal"], cpp.after["threadlocal"], cpp.reverted["threadlocal"]
    assert said == ("to4 4", "tn13 4", "to4 5")


def test_unique_symbols(cpp: Story) -> None:
    assert (cpp.before["uniques"], cpp.after["uniques"], cpp.reverted["uniques"]) == ("92", "96", "98")


def test_backtraces_go_through_new_code(cpp: Story) -> None:
    assert cpp.says("backtraces") == ("old 1", "new 1")


def test_destructors_that_new_code_registered_run_at_exit_after_a_revert(cpp: Story) -> None:
    assert cpp.status == 0


def test_exit_while_patched(lab: Lab) -> None:
    before, after = source("cpp.cc")
    fix = lab.fix("cpp-exit", before, after, make="g++ -O2 -pthread -o target cpp.cc", reviewed=REVIEWED)
    with Target.start(fix.image) as target:
        fix.apply(target.pid)
        assert target.ask("guards") == "105 501 2"
        assert finish(target) == 0
