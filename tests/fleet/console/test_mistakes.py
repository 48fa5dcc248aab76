"""What goes wrong at the console is said once, clearly, and nothing of what was typed is lost."""

from __future__ import annotations

from typing import Any

import pytest
from playwright.sync_api import Page, expect

from tests.fleet.console.browsing import Visitor, go
from tests.fleet.console.test_pages import Administrator

pytestmark = pytest.mark.fleet
HOSTILE = "<img src=x onerror=alert(1)>\"'{{7*7}}"


def test_a_policy_that_is_refused_comes_back_as_it_was_typed(visit: Visitor) -> None:
    page = visit.signed_in("ada")
    visit.expected = ("422",)
    go(page, "/policies/new")
    page.get_by_label("Name", exact=True).first.fill(HOSTILE)
    rings = page.locator("#ring > .repeat")
    rings.nth(1).get_by_label("Name").fill("a ring of my own")
    rings.nth(1).get_by_label("How many").fill("33")
    rings.nth(0).get_by_label("Silence counts as failure").uncheck()
    rings.nth(2).get_by_role("button", name="Remove this ring").click()
    page.get_by_role("button", name="Add a window").click()
    window = page.locator("#window > .repeat")
    window.get_by_label("Sat").uncheck()
    window.get_by_label("Sun").uncheck()
    window.get_by_label("Time zone").fill("Europe/Berlin")
    page.get_by_role("button", name="Create policy").click()
    expect(page.get_by_role("alert")).to_have_text(
        "Not done. A maintenance window needs days and the time at which it opens"
    )
    expect(page.get_by_role("alert")).to_be_focused()
    expect(page.get_by_label("Name", exact=True).first).to_have_value(HOSTILE)
    expect(rings).to_have_count(2)
    expect(rings.nth(1).get_by_label("Name")).to_have_value("a ring of my own")
    expect(rings.nth(1).get_by_label("How many")).to_have_value("33")
    expect(rings.nth(0).get_by_label("Silence counts as failure")).not_to_be_checked()
    expect(window.get_by_label("Sun")).not_to_be_checked()
    expect(window.get_by_label("Time zone")).to_have_value("Europe/Berlin")


def group_of(page: Page, name: str) -> str:
    made: str = Administrator(page.request).post("/groups", name=name, rule='hostname like "web-*"')["id"]
    return made


def test_two_who_edit_the_same_thing_do_not_overwrite_each_other_unawares(visit: Visitor) -> None:
    one, other = visit.signed_in("ada"), visit.signed_in("ada")
    address = f"/groups/{group_of(one, 'edited by two')}"
    visit.expected = ("412",)
    for page in (one, other):
        go(page, address)
    one.get_by_label("Description").fill("from the first")
    one.get_by_role("button", name="Save").click()
    expect(one.get_by_role("status")).to_have_text("Saved.")
    other.get_by_label("Description").fill("from the second")
    other.get_by_role("button", name="Save").click()
    expect(other.get_by_role("alert")).to_contain_text("Somebody else has changed it meanwhile")
    expect(other.get_by_label("Description")).to_have_value("from the second")
    go(one, address)
    expect(one.get_by_label("Description")).to_have_value("from the first")
    other.get_by_role("button", name="Save").click()
    expect(other.get_by_role("status")).to_have_text("Saved.")


def test_a_login_that_ended_takes_nothing_with_it(visit: Visitor) -> None:
    page = visit.signed_in("grace")
    go(page, "/tokens")
    page.get_by_label("What is it for?").fill(HOSTILE)
    page.get_by_label("reports:read").check()
    kept: Any = page.context.cookies()
    page.context.clear_cookies()
    visit.expected = ("401", "403")
    page.get_by_role("button", name="Make token").click()
    expect(page.get_by_role("heading", name="Your login has ended")).to_be_visible()
    page.context.add_cookies(kept)  # as signing in in another tab does
    page.get_by_role("button", name="Send it again").click()
    expect(page.get_by_role("alert")).to_contain_text("What you typed is still here")
    expect(page.get_by_label("What is it for?")).to_have_value(HOSTILE)
    expect(page.get_by_label("reports:read")).to_be_checked()
    page.get_by_role("button", name="Make token").click()
    expect(page.locator("#secret-value")).to_contain_text("mft_")
    expect(page.get_by_role("rowheader", name=HOSTILE)).to_be_visible()


def test_a_button_that_is_pressed_twice_does_it_once(visit: Visitor) -> None:
    page = visit.signed_in("ada")
    go(page, "/enrollment")
    page.get_by_label("What is it for?").fill("pressed twice")
    page.get_by_role("button", name="Make invitation").dblclick()
    expect(page.locator("#secret-value")).to_be_visible()
    go(page, "/enrollment")
    expect(page.get_by_role("rowheader", name="pressed twice")).to_have_count(1)


@pytest.mark.parametrize(
    "what",
    ["devices", "groups", "catalogue", "deployments", "policies", "safeguards", "accounts", "webhooks"],
)
def test_what_is_not_there_is_said_to_be_not_there(visit: Visitor, what: str) -> None:
    page = visit.signed_in("ada")
    visit.expected = ("404",)
    for id in ("nothing", "%3Cimg%20src%3Dx%3E", "x" * 3000):
        go(page, f"/{what}/{id}")
        expect(page.get_by_role("heading", name="Not found")).to_be_visible()
        expect(page.locator("main")).to_contain_text("there is no ")


@pytest.mark.parametrize(
    ("address", "field", "typed", "button"),
    [
        ("/safeguards", "Why is it held?", HOSTILE, "Hold it"),
        ("/webhooks", "Name", HOSTILE, "Create webhook"),
        ("/groups", "Name", HOSTILE, "Create group"),
    ],
)
def test_forms_with_one_wrong_field_keep_the_others(
    visit: Visitor, address: str, field: str, typed: str, button: str
) -> None:
    page = visit.signed_in("ada")
    visit.expected = ("422",)
    go(page, address)
    page.get_by_label(field, exact=True).fill(typed)
    if address == "/groups":
        page.get_by_label("Rule").fill("hostname like")
    if address == "/webhooks":
        page.get_by_label("Address").fill("https://192.168.1.1/hook")
    page.get_by_role("button", name=button).click()
    expect(page.get_by_role("alert")).to_contain_text("Not done.")
    expect(page.get_by_label(field, exact=True)).to_have_value(typed)
