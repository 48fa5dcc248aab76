"""What device and server say to each other at a check-in: it comes out as it went in, or is refused with a reason."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest

from midflight.trust import checkin
from midflight.trust.errors import TrustError

NOW = datetime(2026, 11, 26, 12, 0, tzinfo=UTC)
STATE = checkin.State(
    hostname="web-1",
    platform="linux-x86_64",
    kernel="6.1.0-28-amd64",
    agent="0.1.0",
    timezone="Europe/Berlin",
    boot_id="b",
    memory_free_mib=checkin.rounded_memory(1000),
    patches=(checkin.PatchReport("nginx", 3, "a" * 64, "b" * 40, 4, 0, 120),),
    bars=(checkin.Bar("nginx", 4, "c" * 64, "crashed", NOW),),
    violations=(checkin.Violation("b" * 40, "/usr/sbin/nginx", "nginx (17)", "14 bytes at 0x1000", NOW),),
    health=(checkin.Probe("a" * 64, 60, True, ""),),
    restart=checkin.Restart(True, "baseline nginx 4", NOW),
    facts={"os": "Debian GNU/Linux 12"},
)
INVENTORY = (
    checkin.ImageReport("c" * 40, "/usr/lib/libc.so.6", "libc6", "2.36-9", 40),
    checkin.ImageReport("b" * 40, "/usr/sbin/nginx", "nginx", "1.22.1-9", 4),
)
OUTCOME = checkin.Outcome("d.apply.1", "d", "applied", NOW, "", "", 4, 120)


def _message(**changes: Any) -> checkin.CheckIn:
    message = checkin.CheckIn(
        at=NOW,
        instructions=7,
        state_digest=checkin.digest_of(checkin.state_document(STATE)),
        inventory_digest=checkin.digest_of(checkin.inventory_document(INVENTORY)),
        state=STATE,
        inventory=INVENTORY,
        outcomes=(OUTCOME,),
    )
    return replace(message, **changes)


def test_a_check_in_comes_out_as_it_went_in() -> None:
    read = checkin.decode_check_in(checkin.encode_check_in(_message()))
    assert replace(read, inventory=None) == _message(inventory=None)
    assert set(read.inventory or ()) == set(INVENTORY)
    quiet = _message(state=None, inventory=None, outcomes=())
    assert checkin.decode_check_in(checkin.encode_check_in(quiet)) == quiet
    assert len(checkin.encode_check_in(quiet)) < 400


def test_the_order_of_an_inventory_does_not_change_its_digest() -> None:
    reordered = checkin.inventory_document(tuple(reversed(INVENTORY)))
    assert checkin.digest_of(reordered) == _message().inventory_digest


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"state_digest": "0" * 64}, "state_digest is not that of the state"),
        ({"inventory_digest": "0" * 64}, "inventory_digest is not that of the inventory"),
        ({"outcomes": [{"action": "x"}]}, r"outcomes\[0\]"),
        ({"state": {"hostname": "x"}}, "state"),
        ({"instructions": -1}, "instructions"),
        ({"instructions": True}, "instructions"),
        ({"at": "yesterday"}, "at must be a time"),
        ({"version": 2}, "version is of version 2"),
        ({"extra": 1}, "unknown key"),
    ],
)
def test_what_makes_no_sense_is_refused_and_named(change: dict[str, Any], said: str) -> None:
    document = json.loads(checkin.encode_check_in(_message())) | change
    with pytest.raises(TrustError, match=said) as caught:
        checkin.decode_check_in(json.dumps(document).encode())
    assert caught.value.reason == "malformed"


def test_a_report_with_control_characters_is_refused() -> None:
    document = json.loads(checkin.encode_check_in(_message(state=None)))
    document["outcomes"][0]["detail"] = "\x1b[2J"
    with pytest.raises(TrustError, match="must not have the character"):
        checkin.decode_check_in(json.dumps(document).encode())


def test_more_than_a_whole_inventory_is_refused_unread() -> None:
    with pytest.raises(TrustError) as caught:
        checkin.decode_check_in(b" " * (checkin.MAX_CHECK_IN + 1))
    assert caught.value.reason == "oversized"


def test_an_answer_and_a_renewal_come_out_as_they_went_in() -> None:
    for answer in (checkin.Answer(300), checkin.Answer(1, b'{"payload":"e30="}\n', ("state", "inventory"))):
        assert checkin.decode_answer(checkin.encode_answer(answer)) == answer
    renewal = checkin.Renewal(certificate_request="-----BEGIN CERTIFICATE REQUEST-----\nAA==\n")
    assert checkin.decode_renewal(checkin.encode_renewal(renewal)) == renewal
    with pytest.raises(TrustError):
        checkin.decode_answer(b'{"interval_s":0,"instructions":null,"version":1,"want":[]}')
