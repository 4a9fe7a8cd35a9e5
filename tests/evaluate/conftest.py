"""A real headless browser, driven over the DevTools protocol, to see pages as their readers do."""

import base64
import fcntl
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

_NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
_PATIENCE_S = 60

_START = (
    "import os, sys; os.dup2(int(sys.argv[1]), 3); os.dup2(int(sys.argv[2]), 4); os.execvp(sys.argv[3], sys.argv[3:])"
)
"""Become the browser with the pipe at the numbers it looks at, 3 to read and 4 to write."""

_MEASURE = """({
  scroll_width: document.documentElement.scrollWidth,
  broken_pictures: [...document.images].filter(image => !image.complete || !image.naturalWidth).length,
  without_alt: [...document.images].filter(image => !image.alt.trim()).length,
  clipped_tables: [...document.querySelectorAll("table")].filter(table =>
    table.getBoundingClientRect().right > innerWidth && !table.closest(".scroll")).length,
  cut_boxes: [...document.querySelectorAll(".scroll, figure")].filter(box =>
    box.scrollWidth > box.clientWidth).length,
  text: document.body.innerText
})"""


@dataclass(frozen=True)
class PageLook:
    """What a browser makes of a page at one width of the window.

    Attributes:
        errors: console errors and exceptions.
        requests: addresses asked for, but the page itself and inlined data.
        scroll_width: pixels the page is wide; above the window's width it scrolls sideways.
        broken_pictures: that did not load.
        without_alt: pictures without a text for screen readers.
        clipped_tables: tables wider than the window that lie in no scrolling box.
        cut_boxes: tables and pictures of which a part is to be scrolled to.
        text: as shown.
        screenshot: PNG of the whole page.
    """

    errors: list[str]
    requests: list[str]
    scroll_width: int
    broken_pictures: int
    without_alt: int
    clipped_tables: int
    cut_boxes: int
    text: str
    screenshot: bytes


class _Browser:
    """One headless browser; messages go through a pipe, so that no port is opened."""

    def __init__(self, program: str, profile: Path) -> None:
        theirs_in, self._to = os.pipe()
        self._from, theirs_out = os.pipe()
        # numbers of ten and above cannot be overwritten by 3 and 4
        ends = [fcntl.fcntl(end, fcntl.F_DUPFD, 10) for end in (theirs_in, theirs_out)]
        options = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run")
        quiet = ("--disable-background-networking", "--disable-component-update", "--disable-sync")
        command = [program, *options, *quiet, "--remote-debugging-pipe", f"--user-data-dir={profile}", "about:blank"]
        self._process = subprocess.Popen(
            [sys.executable, "-c", _START, *map(str, ends), *command],
            pass_fds=ends,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        for end in (theirs_in, theirs_out, *ends):
            os.close(end)
        self._numbers = itertools.count(1)
        self._unread = b""
        self.events: list[dict[str, Any]] = []

    def call(self, method: str, session: str | None = None, **parameters: Any) -> dict[str, Any]:
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": parameters, **({"sessionId": session} if session else {})}
        os.write(self._to, json.dumps(message).encode() + b"\0")
        while (answer := self._read()).get("id") != number:
            self.events.append(answer)
        assert "error" not in answer, answer
        return dict(answer["result"])

    def wait_for(self, method: str) -> None:
        deadline = time.monotonic() + _PATIENCE_S
        while not any(event["method"] == method for event in self.events):
            assert time.monotonic() < deadline, f"no {method}"
            self.events.append(self._read())

    def _read(self) -> dict[str, Any]:
        while b"\0" not in self._unread:
            part = os.read(self._from, 1 << 20)
            assert part, "the browser ended"
            self._unread += part
        message, _, self._unread = self._unread.partition(b"\0")
        return dict(json.loads(message))

    def close(self) -> None:
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        os.close(self._to)
        os.close(self._from)


def _look(browser: _Browser, page: Path, width: int, dark: bool, printed: bool = False) -> PageLook:
    browser.events.clear()
    target = browser.call("Target.createTarget", url="about:blank")["targetId"]
    session = browser.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
    for domain in ("Page", "Runtime", "Log", "Network"):
        browser.call(f"{domain}.enable", session)
    # a window cannot be made as narrow as a phone, its contents can
    size = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": False}
    browser.call("Emulation.setDeviceMetricsOverride", session, **size)
    browser.call("Emulation.setScrollbarsHidden", session, hidden=True)
    scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
    browser.call("Emulation.setEmulatedMedia", session, media="print" if printed else "", features=scheme)
    browser.events.clear()
    browser.call("Page.navigate", session, url=page.as_uri())
    browser.wait_for("Page.loadEventFired")
    found = browser.call("Runtime.evaluate", session, expression=_MEASURE, returnByValue=True)["result"]["value"]
    shot = browser.call("Page.captureScreenshot", session, captureBeyondViewport=True)["data"]
    events = list(browser.events)
    browser.call("Target.closeTarget", targetId=target)
    return PageLook(
        errors=_errors(events), requests=_requests(events, page), screenshot=base64.b64decode(shot), **found
    )


def _errors(events: list[dict[str, Any]]) -> list[str]:
    said = []
    for event in events:
        values = event.get("params", {})
        if event["method"] == "Runtime.exceptionThrown":
            said.append(json.dumps(values["exceptionDetails"]))
        elif event["method"] == "Runtime.consoleAPICalled" and values["type"] in ("error", "assert"):
            said.append(json.dumps(values["args"]))
        elif event["method"] == "Log.entryAdded" and values["entry"]["level"] == "error":
            said.append(str(values["entry"]["text"]))
    return said


def _requests(events: list[dict[str, Any]], page: Path) -> list[str]:
    asked = [event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"]
    return [url for url in asked if url != page.as_uri() and not url.startswith("data:")]


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[_Browser]:
    """A headless browser; skipped where there is none."""
    program = next(filter(None, map(shutil.which, _NAMES)), None)
    if program is None:
        pytest.skip("no headless browser on this machine (apt-get install chromium)")
    browser = _Browser(program, tmp_path_factory.mktemp("browser"))
    yield browser
    browser.close()


@pytest.fixture
def console_errors(browser: _Browser) -> Callable[[], list[str]]:
    """The console errors and exceptions since the test began."""
    browser.events.clear()
    return lambda: _errors(browser.events)


@pytest.fixture(scope="session")
def look_at(browser: _Browser) -> Callable[..., PageLook]:
    """Open a page in a headless browser: `look_at(path, width=360, dark=False, printed=False)`.

    `printed` lays it out as on paper. Skipped where there is no browser.
    """

    def look(page: Path, *, width: int, dark: bool = False, printed: bool = False) -> PageLook:
        return _look(browser, page.resolve(), width, dark, printed)

    return look


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of the test module, for stores that are made once and copied for each test."""
    return tmp_path_factory.mktemp("template")
