"""What both roots of trust say: the server's word alone brings no code anywhere."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tuf.api.metadata import TargetFile, Targets

from midflight.patch.fields import FieldError
from midflight.trust.agreement import combine
from midflight.trust.content import CUSTOM, FIELD, Catalog, Package, catalog_of, describe
from midflight.trust.instructions import Action, Instructions, sign_instructions, verify_instructions
from midflight.trust.keys import PrivateKey
from midflight.trust.paths import target_path
from tests.trust.repositories import ABOUT, NOW, World

FIRST, SECOND, BASE = "hotpatch/nginx/1.hotpatch", "hotpatch/nginx/2.hotpatch", "baseline/nginx.deb"


def _document() -> dict[str, Any]:
    """A description as it stands in metadata."""
    target = TargetFile(1, {"sha256": "ab" * 32}, FIRST)
    describe(target, ABOUT)
    found: dict[str, Any] = target.custom[CUSTOM]
    return found


@pytest.fixture(scope="module")
def catalog(tmp_path_factory: pytest.TempPathFactory) -> Catalog:
    """One hotpatch that is offered, one that is revoked, and a baseline, through a real repository and client."""
    world = World.make(tmp_path_factory.mktemp("world"))
    world.add(2)
    package = Package("deb", "nginx", "1.22.1-9", "amd64")
    baseline = replace(ABOUT, kind="baseline", name="nginx", images=(), package=package)
    (world.folder / "source").write_bytes(b"deb")
    world.repository.add(world.folder / "source", BASE, baseline, NOW)
    world.release()
    world.repository.revoke(SECOND, "crashes on resume", True, NOW)
    world.release()
    return world.client().refresh()


def action(catalog: Catalog, kind: str, path: str = FIRST, **changes: object) -> Action:
    """What an honest server would say, with changes."""
    content = catalog.contents.get(path)
    revoked = catalog.revocation(None, path)
    digest = content.sha256 if content else revoked.sha256 if revoked else "ee" * 32
    length = content.length if content else 12000
    return replace(Action("a", kind, "d", path, digest, length), **changes)  # type: ignore[arg-type]


def refusal(catalog: Catalog, what: Action) -> str:
    """The reason for which an action is refused."""
    outcome = combine([what], catalog)
    assert outcome.agreed == ()
    (refused,) = outcome.refused
    assert what.target is not None and what.target in refused.message
    return refused.reason


def test_what_both_say_is_done(catalog: Catalog) -> None:
    actions = [action(catalog, "apply"), action(catalog, "baseline", BASE), Action("h", "hold")]
    outcome = combine(actions, catalog)
    assert [agreed.action for agreed in outcome.agreed] == actions
    assert [agreed.content and agreed.content.path for agreed in outcome.agreed] == [FIRST, BASE, None]
    assert outcome.refused == ()


def test_what_the_server_alone_says_is_not_done(catalog: Catalog) -> None:
    for kind in ("apply", "baseline"):
        assert refusal(catalog, action(catalog, kind, "hotpatch/evil.hotpatch")) == "unknown"
        assert refusal(catalog, action(catalog, kind, SECOND)) == "revoked"
        assert refusal(catalog, action(catalog, kind, "server.json")) == "unknown"
    assert refusal(catalog, action(catalog, "apply", sha256="ee" * 32)) == "hash"
    assert refusal(catalog, action(catalog, "apply", length=1)) == "length"
    assert refusal(catalog, action(catalog, "apply", BASE)) == "kind"
    assert refusal(catalog, action(catalog, "baseline")) == "kind"
    revoked = catalog.revocation(None, SECOND)
    assert revoked is not None
    assert refusal(catalog, action(catalog, "apply", sha256=revoked.sha256)) == "revoked", "under another name"


def test_code_can_be_taken_out_whatever_the_repository_says(catalog: Catalog) -> None:
    gone = [action(catalog, "revert", SECOND), action(catalog, "revert", "hotpatch/old.hotpatch")]
    assert len(combine(gone, catalog).agreed) == 2
    assert refusal(catalog, action(catalog, "revert", sha256="ee" * 32)) == "hash"


def test_from_a_signed_envelope_to_what_is_done(catalog: Catalog) -> None:
    key, now = PrivateKey.generate(), datetime(2026, 6, 1, tzinfo=UTC)
    actions = (action(catalog, "apply"), replace(action(catalog, "apply", SECOND), id="b"))
    sent = Instructions("web-1", now, now + timedelta(hours=1), 1, 300, (), actions)
    got = verify_instructions(sign_instructions(sent, [key]), [key.public], "web-1", now, 0)
    outcome = combine(got, catalog)
    assert [agreed.action.id for agreed in outcome.agreed] == ["a"]
    assert [(refused.action.id, refused.reason) for refused in outcome.refused] == [("b", "revoked")]


def test_content_of_a_newer_format_is_not_offered_and_says_why(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"x")
    target = TargetFile.from_file(FIRST, str(tmp_path / "x"), ["sha256"])
    target.unrecognized_fields["custom"] = {CUSTOM: {"format": 2, "more": 1}}
    damaged = TargetFile.from_file("../x", str(tmp_path / "x"), ["sha256"])
    damaged.unrecognized_fields["custom"] = {CUSTOM: {"format": 1}}
    catalog = catalog_of(Targets(targets={FIRST: target, "../x": damaged}))
    assert catalog.contents == {}
    assert "update it here" in catalog.unreadable[FIRST] and "../x" in catalog.unreadable
    assert refusal(catalog, Action("a", "apply", None, FIRST, target.hashes["sha256"], 1)) == "unreadable"


def test_revocations_that_cannot_be_read_are_never_passed_over() -> None:
    fields: tuple[object, ...] = ({"format": 2, "revoked": []}, {"format": 1}, [], {"format": 1, "revoked": [{}]})
    for field in fields:
        with pytest.raises(FieldError):
            catalog_of(Targets(unrecognized_fields={FIELD: field}))


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=10), inner, max_size=3),
    max_leaves=10,
)


@given(path=st.text(max_size=30), custom=_json, document=_json, key=st.sampled_from(sorted(_document())))
@settings(deadline=None, max_examples=200)
def test_whatever_stands_in_a_description_harms_nothing_else(path: str, custom: Any, document: Any, key: str) -> None:
    good = {**_document(), key: document}
    for number, found in enumerate((custom, {CUSTOM: document}, {CUSTOM: good})):
        target = TargetFile(1, {"sha256": "ab" * 32}, path, {"custom": found})
        fine = TargetFile(1, {"sha256": "cd" * 32}, FIRST, {"custom": {CUSTOM: _document()}})
        catalog = catalog_of(Targets(targets={path: target, FIRST: fine}))
        assert FIRST in catalog.contents, number
        assert all(target_path(name) == name for name in catalog.contents)
