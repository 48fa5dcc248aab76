"""The administrator's journey in a real browser: from the first login to a revert, against a real server."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from playwright.sync_api import Locator, Page, expect

from tests.fleet.console.browsing import Visitor, go, until
from tests.fleet.console.fleet import Fleet
from tests.fleet.console.server import RunningServer

pytestmark = pytest.mark.fleet


@pytest.fixture(scope="module")
def fleet(server: RunningServer) -> Iterator[Fleet]:
    made = Fleet(server)
    yield made
    made.close()


def row(page: Page, text: str) -> Locator:
    return page.get_by_role("row").filter(has_text=text)


def choose(page: Page, summary: str, button: str | None = None) -> None:
    """Press what asks first, and answer."""
    page.locator("summary", has_text=re.compile(f"^{summary}$")).click()
    page.locator("details[open] form").get_by_role("button", name=button or summary).click()


def test_the_whole_journey(visit: Visitor, server: RunningServer, fleet: Fleet) -> None:
    visit.expected = ("422",)  # a form that is refused, on purpose
    page = visit.signed_in("ada")
    expect(page.get_by_role("heading", name="How to begin")).to_be_visible()

    # an invitation, and devices that come in by it
    page.get_by_role("link", name="Make an invitation").click()
    page.get_by_label("What is it for?").fill("web servers")
    page.get_by_label("Devices that may use it").fill("9")
    page.get_by_label("Tags that the devices get").fill("site = berlin")
    page.get_by_role("button", name="Make invitation").click()
    token = page.locator("#secret-value").inner_text()
    hostile = '<img src=x onerror="alert(1)">'
    for name in ("web-1", "web-2", "web-3", "web-4", hostile):
        fleet.device(token, name)
    page.get_by_role("link", name="Devices", exact=True).click()
    expect(page.get_by_role("link", name="web-4")).to_be_visible()
    expect(page.get_by_role("link", name=hostile)).to_be_visible()
    expect(page.locator("#main img")).to_have_count(0)
    page.get_by_label("Host name begins with").fill("web-2")
    expect(page.get_by_role("link", name="web-1")).to_have_count(0)
    expect(page.get_by_role("link", name="web-2")).to_be_visible()
    page.get_by_role("link", name="web-2").click()
    expect(page.get_by_text("/usr/sbin/nginx")).to_be_visible()
    expect(page.get_by_text("no policy covers the device").first).to_be_visible()

    # a group by rule, and a policy with two rings
    page.get_by_role("link", name="Groups", exact=True).click()
    page.get_by_label("Name").fill("web")
    page.get_by_label("Rule").fill('hostname like "web-*" and')
    page.get_by_role("button", name="Create group").click()
    expect(page.get_by_role("alert")).to_contain_text("Not done")
    page.get_by_label("Rule").fill('hostname like "web-*" and tag.site == "berlin"')
    page.get_by_role("button", name="Create group").click()
    expect(page.get_by_role("link", name="web-3")).to_be_visible()
    page.get_by_role("link", name="Policies", exact=True).click()
    page.get_by_role("link", name="New policy").click()
    page.get_by_label("Name", exact=True).first.fill("Web servers")
    page.get_by_role("group", name="For these groups", exact=True).get_by_label("web").check()
    rings = page.locator("#ring > .repeat")
    rings.nth(1).get_by_role("button", name="Remove this ring").click()
    for number in (0, 1):
        rings.nth(number).get_by_label("Quiet afterwards (h)").fill("0")
        rings.nth(number).get_by_label("Gate: answers needed").fill("1")
    page.locator("#rule").get_by_label("Is deployed").select_option("manual")
    page.get_by_label("Revert by itself when a gate halts").uncheck()
    page.get_by_role("button", name="Create policy").click()
    expect(page.get_by_role("heading", name="Web servers")).to_be_visible()
    expect(page.get_by_text("the first device that is ready")).to_be_visible()

    # content is published, looked at, deployed
    first = fleet.publish(1, severity="critical", description="Heap overflow in the parser")
    page.get_by_role("link", name="Catalogue", exact=True).click()
    page.get_by_role("button", name="Read the repository now").click()
    page.get_by_role("link", name="nginx #1").click()
    expect(page.get_by_text("Devices with the package")).to_be_visible()
    expect(page.locator(".figures > div", has_text="Devices with the package")).to_contain_text("5")
    page.get_by_role("button", name="Deploy").click()
    expect(page.get_by_text("waits for a person's approval").first).to_be_visible()
    expect(page.get_by_role("button", name="Approve")).to_be_visible()
    page.get_by_role("button", name="Approve").click()

    # the rings go on by themselves on the open page: nobody reloads it
    ring_one, ring_all = page.locator(".rings > li").nth(0), page.locator(".rings > li").nth(1)
    expect(ring_one).to_have_class(re.compile("current"))
    assert len(fleet.obey(first)) == 1
    expect(ring_one).to_have_class(re.compile("passed"))
    expect(ring_one).to_contain_text("1 applied")
    choose(page, "Pause")
    expect(page.locator(".alert.good")).to_contain_text("Paused")
    expect(page.locator("dl.figures")).to_contain_text("paused")
    assert fleet.obey(first) == []
    page.get_by_role("button", name="Resume").click()
    expect(ring_all).to_have_class(re.compile("current"))
    assert len(fleet.obey(first)) == 3
    expect(page.locator("dl.figures")).to_contain_text("of 4 devices, 100 %")
    expect(page.locator("dl.figures")).to_contain_text("done")

    # a bad second patch stops at its first ring
    second = fleet.publish(2, description="Crashes")
    go(page, "/catalogue")
    page.get_by_role("button", name="Read the repository now").click()
    page.get_by_role("link", name="nginx #2").click()
    page.get_by_role("button", name="Deploy").click()
    page.get_by_role("button", name="Approve").click()
    expect(page.locator(".rings > li").nth(0)).to_have_class(re.compile("current"))
    assert len(fleet.obey(second, result="failed")) == 1
    expect(page.locator(".alert.bad")).to_contain_text("Failures went beyond the gate's limit")
    halted = page.url
    go(page, "/")
    alert = page.get_by_role("region", name="Open alerts").get_by_role("row").filter(has_text="hotpatch:nginx:2")
    expect(alert).to_contain_text("you")

    # compliance and reports say what runs in memory
    def compliant() -> bool:
        return bool(page.request.get("/api/v1/compliance").json()["states"].get("compliant") == 4)

    until(compliant)  # a failed patch is required of nobody
    page.get_by_role("link", name="Compliance", exact=True).click()
    expect(page.locator("dl.figures")).to_contain_text("4 of 5 devices")
    expect(page.locator("figure canvas").first).to_be_visible()
    page.get_by_role("link", name="Reports", exact=True).click()
    expect(row(page, "CVE-2026-10001")).to_contain_text("4 by hotpatch")
    expect(row(page, "a patched process crashed")).to_be_visible()
    page.get_by_role("link", name="CVE-2026-10001").click()
    expect(page.locator("figure canvas").first).to_be_visible()

    # the first one is taken out again
    go(page, "/deployments")
    page.get_by_role("link", name="hotpatch:nginx:1").click()
    choose(page, "Revert")
    expect(page.locator(".alert.good")).to_contain_text("taken out")
    assert len(fleet.obey(first)) == 4
    expect(page.locator("dl.figures")).to_contain_text("done")
    expect(page.get_by_text("no device that reports runs it any more").first).to_be_visible()
    go(page, halted)
    choose(page, "Stop")
    expect(page.get_by_text("a person stopped it for good").first).to_be_visible()

    # everything stands in the audit log, and the log holds
    page.get_by_role("link", name="Audit log", exact=True).click()
    expect(page.get_by_text("POST /api/v1/deployments/{deployment}/revert")).to_be_visible()
    page.get_by_role("button", name="Verify the whole log").click()
    expect(page.get_by_text("Intact.")).to_be_visible()
    page.get_by_role("button", name="Sign out").click()
    expect(page.get_by_text("Signed out.")).to_be_visible()
    go(page, "/devices")
    expect(page).to_have_url(re.compile(r"/login\?next=%2Fdevices"))
