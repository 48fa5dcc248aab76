"""What the API shows of things, and how reasons are spelled out."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from pydantic import BaseModel, ConfigDict

from midflight.server.domain.reasons import Reason
from midflight.server.store import convert


class View(BaseModel):
    """Something that is shown; made from a row."""

    model_config = ConfigDict(from_attributes=True)


class Why(BaseModel):
    """A reason: a word for programs, a text for people, and who has to act."""

    reason: str
    text: str
    owner: str
    detail: str = ""


def why(word: str, detail: str = "") -> Why | None:
    """A stored reason, spelled out; None when there is none."""
    if not word:
        return None
    if word not in Reason._value2member_map_:
        return Why(reason=word, text=word, owner="device", detail=detail)
    reason = convert.reason_of(word)
    return Why(reason=reason.value, text=reason.text, owner=reason.owner.value, detail=detail)


class DeviceLine(View):
    """A device in a list."""

    id: str
    hostname: str
    platform: str
    kernel: str
    agent: str
    tags: dict[str, Any]
    policy_id: str | None
    enrolled: datetime
    last_seen: datetime | None = None
    disabled: datetime | None
    compliance: str = "unknown"
    integrity_violated: bool
    restart_pending: bool
    version: int


class MembershipView(BaseModel):
    """How a device stands in a deployment."""

    deployment: str
    device: str
    hostname: str
    ring: int | None
    state: str
    why: Why | None
    since: datetime
    offered: datetime | None


class RingView(BaseModel):
    """A ring of a deployment, as it was counted last."""

    ring: int
    name: str
    members: int
    tally: dict[str, int]
    opened: datetime | None
    passed: datetime | None
    sampled: datetime | None
    gate: Why | None
    counted: datetime


class DeploymentView(BaseModel):
    """A deployment: what was asked of it, and what it does."""

    id: str
    content: str
    policy: str
    created: datetime
    created_by: str
    starts: datetime
    requested: str
    paused_until: datetime | None
    effective: str
    why: Why | None
    since: datetime
    ring: int
    expedite: bool
    populated: bool
    version: int


class ApprovalView(BaseModel):
    """A person's word on a deployment, or on one of its rings."""

    person: str
    ring: int | None
    approved: bool
    comment: str
    at: datetime


class DeploymentFull(DeploymentView):
    """A deployment with the rings that it began with, and what people said of it."""

    rings: list[dict[str, Any]]
    approvals: list[ApprovalView]
    first_offer: datetime | None
    """When its first ring was opened."""
    audience: dict[str, Any] | None
    """What narrows the policy's audience."""


class Changed(BaseModel):
    """The answer to an edit of many things."""

    changed: int
