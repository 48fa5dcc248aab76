"""A real server, and a real browser in front of it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, Playwright, sync_playwright

from tests.fleet.console.browsing import Visitor
from tests.fleet.console.server import RunningServer

FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """A server with an administrator (ada), two approvers (grace, alan) and a reader (ruth)."""
    running = RunningServer(tmp_path_factory.mktemp("server") / "midflight")
    running.add_users(ada="admin", grace="approver", alan="approver", ruth="reader")
    running.start()
    yield running
    running.stop()


@pytest.fixture(scope="session")
def playwright() -> Iterator[Playwright]:
    with sync_playwright() as started:
        yield started


@pytest.fixture(scope="session")
def browser(playwright: Playwright) -> Iterator[Browser]:
    """Debian's Chromium, headless. Each visitor gets a profile of their own in it."""
    found = shutil.which("chromium")
    assert found, "chromium is not installed; run scripts/bootstrap fleet"
    started = playwright.chromium.launch(executable_path=found, args=list(FLAGS))
    yield started
    started.close()


@pytest.fixture
def visit(browser: Browser, server: RunningServer) -> Iterator[Visitor]:
    """Makes visitors. What a page complains about (errors, refused by the content security policy) fails the test."""
    visitor = Visitor(browser, server)
    yield visitor
    visitor.close()
    assert visitor.complaints == []


@pytest.fixture
def page(visit: Visitor) -> Page:
    """The administrator, signed in."""
    return visit.signed_in("ada")


@pytest.fixture(scope="session")
def axe() -> str:
    """The source of axe-core."""
    path = Path(__file__).parents[3] / ".cache" / "console" / "axe.min.js"
    assert path.is_file(), "axe-core is missing; run scripts/bootstrap fleet"
    return path.read_text()
