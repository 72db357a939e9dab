"""A real browser for the tests of pages: Chromium with no network, driven by Playwright."""

from __future__ import annotations

import os
import shutil

import pytest

ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-background-networking"]
LOCAL = ("file:", "data:", "blob:")


def missing() -> str | None:
    """What keeps the pages from being tested here, or None."""
    if not executable():
        return "no Chromium (Debian: apt install chromium; elsewhere name it in SPILLOVER_CHROMIUM)"
    try:
        import playwright.sync_api  # noqa: F401
    except ImportError:
        return "no playwright (pip install -r requirements.txt)"
    return None


def executable() -> str | None:
    names = [os.environ.get("SPILLOVER_CHROMIUM", ""), "chromium", "chromium-browser", "google-chrome"]
    return next((found for name in names if name and (found := shutil.which(name))), None)


@pytest.fixture(scope="module")
def chromium():
    """One browser for a module. Without one its tests are skipped, or fail if SPILLOVER_REQUIRE_BROWSER is set.

    No longer than a module: while Playwright is open its event loop runs, and Snakemake refuses to plan in one.
    """
    if reason := missing():
        (pytest.fail if os.environ.get("SPILLOVER_REQUIRE_BROWSER") else pytest.skip)(reason)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable(), args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture
def opened(chromium):
    """Open a file at a width and link, offline; at the end nothing may have failed or asked for the network."""
    contexts, troubles = [], []

    def open_page(path, link: str = "", width: int = 1280):
        context = chromium.new_context(viewport={"width": width, "height": 844}, offline=True)
        context.set_default_timeout(120_000)  # milliseconds: what takes a second takes many on a busy machine
        contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: troubles.append(str(error)))
        page.on("console", lambda message: troubles.append(message.text) if message.type == "error" else None)
        page.on("request", lambda asked: None if asked.url.startswith(LOCAL) else troubles.append(asked.url))
        page.goto(f"file://{path}{link}")
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert not troubles
