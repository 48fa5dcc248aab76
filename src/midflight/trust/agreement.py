"""What both roots of trust say: of the server's instructions, those that content signed offline bears out.

After Uptane: the repository, signed by keys that are kept offline, says what exists. The server, whose keys are online,
says which device gets it. Whoever has stolen the server can withhold content, and take hotpatches out; never add any.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from midflight.trust.content import Catalog, Content
from midflight.trust.instructions import Action, Instructions

RefusalReason = Literal["unknown", "revoked", "unreadable", "hash", "length", "kind"]


@dataclass(frozen=True, slots=True)
class Agreed:
    """An action that may be carried out. ``content`` is what is signed offline of it; None for a ``revert`` or
    ``hold`` of something that is no longer offered, or of everything."""

    action: Action
    content: Content | None


@dataclass(frozen=True, slots=True)
class RefusedAction:
    """An action that is not carried out, and why: a word for programs, a sentence for people."""

    action: Action
    reason: RefusalReason
    message: str


@dataclass(frozen=True, slots=True)
class Agreement:
    """Every action of the instructions, in their order, on one of two lists."""

    agreed: tuple[Agreed, ...]
    refused: tuple[RefusedAction, ...]


def combine(instructions: Instructions | Iterable[Action], catalog: Catalog) -> Agreement:
    """Compare verified instructions with the catalog of a verified, fresh repository."""
    agreed: list[Agreed] = []
    refused: list[RefusedAction] = []
    for action in instructions.actions if isinstance(instructions, Instructions) else instructions:
        outcome = _judge(action, catalog)
        if isinstance(outcome, RefusedAction):
            refused.append(outcome)
        else:
            agreed.append(outcome)
    return Agreement(tuple(agreed), tuple(refused))


def _judge(action: Action, catalog: Catalog) -> Agreed | RefusedAction:
    if action.target is None:
        return Agreed(action, None)
    content = catalog.contents.get(action.target)
    if action.kind in ("apply", "baseline"):
        refusal = _not_offered(action, content, catalog)
        if refusal is not None:
            return refusal
    if content is None:
        return Agreed(action, None)  # taking out, or holding, what is no longer offered
    if action.sha256 != content.sha256:
        return _refused(action, "hash", "the server names another sha256 than the one that is signed offline")
    if action.length != content.length:
        return _refused(
            action, "length", f"the server says {action.length} bytes, and {content.length} are signed offline"
        )
    return Agreed(action, content)


def _not_offered(action: Action, content: Content | None, catalog: Catalog) -> RefusedAction | None:
    """Why new code may not come from this action; hash and length apart."""
    assert action.target is not None
    revocation = catalog.revocation(action.sha256) or (
        catalog.revocation(None, action.target) if content is None else None
    )
    if revocation is not None:
        return _refused(action, "revoked", f"it was revoked: {revocation.reason}")
    if content is None:
        if action.target in catalog.unreadable:
            return _refused(action, "unreadable", f"its description {catalog.unreadable[action.target]}")
        return _refused(action, "unknown", "no offline key has signed that it exists")
    wanted = "hotpatch" if action.kind == "apply" else "baseline"
    if content.about.kind != wanted:
        return _refused(action, "kind", f"it is a {content.about.kind}, which is not a thing to {action.kind}")
    return None


def _refused(action: Action, reason: RefusalReason, why: str) -> RefusedAction:
    return RefusedAction(action, reason, f"{action.kind} {action.target}: {why}; it was not done")
