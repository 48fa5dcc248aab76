"""What code does, changed while it runs: the families of C scenarios, with every kind of compiler and linkage.

Each test asks for one scenario of sources/code.c; the program is built, patched and reverted once for each set of
flags.
"""

from __future__ import annotations

import re

import pytest

from tests.live.harness import Lab
from tests.live.story import Story, source, tell

pytestmark = pytest.mark.live

REVIEWED = "nothing that the program holds is older than the rule"

FLAGS = {
    "O2": "cc -O2",
    "O1-protector": "cc -O1 -fstack-protector-strong",
    "O3-fortified": "cc -O3 -D_FORTIFY_SOURCE=2",
    "no-pie": "cc -O2 -no-pie -fno-pie",
    "static": "cc -O2 -static -DIS_STATIC=1",
    "static-pie": "cc -O2 -static-pie -DIS_STATIC=1",
    "endbr64": "cc -O2 -fcf-protection",
    "bind-now": "cc -O2 -Wl,-z,now -fno-plt",
    "clang": "clang -O2",
    "clang-no-pie": "clang -O1 -no-pie -fno-pie",
    "clang-O0": "clang -O0",
}


@pytest.fixture(scope="module", params=FLAGS)
def code(request: pytest.FixtureRequest, lab: Lab) -> Story:
    """What the program said, for one set of flags."""
    name = f"code-{request.param}"
    before, after = source("code.c")
    make = f"{FLAGS[request.param]} -pthread -fcommon -o target code.c -lm"
    questions = re.findall(r"\bE\((\w\w+)\)", before["code.c"])
    return tell(lab.fix(name, before, after, make=make, reviewed=REVIEWED), questions)


def test_parameters_of_many_types_and_counts_arrive(code: Story) -> None:
    assert code.says("params") == ("66 78.000 13 3.0 11 16 xame", "240 123.750 43 4.5 1 56 yame")


def test_long_double_and_128_bit_integers(code: Story) -> None:
    assert code.says("longdouble") == ("10.50 31", "8.00 75")


def test_variadic_functions(code: Story) -> None:
    assert code.says("varargs") == ("15.5 7 7-x-2.5", "1015.5 -7 7-x-2.5")


def test_recursion_goes_through_new_code(code: Story) -> None:
    assert code.says("recursion") == ("720 0 1", "1440 20 10")


def test_leaf_function_with_a_red_zone(code: Story) -> None:
    assert code.says("redzone") == ("66", "44")


def test_tail_calls(code: Story) -> None:
    assert code.says("tail") == ("12", "21")


def test_switch_by_jump_table(code: Story) -> None:
    before, after = code.says("jumptable")
    assert before.split() == ["101", "300", "93", "49", "400", "33", "0", "-100", "-1", "-1"]
    assert after.split() == ["101", "301", "93", "49", "800", "33", "0", "-100", "10000", "-2"]


def test_computed_goto(code: Story) -> None:
    assert code.says("computedgoto") == ("10", "118")


def test_cold_parts_change_with_their_function_and_alone(code: Story) -> None:
    before, after = code.says("cold")
    more = "complaint again complaint minus complaint more"
    assert before == f"complaint negative {more} 10 5 10 5"
    assert after == f"complaint below zero {more} 10 5 20 5"


def test_clones_of_functions(code: Story) -> None:
    before, after = code.says("clones")
    assert (before.split(), after.split()) == (["61", "68"], ["180", "224"])


def test_callers_of_an_inlined_function(code: Story) -> None:
    assert code.says("inlines") == ("8 23", "10 29")


def test_long_jumps_out_of_new_code(code: Story) -> None:
    assert code.says("longjumps") == ("40", "500")


def test_arrays_of_variable_length(code: Story) -> None:
    assert code.says("stackarrays") == ("3", "4")


def test_hidden_weak_and_aliased_functions(code: Story) -> None:
    assert code.says("visibility") == ("1 3 5", "2 4 6")


def test_global_function_becomes_local_and_the_reverse(code: Story) -> None:
    assert code.says("converted") == ("1 9", "2 8")


def test_vector_code(code: Story) -> None:
    assert code.says("avx") in (("0 6 8 10 12", "0 5 12 21 32"), ("1 0 0 0 0", "1 0 0 0 0"))


def test_data_keeps_its_values_and_new_data_comes_along(code: Story) -> None:
    assert code.before["data"] == "6 52 3 4 2 9"
    assert code.after["data"] == "7 54 6 8 3 9 4 2 33 300 beta 0 2.19"
    assert code.reverted["data"] == "8 56 9 12 5 9"


def test_static_locals_keep_their_values(code: Story) -> None:
    assert (code.before["locals"], code.after["locals"]) == ("1 101 9", "11 111 1012")
    assert code.reverted["locals"] == "12 112 13"


def test_thread_local_variables(code: Story) -> None:
    assert (code.before["tls"], code.after["tls"], code.reverted["tls"]) == ("115 115", "318 217", "418 115")


def test_indirect_functions_of_libc(code: Story) -> None:
    assert code.says("ifuncs") == ("5", "6053")


def test_function_pointers_that_are_held_made_and_compared(code: Story) -> None:
    assert code.says("pointers") == ("20 123 1 2 2", "50 321 3 4243 1005")


def test_signal_handler(code: Story) -> None:
    assert code.says("signals") == ("1", "100")


def test_new_calls_into_libraries(code: Story) -> None:
    assert code.says("imports") == ("4.0", "68.0")


def test_name_of_the_function_as_a_string(code: Story) -> None:
    assert code.says("names") == ("short", "who")
