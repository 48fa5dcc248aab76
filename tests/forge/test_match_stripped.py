"""Run-pre matching of images as distributions ship them: stripped, and built without function sections."""

from __future__ import annotations

import re
import shutil
import struct
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from bench.match import everything
from midflight.forge.matching.debugfiles import open_debug_file
from midflight.forge.matching.inputs import Inputs
from midflight.forge.matching.match import Fixed, Wanted, match
from midflight.forge.model import Match
from midflight.forge.objects import read_object
from midflight.image.elf import ElfFile

SECTIONS = "-ffunction-sections -fdata-sections"
N = "__attribute__((noinline))"


def sh(command: str, cwd: Path) -> None:
    done = subprocess.run(command, shell=True, cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@dataclass
class Kit:
    """How a program is built: the running image plainly and stripped, the objects by sections."""

    folder: Path
    files: Mapping[str, str]
    cc: str = "gcc"
    flags: str = "-O2"
    link: str = ""
    pre_flags: str = ""

    def __post_init__(self) -> None:
        for name, text in self.files.items():
            (self.folder / name).write_text(text)
        names = " ".join(self.files)
        linking = f"{self.cc} {self.link} -Wl,--build-id"
        sh(
            f"mkdir plain pre && cd plain && {self.cc} {self.flags} -c $(echo {names} | sed 's|[^ ]*|../&|g')",
            self.folder,
        )
        sh(
            f"cd pre && {self.cc} {self.flags} {SECTIONS} {self.pre_flags} -c $(echo {names} | sed 's|[^ ]*|../&|g')",
            self.folder,
        )
        objects = " ".join(name.rpartition(".")[0] + ".o" for name in self.files)
        sh(f"cd plain && {linking} {objects} -o ../named && cd ../pre && {linking} {objects} -o ../linked", self.folder)
        shutil.copy(self.folder / "named", self.folder / "run")
        sh("strip run", self.folder)

    @property
    def objects(self) -> Inputs:
        return Inputs({p: p for name in self.files for p in [self.path(name)]})

    def path(self, name: str) -> Path:
        return self.folder / "pre" / (name.rpartition(".")[0] + ".o")

    def match(self, wanted: Wanted | None = None, objects: Inputs | None = None, **more: object) -> Match:
        objects = objects or self.objects
        with ElfFile.open(self.folder / "run") as run, ElfFile.open(self.folder / "linked") as linked:
            return match(run, objects, wanted or everything(objects), linked, **more)  # type: ignore[arg-type]

    def wrong(self, found: Match) -> list[str]:
        """Addresses that the symbol table of the unstripped twin does not have."""
        objects = self.objects
        bad = []
        with ElfFile.open(self.folder / "named") as named:
            for (path, key), place in [*found.functions.items(), *found.data.items()]:
                atom = objects[path].atoms[key]
                source = objects.summary(path).source
                symbols = [s for s in named.symbols_by_name.get(atom.name, ()) if s.defined]
                mine = {s.value for s in symbols if s.binding != "local" or s.file in (source, None)}
                if atom.name and place.vaddr not in mine:
                    bad.append(f"{path.name} {key}: {place.vaddr:#x}, really {[hex(v) for v in mine]} ({place.how})")
        return bad


COMMON = f"""
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
static {N} int same(int x) {{ return x * 77 + (x > 5 ? 4 : x / 3) + (x ^ 1234567); }}
static {N} int twice(int x) {{ return same(x) * 2 + same(x + 1); }}
"""
PROGRAM = {
    "one.c": COMMON
    + f"""
static int count; static int limit = 1234567; static const int table[] = {{3, 1, 4, 1, 5, 9}};
__thread int mine = 3; static __thread int hidden;
extern int far_data; int far(int); extern int (*hook)(int);
static const char *const names[] = {{"red", "green", "blue"}};
static {N} int tiny(int x) {{ return x; }}
static {N} int tail(int x) {{ count += x; return same(x + count); }}
static {N} int jumps(int x) {{ switch (x) {{ case 0: return tail(3); case 1: return far(4); case 2: puts("two of them");
  return count; case 3: return limit; case 4: abort(); case 5: return table[count % 6]; case 6: return far_data; }}
  return (int)strlen(names[x % 3]); }}
static {N} void unlikely(int x) {{ if (__builtin_expect(x == 12345, 0)) {{ fprintf(stderr, "cannot be %d\\n", x);
  count = limit; abort(); }} limit += x; }}
static {N} double number(double x) {{ return x * 3.25 + 1.0 / limit; }}
static int (*const functions[])(int) = {{tiny, tail, jumps, twice}};
int one(int x) {{ mine += x; hidden++; unlikely(x); hook = tail; puts("of them"); limit += (int)number(x);
  return functions[x % 4](x) + hidden + (hook == tail) + (x > 3 ? jumps(x) : 0); }}
""",
    "two.c": COMMON
    + f"""
static int count = 5; static const int table[] = {{2, 7, 1, 8}};
int far_data = 6; int (*hook)(int);
{N} int far(int x) {{ count += table[x % 4]; return twice(x) + count; }}
static {N} int nought(void) {{ return 0; }}
static {N} int none(void) {{ return 0; }}
int two(int x) {{ puts("green"); return far(x) + nought() + none() + (hook ? hook(x) : same(count)); }}
""",
    "main.c": "int one(int); int two(int); int main(int c, char **v) { return one(c) + two(c); }\n",
}

KITS = [
    ("gcc", "-O2 -fPIE", "-pie"),
    ("gcc", "-O2 -fno-pie -fno-pic", "-no-pie"),
    ("gcc", "-O3 -fPIC -fcf-protection=full -fstack-protector-strong", "-shared -Wl,-z,now"),
    ("gcc", "-Os -fPIC -fvisibility=hidden", "-shared -Wl,-u,main"),
    ("gcc", "-O2 -fPIC -fno-plt", "-no-pie"),
    ("gcc", "-O2 -fPIC -ftls-model=local-dynamic", "-shared -fuse-ld=gold"),
    ("gcc", "-O1 -fno-pie", "-static"),
    ("gcc", "-O2 -fPIE", "-static-pie"),
    ("clang", "-O2 -fPIE", "-pie -fuse-ld=lld"),
    ("clang", "-O1 -fPIC -fno-plt", "-shared -fuse-ld=lld"),
    ("clang", "-O2 -fno-pie", "-no-pie -fuse-ld=gold"),
    ("clang", "-Os -fPIC", "-pie"),
]


@pytest.mark.parametrize(("cc", "flags", "link"), KITS, ids=[" ".join(kit) for kit in KITS])
def test_all_of_a_stripped_image_is_found_where_its_twin_has_it(tmp_path: Path, cc: str, flags: str, link: str) -> None:
    kit = Kit(tmp_path, PROGRAM, cc, flags, link)
    found = kit.match()
    assert kit.wrong(found) == []
    missing = [(item.code, item.symbol, item.reason) for item in found.findings if item.code != "MF135"]
    assert missing == []
    assert len(found.functions) > 12
    assert found.matched_functions == found.total_functions
    assert {item.symbol for item in found.findings} <= {"hook", "hidden", "mine", "far_data", "names", "count"}


def without_section_headers(file: Path) -> None:
    """What sstrip does: no tool of ours or of the system can find a section any more."""
    raw = bytearray(file.read_bytes())
    struct.pack_into("<Q", raw, 40, 0)
    struct.pack_into("<HHH", raw, 58, 0, 0, 0)
    file.write_bytes(raw)


@pytest.mark.parametrize("link", ["-pie", "-no-pie", "-shared"])
def test_section_headers_are_not_needed(tmp_path: Path, link: str) -> None:
    flags = {"-pie": "-fPIE", "-no-pie": "-fno-pie", "-shared": "-fPIC"}[link]
    kit = Kit(tmp_path, PROGRAM, flags=f"-O2 {flags}", link=link)
    without_section_headers(tmp_path / "run")
    found = kit.match()
    assert kit.wrong(found) == []
    assert {item.code for item in found.findings} <= {"MF135"}
    assert found.matched_functions == found.total_functions


def test_of_twins_in_two_objects_the_neighbours_tell_which_is_which(tmp_path: Path) -> None:
    """Nothing proven refers to the twins, and they refer to nothing: only where they stand tells them apart."""
    twin = f"static {N} __attribute__((used)) int twin(int x) {{ return x * 12345 + 678901 * (x ^ 4242) + x / 7; }}\n"
    files = {
        "one.c": f"{twin}int one(int x) {{ return x * 3 + 77777 / (x + 1) + (x ^ 99) + (x >> 3) * 5; }}\n",
        "two.c": f"{twin}int two(int x) {{ return x * 7 + 55555 / (x + 2) + (x ^ 11) + (x >> 2) * 3; }}\n"
        "int one(int); int main(int c, char **v) { return one(c) + two(c); }\n",
    }
    kit = Kit(tmp_path, files)
    found = kit.match()
    assert found.findings == () and kit.wrong(found) == []
    place = found.functions[kit.path("one.c"), "twin"]
    assert "beside one" in place.how and place.witnesses >= 2


def test_one_witness_alone_is_refused_and_another_object_can_be_the_second(tmp_path: Path) -> None:
    """``flag`` is read once in one.c; what two.c does with it is asked for only then."""
    files = {
        "one.c": "extern int flag;\nint other;\n"
        '__attribute__((visibility("default"))) int one(int x) { other += x * 5; return x + other * 77 - flag; }\n',
        "two.c": "extern int flag; int two(int x) { return flag ? x * 31 + (x ^ 4711) / 9 : x * 5 + 1234567; }\n",
        "data.c": "int flag;\n",
        "rest.c": "int three(int x) { return x * 31337; }\n",
        "main.c": "int one(int), two(int), three(int);\n"
        "int main(int c, char **v) { return one(c) + two(c) + three(c); }\n",
    }
    kit = Kit(tmp_path, files, flags="-O2 -fPIC -fvisibility=hidden", link="-shared")
    one = kit.path("one.c")
    objects = kit.objects
    wanted = Wanted(frozenset({(one, "one")}), symbols=frozenset({"flag"}))
    found = kit.match(wanted, objects)
    assert found.findings == ()
    assert found.symbols["flag"].witnesses == 2
    assert not objects.is_read(kit.path("rest.c")), "it knows nothing of flag"
    alone = Inputs({one: one, kit.path("data.c"): kit.path("data.c")})
    assert [(f.code, f.symbol) for f in kit.match(wanted, alone).findings] == [("MF135", "flag")]


@pytest.mark.parametrize(("alignment", "enough"), [(16, True), (32, True), (64, False)])
def test_a_neighbour_that_is_aligned_to_more_speaks_while_few_places_would_do(
    tmp_path: Path, alignment: int, enough: bool
) -> None:
    """The buffer is named once, 8 bytes apart places would do before what follows it."""
    unit = f"""
    #include <stdio.h>
    static struct {{ long a, b; }} error __attribute__((aligned({alignment})));
    const char *version(int n) {{
      static char text[15] __attribute__((aligned(8)));
      sprintf(text, "%d.7", n);
      return text;
    }}
    {N} long where(void) {{ return error.a + error.b; }}
    {N} void fail(long n) {{ error.a = n; error.b = -n; }}
    """
    main = "const char *version(int); long where(void); void fail(long); int puts(const char *);\n"
    main += "int main(int n, char **v) { fail(n); puts(version(n)); return where(); }\n"
    kit = Kit(tmp_path, {"unit.c": unit, "main.c": main})
    path = kit.path("unit.c")
    wanted = Wanted(frozenset({(path, "version")}), frozenset({(path, "text.0")}))
    found = kit.match(wanted)
    assert not kit.wrong(found)
    assert [(f.code, f.symbol) for f in found.findings] == ([] if enough else [("MF135", "text.0")])
    if enough:
        assert "beside error" in found.data[path, "text.0"].how


def test_a_twin_of_what_the_linker_dropped_is_not_taken_for_it(tmp_path: Path) -> None:
    body = "{ return x * 12345 + 678901 * (x ^ 4242) + x / 7 + (x >> 5) * 31; }\n"
    files = {
        "one.c": f"{N} int gone(int x) {body} int one(int x) {{ return x * 3; }}\n",
        "two.c": f"static {N} int twin(int x) {body} int two(int x) {{ return twin(x) + twin(x * 2); }}\n"
        "int one(int); int main(int c, char **v) { return one(c) + two(c); }\n",
    }
    kit = Kit(tmp_path, files, flags=f"-O2 {SECTIONS}", link="-Wl,--gc-sections")
    key = (kit.path("one.c"), "gone")
    found = kit.match(Wanted(frozenset({key})))
    assert found.absent == {key} and not found.functions
    with ElfFile.open(tmp_path / "run") as run:
        blind = match(run, kit.objects, Wanted(frozenset({key})))
    assert [item.code for item in blind.findings] == ["MF131"] and not blind.functions


def test_a_function_that_was_inlined_everywhere_is_absent_when_the_image_is_stripped(tmp_path: Path) -> None:
    files = {
        "one.c": "int inner(int x) { return x * 77 + 5; }\nint outer(int x) { return inner(x) * 3 + inner(x + 1); }\n",
        "two.c": "int outer(int); int main(int c, char **v) { return outer(c); }\n",
    }
    kit = Kit(tmp_path, files, flags=f"-O2 {SECTIONS}", link="-Wl,--gc-sections")
    one = kit.path("one.c")
    found = kit.match(Wanted(frozenset({(one, "inner"), (one, "outer")})))
    assert found.findings == ()
    assert found.absent == {(one, "inner")} and set(found.functions) == {(one, "outer")}


def test_an_image_that_has_the_fix_is_called_fixed(tmp_path: Path) -> None:
    before = "int shared; int work(int x) { shared += x; return x * 77 + 1234567 / (x + 1) + (x ^ 42) + shared; }\n"
    after = before.replace("(x + 1)", "(x == -1 ? 1 : x + 1)")
    main = {"main.c": "int work(int); int main(int c, char **v) { return work(c); }\n"}
    for name, text in (("fixed", after), ("other", before.replace("77", "78"))):
        (tmp_path / name).mkdir()
        Kit(tmp_path / name, {"work.c": text, **main})
    (tmp_path / "old").mkdir()
    kit = Kit(tmp_path / "old", {"work.c": before, **main})
    key = (kit.path("work.c"), "work")
    post = read_object(tmp_path / "fixed" / "pre" / "work.o", key[0])
    codes = {}
    for name in ("fixed", "other", "old"):
        with ElfFile.open(tmp_path / name / "run") as run, ElfFile.open(tmp_path / "old" / "linked") as linked:
            fixed = Fixed({key[0]: post}, {key: (key[0], "work")})
            found = match(run, kit.objects, Wanted(frozenset({key})), linked, fixed=fixed)
            codes[name] = [item.code for item in found.findings]
    assert codes == {"fixed": ["MF163"], "other": ["MF130"], "old": []}


TWIN = f"static {N} __attribute__((used)) int twin(int x) {{ return x * 12345 + 678901 * (x ^ 4242) + x / 7; }}\n"
TWINS = {"one.c": TWIN, "two.c": TWIN + "int main(void) { return 0; }\n"}


@pytest.fixture
def twins(tmp_path: Path) -> Iterator[tuple[Kit, str, Path]]:
    """An image whose twins nothing tells apart but symbols; its build-id; where its debug file belongs."""
    kit = Kit(tmp_path, TWINS)
    with ElfFile.open(tmp_path / "run") as run:
        build_id = run.build_id
    assert build_id
    file = tmp_path / "debug" / ".build-id" / build_id[:2] / f"{build_id[2:]}.debug"
    file.parent.mkdir(parents=True)
    yield kit, build_id, file


def test_an_external_debug_file_is_a_source_of_symbols(tmp_path: Path, twins: tuple[Kit, str, Path]) -> None:
    kit, build_id, file = twins
    key = (kit.path("one.c"), "twin")
    wanted = Wanted(frozenset({key}))
    assert open_debug_file(build_id, {"HOME": str(tmp_path)}, tmp_path / "debug") is None
    assert [item.code for item in kit.match(wanted).findings] == ["MF131"]
    sh(f"objcopy --only-keep-debug named {file}", tmp_path)
    debug = open_debug_file(build_id, {"HOME": str(tmp_path)}, tmp_path / "debug")
    assert debug is not None
    found = kit.match(wanted, debug=debug)
    assert found.findings == () and kit.wrong(found) == []
    assert "symbol table" in found.functions[key].how


@pytest.mark.parametrize("where", ["DEBUGINFOD_CACHE_PATH", "XDG_CACHE_HOME", "HOME"])
def test_caches_of_debuginfod_are_looked_into(tmp_path: Path, twins: tuple[Kit, str, Path], where: str) -> None:
    _kit, build_id, _ = twins
    below = {"DEBUGINFOD_CACHE_PATH": "", "XDG_CACHE_HOME": "debuginfod_client", "HOME": ".cache/debuginfod_client"}
    folder = tmp_path / "cache" / below[where] / build_id
    folder.mkdir(parents=True)
    sh(f"objcopy --only-keep-debug named {folder}/debuginfo", tmp_path)
    environment = {"HOME": str(tmp_path), where: str(tmp_path / "cache")}
    debug = open_debug_file(build_id, environment, tmp_path / "debug")
    assert debug is not None and debug.build_id == build_id
    assert open_debug_file("ab" * 20, environment, tmp_path / "debug") is None


def test_a_debug_file_of_another_build_is_passed_over(tmp_path: Path, twins: tuple[Kit, str, Path]) -> None:
    _, build_id, file = twins
    sh(f"gcc -O0 -g one.c two.c -Wl,--build-id -o other && objcopy --only-keep-debug other {file}", tmp_path)
    assert open_debug_file(build_id, {"HOME": str(tmp_path)}, tmp_path / "debug") is None


def test_a_debug_file_that_contradicts_the_code_is_refused(tmp_path: Path, twins: tuple[Kit, str, Path]) -> None:
    """The symbol of ``twin`` is moved by a few bytes; all else, the build-id too, stays."""
    kit, build_id, file = twins
    sh(f"objcopy --only-keep-debug named {file}", tmp_path)
    with ElfFile.open(file) as elf:
        values = sorted({s.value for s in elf.symbols_by_name["twin"]})
    raw = file.read_bytes()
    for value in values:
        raw = raw.replace(struct.pack("<Q", value), struct.pack("<Q", value + 4))
    file.write_bytes(raw)
    debug = open_debug_file(build_id, {"HOME": str(tmp_path)}, tmp_path / "debug")
    found = kit.match(Wanted(frozenset({(kit.path("one.c"), "twin")})), debug=debug)
    assert [item.code for item in found.findings] == ["MF133"]
    assert "debug file" in found.findings[0].reason


def test_a_string_inside_of_a_longer_one_is_found(tmp_path: Path) -> None:
    files = {
        "one.c": '#include <stdio.h>\nint one(int x) { puts("of the string"); return x * 77 + 123456 / (x + 1); }\n',
        "two.c": "#include <stdio.h>\nint one(int);\n"
        'int main(int c, char **v) { puts("the end of the string"); return one(c); }\n',
    }
    kit = Kit(tmp_path, files, link="-Wl,-O2")
    path = kit.path("one.c")
    string = next(key for key, atom in kit.objects[path].atoms.items() if atom.kind == "string")
    found = kit.match(Wanted(frozenset({(path, "one")}), frozenset({(path, string)})))
    assert found.findings == ()
    with ElfFile.open(tmp_path / "run") as run:
        place = found.data[path, string]
        assert run.read_vaddr(place.vaddr, 14) == b"of the string\0"
        assert run.read_vaddr(place.vaddr - 8, 8) == b"the end "


def test_assembler_with_tables_between_its_functions_is_found(tmp_path: Path) -> None:
    """Tables in .text are no code, and what the assembler resolved leads backwards and forwards."""
    assembler = """
    .text
    .globl first, second
table: .quad 0x0f0b0f0bffffffff, 0x1122334455667788, 0x99aabbccddeeff06
    .type first,@function
first: .cfi_startproc
    lea table(%rip), %rax
    movslq %edi, %rdi
    and $1, %edi
    mov (%rax,%rdi,8), %rax
    add $0x1234567, %rax
    call second
    ret
    .cfi_endproc
    .size first, .-first
    .p2align 5
    .type second,@function
second: .cfi_startproc
    lea after(%rip), %rdx
    imul $77777, (%rdx), %eax
    ret
    .cfi_endproc
    .size second, .-second
after: .quad 0x06060606ffffffff, 0x0102030405060708
    .section .note.GNU-stack,"",@progbits
"""
    files = {"one.S": assembler, "main.c": "int first(int); int main(int c, char **v) { return first(c); }\n"}
    kit = Kit(tmp_path, files)
    found = kit.match(Wanted(frozenset({(kit.path("one.S"), "first"), (kit.path("one.S"), "second")})))
    assert found.findings == () and kit.wrong(found) == []
    assert {key for _, key in found.functions} == {"first", "second"}


def test_another_build_is_not_told_by_contents_or_order(tmp_path: Path) -> None:
    """Twins in another order, in an object of which other flags have made something else: refused, not exchanged."""
    twin = "{ return x * 12345 + 678901 * (x ^ 4242) + x / 7; }\n"
    used = f"static {N} __attribute__((used)) int"
    loop = (
        "int loop(int x) { int s = 0; for (int i = 0; i < x; i++) { s += i * x; if (s > 1000) s -= 77; } return s; }\n"
    )
    before = f"{used} alpha(int x) {twin}{loop}{used} omega(int x) {twin}"
    after = f"{used} omega(int x) {twin}{loop}{used} alpha(int x) {twin}".replace("-= 77", "-= 78")
    main = {"main.c": "int loop(int); int main(int c, char **v) { return loop(c); }\n"}
    for name in ("pre", "other"):
        (tmp_path / name).mkdir()
    kit = Kit(tmp_path / "pre", {"one.c": before, **main})
    Kit(tmp_path / "other", {"one.c": after, **main})
    wanted = Wanted(frozenset((kit.path("one.c"), name) for name in ("alpha", "omega")))
    assert set(kit.match(wanted).functions) == set(wanted.functions)
    with ElfFile.open(tmp_path / "other" / "run") as run, ElfFile.open(tmp_path / "pre" / "linked") as linked:
        found = match(run, kit.objects, wanted, linked)
    assert not found.functions and {item.symbol for item in found.findings} == {"alpha", "omega"}


def test_the_report_says_how_each_address_is_known(tmp_path: Path) -> None:
    kit = Kit(tmp_path, PROGRAM, flags="-O2 -fPIC", link="-shared")
    path = kit.path("one.c")
    found = kit.match(Wanted(frozenset({(path, "one")}), frozenset({(path, "tail"), (path, "limit")})))
    assert found.functions[path, "one"].how.startswith("exported symbol")
    assert re.search(r"\d references from \w+", found.data[path, "limit"].how)
    assert found.data[path, "limit"].witnesses >= 2
    assert set(found.objects) == {path}
    assert found.objects[path].matched == found.objects[path].functions == found.total_functions
