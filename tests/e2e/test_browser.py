"""The first minute in a real browser: set-up link, Start, JupyterLab, one cell. Runs where Chromium is installed."""

from __future__ import annotations

import asyncio
import re
import shutil
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path

import pytest
from playwright.async_api import Browser, Error, Page, async_playwright, expect

from tests.support.platform import PASSWORD, Platform

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
ARTIFACTS = Path("test-artifacts")
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(240),
    pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed: apt-get install chromium"),
]


@pytest.fixture
async def browser() -> AsyncIterator[Browser]:
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        await browser.close()


async def picture(page: Page, name: str) -> None:
    """For people to look at. A page that moves on by itself while it is taken has none."""
    with suppress(Error):
        await page.screenshot(path=ARTIFACTS / f"{name}.png")


async def test_from_the_set_up_link_to_a_cell(browser: Browser) -> None:
    platform = Platform()
    try:
        await platform.start(bootstrap=False)
        link = re.search(r"http://[^\s]+/setup/[^\s]+", platform.output.read_text())
        assert link
        context = await browser.new_context(viewport={"width": 1280, "height": 800})
        problems: list[str] = []
        page = await context.new_page()
        page.on("console", lambda m: problems.append(m.text) if "Content Security Policy" in m.text else None)

        await page.goto(link.group())
        await picture(page, "1-set-up")
        await page.locator("input[name=username]").fill("ada")
        for field in await page.locator("input[type=password]").all():
            await field.fill(PASSWORD)
        await page.locator("form button[type=submit]").first.click()
        await expect(page).to_have_url(re.compile(r"/hub/home"))
        await picture(page, "2-home")

        await page.get_by_role("button", name=re.compile("^Start")).first.click()
        await picture(page, "3-starting")
        await page.wait_for_url(re.compile(r"/user/ada/"), timeout=90_000)
        await expect(page.locator("#jp-main-dock-panel")).to_be_visible(timeout=60_000)
        assert not problems, "our own pages obey our own content security policy"

        await page.locator(".jp-LauncherCard[title*='Python 3']").first.click()
        cell = page.locator(".jp-Notebook .jp-Cell .cm-content").first
        await expect(cell).to_be_visible(timeout=30_000)
        # The kernel says that it is idle once the notebook is connected to it; what is typed before may be lost.
        await expect(page.get_by_text("| Idle")).to_be_visible(timeout=60_000)
        await cell.click()
        await page.keyboard.type("6 * 7")
        await expect(cell).to_contain_text("6 * 7")
        await page.keyboard.press("Shift+Enter")
        await expect(page.locator(".jp-OutputArea-output").first).to_contain_text("42", timeout=60_000)
        await expect(page.get_by_text("Jupyter news")).to_have_count(0)
        await picture(page, "4-cell")

        await page.goto(f"{platform.url}/hub/home")
        await page.get_by_role("button", name=re.compile("^Stop")).first.click()
        await expect(page.get_by_role("button", name=re.compile("^Start")).first).to_be_visible(timeout=30_000)
        await page.goto(f"{platform.url}/user/ada/lab")
        await picture(page, "5-stopped")
        await expect(page.get_by_role("link", name=re.compile("[Ss]tart"))).to_be_visible()
    finally:
        await asyncio.to_thread(platform.stop)


async def test_sign_in_is_usable_in_the_dark_on_a_phone_and_without_scripts(browser: Browser) -> None:
    platform = Platform()
    try:
        await platform.start()
        context = await browser.new_context(
            viewport={"width": 320, "height": 640}, color_scheme="dark", java_script_enabled=False
        )
        page = await context.new_page()
        await page.goto(f"{platform.url}/")
        await expect(page).to_have_url(re.compile(r"/hub/login"))
        await picture(page, "6-login-phone-dark")
        assert await page.locator("html").evaluate("e => e.scrollWidth <= e.clientWidth") is True
        await page.locator("input[name=username]").fill("ada")
        await page.locator("input[name=password]").fill(PASSWORD)
        await page.locator("form button[type=submit]").first.click()
        await expect(page).to_have_url(re.compile(r"/hub/home"))
        await picture(page, "7-home-phone-dark")
        await page.get_by_role("button", name=re.compile("^Start")).first.click()
        await page.wait_for_url(re.compile(r"/user/ada/|spawn-pending"), timeout=90_000)
        await picture(page, "8-starting-without-scripts")
        await page.wait_for_url(re.compile(r"/user/ada/"), timeout=90_000)
    finally:
        await asyncio.to_thread(platform.stop)
