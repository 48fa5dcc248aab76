"""Shared libraries: linked or loaded at run time, patched alone or together with the program that uses them."""

from __future__ import annotations

import pytest

from tests.live.harness import Fix, Lab, Target, check
from tests.live.story import SOURCES, Story, finish, tell, versions

pytestmark = pytest.mark.live

NAMES = ("library.c", "base.c", "user.c")
LINK = "-L. -Wl,-rpath,'$ORIGIN'"
MAKE = (
    "{cc} -fPIC -shared -o libbase.so base.c && {cc} -fPIC -shared -o libtop.so library.c "
    + LINK
    + " -lbase && {cc} -pthread -o user user.c "
    + LINK
    + " -ldl"
)
QUESTIONS = ("data", "tls", "name")


def build(lab: Lab, name: str, compiler: str, image: str, *files: str) -> Fix:
    """The three files, and a fix for those named, as a hotpatch for one image; series are named after images."""
    pairs = {file: versions((SOURCES / file).read_text()) for file in NAMES}
    return lab.fix(
        name,
        {file: pair[0] for file, pair in pairs.items()},
        {file: pairs[file][1] for file in files},
        make=MAKE.format(cc=compiler),
        image=image,
        sequence=1 + len(files),
        options=("--name", image),
    )


def story(fixes: list[Fix]) -> Story:
    """Run the program, which loads the library."""
    folder = fixes[0].image.parent
    return tell(fixes, QUESTIONS, folder / "user", "./libtop.so", cwd=folder)


FLAGS = {"gcc": "cc -O2", "no-plt": "cc -O2 -fno-plt -fno-semantic-interposition", "clang": "clang -O2"}


@pytest.fixture(scope="module", params=FLAGS)
def library(request: pytest.FixtureRequest, lab: Lab) -> Story:
    """What a program said whose library was patched."""
    return story([build(lab, f"library-{request.param}", FLAGS[request.param], "libtop.so", "library.c")])


def test_code_and_data_of_a_loaded_library(library: Story) -> None:
    said = library.before["data"], library.after["data"], library.reverted["data"]
    assert said == ("20 1", "1014 1", "24 1")


def test_thread_local_variables_of_a_library_and_of_another(library: Story) -> None:
    said = library.before["tls"], library.after["tls"], library.reverted["tls"]
    assert said == ("560 560", "860 857", "863 560")


def test_calls_of_a_library_into_others(library: Story) -> None:
    assert library.says("name") == ("base", "base of 4")


def test_program_and_library_by_independent_hotpatches(lab: Lab) -> None:
    top = build(lab, "both", "cc -O2", "libtop.so", "library.c")
    user = build(lab, "both", "cc -O2", "user", "library.c", "user.c")
    both = story([top, user])
    assert (both.before["data"], both.after["data"], both.reverted["data"]) == ("20 1", "1014 2", "24 1")
    assert both.applied[0]["processes"][0]["images"] == [str(top.image)]
    assert both.applied[1]["processes"][0]["images"] == [str(user.image)]


def test_libraries_that_are_patched_are_left_in_any_order(lab: Lab) -> None:
    top = build(lab, "order", "cc -O2", "libtop.so", "library.c")
    user = build(lab, "order", "cc -O2", "user", "library.c", "user.c")
    with Target.start(top.image.parent / "user", "./libtop.so", cwd=top.image.parent) as target:
        top.apply(target.pid)
        user.apply(target.pid)
        top.revert(target.pid)
        assert target.ask("data") == "20 2"
        assert check(target.pid)["processes"][0]["clean"]
        user.revert(target.pid)
        assert target.ask("data") == "22 1"
        assert check(target.pid)["processes"][0]["clean"]
        assert finish(target) == 0
