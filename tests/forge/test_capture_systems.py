"""Capture of what people build with: make in parallel, autotools, CMake, Ninja, clang, C++, odd command lines."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from midflight.errors import ForgeError
from tests.forge.capture_projects import (
    C_PROGRAM,
    HELPER_C,
    HELPER_PATCH,
    LIMIT_PATCH,
    MAIN_C,
    Bench,
    compiled,
    names,
    sections,
)


def output(program: Path) -> str:
    return subprocess.run([program], capture_output=True, text=True, check=True).stdout


def many_files(count: int) -> dict[str, str]:
    files = {f"part{i}.c": f"int part{i}(int x) {{ return x * {i} + {i}; }}\n" for i in range(count)}
    return {**C_PROGRAM, **files}


def test_parallel_make_with_archives_takes_only_linked_members(tmp_path: Path) -> None:
    parts = " ".join(f"part{i}.o" for i in range(12))
    makefile = (
        f"CFLAGS=-O2\nprog: main.o libx.a libthin.a\n\t$(CC) -o $@ main.o -L. -lx libthin.a\n"
        f"libx.a: {parts} caller.o\n\tar rc $@ $^\n\trm -f $^\nlibthin.a: helper.o spare.o\n\tar rcT $@ $^\n"
    )
    caller = "int part3(int); int part7(int); int helper2(int x) { return part3(x) + part7(x); }\n"
    main = MAIN_C.replace("twice(argc)", "helper2(argc)").replace(
        "int helper(int);", "int helper(int); int helper2(int);"
    )
    bench = Bench(tmp_path, {**many_files(12), "caller.c": caller, "main.c": main, "Makefile": makefile})
    (tmp_path / "fixed").mkdir()
    fixed = shutil.copytree(bench.source, tmp_path / "fixed", dirs_exist_ok=True)
    (fixed / "part7.c").write_text("int part7(int x) { return x * 8; }\n")
    (fixed / "part8.c").write_text("int part8(int x) { return x * 9; }\n")
    pair = bench.build(fixed, "make -j4")

    assert sorted(names(pair, pair.pre.inputs)) == ["caller.o", "helper.o", "main.o", "part3.o", "part7.o"]
    assert names(pair, pair.changed) == ["part7.o"]
    assert output(pair.pre.image) == "2 20 10\n"
    assert output(pair.post.image) == "2 14 10\n"


def test_cmake_with_make_and_another_folder_for_the_build(tmp_path: Path) -> None:
    lists = (
        "cmake_minimum_required(VERSION 3.10)\nproject(p C)\nadd_library(h STATIC helper.c spare.c)\n"
        "add_executable(prog main.c)\ntarget_link_libraries(prog h)\n"
    )
    bench = Bench(tmp_path, {**C_PROGRAM, "CMakeLists.txt": lists})
    make = "cmake -S . -B out -G 'Unix Makefiles' -DCMAKE_BUILD_TYPE=Release && cmake --build out -j2"
    pair = bench.build(bench.fix(HELPER_PATCH), make, "out/prog")

    assert names(pair, pair.changed) == ["out/CMakeFiles/h.dir/helper.c.o"]
    assert compiled(bench.work, "pre") == ["helper.c", "main.c", "spare.c"]
    assert compiled(bench.work, "post") == ["helper.c"]
    assert ".text.helper" in sections(pair.pre, pair.changed[0])
    assert output(pair.post.image) == "3 2 10\n"


def test_cmake_with_ninja_and_clang(tmp_path: Path) -> None:
    lists = "cmake_minimum_required(VERSION 3.10)\nproject(p C)\nadd_executable(prog main.c helper.c)\n"
    bench = Bench(tmp_path, {**C_PROGRAM, "CMakeLists.txt": lists})
    make = "cmake -S . -B out -G Ninja -DCMAKE_C_COMPILER=/usr/bin/clang -DCMAKE_C_FLAGS=-O2 && ninja -C out"
    pair = bench.build(bench.fix(LIMIT_PATCH), make, "out/prog")

    assert names(pair, pair.changed) == ["out/CMakeFiles/prog.dir/main.c.o"]
    assert compiled(bench.work, "post") == ["main.c"]
    assert "clang" in pair.pre.objects[pair.changed[0]].compiler
    assert output(pair.post.image) == "2 2 20\n"


AUTOTOOLS = {
    "configure.ac": (
        "AC_INIT([p],[1])\nAM_INIT_AUTOMAKE([foreign])\nAC_PROG_CC\nAM_PROG_AR\nLT_INIT\n"
        "AC_CONFIG_HEADERS([config.h])\nAC_CHECK_FUNCS([strlcpy])\nAC_CONFIG_FILES([Makefile])\nAC_OUTPUT\n"
    ),
    "Makefile.am": (
        "lib_LTLIBRARIES = libh.la\nlibh_la_SOURCES = spare.c\nlibh_la_LIBADD = libconv.la\n"
        "noinst_LTLIBRARIES = libconv.la\nlibconv_la_SOURCES = helper.c\n"
        "bin_PROGRAMS = prog\nprog_SOURCES = main.c limit.h\nprog_LDADD = libh.la\n"
    ),
}


@pytest.fixture
def autotools(tmp_path: Path) -> Bench:
    bench = Bench(tmp_path, {**C_PROGRAM, **AUTOTOOLS})
    subprocess.run(["autoreconf", "-if"], cwd=bench.source, check=True, capture_output=True)
    shutil.rmtree(bench.source / "autom4te.cache")
    return bench


def test_autotools_with_libtool_take_the_position_independent_object(autotools: Bench) -> None:
    pair = autotools.build(
        autotools.fix(HELPER_PATCH), "./configure --quiet && make -j2", ".libs/libh.so", Path("/bin/true")
    )

    assert names(pair, pair.changed) == [".libs/helper.o"]
    assert sorted(names(pair, pair.pre.inputs)) == [".libs/helper.o", ".libs/spare.o"]
    assert "-fPIC" in pair.pre.objects[pair.changed[0]].arguments
    assert pair.tree / "helper.o" in pair.pre.objects
    # the trials of configure are not recorded, and configure run again does not make everything anew
    assert set(compiled(autotools.work, "pre")) == {"helper.c", "main.c", "spare.c"}
    assert set(compiled(autotools.work, "post")) == {"helper.c"}


def test_the_program_behind_a_libtool_script(autotools: Bench) -> None:
    make = "test -f Makefile || ./configure --quiet; make"
    pair = autotools.build(autotools.fix(LIMIT_PATCH), make, "prog", Path("/bin/true"))

    assert names(pair, pair.changed) == ["main.o"]
    with pair.post.image.open("rb") as file:
        assert file.read(4) == b"\x7fELF"


CONFIGURE = """\
#!/bin/sh
echo '#define CONFIGURED 1' > config.h
cat > Makefile <<END
CFLAGS=-O2 -include config.h
prog: main.o helper.o
	\\$(CC) -o \\$@ main.o helper.o
main.o helper.o: config.h Makefile
END
"""


def test_configure_run_again_does_not_rebuild_everything(tmp_path: Path) -> None:
    bench = Bench(tmp_path, {**C_PROGRAM, "configure": CONFIGURE})
    pair = bench.build(bench.fix(HELPER_PATCH), "./configure && make")

    assert names(pair, pair.changed) == ["helper.o"]
    assert compiled(bench.work, "post") == ["helper.c"]


def test_a_build_that_makes_everything_anew_is_slower_and_right(tmp_path: Path) -> None:
    bench = Bench(tmp_path, C_PROGRAM)
    pair = bench.build(
        bench.fix(HELPER_PATCH), "rm -f *.o; for f in main helper; do cc -O2 -c $f.c; done; cc -o prog main.o helper.o"
    )

    assert compiled(bench.work, "post") == ["helper.c", "main.c"]
    assert names(pair, pair.changed) == ["helper.o"]


CXX = {
    "main.cc": '#include <cstdio>\n#include "shape.h"\nint main() { std::printf("%d\\n", area(3)); }\n',
    "shape.h": "int area(int);\ntemplate <class T> T square(T x) { return x * x; }\n",
    "shape.cc": (
        '#include "shape.h"\nnamespace { struct S { S(); int v; }; S::S() : v(1) {} S s; }\n'
        "int area(int x) { return square(x) + s.v; }\n"
    ),
    "Makefile": "CXXFLAGS=-O1\nprog: main.o shape.o\n\t$(CXX) -o $@ $^\n",
}


@pytest.mark.parametrize("compiler", ["g++", "clang++", "/usr/bin/g++"])
def test_cxx(tmp_path: Path, compiler: str) -> None:
    bench = Bench(tmp_path, CXX)
    old, new = "int area(int x) { return square(x) + s.v; }\n", "int area(int x) { return square(x) - s.v; }\n"
    patch = f"--- a/shape.cc\n+++ b/shape.cc\n@@ -3 +3 @@\n-{old}+{new}"
    pair = bench.build(bench.fix(patch), f"make CXX={compiler}")

    assert names(pair, pair.changed) == ["shape.o"]
    assert ".text._Z4areai" in sections(pair.post, pair.changed[0])
    assert (output(pair.pre.image), output(pair.post.image)) == ("10\n", "8\n")


# --- command lines -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("compiler", ["gcc", "clang"])
@pytest.mark.parametrize(
    "line",
    [
        "{cc} -O2 main.c helper.c -o prog",
        "{cc} -O2 -MMD -gsplit-dwarf -pipe main.c helper.c -oprog -lm",
        "{cc} -c -O2 spare.c && {cc} -x c main.c helper.c -x none spare.o -o prog",
        "echo '-O2 \"main.c\" helper.c' > rsp && {cc} @rsp -o prog",
        "{cc} -o prog -xc main.c helper.c -s",
    ],
)
def test_compile_and_link_in_one_step(tmp_path: Path, compiler: str, line: str) -> None:
    bench = Bench(tmp_path, C_PROGRAM)
    pair = bench.build(bench.fix(HELPER_PATCH), line.format(cc=compiler))

    assert names(pair, pair.changed) == ["prog-helper.o"]
    assert pair.pre.objects[pair.changed[0]].source == pair.tree / "helper.c"
    assert {".text.helper", ".debug_info"} <= sections(pair.pre, pair.changed[0])
    assert (output(pair.pre.image), output(pair.post.image)) == ("2 2 10\n", "3 2 10\n")
    # what the build itself made looks the same as without us
    plain = {p.name for p in pair.tree.iterdir()}
    assert not any(name.startswith("prog-") and name.endswith(".o") for name in plain)


@pytest.mark.parametrize(
    "line",
    [
        "gcc -c main.c helper.c && gcc main.o helper.o && mv a.out prog",
        "gcc -c main.c helper.c -O2 && strip -g helper.o && gcc -o prog main.o helper.o",
        "for f in main helper; do gcc -c $f.c -o tmp.o && mv tmp.o ${f}2.o; done; gcc -o prog main2.o helper2.o",
        "gcc -S helper.c && gcc -c helper.s main.c && gcc -o prog helper.o main.o",
        "gcc -c main.c helper.c && ld -r -o all.o main.o helper.o && gcc -o prog all.o",
        "gcc -c main.c helper.c && gcc -r -nostdlib -o all.o main.o helper.o && rm main.o && gcc -o prog all.o",
        "gcc -c *.c; gcc -r -o all.o main.o helper.o; objcopy -R .comment all.o copy.o; gcc -o prog copy.o",
        "gcc -c main.c helper.c && gcc -fuse-ld=lld -o prog main.o helper.o",
        "gcc -c main.c helper.c && ar rcs lib.a helper.o && gcc -fuse-ld=lld -o prog main.o lib.a",
        "gcc -c main.c helper.c && ar rcs lib.a helper.o && gcc -Wl,-Map=my.map -o prog main.o lib.a",
        "gcc -c m*.c h*.c; ar rcs l.a helper.o; gcc -o prog main.o -Wl,--whole-archive l.a -Wl,--no-whole-archive",
        "gcc -c main.c helper.c && gcc -o built main.o helper.o && strip -o prog built && rm built",
        "ccache gcc -c main.c && ccache /usr/bin/gcc -c helper.c && gcc -o prog main.o helper.o",
        "CC=/usr/bin/gcc; export CC; sh -c '$CC -c main.c helper.c && $CC -o prog main.o helper.o'",
        "mkdir -p 'a d'; cp helper.c 'a d'; gcc -c main.c 'a d/helper.c'; mv *r.o 'a d/h.o'; gcc -o prog *.o */h.o",
    ],
)
def test_ways_to_make_a_program(tmp_path: Path, line: str) -> None:
    bench = Bench(tmp_path, C_PROGRAM)
    pair = bench.build(bench.fix(HELPER_PATCH), line)

    assert len(pair.pre.inputs) == 2
    assert len(pair.changed) == 1
    changed = pair.post.objects[pair.changed[0]]
    assert changed.source.name in ("helper.c", "helper.s")
    assert any(name.startswith(".text.helper") for name in sections(pair.post, pair.changed[0]))
    assert (output(pair.pre.image), output(pair.post.image)) == ("2 2 10\n", "3 2 10\n")


def test_objects_made_under_one_name_are_told_apart(tmp_path: Path) -> None:
    bench = Bench(tmp_path, C_PROGRAM)
    line = "gcc -c main.c -o t.o; mv t.o a.o; gcc -c helper.c -o t.o; mv t.o b.o; gcc -o prog a.o b.o"
    pair = bench.build(bench.fix(HELPER_PATCH), line)

    assert names(pair, pair.pre.inputs) == ["t.o", "b.o"]
    assert names(pair, pair.changed) == ["b.o"]


def test_a_makefile_with_the_compilers_full_path(tmp_path: Path) -> None:
    bench = Bench(tmp_path, {**C_PROGRAM, "Makefile": "CC=/usr/bin/gcc\nprog: main.o helper.o\n\t$(CC) -o $@ $^\n"})
    pair = bench.build(bench.fix(HELPER_PATCH))

    assert names(pair, pair.changed) == ["helper.o"]
    assert ".text.helper" in sections(pair.pre, pair.changed[0])


# --- interruption --------------------------------------------------------------------------------------------------

INTERRUPTED = """
import sys
from pathlib import Path
from midflight.forge.capture.capture import build_pair
source, fix, work, make = sys.argv[1:]
build_pair(Path(source), Path(fix), make, "prog", Path(work), Path("/bin/true"), lambda line: print(line, flush=True))
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_kills_the_build_and_leaves_nothing(tmp_path: Path, number: signal.Signals) -> None:
    bench = Bench(tmp_path, C_PROGRAM)
    pids = tmp_path / "pids"
    make = f"sh -c 'echo $$ > {pids}; exec sleep 600' & sleep 600"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    child = subprocess.Popen(
        [sys.executable, "-c", INTERRUPTED, bench.source, bench.fix(HELPER_PATCH), bench.work, make],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    while not (pids.exists() and pids.read_text().strip()):
        assert child.poll() is None
        time.sleep(0.02)
    child.send_signal(number)
    child.wait()
    pid = int(pids.read_text())

    assert child.returncode != 0
    assert bench.left_over() == []
    status = Path(f"/proc/{pid}/status")
    end = time.monotonic() + 10  # it was killed before; on a busy machine it takes its time to die
    while status.exists() and "State:\tZ" not in status.read_text():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_what_a_killed_run_left_is_removed_by_the_next(tmp_path: Path) -> None:
    bench = Bench(tmp_path, {**C_PROGRAM, "Makefile": "prog: main.o helper.o\n\t$(CC) -o $@ $^\n"})
    pair = bench.build(bench.fix(HELPER_PATCH))
    base = pair.tree.parent
    (base / "complete").unlink()
    (base / "pre" / "records" / "0").write_text("rubbish")
    pair = bench.build(bench.fix(HELPER_PATCH))

    assert names(pair, pair.changed) == ["helper.o"]


def test_the_wrapper_passes_on_status_and_messages(tmp_path: Path) -> None:
    bench = Bench(tmp_path, {"main.c": "int main(void) { return nothing(); }\n", "helper.c": HELPER_C})
    with pytest.raises(ForgeError, match="undefined reference to `nothing'"):
        bench.build(bench.fix(HELPER_PATCH), "gcc -w -o prog main.c helper.c")
