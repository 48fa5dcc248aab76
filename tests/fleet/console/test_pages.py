"""Every page of a fleet that has lived a little: read aloud, small, dark, without a mouse, without a script."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from playwright.sync_api import APIRequestContext, Page, expect

from tests.fleet.console.browsing import Visitor, go, until
from tests.fleet.console.fleet import Fleet
from tests.fleet.console.server import PASSWORD, RunningServer

pytestmark = pytest.mark.fleet
GATE = {"min_sample": 1, "soak": "PT0S"}


class Administrator:
    """Somebody who uses the API with the cookie of a login."""

    def __init__(self, request: APIRequestContext) -> None:
        self._request = request
        self._csrf = self.get("/session")["csrf"]

    def get(self, path: str) -> Any:
        answer = self._request.get("/api/v1" + path)
        assert answer.ok, answer.text()
        return answer.json()

    def post(self, path: str, **body: Any) -> Any:
        headers = {"x-csrf-token": self._csrf, "content-type": "application/json"}
        answer = self._request.post("/api/v1" + path, data=json.dumps(body), headers=headers)
        assert answer.ok, f"{path}: {answer.text()}"
        return answer.json() if answer.body() else None


@pytest.fixture(scope="module")
def addresses(browser: Any, server: RunningServer) -> Iterator[dict[str, str]]:
    """The address of each page, of a fleet with one of everything."""
    visitor = Visitor(browser, server)
    admin = Administrator(visitor.signed_in("ada").request)
    fleet = Fleet(server)
    token = admin.post("/enrollment-tokens", label="tests", uses=9)["token"]
    devices = [fleet.device(token, name) for name in ("web-1", "web-2", "web-3", "db-1")]
    group = admin.post("/groups", name="web", rule='hostname like "web-*"')["id"]
    rings = [
        {"name": "canary", "kind": "first", "amount": 1, "gate": GATE},
        {"name": "everyone", "kind": "rest", "gate": GATE, "mode": "two_person"},
    ]
    window = {"rrule": "FREQ=WEEKLY;BYDAY=MO,TU,WE,TH,FR,SA,SU;BYHOUR=0;BYMINUTE=0", "start": "2026-01-01T00:00:00",
              "duration": "PT24H"}  # fmt: skip
    document = {"audience": {"groups": [group]}, "rings": rings, "windows": [window]}
    policy = admin.post("/policies", name="web \u202eservers", document=document)["id"]
    content = fleet.publish(1)
    admin.post("/catalogue/refresh")
    deployment = admin.post("/deployments", content="hotpatch:nginx:1", policy=policy)["id"]
    admin.post(f"/deployments/{deployment}/approve")
    until(lambda: fleet.obey(content))
    hold = admin.post("/safeguards", reason="crashes with that kernel", content="hotpatch:nginx:1", kernel="5.*")["id"]
    hook = admin.post("/webhooks", name="chat", url="https://chat.example.net/hook")["id"]
    account = next(each["id"] for each in admin.get("/accounts")["items"] if each["name"] == "ruth")
    until(lambda: admin.get("/compliance")["states"].get("compliant"))
    fleet.close()
    visitor.close()
    yield {
        "overview": "/",
        "devices": "/devices",
        "device": f"/devices/{devices[0].id}",
        "groups": "/groups",
        "group": f"/groups/{group}",
        "enrollment": "/enrollment",
        "catalogue": "/catalogue",
        "content": "/catalogue/hotpatch:nginx:1",
        "deployments": "/deployments",
        "deployment": f"/deployments/{deployment}",
        "policies": "/policies",
        "policy": f"/policies/{policy}",
        "policy form": f"/policies/{policy}/edit",
        "safeguards": "/safeguards",
        "safeguard": f"/safeguards/{hold}",
        "compliance": "/compliance",
        "reports": "/reports",
        "vulnerability": "/reports/coverage/CVE-2026-10001",
        "audit": "/audit",
        "accounts": "/accounts",
        "account of ruth": f"/accounts/{account}",
        "tokens": "/tokens",
        "webhooks": "/webhooks",
        "webhook": f"/webhooks/{hook}",
        "account": "/account",
        "login": "/login",
    }


WCAG = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]


def faults(page: Page, rules: list[str]) -> list[str]:
    """What axe-core finds where it is serious."""
    found = page.evaluate("rules => axe.run(document, {runOnly: rules, resultTypes: ['violations']})", rules)
    assert found["passes"], "axe looked at nothing"
    return [
        f"{fault['id']}: {node['html'][:120]} ({node['failureSummary'][:200]})"
        for fault in found["violations"]
        if fault["impact"] in ("serious", "critical")
        for node in fault["nodes"]
    ]


def test_every_page_can_be_read_by_everybody_everywhere(visit: Visitor, addresses: dict[str, str], axe: str) -> None:
    """In light and dark, on a screen and on a small telephone: each page is opened once, and looked at in all ways."""
    page = visit.signed_in("ada", color_scheme="light")
    found = {}
    for name, address in addresses.items():
        page.emulate_media(color_scheme="light")
        page.set_viewport_size({"width": 1280, "height": 900})
        go(page, address)
        expect(page.locator("h1")).to_have_count(1)
        page.evaluate(axe)
        wrong = faults(page, WCAG)
        page.emulate_media(color_scheme="dark")
        wrong += faults(page, ["color-contrast"])
        page.set_viewport_size({"width": 360, "height": 740})
        if (width := page.evaluate("document.documentElement.scrollWidth")) > 360:
            wrong.append(f"{width} pixels wide on a telephone")
        if wrong:
            found[name] = wrong
    assert found == {}


def test_the_menu_of_a_small_telephone(visit: Visitor, addresses: dict[str, str]) -> None:
    page = visit.signed_in("ada", width=360, height=740)
    expect(page.get_by_role("link", name="Policies")).to_be_hidden()
    page.get_by_role("button", name="Menu").click()
    page.get_by_role("link", name="Policies").click()
    expect(page.get_by_role("heading", name="Policies")).to_be_visible()


def test_nothing_moves_once_it_is_there(visit: Visitor, addresses: dict[str, str]) -> None:
    page = visit.signed_in("ada")
    page.add_init_script(
        "window.moved = 0; new PerformanceObserver(list => { for (const each of list.getEntries())"
        " if (!each.hadRecentInput) window.moved += each.value; }).observe({type: 'layout-shift', buffered: true})"
    )
    for name in ("overview", "device", "deployment", "compliance", "vulnerability"):
        go(page, addresses[name])
        page.wait_for_load_state("networkidle")
        assert page.evaluate("window.moved") < 0.02, name


def test_all_is_done_by_keyboard(visit: Visitor, addresses: dict[str, str]) -> None:
    page = visit.page()
    go(page, "/login?next=/devices")
    page.keyboard.type("ada")
    page.keyboard.press("Tab")
    page.keyboard.type(PASSWORD)
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name="Devices")).to_be_visible()
    page.wait_for_load_state()
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to content")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.locator("main")).to_be_focused()
    page.keyboard.press("/")
    page.keyboard.type("web-3")
    expect(page.get_by_role("link", name="web-1")).to_have_count(0)
    page.get_by_role("link", name="web-3").focus()
    page.keyboard.press("Enter")
    disable = page.locator("summary", has_text="Disable")
    disable.focus()
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    page.keyboard.type("tried by keyboard")
    page.keyboard.press("Enter")
    expect(page.get_by_text("tried by keyboard")).to_be_visible()
    page.get_by_role("button", name="Enable").press("Enter")
    expect(page.get_by_role("status").filter(has_text="Enabled.")).to_be_visible()
    page.wait_for_load_state()  # the page is there before its script is
    page.keyboard.press("g")
    page.keyboard.press("p")
    page.wait_for_url("**/policies")
    go(page, addresses["deployment"])
    page.locator("summary", has_text="Stop").press("Enter")
    expect(page.get_by_text("Final: it is offered to nobody")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.get_by_text("Final: it is offered to nobody")).to_be_hidden()
    expect(page.locator("summary", has_text="Stop")).to_be_focused()


def test_colours_are_kept_and_times_are_the_viewer_s_own(visit: Visitor, addresses: dict[str, str]) -> None:
    page = visit.signed_in("ada", color_scheme="light")
    dark = "getComputedStyle(document.body).backgroundColor"
    before = page.evaluate(dark)
    page.get_by_label("Colours").select_option("dark")
    expect(page.locator("html")).to_have_attribute("data-theme", "dark")
    assert page.evaluate(dark) != before
    go(page, addresses["device"])
    expect(page.locator("html")).to_have_attribute("data-theme", "dark")
    shown = page.locator('time[data-time="at"]').first
    utc = shown.get_attribute("datetime")
    local = page.evaluate("at => new Date(at).toLocaleString('sv-SE', {timeZone: 'Europe/Berlin'}).slice(0, 16)", utc)
    assert shown.inner_text() == local
    assert (shown.get_attribute("title") or "").endswith("UTC")


def test_a_reader_sees_and_can_change_nothing(visit: Visitor, addresses: dict[str, str]) -> None:
    page = visit.signed_in("ruth")
    for name in ("overview", "devices", "device", "content", "deployment", "policy", "safeguards", "compliance"):
        go(page, addresses[name])
        expect(page.locator("main form[method=post]")).to_have_count(0)
    expect(page.get_by_role("link", name="Accounts")).to_have_count(0)
    visit.expected = ("403",)
    go(page, "/accounts")
    expect(page.get_by_role("heading", name="Not allowed")).to_be_visible()
    csrf = Administrator(page.request).get("/session")["csrf"]
    answer = page.request.post(addresses["deployment"] + "/stop", form={"csrf": csrf})
    assert "lacks the scope deployments:write" in answer.text()


def test_two_people_must_approve_the_last_ring(visit: Visitor, addresses: dict[str, str]) -> None:
    ada, grace, alan = (visit.signed_in(name) for name in ("ada", "grace", "alan"))
    visit.expected = ("403",)
    for page in (ada, grace, alan):
        go(page, addresses["deployment"])
        expect(page.get_by_text("The ring \u201ceveryone\u201d waits for your word.")).to_be_visible(timeout=20_000)
    ada.get_by_role("button", name="Approve").click()
    expect(ada.get_by_role("alert")).to_contain_text("You asked for this deployment; two others must approve it")
    grace.get_by_role("button", name="Approve").click()
    expect(grace.get_by_text("waits for a second person's approval").first).to_be_visible()
    alan.get_by_role("button", name="Approve").click()
    expect(grace.locator(".rings > li").nth(1)).to_contain_text("in progress")
    expect(ada.locator(".rings > li").nth(1)).to_contain_text("in progress")


def test_what_turns_text_around_is_made_visible(visit: Visitor, addresses: dict[str, str]) -> None:
    page = visit.signed_in("ada")
    go(page, addresses["policies"])
    expect(page.get_by_role("link", name="web \ufffdservers")).to_be_visible()
    assert "\u202e" not in page.content()


def test_it_works_without_scripts(visit: Visitor, addresses: dict[str, str]) -> None:
    page = visit.signed_in("ada", java_script_enabled=False)
    go(page, "/devices")
    page.get_by_label("Host name begins with").fill("db")
    page.get_by_role("button", name="Filter").click()
    expect(page.get_by_role("link", name="db-1")).to_be_visible()
    expect(page.get_by_role("link", name="web-1")).to_have_count(0)
    go(page, addresses["safeguards"])
    page.locator("summary", has_text="Lift").click()
    page.locator("details[open]").get_by_role("button", name="Lift").click()
    expect(page.get_by_role("status")).to_contain_text("Lifted")


def test_pages_are_armoured(visit: Visitor, server: RunningServer, addresses: dict[str, str]) -> None:
    with server.client() as client:
        answer = client.get("/login")
        policy = answer.headers["content-security-policy"]
        assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self';")
        assert "unsafe" not in policy and "frame-ancestors 'none'" in policy
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["cache-control"] == "no-store"
        assert "style=" not in answer.text and "<script>" not in answer.text
        assert client.get("/static/../web.py").status_code == 404
        assert client.get("/static/%2e%2e/web.py").status_code == 404
        elsewhere = {"origin": "https://evil.example", "sec-fetch-site": "cross-site"}
        login = {"name": "ada", "password": PASSWORD}
        assert client.post("/login", data=login, headers=elsewhere).status_code == 403
        for next in ("//evil.example", "https://evil.example", "/\\evil.example"):
            assert client.post("/login", data={**login, "next": next}).headers["location"] == "/"
        # signed in, without the token of the form
        stop = client.post(addresses["deployment"] + "/stop", data={"csrf": "guess"})
        assert stop.status_code == 403 and "csrf" in stop.text.lower()
        assert client.post(addresses["deployment"] + "/stop", json={}).status_code == 415


def test_a_secret_is_shown_once(visit: Visitor, addresses: dict[str, str]) -> None:
    page = visit.signed_in("ada")
    go(page, addresses["tokens"])
    page.get_by_label("What is it for?").fill("nightly report")
    page.get_by_label("reports:read").check()
    page.get_by_role("button", name="Make token").click()
    secret = page.locator("#secret-value").inner_text()
    assert secret.startswith("mft_")
    headers = {"authorization": f"Bearer {secret}"}
    assert visit.page().request.get("/api/v1/reports/fleet", headers=headers).ok
    go(page, addresses["tokens"])
    expect(page.get_by_role("rowheader", name="nightly report")).to_be_visible()
    assert secret not in page.content()
