"""The manifest: JSON and back, and every field that is not allowed."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from hashlib import sha256
from importlib.resources import files
from typing import Any, Literal, get_args, get_origin, get_type_hints

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from midflight.patch import encoding, strictjson
from midflight.patch import manifest as model
from midflight.patch.encoding import MAX_MEMORY, MAX_VADDR, decode_manifest, encode_manifest
from midflight.patch.fields import FieldError
from midflight.patch.manifest import (
    CodeRange,
    Entry,
    Function,
    Import,
    Manifest,
    Override,
    PayloadSymbol,
    Policy,
    Relocation,
    RelocationForm,
    RelocationKind,
    Review,
    Segment,
    Target,
    Unwind,
)
from midflight.patch.validate import validate_manifest
from tests.patch.examples import PAYLOAD, manifest, pe_manifest, pe_target, target


def schema_of(version: int) -> dict[str, Any]:
    """A published schema."""
    text = (files("midflight.patch") / "schema" / f"manifest-{version}.json").read_text(encoding="utf-8")
    found: dict[str, Any] = json.loads(text)
    return found


FIRST = schema_of(1)
SCHEMA = schema_of(2)
"""Of manifests that name their reviewer: all of the first one, and the review."""
NEWEST = schema_of(3)
"""Of manifests for PE images: the second one with other identities, entries and relocations."""
VALIDATORS = {n: jsonschema.Draft202012Validator(schema) for n, schema in ((1, FIRST), (2, SCHEMA), (3, NEWEST))}
VALIDATOR = VALIDATORS[2]
DEFINITIONS: dict[str, type] = {
    "segment": Segment,
    "range": CodeRange,
    "entry": Entry,
    "function": Function,
    "import": Import,
    "relocation": Relocation,
    "payload_symbol": PayloadSymbol,
    "unwind": Unwind,
    "override": Override,
    "target": Target,
    "review": Review,
}


def read(document: object) -> Manifest:
    """What reading does with a manifest."""
    decoded = decode_manifest(json.dumps(document).encode())
    validate_manifest(decoded)
    return decoded


REVIEW = Review("Jo Doe <jo@example.org>", "e" * 64)


def reviewed() -> Manifest:
    """The example, with everything that the newest schema has."""
    return manifest(schema=2, review=REVIEW)


def document() -> Any:
    """A good manifest as JSON types, to be spoiled."""
    return json.loads(encode_manifest(reviewed()))


def pe_document() -> Any:
    """The same for a PE image."""
    return json.loads(encode_manifest(pe_manifest(review=REVIEW)))


# --- good ones -----------------------------------------------------------------------------------------------------


def test_the_examples_are_good() -> None:
    assert read(document()) == reviewed()
    VALIDATOR.validate(document())
    plain = json.loads(encode_manifest(manifest()))
    assert read(plain) == manifest()
    VALIDATORS[1].validate(plain)


def test_a_manifest_without_a_reviewer_is_what_it_always_was() -> None:
    """Old readers read it; one that names a reviewer they refuse, as they cannot show who it was."""
    plain = json.loads(encode_manifest(manifest()))
    assert plain["schema"] == 1 and "review" not in plain
    assert not VALIDATORS[1].is_valid(document()) and not VALIDATORS[2].is_valid(plain)
    for wrong in ({**plain, "review": document()["review"]}, {**plain, "schema": 2}, {**document(), "schema": 1}):
        with pytest.raises(FieldError, match="review"):
            read(wrong)


def test_the_second_schema_is_the_first_and_a_review() -> None:
    second = json.loads(json.dumps(SCHEMA))
    del second["properties"]["review"], second["$defs"]["review"]
    second["required"].remove("review")
    for field in ("$id", "title", "description"):
        second[field] = FIRST[field]
    second["properties"]["schema"] = {"const": 1}
    assert second == FIRST


def test_a_manifest_for_a_pe_image_is_of_the_third_schema() -> None:
    """Old readers refuse it by its number; whether somebody signed it off stands in it in either case."""
    for good in (pe_manifest(), pe_manifest(review=REVIEW)):
        plain = json.loads(encode_manifest(good))
        assert plain["schema"] == 3 and "review" in plain
        assert read(plain) == good
        VALIDATORS[3].validate(plain)
        for older in (1, 2):
            spoiled = {**plain, "schema": older}
            if older == 1:
                del spoiled["review"]
            assert not VALIDATORS[older].is_valid(spoiled)
            with pytest.raises(FieldError):
                read(spoiled)


def test_manifests_for_elf_and_for_pe_images_do_not_mix() -> None:
    for changed in (pe_manifest(targets=(target(),)), manifest(targets=(pe_target(),))):
        with pytest.raises(FieldError, match=r"targets\[0\]\.build_id"):
            read(json.loads(encode_manifest(changed)))


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"unwind": None}, r"unwind is needed"),
        ({"unwind": Unwind(4096, 16, True)}, r"unwind\.size"),
        ({"unwind": Unwind(4098, 12, True)}, r"unwind\.offset"),
        ({"imports": (Import("Sleep", "V1", "kernel32.dll", "func"),)}, r"imports\[0\]\.version"),
        ({"imports": (Import("Sleep", None, None, "func"),)}, r"imports\[0\]\.library"),
        ({"imports": (Import("Sleep", None, "KERNEL32.dll", "func"),)}, r"imports\[0\]\.library"),
    ],
)
def test_what_a_target_for_a_pe_image_must_be(changes: dict[str, Any], fault: str) -> None:
    with pytest.raises(FieldError, match=fault):
        read(json.loads(encode_manifest(pe_manifest(targets=(pe_target(**changes),)))))


@pytest.mark.parametrize(
    ("entry", "fault"),
    [
        (Entry("hotpatch", 0x2001, b"\x8b\xff", 0x1FFC, b"\xcc" * 5), "even"),
        (Entry("hotpatch", 0x2000, b"\x8b\xff", 0x1FF0, b"\xcc" * 5), "5 bytes before"),
        (Entry("hotpatch", 0x2000, b"\x8b\xff\x55\x90\x90", 0x1FFB, b"\xcc" * 5), "2 bytes"),
        (Entry("hotpatch", 0x2000, b"\x8b\xff"), "is needed for a hotpatch entry"),
    ],
)
def test_a_hotpatch_entry_has_its_padding_directly_before_it(entry: Entry, fault: str) -> None:
    function = replace(pe_target().functions[0], entry=entry)
    with pytest.raises(FieldError, match=fault):
        read(json.loads(encode_manifest(pe_manifest(targets=(pe_target(functions=(function,)),)))))


@pytest.mark.parametrize(
    "reviewer", ["Jo Doe", "<jo@example.org>", "Jo <jo>", "Jo <a@b> <c@d>", "Jo\n<a@b>", "Jo\u202e <a@b>", "Jo <a@b> "]
)
def test_a_reviewer_is_a_person_with_an_address(reviewer: str) -> None:
    spoiled = document()
    spoiled["review"]["reviewer"] = reviewer
    with pytest.raises(FieldError, match=r"review\.reviewer"):
        read(spoiled)
    assert not VALIDATOR.is_valid(spoiled)


def test_the_encoding_is_one_line_of_ascii() -> None:
    encoded = encode_manifest(manifest(description="größer\u202e".rstrip("\u202e")))
    assert encoded.isascii() and encoded.count(b"\n") == 1 and encoded.endswith(b"\n")


names = st.text(st.characters(categories=["L", "N", "P", "S"]), min_size=1, max_size=12)
texts = st.text(st.characters(categories=["L", "N", "P", "S", "Zs"]), max_size=20)
proses = st.builds("{}{}".format, names, texts)
digests = st.binary(max_size=3).map(lambda data: sha256(data).hexdigest())


@st.composite
def targets(draw: st.DrawFn) -> Target:
    """Targets that fit together: functions side by side, relocations anywhere that is allowed."""
    code_size = draw(st.integers(64, 9000))
    data_size = draw(st.integers(0, 3000))
    segments = [Segment("code", 0, code_size + draw(st.integers(0, 100)), 0, code_size)]
    if data_size:
        offset = -(-segments[0].size // 4096) * 4096
        segments.append(Segment("data", offset, data_size + draw(st.integers(0, 9999)), code_size, data_size))
    functions = []
    for index in range(draw(st.integers(1, 5))):
        base = 0x10000 + index * 0x1000
        size = draw(st.integers(8, 0x800))
        entry = Entry("near", base, draw(st.binary(min_size=5, max_size=5)))
        if draw(st.booleans()):
            pad = base + 2 + draw(st.sampled_from([-128, -40, -7, 127]))
            entry = Entry("short", base, b"\x90\x90", pad, draw(st.binary(min_size=5, max_size=5)))
        ranges = (CodeRange(base, size, draw(digests)),)
        new_offset = draw(st.integers(0, code_size - 1))
        functions.append(Function(draw(names), ranges, entry, new_offset, draw(st.integers(1, code_size - new_offset))))
    imports = tuple(
        Import(draw(names), draw(st.none() | names), draw(st.none() | names), draw(st.sampled_from(["func", "object"])))
        for _ in range(draw(st.integers(0, 3)))
    )
    places = draw(st.lists(st.integers(0, code_size // 8 - 1), max_size=6, unique=True))
    kinds: list[RelocationKind] = ["payload", "image", "slot"]
    if imports:
        kinds.append("import")
    relocations = []
    for place in places:
        kind = draw(st.sampled_from(kinds))
        most = {"payload": segments[-1].offset + segments[-1].size, "import": len(imports) - 1}.get(kind, MAX_VADDR)
        goal = draw(st.integers(0, most)) & (~7 if kind == "slot" else -1)
        form: RelocationForm = draw(st.sampled_from(["abs64", "abs32", "abs32s", "pc32"]))
        branch = form == "pc32" and kind != "slot" and draw(st.booleans())
        addend = draw(st.integers(-(1 << 63), (1 << 63) - 1))
        relocations.append(Relocation(place * 8, kind, form, goal, addend, branch))
    build_id = draw(st.binary(min_size=8, max_size=64)).hex()
    policy: Policy = draw(st.sampled_from(["strict", "entry"]))
    return Target(
        image_name=draw(names),
        build_id=build_id,
        machine="x86_64",
        payload=f"payload/{build_id}.bin",
        payload_sha256=draw(digests),
        payload_size=code_size + data_size,
        segments=tuple(segments),
        functions=tuple(functions),
        relocations=tuple(relocations),
        imports=imports,
        symbols=tuple(PayloadSymbol(draw(names), 0, code_size, "func") for _ in range(draw(st.integers(0, 2)))),
        unwind=draw(st.none() | st.builds(Unwind, st.integers(0, 32), st.integers(1, 32), st.booleans())),
        policy=policy,
        policy_reason=draw(proses) if policy == "entry" else draw(st.none() | proses),
        hooks=draw(st.sampled_from([(), (("before_apply", 0),), (("before_revert", 1), ("after_apply", 63))])),
        overrides=tuple(
            Override(f"MF{draw(st.integers(100, 999))}", draw(texts), draw(texts), draw(proses), draw(proses))
            for _ in range(draw(st.integers(0, 2)))
        ),
        escapes=draw(st.booleans()),
    )


_PLAIN = str.maketrans("<>", "()")
manifests = st.builds(
    Manifest,
    schema=st.just(2),
    name=st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._+~-]{0,20}", fullmatch=True),
    sequence=st.integers(0, (1 << 31) - 1),
    description=texts,
    cves=st.lists(st.integers(1000, 999_999).map(lambda n: f"CVE-2026-{n}"), max_size=3, unique=True).map(tuple),
    created=st.datetimes().map(lambda moment: moment.strftime("%Y-%m-%dT%H:%M:%SZ").zfill(20)),
    builder=proses,
    compiler=proses,
    fix_sha256=digests,
    targets=st.lists(targets(), min_size=1, max_size=3, unique_by=lambda t: t.build_id).map(tuple),
    review=st.none() | st.builds(Review, names.map(lambda name: f"{name.translate(_PLAIN)} <jo@example.org>"), digests),
).map(lambda made: made if made.review else replace(made, schema=1))


@settings(deadline=None, max_examples=60)
@given(manifests)
def test_every_good_manifest_comes_back_and_follows_the_schema(good: Manifest) -> None:
    encoded = encode_manifest(good)
    decoded = decode_manifest(encoded)
    validate_manifest(decoded)
    assert decoded == good and encode_manifest(decoded) == encoded
    VALIDATORS[good.schema].validate(json.loads(encoded))


# --- the schema and the dataclasses --------------------------------------------------------------------------------


def test_the_schema_is_a_schema() -> None:
    jsonschema.Draft202012Validator.check_schema(FIRST)
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    jsonschema.Draft202012Validator.check_schema(NEWEST)


def test_every_dataclass_of_the_manifest_is_in_the_schema() -> None:
    found = {thing for thing in vars(model).values() if isinstance(thing, type) and thing.__module__ == model.__name__}
    assert found == {Manifest, *DEFINITIONS.values()}


@pytest.mark.parametrize("name", ["", *DEFINITIONS])
def test_the_schema_says_what_the_dataclass_says(name: str) -> None:
    cls = DEFINITIONS[name] if name else Manifest
    schema = NEWEST["$defs"][name] if name else NEWEST
    hints = get_type_hints(cls)
    assert schema["type"] == "object" and schema["additionalProperties"] is False
    assert list(schema["properties"]) == list(hints) == schema["required"]
    for field, hint in hints.items():
        if field == "schema":
            derived: object = {"const": model.PE_SCHEMA}
        elif field == "hooks":
            derived = {"hooks": set(get_args(model.HookName))}
        else:
            derived = _derive(hint)
        assert _reduce(schema["properties"][field]) == derived, field


def _derive(hint: Any) -> object:
    """The shape that a type annotation asks for."""
    if hint in DEFINITIONS.values():
        return {"record": hint}
    if get_origin(hint) is Literal:
        return {"enum": set(get_args(hint))}
    if get_origin(hint) is tuple and get_args(hint)[1:] == (...,):
        return {"array": _derive(get_args(hint)[0])}
    if type(None) in get_args(hint):
        (other,) = (argument for argument in get_args(hint) if argument is not type(None))
        return {"optional": _derive(other)}
    return {str: "string", bytes: "string", int: "integer", bool: "boolean"}[hint]


def _reduce(schema: Any) -> object:
    """The shape that a schema allows."""
    if "$ref" in schema:
        name = schema["$ref"].removeprefix("#/$defs/")
        return {"record": DEFINITIONS[name]} if name in DEFINITIONS else _reduce(NEWEST["$defs"][name])
    if "const" in schema:
        return {"const": schema["const"]}
    if "enum" in schema:
        return {"enum": set(schema["enum"])}
    if "anyOf" in schema:
        one, null = schema["anyOf"]
        assert null == {"type": "null"}
        return {"optional": _reduce(one)}
    if schema["type"] == "array":
        return {"array": _reduce(schema["items"])}
    if schema["type"] == "object":
        assert schema["additionalProperties"] is False and "required" not in schema
        return {"hooks": set(schema["properties"])}
    return schema["type"]


# --- single fields -------------------------------------------------------------------------------------------------

WRONG_TYPES: list[Any] = [None, True, 1, -1, 1 << 62, "", "zz", "\x1b[31m", [], [[]], {}, {"a": 1}]


def _places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where all values of a JSON document are."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path] * bool(path) + [place for step, child in inner for place in _places(child, (*path, step))]


@pytest.mark.parametrize(
    ("good", "place"),
    [(good, place) for good in (document, pe_document) for place in _places(good())],
    ids=lambda part: ".".join(map(str, part)) if isinstance(part, tuple) else part.__name__,
)
def test_code_and_schema_agree_on_every_field(good: Callable[[], Any], place: tuple[Any, ...]) -> None:
    """The schema may only be milder, and that only where fields depend on each other (or a date does not exist)."""
    validator = VALIDATORS[good()["schema"]]
    for wrong in WRONG_TYPES:
        spoiled = good()
        *way, last = place
        holder = spoiled
        for step in way:
            holder = holder[step]
        if holder[last] == wrong and type(holder[last]) is type(wrong):
            continue
        holder[last] = wrong
        try:
            decode_manifest(json.dumps(spoiled).encode())
        except FieldError as error:
            assert not validator.is_valid(spoiled), f"{wrong!r}: {error}"
            assert str(error).isprintable()
        else:
            assert validator.is_valid(spoiled), repr(wrong)


@pytest.mark.parametrize("place", _places(document()), ids=lambda place: ".".join(map(str, place)))
def test_every_key_is_needed_and_no_other_is_allowed(place: tuple[Any, ...]) -> None:
    *way, last = place
    spoiled = document()
    holder = spoiled
    for step in way:
        holder = holder[step]
    if not isinstance(holder, dict):
        return
    value = holder.pop(last)
    if "hooks" not in way:
        with pytest.raises(FieldError, match="missing"):
            read(spoiled)
        assert not VALIDATOR.is_valid(spoiled)
    holder[last] = value
    holder["extra\x1b"] = 1
    with pytest.raises(FieldError, match="unknown"):
        read(spoiled)
    assert not VALIDATOR.is_valid(spoiled)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("name", "a b"),
        ("name", "-a"),
        ("name", "a/b"),
        ("name", "a\n"),
        ("name", "a" * 129),
        ("description", "\x07"),
        ("description", "abc\u202edef"),
        ("description", "\x9b31m"),
        ("description", "a" * 10_001),
        ("cves", ["2026-1234"]),
        ("cves", ["CVE-2026-1234", "CVE-2026-1234"]),
        ("cves", ["CVE-\u0662026-1234"]),
        ("created", "2026-02-30T00:00:00Z"),
        ("created", "2026-02-20T00:00:00+00:00"),
        ("created", "2026-02-20 00:00:00Z"),
        ("builder", " "),
        ("compiler", "a\nb"),
        ("fix_sha256", "F" * 64),
        ("schema", 4),
        ("sequence", 1.0),
        ("targets", []),
    ],
)
def test_a_field_of_the_manifest_that_is_not_allowed(field: str, value: object) -> None:
    with pytest.raises(FieldError, match=field if value != 1.0 else "integers") as caught:
        read({**document(), field: value})
    assert str(caught.value).isprintable()


# --- fields and each other -----------------------------------------------------------------------------------------


def change(**fields: object) -> Callable[[Target], Target]:
    """A change of fields of the target."""
    return lambda good: replace(good, **fields)  # type: ignore[arg-type]


def segment(index: int, **fields: object) -> Callable[[Target], Target]:
    """A change of one segment."""
    return lambda good: replace(good, segments=_with(good.segments, index, **fields))


def function(index: int, **fields: object) -> Callable[[Target], Target]:
    """A change of one function."""
    return lambda good: replace(good, functions=_with(good.functions, index, **fields))


def entry(index: int, **fields: object) -> Callable[[Target], Target]:
    """A change of one function's entry."""

    def changed(good: Target) -> Target:
        new = replace(good.functions[index].entry, **fields)  # type: ignore[arg-type]
        return replace(good, functions=_with(good.functions, index, entry=new))

    return changed


def relocation(index: int, **fields: object) -> Callable[[Target], Target]:
    """A change of one relocation."""
    return lambda good: replace(good, relocations=_with(good.relocations, index, **fields))


def _with(items: Any, index: int, **fields: object) -> Any:
    return (*items[:index], replace(items[index], **fields), *items[index + 1 :])


GOOD = target()
MISFITS: dict[str, tuple[Callable[[Target], Target], str]] = {
    "payload of another build-id": (change(payload=f"payload/{'cd' * 20}.bin"), ".payload "),
    "nothing to do": (change(functions=(), hooks=()), ".functions "),
    "entry policy without a reason": (change(policy_reason=None), ".policy_reason "),
    "no code": (change(segments=GOOD.segments[1:]), ".segments"),
    "two segments of a kind": (segment(1, kind="code"), ".segments"),
    "segment not on a page": (segment(1, offset=4100), ".segments[1].offset"),
    "gap between segments": (segment(2, offset=12288), ".segments[2].offset"),
    "segments over each other": (segment(1, offset=0), ".segments[1].offset"),
    "first segment not at 0": (change(segments=(Segment("code", 4096, 200, 0, 200),)), ".segments[0].offset"),
    "more file than memory": (segment(0, size=199), ".segments[0].file_size"),
    "segment behind the payload": (segment(2, file_offset=len(PAYLOAD) - 99), ".segments[2].file_offset"),
    "segments share bytes": (segment(1, file_offset=199), ".segments "),
    "too much memory": (segment(2, size=MAX_MEMORY), ".segments "),
    "new code outside of the code": (function(0, new_offset=190), ".functions[0].new_offset"),
    "new code in data": (function(0, new_offset=4096), ".functions[0].new_offset"),
    "no old code": (function(0, ranges=()), ".functions[0].ranges"),
    "old code over itself": (
        function(0, ranges=(CodeRange(0x1000, 64, "0" * 64), CodeRange(0x103F, 64, "0" * 64))),
        ".functions[0].ranges",
    ),
    "old code behind the address space": (
        function(0, ranges=(CodeRange(0x1000, 64, "0" * 64), CodeRange(MAX_VADDR, 2, "0" * 64))),
        ".functions[0].ranges[1]",
    ),
    "entry outside of the function": (entry(0, vaddr=0x1040), ".functions[0].entry.vaddr"),
    "near entry of two bytes": (entry(0, before=b"\x90\x90"), ".functions[0].entry.before"),
    "near entry with padding": (entry(0, pad_vaddr=0x0FF0), ".functions[0].entry.pad_vaddr"),
    "near entry with padding bytes": (entry(0, pad_before=b"12345"), ".functions[0].entry.pad_before"),
    "short entry of five bytes": (entry(1, before=b"12345"), ".functions[1].entry.before"),
    "short entry without padding": (entry(1, pad_vaddr=None), ".functions[1].entry.pad_vaddr"),
    "short entry without padding bytes": (entry(1, pad_before=None), ".functions[1].entry.pad_before"),
    "padding out of reach before": (entry(1, pad_vaddr=0x2002 - 129), ".functions[1].entry.pad_vaddr"),
    "padding out of reach behind": (entry(1, pad_vaddr=0x2002 + 128), ".functions[1].entry.pad_vaddr"),
    "padding over the entry": (entry(1, pad_vaddr=0x1FFC), ".functions[1].entry "),
    "two entries in one place": (
        change(functions=(GOOD.functions[1], replace(GOOD.functions[1], name="again"))),
        ".functions[1].entry ",
    ),
    "entry written into another function": (
        change(
            functions=(
                GOOD.functions[1],
                Function("next", (CodeRange(0x1FF4, 8, "0" * 64),), Entry("near", 0x1FF7, b"12345"), 0, 8),
            )
        ),
        ".functions[0].entry overwrites code of functions[1]",
    ),
    "relocation outside": (relocation(0, offset=197), ".relocations[0]"),
    "relocation in zeroes": (relocation(4, offset=8292), ".relocations[4]"),
    "relocation between segments": (relocation(0, offset=300), ".relocations[0]"),
    "relocations over each other": (relocation(1, offset=7), ".relocations[1]"),
    "relocation to no import": (relocation(0, target=2), ".relocations[0]"),
    "relocation behind the payload": (relocation(2, target=8192 + 5001), ".relocations[2]"),
    "slot that is none": (relocation(3, target=0x5004), ".relocations[3]"),
    "branch that is absolute": (relocation(0, form="abs32"), ".relocations[0]"),
    "branch through a slot": (relocation(3, branch=True), ".relocations[3]"),
    "branch in data": (relocation(4, form="pc32", branch=True), ".relocations[4]"),
    "symbol outside": (change(symbols=(PayloadSymbol("a", 198, 3, "func"),)), ".symbols[0]"),
    "hook outside of the code": (change(hooks=(("after_apply", 4096),)), ".hooks.after_apply"),
    "hook behind the code": (change(hooks=(("after_apply", 200),)), ".hooks.after_apply"),
    "unwind outside": (change(unwind=Unwind(4100, 97, True)), ".unwind"),
    "unwind in zeroes": (change(unwind=Unwind(8292, 8, True)), ".unwind"),
}


@pytest.mark.parametrize("name", MISFITS)
def test_fields_that_do_not_fit_together(name: str) -> None:
    spoil, path = MISFITS[name]
    spoiled = manifest(targets=(spoil(GOOD),))
    with pytest.raises(FieldError) as caught:
        read(json.loads(encode_manifest(spoiled)))
    assert str(caught.value).startswith(f"targets[0]{path}")


def test_two_targets_of_one_build_id() -> None:
    with pytest.raises(FieldError, match=r"targets\[1\]\.build_id"):
        read(json.loads(encode_manifest(manifest(targets=(GOOD, GOOD)))))


def test_an_entry_may_reach_into_padding_and_shared_parts() -> None:
    tiny = Function("tiny", (CodeRange(0x3000, 4, "0" * 64),), Entry("near", 0x3000, b"12345"), 0, 8)
    shared = CodeRange(0x4000, 32, "0" * 64)
    one = Function("one", (shared, CodeRange(0x5000, 8, "0" * 64)), Entry("near", 0x4000, b"12345"), 0, 8)
    two = Function("two", (shared, CodeRange(0x6000, 8, "0" * 64)), Entry("near", 0x6000, b"12345"), 0, 8)
    read(json.loads(encode_manifest(manifest(targets=(replace(GOOD, functions=(tiny, one, two)),)))))


@given(st.from_regex(r"(19|20)[0-9]{2}-[01][0-9]-[0-3][0-9]T[0-2][0-9]:[0-6][0-9]:[0-6][0-9]Z", fullmatch=True))
def test_times_are_those_that_exist(moment: str) -> None:
    try:
        datetime.fromisoformat(moment)
    except ValueError:
        with pytest.raises(FieldError, match="time that exists"):
            read({**document(), "created": moment})
    else:
        assert read({**document(), "created": moment}).created == moment


# --- JSON ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"nul",
        b"1 2",
        b"\xff",
        b"\xef\xbb\xbf1",
        b"1.5",
        b"1e3",
        b"NaN",
        b"-Infinity",
        b"9" * 21,
        b'{"a":1,"a":1}',
        b'[{"a":{"b":1,"b":2}}]',
        b"[" * 17 + b"]" * 17,
        b"[" * 1_000_000,
        b'{"a":' * 100_000,
        b'["' + b"[" * 50 + b'", ' + b"[" * 17 + b"]" * 18,
        b'"\x00"',
    ],
    ids=lambda text: ascii(text[:20]),
)
def test_json_that_is_refused(text: bytes) -> None:
    with pytest.raises(strictjson.StrictJSONError):
        strictjson.loads(text)


def test_brackets_in_strings_do_not_count() -> None:
    assert strictjson.loads(b'["[[[[[[[[[[[[[[[[[[[[\\"[[[["]') == ['[[[[[[[[[[[[[[[[[[[["[[[[']


def test_a_manifest_that_is_too_large() -> None:
    with pytest.raises(FieldError, match="at most"):
        decode_manifest(b" " * (encoding.MAX_MANIFEST + 1))
