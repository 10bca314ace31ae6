"""The page in a real browser: it opens, keys move the dream, temperature changes it, and Ctrl-C ends the server."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from look_run import row, write_checkpoint, write_run

webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed (extra dev)")
By = pytest.importorskip("selenium.webdriver.common.by").By

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
DRIVER = shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(
    CHROMIUM is None or DRIVER is None,
    reason="Chromium and its driver are not installed (Debian: apt-get install chromium chromium-driver)",
)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """The command as a user runs it, still starting."""
    run = write_run(tmp_path / "run", [row(1)])
    write_checkpoint(run, "best")
    command = [sys.executable, "-m", "wm_rllib", "dream", str(run), "--play"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    yield process
    process.kill()
    process.wait()


def address_of(process: subprocess.Popen[str]) -> str:
    """What the command prints once it answers."""
    assert process.stdout is not None
    line = process.stdout.readline()
    found = re.search(r"http://127\.0\.0\.1:\d+/", line)
    assert found, line
    return found.group()


@pytest.fixture
def browser() -> Iterator[Any]:
    """Headless, and talking to no one but the page."""
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in ("--headless=new", "--disable-gpu", "--disable-dev-shm-usage", "--window-size=1100,900"):
        options.add_argument(flag)
    if os.geteuid() == 0:
        options.add_argument("--no-sandbox")  # Chromium's sandbox does not work for root
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


def wait_for(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 30.0
    while not condition():
        assert time.monotonic() < deadline, f"waited for {what}"
        time.sleep(0.02)


class Tab:
    """The page, as a person uses it."""

    def __init__(self, browser: Any, url: str):
        self.browser = browser
        browser.get(url)
        wait_for(lambda: self.frame().startswith("data:image/jpeg"), "the first frame")

    def find(self, name: str) -> Any:
        return self.browser.find_element(By.ID, name)

    def frame(self) -> str:
        return self.find("frame").get_attribute("src") or ""

    def text(self, name: str) -> str:
        return self.find(name).text

    def press(self, key: str) -> None:
        self.browser.find_element(By.TAG_NAME, "body").send_keys(key)

    def walk(self, steps: int) -> str:
        """The frame after a reset and some steps to the right."""
        self.press("r")
        wait_for(lambda: self.text("t") == "0", "the reset")
        for step in range(steps):
            self.press(webdriver.Keys.ARROW_RIGHT)
            wait_for(lambda step=step: self.text("t") == str(step + 1), "a step")
        return self.frame()

    def set_slider(self, name: str, value: float) -> None:
        self.browser.execute_script(
            "const s = document.getElementById(arguments[0]); s.value = arguments[1];"
            "s.dispatchEvent(new Event('input')); s.dispatchEvent(new Event('change'));",
            name,
            value,
        )


def test_a_person_in_the_dream(server: subprocess.Popen[str], browser: Any):
    tab = Tab(browser, address_of(server))
    start = tab.frame()
    moved = tab.walk(3)
    assert moved != start and tab.text("action") == "right (you)"
    assert len(browser.find_elements(By.CSS_SELECTOR, "#choice .bar")) == 2
    assert float(tab.text("value")) == float(tab.text("value"))

    near = tab.walk(1)  # where more noise cannot have taken the cart out of the picture either way
    tab.set_slider("temperature", 3)
    wait_for(lambda: tab.text("temperature-value") == "3.00", "the temperature")
    assert tab.walk(1) != near
    tab.set_slider("temperature", 1)
    wait_for(lambda: tab.text("temperature-value") == "1.00", "the temperature")
    assert tab.walk(3) == moved

    tab.press("b")
    wait_for(lambda: tab.text("branches") == "step 3", "the branch")
    tab.press(".")
    wait_for(lambda: tab.text("t") == "4" and "(the policy)" in tab.text("action"), "the policy's step")
    browser.find_element(By.CSS_SELECTOR, "#branches button").click()
    wait_for(lambda: tab.text("t") == "3" and tab.frame() == moved, "the way back")

    tab.set_slider("start", 9)
    wait_for(lambda: "10 of " in tab.text("start-label"), "another real state")
    assert tab.text("t") == "0" and tab.frame() != start

    tab.press(" ")
    wait_for(lambda: int(tab.text("t")) >= 3, "the dream to run by itself")
    tab.press(" ")
    assert tab.text("run") == "Run"

    loaded = browser.execute_script("return performance.getEntriesByType('resource').map(entry => entry.name)")
    assert [name for name in loaded if not name.startswith("data:")] == []
    assert browser.get_log("browser") == []
    server.send_signal(signal.SIGINT)
    assert server.wait(30) == 130
    wait_for(lambda: "the server has ended" in tab.text("connection"), "the page to say so")
