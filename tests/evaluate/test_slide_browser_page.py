"""The slide browser's page in a real browser: it loads, zooms, shows neighbours and nearest tiles, by mouse and by keys."""

import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from simtriplet.evaluate.feature_array import write_features
from simtriplet.evaluate.prediction import SlidePrediction
from simtriplet.evaluate.prediction_files import write_prediction
from simtriplet.evaluate.slide_browser import BrowserServer
from simtriplet.evaluate.slide_browser_nearest import TileSearch
from simtriplet.evaluate.slide_browser_slides import BrowsedSlides
from simtriplet.wsi.store import TileStore

StoreFactory = Callable[..., TileStore]

ROWS, COLS, STRIDE_UM = 9, 12, 16.0
HOSTILE = '<img src=x onerror="document.title=1">'
_PATIENCE_S = 60
_KEYS = {"Enter": 13, "Tab": 9, "Escape": 27, "ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40}

_LINKS = """(() => {
  const canvas = document.getElementById("overlay");
  const { data, width } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
  let left = 1e9, right = -1, count = 0;
  for (let at = 0; at < data.length; at += 4) {
    if (data[at] !== 0 || data[at + 1] !== 114 || data[at + 2] !== 178 || data[at + 3] !== 255) continue;
    const x = (at / 4) % width;
    [left, right, count] = [Math.min(left, x), Math.max(right, x), count + 1];
  }
  return { count, width: right - left };
})()"""
"""Pixels in the colour of neighbour links, which is opaque: nothing else that is drawn has it."""

_SCALE = """(() => {
  const [text, bar] = document.getElementById("scale").children, [length, unit] = text.textContent.split(" ");
  return bar.getBoundingClientRect().width / (Number(length) * (unit === "mm" ? 1000 : 1));
})()"""
"""Screen pixels per micrometre, as the scale bar has it."""


class Page:
    """One page in the browser, used as a person does: with mouse and keys."""

    def __init__(self, browser: Any, url: str, *, width: int, height: int, dark: bool) -> None:
        self._browser = browser
        self._target = browser.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = browser.call("Target.attachToTarget", targetId=self._target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self._call(f"{domain}.enable")
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self._call("Emulation.setDeviceMetricsOverride", **size)
        scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self._call("Emulation.setEmulatedMedia", media="", features=scheme)
        self._call("Page.navigate", url=url)
        self.wait("document.getElementById('layer')?.options.length > 1")

    def _call(self, method: str, **parameters: Any) -> Any:
        return self._browser.call(method, self._session, **parameters)

    def ask(self, expression: str) -> Any:
        found = self._call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def wait(self, expression: str) -> Any:
        deadline = time.monotonic() + _PATIENCE_S
        while (found := self.ask(expression)) in (None, False, 0, ""):  # an element is told as {}
            assert time.monotonic() < deadline, f"never: {expression}"
            time.sleep(0.02)
        return found

    def rest(self, expression: str) -> Any:
        """Return a value when it does not change any more."""
        deadline, last = time.monotonic() + _PATIENCE_S, None
        while (found := self.ask(expression)) != last or found is None:
            assert time.monotonic() < deadline, f"never rests: {expression}"
            last = found
            time.sleep(0.25)
        return found

    def press(self, key: str, *, shift: bool = False) -> None:
        text = {"text": key} if len(key) == 1 else {"text": "\r"} if key == "Enter" else {}
        named = {"key": key, "modifiers": 8 if shift else 0, "windowsVirtualKeyCode": _KEYS.get(key, 0)}
        self._call("Input.dispatchKeyEvent", type="keyDown", **named, **text)
        self._call("Input.dispatchKeyEvent", type="keyUp", **named)

    def point(self, x: float, y: float) -> None:
        self._call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)

    def click(self, x: float, y: float) -> None:
        self.point(x, y)
        button = {"x": x, "y": y, "button": "left", "clickCount": 1}
        self._call("Input.dispatchMouseEvent", type="mousePressed", buttons=1, **button)
        self._call("Input.dispatchMouseEvent", type="mouseReleased", **button)

    def wheel(self, x: float, y: float, delta: float) -> None:
        self._call("Input.dispatchMouseEvent", type="mouseWheel", x=x, y=y, deltaX=0, deltaY=delta)

    def scale(self) -> float:
        return float(self.rest(_SCALE))

    def centre(self) -> tuple[float, float]:
        box = self.ask("JSON.parse(JSON.stringify(document.getElementById('viewer').getBoundingClientRect()))")
        return box["x"] + box["width"] / 2, box["y"] + box["height"] / 2

    def tile(self) -> int:
        """The selected tile, from the address."""
        return int(self.ask("Number(new URLSearchParams(location.hash.slice(1)).get('tile') ?? -1)"))

    def slide(self) -> int:
        return int(self.ask("Number(new URLSearchParams(location.hash.slice(1)).get('slide'))"))

    def pictures(self) -> list[str]:
        """Which tiles the list of the nearest ones shows, in order."""
        found = self.ask("[...document.querySelectorAll('#nearest img')].map(image => image.getAttribute('src'))")
        return list(found)

    def close(self) -> None:
        self._browser.call("Target.closeTarget", targetId=self._target)


@pytest.fixture
def slides(store_factory: StoreFactory, tmp_path: Path) -> Iterator[BrowsedSlides]:
    """Two slides of 9 x 12 tiles with features and predictions, a class of which is called as an attacker would."""
    stores = [store_factory(name, rows=ROWS, cols=COLS, size_px=32, seed=seed) for seed, name in enumerate("ab")]
    for seed, store in enumerate(stores):
        values = np.random.default_rng(seed).normal(size=(len(store), 8)).astype(np.float32)
        write_features(store, "f", values, {})
        shares = np.random.default_rng(seed).dirichlet((1, 1), size=len(store))
        write_prediction(tmp_path / "maps", store, SlidePrediction(store.slide_id, (HOSTILE, "b"), shares))
    browsed = BrowsedSlides([TileStore(store.path) for store in stores], predictions=tmp_path / "maps")
    yield browsed
    browsed.close()


@pytest.fixture
def open_page(
    browser: Any, console_errors: Callable[[], list[str]], slides: BrowsedSlides
) -> Iterator[Callable[..., Page]]:
    """Open the page; at the end no error may stand in the console."""
    server = BrowserServer(slides)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    pages = []

    def start(hash_part: str = "", *, width: int = 1280, height: int = 800, dark: bool = False) -> Page:
        url = server.address_once() + hash_part  # as `view` opens it
        pages.append(Page(browser, url, width=width, height=height, dark=dark))
        return pages[-1]

    yield start
    for page in pages:
        page.close()
    server.shutdown()
    thread.join()
    server.server_close()
    assert console_errors() == []


def at(store: TileStore, tile: int) -> tuple[int, int]:
    return int(store.numbers("row")[tile]), int(store.numbers("col")[tile])


def test_the_mouse_zooms_points_and_clicks(open_page: Callable[..., Page], slides: BrowsedSlides) -> None:
    page, store = open_page(), slides.stores[0]
    first = page.scale()
    x, y = page.centre()
    page.wheel(x, y, -400)
    page.wait(f"{_SCALE} > {first * 1.2}")
    scale = page.scale()
    assert page.ask(_LINKS)["count"] == 0
    page.point(x + 20, y)
    page.wait(f"{_LINKS}.count > 0")
    # from the neighbour on the left to that on the right, and half a dot at either end
    assert page.rest(_LINKS)["width"] == pytest.approx(2 * STRIDE_UM * scale + 10, abs=8)
    page.click(x + 20, y)
    tile = page.wait("document.querySelectorAll('#nearest li').length") and page.tile()
    row, col = at(store, tile)
    assert abs(row - ROWS // 2) <= 1
    assert abs(col - COLS // 2) <= 1
    found = TileSearch(slides.stores).find(0, tile, name="f", k=12).tiles
    assert page.pictures() == [f"api/slides/{near.slide}/tiles/{near.tile}/picture" for near in found]
    shown = page.ask("document.querySelector('#nearest button').innerText.split(/\\s+/)")
    assert shown == [slides.stores[found[0].slide].slide_id, f"{found[0].distance:.3f}"]
    # those further down are loaded when they are scrolled to
    page.wait(
        "[...document.querySelectorAll('#nearest img, #tile img')].filter(one => one.naturalWidth > 0).length >= 4"
    )
    place = next(number for number, near in enumerate(found) if near.slide == 1)
    page.ask(f"document.querySelectorAll('#nearest button')[{place}].click()")
    page.wait("location.hash.startsWith('#slide=1&tile=') && document.querySelectorAll('#nearest li').length")
    assert page.tile() == found[place].tile
    page.ask("history.back()")
    page.wait(f"location.hash === '#slide=0&tile={tile}'")
    page.wait("document.getElementById('slide').value === '0'")


def test_the_keys_walk_zoom_and_search(open_page: Callable[..., Page], slides: BrowsedSlides) -> None:
    page, store = open_page(), slides.stores[0]
    order = []
    for _ in range(8):
        page.press("Tab")
        order.append(page.ask("document.activeElement.id"))
    assert order == ["slide", "previous", "next", "help-button", "viewer", "zoom-in", "zoom-out", "home"]
    page.ask("document.getElementById('viewer').focus()")
    first = page.scale()
    page.press("+")
    page.wait(f"{_SCALE} > {first * 1.3}")
    page.press("0")
    page.wait(f"Math.abs({_SCALE} / {first} - 1) < 0.01")
    page.press("ArrowRight")  # the tile in the middle
    page.wait("document.querySelector('#tile img')")
    row, col = at(store, page.tile())
    assert (abs(row - ROWS // 2) <= 1, abs(col - COLS // 2) <= 1) == (True, True)
    for key, step in (("ArrowRight", (0, 1)), ("ArrowDown", (1, 0)), ("ArrowLeft", (0, -1)), ("ArrowUp", (-1, 0))):
        page.press(key)
        row, col = row + step[0], col + step[1]
        assert at(store, page.tile()) == (row, col), key
    page.wait(f"document.querySelector('#tile img').alt.endsWith('r{row}_c{col}')")
    page.wait("document.getElementById('status').textContent.includes('neighbours: 8, 16–22.6 µm')")
    assert page.rest(_LINKS)["count"] > 0
    assert page.ask("document.querySelectorAll('#nearest li').length") == 0
    page.press("Enter")
    page.wait("document.querySelectorAll('#nearest li').length === 12")
    for _ in range(COLS):
        page.press("ArrowRight")
    page.wait("document.getElementById('status').textContent === 'No tile further that way'")
    assert at(store, page.tile()) == (row, COLS - 1)
    page.press("Escape")
    assert page.tile() == -1
    assert page.rest(_LINKS)["count"] == 0
    page.press("?")
    assert page.ask("document.getElementById('help').open")
    page.press("Escape")
    page.wait("!document.getElementById('help').open")
    page.press("]")
    page.wait("location.hash === '#slide=1' && document.title.startsWith('b ')")
    page.press("g")
    assert not page.ask("document.getElementById('show-grid').checked")


def test_the_keys_step_on_from_a_slide_that_cannot_be_shown(
    open_page: Callable[..., Page], slides: BrowsedSlides, browser: Any
) -> None:
    shutil.rmtree(slides.stores[0].path / "tables" / "tiles" / "obs" / "x")
    page = open_page("#slide=1")
    page.ask("document.getElementById('viewer').focus()")
    page.press("[")
    page.wait("document.getElementById('notice').textContent.includes('tile the slide again')")
    assert (page.slide(), page.ask("document.getElementById('slide').value")) == (1, "0")
    page.press("]")
    page.wait("document.getElementById('notice').hidden")
    assert (page.slide(), page.ask("document.getElementById('slide').value")) == (1, "1")
    told = [event for event in browser.events if event["method"] == "Log.entryAdded"]
    assert {"409" in event["params"]["entry"]["text"] for event in told} == {True}
    browser.events.clear()


def test_names_are_text_and_layers_can_be_switched(open_page: Callable[..., Page], slides: BrowsedSlides) -> None:
    page = open_page("#slide=1&tile=5")
    page.wait("document.querySelector('#tile img')")
    assert (page.slide(), page.tile()) == (1, 5)
    layers = [layer["name"] for layer in slides.describe(1)["layers"]]
    shown = page.ask("[...document.getElementById('layer').options].map(option => option.textContent)")
    assert shown == ["nothing", *layers]
    choose = "layer => { layer.value = %s; layer.dispatchEvent(new Event('change')); }"
    page.ask(f"({choose % layers.index('predicted')})(document.getElementById('layer'))")
    page.wait("document.querySelectorAll('#legend li').length === 2")
    page.wait("document.getElementById('legend').innerText.includes('onerror')")
    assert page.ask("document.querySelector('#legend .name').textContent") == HOSTILE
    assert page.ask("document.querySelectorAll('#legend img, #tile img[src=x]').length") == 0
    colours = "[...Array(4).keys()].map(() => document.getElementById('overlay').toDataURL())[3]"
    both = page.rest(colours)
    page.ask("document.querySelector('#legend button').click()")
    assert page.ask("document.querySelector('#legend button').getAttribute('aria-pressed')") == "false"
    page.wait(f"({colours}) !== {both!r}")
    page.ask(f"({choose % layers.index('tissue_fraction')})(document.getElementById('layer'))")
    page.wait("document.querySelector('#legend .bar')")
    assert page.ask("document.title") == "b · SimTriplet"


@pytest.mark.parametrize(("width", "height"), [(1280, 800), (360, 740)])
def test_the_page_fits_any_window(open_page: Callable[..., Page], width: int, height: int) -> None:
    for dark in (False, True):
        page = open_page("#slide=0&tile=3", width=width, height=height, dark=dark)
        page.wait("document.querySelectorAll('#nearest li').length === 12")
        assert page.ask("document.documentElement.scrollWidth") <= width
        assert page.ask("document.getElementById('viewer').clientHeight") >= 220
        cut = "one => one.getBoundingClientRect().right > innerWidth"
        assert page.ask(f"[...document.querySelectorAll('button, select, h2, dd')].filter({cut}).length") == 0
        unnamed = "one => !one.ariaLabel && !one.labels?.length && !one.textContent.trim()"
        found = page.ask(
            f"[...document.querySelectorAll('button, select, input')].filter({unnamed}).map(one => one.id)"
        )
        assert found == []
        ground = page.ask("getComputedStyle(document.body).backgroundColor")
        assert ground == ("rgb(18, 23, 28)" if dark else "rgb(246, 247, 249)")
