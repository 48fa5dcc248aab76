"""Visitors of the console: a page each, and a list of everything that went wrong in any of them."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Error, Page, expect

from tests.fleet.console.server import PASSWORD, RunningServer

_INTERFACES = "net::ERR_NETWORK_CHANGED"
"""Chromium gives requests up when a network interface comes or goes: other tests make and remove namespaces."""


PATIENCE_S = 60
"""What is waited for comes: at once, or with background work every few seconds, or later on a machine that is busy."""
expect.set_options(timeout=PATIENCE_S * 1000)


def until(what: Callable[[], object]) -> None:
    """Wait until something is so."""
    deadline = time.monotonic() + PATIENCE_S
    while not what():
        assert time.monotonic() < deadline, f"{what.__name__}: not within {PATIENCE_S} s"
        time.sleep(0.2)


def go(page: Page, address: str) -> None:
    """Open an address."""
    for attempt in range(5):
        try:
            page.goto(address)
            return
        except Error as error:
            if _INTERFACES not in str(error) or attempt == 4:
                raise


class Visitor:
    """Opens pages of the console."""

    def __init__(self, browser: Browser, server: RunningServer) -> None:
        self._browser = browser
        self._server = server
        self._contexts: list[BrowserContext] = []
        self.complaints: list[str] = []
        self.expected: tuple[str, ...] = ()
        """What a test provokes: complaints that contain one of these are none."""

    def page(self, width: int = 1280, height: int = 900, **options: Any) -> Page:
        """A page of a browser that was never here."""
        context = self._browser.new_context(
            base_url=self._server.url,
            ignore_https_errors=True,
            viewport={"width": width, "height": height},
            timezone_id="Europe/Berlin",
            reduced_motion="reduce",
            **options,
        )
        context.set_default_timeout(PATIENCE_S * 1000)
        self._contexts.append(context)
        page = context.new_page()
        page.on("console", self._said)
        page.on("pageerror", lambda error: self._complain(f"error: {error}"))
        page.on("requestfailed", lambda request: self._complain_of(request.url, request.failure or ""))
        page.on("request", lambda request: self._same_origin(request.url))
        return page

    def signed_in(self, name: str, **options: Any) -> Page:
        """A page of somebody who has signed in, on the overview: by the form the first time, then by that login."""
        if (kept := self._server.logins.get(name)) is not None:
            page = self.page(storage_state=kept, **options)
            go(page, "/")
            return page
        page = self.page(**options)
        go(page, "/login")
        page.get_by_label("Name").fill(name)
        page.get_by_label("Password").fill(PASSWORD)
        page.get_by_role("button", name="Sign in").click()
        page.wait_for_url("**/")
        self._server.logins[name] = page.context.storage_state()
        return page

    def close(self) -> None:
        """Close all."""
        for context in self._contexts:
            context.close()

    def _said(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning") and _INTERFACES not in message.text:
            self._complain(f"{message.type}: {message.text}")

    def _complain_of(self, url: str, failure: str) -> None:
        if failure not in ("net::ERR_ABORTED", _INTERFACES):  # a page that is left ends its requests
            self._complain(f"{url}: {failure}")

    def _same_origin(self, url: str) -> None:
        if not url.startswith((self._server.url, "blob:" + self._server.url)):
            self._complain(f"a page asks elsewhere: {url}")

    def _complain(self, text: str) -> None:
        if not any(each in text for each in self.expected):
            self.complaints.append(text)
