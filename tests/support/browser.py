"""A headless Chromium for tests: it opens files, gets real key presses, and tells what it logged."""

import contextlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

CHROMIUM = ("chromium", "chromium-browser", "google-chrome", "chrome")
FLAGS = (
    "--headless=new",
    "--disable-gpu",
    "--disable-dev-shm-usage",  # a container's /dev/shm may hold 64 megabytes alone
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-ipc-flooding-protection",  # or 200 changes of the address within 10 seconds are the last that count
    "--no-first-run",
    "--hide-scrollbars",
    "--host-resolver-rules=MAP * ~NOTFOUND",
)
LOGS = {"browser": "ALL", "performance": "ALL"}
ASKED = {"Network.requestWillBeSent": "request", "Network.webSocketCreated": "url", "Network.webTransportCreated": "url"}


def missing() -> str:
    """Return what a test needs and this machine lacks, or "" if everything is there."""
    if find_spec("selenium") is None:
        return "selenium is not installed (pip install selenium)"
    if not chromium():
        return f"there is no {CHROMIUM[0]} on PATH (Debian's package is chromium)"
    if not shutil.which("chromedriver"):
        return "there is no chromedriver on PATH (Debian's package is chromium-driver)"
    return ""


def chromium() -> str | None:
    """Return the path of the browser."""
    return next(filter(None, map(shutil.which, CHROMIUM)), None)


def axe() -> str | None:
    """Return the script of axe-core, which looks for obstacles to people with disabilities, or None."""
    found = find_spec("axe_playwright_python")
    folders = found.submodule_search_locations if found else None
    return (Path(folders[0]) / "axe.min.js").read_text(encoding="utf-8") if folders else None


@contextlib.contextmanager
def started() -> Iterator["Browser"]:
    """Start a browser with a fresh profile, and end it."""
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    with tempfile.TemporaryDirectory(prefix="chromium-", ignore_cleanup_errors=True) as profile:
        options = webdriver.ChromeOptions()
        options.binary_location = chromium() or ""
        as_root = ["--no-sandbox"] if os.name == "posix" and os.geteuid() == 0 else []  # Chromium's sandbox is not for root
        for argument in [*FLAGS, *as_root, f"--user-data-dir={profile}", "about:blank"]:
            options.add_argument(argument)
        options.set_capability("goog:loggingPrefs", LOGS)
        driver = webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))
        try:
            yield Browser(driver)
        finally:
            driver.quit()


class Browser:
    """One tab. Key presses are real events: the browser handles them as a keyboard's."""

    def __init__(self, driver: Any) -> None:
        self.driver = driver

    def open(self, path: Path, at: str = "", ready: str = "return document.documentElement.dataset.ready === 'yes'") -> None:
        """Load a file anew, and wait until the script `ready` returns true. at: the address behind the #."""
        self.driver.get("about:blank")  # or a change of the # alone would load nothing
        self.driver.get(path.resolve().as_uri() + (f"#{at}" if at else ""))
        self.wait(ready)

    def wait(self, script: str, *arguments: Any, seconds: float = 20) -> None:
        """Wait until a script returns true."""
        end = time.monotonic() + seconds
        while not self.script(script, *arguments):
            if time.monotonic() > end:
                raise TimeoutError(f"after {seconds} s this is still not true: {script}; the console says {self.messages()}")
            time.sleep(0.005)

    def script(self, text: str, *arguments: Any) -> Any:
        """Run a script in the page and return what it returns, or what its promise comes to."""
        return self.driver.execute_script(text, *arguments)

    def press(self, *keys: str, holding: str | None = None) -> None:
        """Press keys one after another: characters, or names such as ENTER, TAB and ARROW_LEFT. holding: a modifier's name."""
        from selenium.webdriver.common.action_chains import ActionChains
        from selenium.webdriver.common.keys import Keys

        actions = ActionChains(self.driver, duration=0)
        if holding:
            actions.key_down(getattr(Keys, holding))
        for key in keys:
            actions.send_keys(getattr(Keys, key) if len(key) > 1 else key)
        if holding:
            actions.key_up(getattr(Keys, holding))
        actions.perform()

    def click(self, selector: str) -> None:
        """Click the first element of a CSS selector, as a mouse does."""
        self.driver.find_element("css selector", selector).click()

    def tap(self, selector: str) -> None:
        """Touch the first element of a CSS selector with a finger."""
        from selenium.webdriver.common.actions.action_builder import ActionBuilder
        from selenium.webdriver.common.actions.pointer_input import PointerInput

        element = self.driver.find_element("css selector", selector)
        self.script("arguments[0].scrollIntoView({ block: 'center', inline: 'center', behavior: 'instant' })", element)
        actions = ActionBuilder(self.driver, mouse=PointerInput("touch", "finger"), duration=0)
        actions.pointer_action.move_to(element).pointer_down().pointer_up()
        actions.perform()

    def drag(self, selector: str, right: int, down: int) -> None:
        """Drag the first element of a CSS selector with the mouse, by pixels."""
        from selenium.webdriver.common.action_chains import ActionChains

        element = self.driver.find_element("css selector", selector)
        ActionChains(self.driver, duration=10).drag_and_drop_by_offset(element, right, down).perform()

    def set_screen(self, width: int, height: int, dark: bool = False, still: bool = False) -> None:
        """Set the width and height in CSS pixels, the colour scheme, and whether motion is to be reduced."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        media = {
            "prefers-color-scheme": "dark" if dark else "light",
            "prefers-reduced-motion": "reduce" if still else "no-preference",
        }
        features = [{"name": name, "value": value} for name, value in media.items()]
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})

    @contextlib.contextmanager
    def without_scripts(self) -> Iterator[None]:
        """Pages that are loaded in this block run no script of their own."""
        self.driver.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
        try:
            yield
        finally:
            self.driver.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})

    def log(self, name: str) -> Sequence[dict[str, Any]]:
        """Return the entries of a log since it was read last."""
        return self.driver.get_log(name)

    def messages(self) -> list[str]:
        """Return what the page wrote to the console, errors of the browser included, since this was asked last."""
        return [f"{entry['level']}: {entry['message']}" for entry in self.log("browser")]

    def requests(self) -> list[str]:
        """Return the addresses that the page has asked for since this was asked last, its own among them."""
        events = [json.loads(entry["message"])["message"] for entry in self.log("performance")]
        asked = [event["params"][ASKED[event["method"]]] for event in events if event["method"] in ASKED]
        urls = [found["url"] if isinstance(found, dict) else found for found in asked]
        return [url for url in urls if not url.startswith(("data:", "about:"))]
