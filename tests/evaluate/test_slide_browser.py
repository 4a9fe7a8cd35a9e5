"""The slide browser's server: what it answers, from real stores over real sockets, and what it refuses."""

import http.client
import io
import json
import os
import queue
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from simtriplet.evaluate.feature_array import write_features
from simtriplet.evaluate.prediction import SlidePrediction
from simtriplet.evaluate.prediction_files import write_prediction
from simtriplet.evaluate.slide_browser import BrowserServer
from simtriplet.evaluate.slide_browser_nearest import SearchAbandonedError, TileSearch
from simtriplet.evaluate.slide_browser_slides import BrowsedSlides
from simtriplet.wsi.errors import SettingsError
from simtriplet.wsi.neighbour_index import index_store
from simtriplet.wsi.store import TileStore, open_stores

StoreFactory = Callable[..., TileStore]


@dataclass
class Client:
    """Talk to a server as a browser does."""

    server: BrowserServer

    def get(self, path: str, *, method: str = "GET", **headers: str) -> tuple[int, dict[str, str], bytes]:
        """Ask for a path behind the key; a path that starts with a slash is sent as it stands."""
        connection = http.client.HTTPConnection("127.0.0.1", self.server.server_port, timeout=30)
        asked = path if path.startswith("/") else f"/{self.server.key}/{path}"
        given = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.putrequest(method, asked, skip_host="Host" in given, skip_accept_encoding=True)
        for name, value in given.items():
            connection.putheader(name, value)
        connection.endheaders()
        answer = connection.getresponse()
        found = answer.status, dict(answer.getheaders()), answer.read()
        connection.close()
        return found

    def json(self, path: str, status: int = 200) -> Any:
        code, headers, body = self.get(path)
        assert (code, headers["Content-Type"]) == (status, "application/json"), body
        return json.loads(body)

    def picture(self, path: str) -> np.ndarray[Any, Any]:
        code, headers, body = self.get(path)
        assert (code, headers["Content-Type"]) == (200, "image/jpeg"), body
        return np.asarray(Image.open(io.BytesIO(body)))


Serve = Callable[..., Client]


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Serve stores until the test ends."""
    running = []

    def start(*stores: TileStore, **settings: Any) -> Client:
        slides = BrowsedSlides(stores, **settings)
        server = BrowserServer(slides)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        running.append((server, thread, slides))
        return Client(server)

    yield start
    for server, thread, slides in running:
        server.shutdown()
        thread.join()
        server.server_close()
        slides.close()


def add_features(store: TileStore, *, name: str = "f", encoder: str = "e", seed: int = 0, width: int = 8) -> None:
    values = np.random.default_rng(seed).normal(size=(len(store), width)).astype(np.float32)
    write_features(store, name, values, {"encoder_hash": encoder})


def test_the_page_and_all_its_files_come_with_a_policy(serve: Serve, store_factory: StoreFactory) -> None:
    client = serve(store_factory())
    assert client.server.server_address[0] == "127.0.0.1"
    status, headers, page = client.get("")
    assert status == 200
    policy = headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; script-src 'self';")
    assert "unsafe" not in policy
    assert headers["Cache-Control"] == "no-store"
    assert headers["Cross-Origin-Resource-Policy"] == "same-origin"
    named = [part.split('"')[0] for part in page.decode().split('="assets/')[1:]]
    assert {"main.js", "openseadragon.min.js", "style.css", "openseadragon.LICENSE.txt"} <= set(named)
    modules = {"main.js"}
    while (found := {file for name in modules for file in _imports(client, name)}) - modules:
        modules |= found
    assert {"actions.js", "api.js", "overlay.js"} <= modules
    for name in {*named, *modules}:
        status, headers, body = client.get(f"assets/{name}")
        assert (status, headers["X-Content-Type-Options"]) == (200, "nosniff"), name
        assert body
    assert b"CodePlex" in client.get("assets/openseadragon.LICENSE.txt")[2]


def _imports(client: Client, name: str) -> set[str]:
    lines = client.get(f"assets/{name}")[2].decode().splitlines()
    return {line.split('"./')[1].rstrip('";') for line in lines if line.startswith("import")}


def test_strangers_are_refused(serve: Serve, store_factory: StoreFactory) -> None:
    """Another site's page by DNS rebinding or by a link, and whoever does not know the key."""
    client = serve(store_factory())
    port, key = client.server.server_port, client.server.key
    assert len(key) >= 20
    for host in ("evil.example", f"evil.example:{port}", "127.0.0.1", f"127.0.0.1:{port + 1}", f"127.0.0.1:{port}."):
        assert client.get("api/slides", Host=host)[0] == 403
    assert client.get("api/slides", Host=f"localhost:{port}")[0] == 200
    assert client.get("api/slides", Sec_Fetch_Site="cross-site")[0] == 403
    assert client.get("api/slides", Sec_Fetch_Site="same-site")[0] == 403  # another port of this machine
    assert client.get("api/slides", Sec_Fetch_Site="same-origin")[0] == 200
    for path in ("/", "/api/slides", "//api/slides", f"/{key[:-1]}/api/slides", f"/{key}x/api/slides", f"/{key}"):
        status, headers, body = client.get(path)
        assert status == 404
        assert key.encode() not in body
        assert "Content-Security-Policy" in headers


def test_an_address_for_a_command_line_leads_to_the_page_once(serve: Serve, store_factory: StoreFactory) -> None:
    """Every user of a machine sees the arguments of every program on it."""
    client = serve(store_factory())
    path = client.server.address_once().removeprefix(f"http://127.0.0.1:{client.server.server_port}")
    assert client.server.key not in path
    assert client.get(f"{path}api/slides")[0] == 404  # no key to anything else
    assert client.get(path, Host="evil.example")[0] == 403
    status, headers, body = client.get(path)
    assert (status, headers["Location"], body) == (303, f"/{client.server.key}/", b"")
    assert client.get(headers["Location"])[0] == 200
    status, headers, body = client.get(path)
    assert status == 404
    assert "Location" not in headers


ANOTHER_USER = """
import encodings.idna, http.client, os, sys  # before it may read no more
os.setuid(65534)
connection = http.client.HTTPConnection(sys.argv[3], int(sys.argv[1]))
connection.request("GET", sys.argv[2])
print(connection.getresponse().status)
"""


@pytest.mark.skipif(os.name != "posix" or os.getuid() != 0, reason="only root can be another user")
def test_another_user_who_reads_that_address_first_gets_nothing(serve: Serve, store_factory: StoreFactory) -> None:
    client = serve(store_factory())
    path = client.server.address_once().removeprefix(f"http://127.0.0.1:{client.server.server_port}")
    for host in ("127.0.0.1", "::ffff:127.0.0.1"):
        words = [sys.executable, "-c", ANOTHER_USER, str(client.server.server_port), path, host]
        asked = subprocess.run(words, check=False, capture_output=True, text=True)
        assert asked.stdout in ("404\n", "403\n"), asked.stderr
    assert client.get(path)[0] == 303, "it was used up"


def test_a_browser_that_pans_quickly_waits_for_no_connection(store_factory: StoreFactory) -> None:
    """The system holds connections that the server has not taken yet; where it cannot, each waits a second."""
    with BrowserServer(BrowsedSlides([store_factory()])) as server, ExitStack() as sockets:
        for _ in range(100):
            sockets.enter_context(socket.create_connection(("127.0.0.1", server.server_port), timeout=0.5))
        server.slides.close()


def test_a_search_that_nobody_waits_for_ends(store_factory: StoreFactory) -> None:
    stores = [store_factory(name) for name in "abcdef"]
    for store in stores:
        add_features(store)
    search, asked = TileSearch(open_stores([store.path for store in stores])), []

    def is_wanted() -> bool:
        asked.append(1)
        return len(asked) < 3

    with pytest.raises(SearchAbandonedError):
        search.find(0, 0, name="f", k=3, is_wanted=is_wanted)
    assert len(asked) == 3
    assert len(search.find(0, 0, name="f", k=3).tiles) == 3, "its place is free again"


@pytest.mark.parametrize("leaves", ["here", "behind a tunnel"])
def test_the_server_knows_who_has_gone(store_factory: StoreFactory, leaves: str) -> None:
    """A tunnel (`ssh -L`) closes its sending side alone, and waits for what may come."""
    waited: queue.SimpleQueue[bool] = queue.SimpleQueue()

    class Waiting(BrowsedSlides):
        """Searches for as long as somebody waits."""

        def nearest(self, *_: Any, is_wanted: Callable[[], bool], **__: Any) -> dict[str, Any]:
            waited.put(is_wanted())
            deadline = time.monotonic() + 20
            while is_wanted() and time.monotonic() < deadline:
                time.sleep(0.01)
            waited.put(is_wanted())
            raise SearchAbandonedError

    with BrowserServer(Waiting([store_factory()])) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=30)
        connection.request("GET", f"/{server.key}/api/slides/0/tiles/0/nearest?features=f")
        assert waited.get(timeout=10) is True
        if leaves == "here":
            connection.close()
        else:
            connection.sock.shutdown(socket.SHUT_WR)
        assert waited.get(timeout=10) is False
        connection.close()
        server.shutdown()
        thread.join()
        server.slides.close()


def test_only_get_is_answered(serve: Serve, store_factory: StoreFactory) -> None:
    client = serve(store_factory())
    for method in ("HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS"):
        status, headers, body = client.get("api/slides", method=method)
        assert (status, headers["Allow"]) == (405, "GET"), method
        assert b"slide" not in body


NO_ADDRESSES = (
    "assets/../slide_browser.py",
    "assets/..%2fslide_browser.py",
    "assets/%2e%2e/palette.py",
    "../../etc/passwd",
    "assets//etc/passwd",
    "assets/",
    "assets/index.html/..",
    "assets/main.js%00",
    "api/slides/../slides",
    "api/slides/0/tiles/0/../1",
    "api/slides/-1",
    "api/slides/9",
    "api/slides/0/layers/99",
    "api/slides/0/tiles/24",
    "api/slides/0/tiles/99999999999999999999",
    "api/slides/0/tiles/24/picture",
    "api/slides/0/tiles/24/neighbours",
    "api/slides/0/squares/99/0/0",
    "api/slides/0/squares/8/1/0",
    "api/slides/٣",
)


def test_there_is_nothing_else(serve: Serve, store_factory: StoreFactory) -> None:
    """http.client refuses to send some of these, a hostile program does not."""
    server = serve(store_factory()).server
    for path in NO_ADDRESSES:
        with socket.create_connection(("127.0.0.1", server.server_port), timeout=30) as raw:
            host = f"127.0.0.1:{server.server_port}"
            raw.sendall(f"GET /{server.key}/{path} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
            answer = http.client.HTTPResponse(raw)
            answer.begin()
            assert answer.status == 404, path
            assert set(json.loads(answer.read())) == {"error"}


def test_a_slide_is_told_as_the_store_has_it(serve: Serve, store_factory: StoreFactory) -> None:
    first, second = store_factory("a", patient_id="p"), store_factory("b", rows=2, cols=3, labels=False)
    add_features(first)
    client = serve(first, second)
    assert client.json("api/slides") == [
        {"id": "a", "patient": "p", "tiles": 24},
        {"id": "b", "patient": "b", "tiles": 6},
    ]
    about = client.json("api/slides/0")
    assert (about["width"], about["height"], about["base_size"], about["base_stride"]) == (192, 128, 32.0, 32.0)
    assert about["pyramid"] == {"width": 192, "height": 128, "min": 8, "max": 8, "square": 256, "finest": 1.0}
    assert (about["indices"], about["features"], about["from_slide"]) == (["spatial"], ["f"], False)
    assert about["layers"][0] == {
        "name": "label",
        "kind": "classes",
        "without": 0,
        "classes": [
            {"name": "dots", "count": 12, "colour": "#0072b2"},
            {"name": "stripes", "count": 12, "colour": "#e69f00"},
        ],
    }
    assert [layer["name"] for layer in about["layers"]][1:3] == ["tissue_id", "tissue_fraction"]
    assert not {"x", "y", "row", "col", "crc32c"} & {layer["name"] for layer in about["layers"]}
    xy = np.frombuffer(client.get("api/slides/0/tiles")[2], "<i4").reshape(-1, 2)
    np.testing.assert_array_equal(xy, first.base_xy())
    codes = np.frombuffer(client.get("api/slides/0/layers/0")[2], "<i4")
    labels = first.labels()
    assert labels is not None
    np.testing.assert_array_equal(codes, labels.codes)
    numbers = np.frombuffer(client.get("api/slides/0/layers/2")[2], "<f4")
    np.testing.assert_array_equal(numbers, first.numbers("tissue_fraction"))
    rings = [ring for region in first.tissue_rings() for polygon in region for ring in polygon]
    assert about["tissue"] == [np.rint(ring).astype(int).ravel().tolist() for ring in rings]
    details = client.json("api/slides/0/tiles/5")
    x, y = first.base_xy()[5].tolist()
    assert (details["x"], details["y"]) == (x, y)
    assert ["label", labels.names()[5]] in details["values"]


def test_the_programs_own_index_and_features_come_first(serve: Serve, store_factory: StoreFactory) -> None:
    store = store_factory("s", rows=2, cols=2)
    index_store(store, name="near")
    for name in ("random", "simtriplet"):
        write_features(store, name, np.eye(4, dtype=np.float32), {})
    about = serve(TileStore(store.path)).json("api/slides/0")
    assert (about["indices"], about["features"]) == (["spatial", "near"], ["simtriplet", "random"])


def test_neighbours_are_those_of_the_index(serve: Serve, store_factory: StoreFactory) -> None:
    store = store_factory(rows=3, cols=3)
    client = serve(store, store_factory("alone", index=False))
    graph = store.neighbours()
    for tile in range(len(store)):
        row = slice(graph.indptr[tile], graph.indptr[tile + 1])
        found = client.json(f"api/slides/0/tiles/{tile}/neighbours?index=spatial")
        assert found["tiles"] == graph.indices[row].tolist()
        assert found["distances_um"] == pytest.approx(graph.distances_um[row], abs=0.005)
    assert "run simtriplet index" in client.json("api/slides/1/tiles/0/neighbours", 409)["error"]
    for name in ("x" * 5000, "%00", "../../.."):  # of no file
        asked = client.json(f"api/slides/0/tiles/0/neighbours?index={name}", 409)
        assert "run simtriplet index" in asked["error"]
    assert client.json("api/slides/1")["indices"] == []


def test_nearest_tiles_are_those_of_all_slides(serve: Serve, store_factory: StoreFactory) -> None:
    stores = [
        store_factory(name, rows=3, cols=4, patient_id=patient)
        for name, patient in (("a", "p"), ("b", "p"), ("c", "q"), ("d", "r"), ("e", "s"))
    ]
    for number, store in enumerate(stores[:4]):
        add_features(store, seed=number, encoder="other" if number == 3 else "e")
    client = serve(*open_stores([store.path for store in stores]))
    features = [TileStore(store.path).features("f").astype(np.float64) for store in stores[:3]]
    query = features[1][7]
    far = {
        (slide, tile): 1 - row @ query / np.linalg.norm(row) / np.linalg.norm(query)
        for slide, rows in enumerate(features)
        for tile, row in enumerate(rows)
        if (slide, tile) != (1, 7)
    }
    for among, searched in (("all", {0, 1, 2}), ("slides", {0, 2}), ("patients", {2})):
        found = client.json(f"api/slides/1/tiles/7/nearest?features=f&k=6&among={among}")
        best = sorted((distance, key) for key, distance in far.items() if key[0] in searched)[:6]
        assert [(near["slide"], near["tile"]) for near in found["tiles"]] == [key for _, key in best]
        assert [near["distance"] for near in found["tiles"]] == pytest.approx([one for one, _ in best], abs=1e-5)
        assert len(found["left_out"]) == 2
        assert "another encoder" in found["left_out"][0]
        assert "has no features 'f'" in found["left_out"][1]
    assert len(client.json("api/slides/1/tiles/7/nearest?features=f&k=200")["tiles"]) == 3 * 12 - 1
    for query_text in ("k=0", "k=201", "k=x", "among=world", "&".join(f"a{n}=1" for n in range(20))):
        assert client.json(f"api/slides/1/tiles/7/nearest?features=f&{query_text}", 400)["error"]
    assert "run simtriplet embed" in client.json("api/slides/4/tiles/0/nearest?features=f", 409)["error"]


def test_features_that_are_not_finite_are_never_near(serve: Serve, store_factory: StoreFactory) -> None:
    store = store_factory(rows=2, cols=3)
    values = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)
    values[2] = np.nan
    write_features(store, "f", values, {})
    client = serve(store)
    found = client.json("api/slides/0/tiles/0/nearest?features=f")
    assert sorted(near["tile"] for near in found["tiles"]) == [1, 3, 4, 5]
    assert "not finite" in client.json("api/slides/0/tiles/2/nearest?features=f", 500)["error"]


def blocks(pixels: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Means of 8 x 8 pixels, which JPEG keeps even of noise."""
    height, width = (side // 8 * 8 for side in pixels.shape[:2])
    return pixels[:height, :width].reshape(height // 8, 8, width // 8, 8, 3).mean(axis=(1, 3))


@pytest.mark.parametrize("per_px", [1, 4])
def test_pictures_are_the_tiles_in_their_places(serve: Serve, store_factory: StoreFactory, per_px: int) -> None:
    """Also where a tile's pixel is 4 x 4 of the slide's: the finest pictures are as fine as the tiles."""
    store = store_factory(rows=12, cols=20, size_px=32, mpp=1.0, base_mpp=1 / per_px)
    client = serve(store)
    about = client.json("api/slides/0")
    assert (about["width"], about["base_size"], about["base_stride"]) == (640 * per_px, 32 * per_px, 32 * per_px)
    assert (about["pyramid"]["width"], about["pyramid"]["height"]) == (640, 384)
    assert about["pyramid"]["finest"] == per_px
    tiles = store.images.read(np.arange(len(store)))
    np.testing.assert_allclose(blocks(client.picture("api/slides/0/tiles/17/picture")), blocks(tiles[17]), atol=6)
    whole = np.zeros((12 * 32, 20 * 32, 3), np.uint8)
    for tile, (x, y) in zip(tiles, store.base_xy() // per_px, strict=True):
        whole[y : y + 32, x : x + 32] = tile
    top = client.json("api/slides/0")["pyramid"]["max"]
    for col, row in ((0, 0), (2, 0), (1, 1)):
        wanted = whole[row * 256 : row * 256 + 256, col * 256 : col * 256 + 256]
        found = client.picture(f"api/slides/0/squares/{top}/{col}/{row}")
        assert found.shape == wanted.shape
        np.testing.assert_allclose(blocks(found), blocks(wanted), atol=6)
    small = client.picture(f"api/slides/0/squares/{top - 1}/0/0")
    averaged = whole[:384, :512].reshape(192, 2, 256, 2, 3).mean(axis=(1, 3))
    np.testing.assert_allclose(blocks(small), blocks(averaged), atol=6)


def test_predictions_are_layers(serve: Serve, store_factory: StoreFactory, tmp_path: Path) -> None:
    stores = [store_factory(name, rows=2, cols=3) for name in ("a", "b", "c")]
    shares = np.random.default_rng(0).dirichlet((1, 1), size=6)
    for store in stores[:2]:
        write_prediction(tmp_path / "maps", store, SlidePrediction(store.slide_id, ("+HER2", "<z>"), shares))
    path = tmp_path / "maps" / "b.csv"
    path.write_text(path.read_text().replace("r0_c0", "r9_c9"))
    client = serve(*stores, predictions=tmp_path / "maps")
    layers = client.json("api/slides/0")["layers"]
    assert [layer["name"] for layer in layers][:4] == [
        "label",
        "predicted",
        "probability of +HER2",
        "probability of <z>",
    ]
    assert [one["name"] for one in layers[1]["classes"]] == ["+HER2", "<z>"]  # the CSV has an apostrophe before the +
    codes = np.frombuffer(client.get("api/slides/0/layers/1")[2], "<i4")
    np.testing.assert_array_equal(codes, shares.argmax(axis=1))
    numbers = np.frombuffer(client.get("api/slides/0/layers/3")[2], "<f4")
    np.testing.assert_allclose(numbers, shares[:, 1], atol=1e-6)
    other = client.json("api/slides/1")
    assert "are not those of the store's tiles" in other["notes"][0]
    assert "predicted" not in [layer["name"] for layer in other["layers"]]
    assert client.json("api/slides/2")["notes"] == []


def test_a_damaged_store_is_told_and_the_others_go_on(serve: Serve, store_factory: StoreFactory) -> None:
    good, bad = store_factory("good"), store_factory("bad")
    client = serve(good, bad)
    for shard in (bad.path / "tiles" / "images").glob("c.*"):
        shard.unlink()
    assert "tile the slide again" in client.json("api/slides/1/tiles/0/picture", 409)["error"]
    assert client.get("api/slides/0/tiles/0/picture")[0] == 200


def test_a_store_without_tiles_is_shown(serve: Serve, store_factory: StoreFactory) -> None:
    client = serve(store_factory(keep=np.zeros(24, bool), index=False))
    about = client.json("api/slides/0")
    assert about["tiles"] == 0
    assert client.get("api/slides/0/tiles")[2] == b""
    assert client.picture(f"api/slides/0/squares/{about['pyramid']['max']}/0/0").shape == (128, 192, 3)
    assert client.json("api/slides/0/tiles/0", 404)["error"]


def test_many_threads_get_what_one_gets(serve: Serve, store_factory: StoreFactory) -> None:
    stores = [store_factory(name, rows=8, cols=9, codec=codec) for name, codec in (("a", "zstd"), ("b", "jpeg"))]
    for store in stores:
        add_features(store)
    paths = [f"api/slides/{slide}/tiles/{tile}/picture" for slide in (0, 1) for tile in range(0, 72, 5)]
    paths += [f"api/slides/{slide}/tiles/{tile}/nearest?features=f" for slide in (0, 1) for tile in range(0, 72, 9)]
    paths += [f"api/slides/{slide}{tail}" for slide in (0, 1) for tail in ("", "/tiles", "/layers/0", "/squares/8/0/0")]
    slow, fast = (serve(*[TileStore(store.path) for store in stores]) for _ in range(2))
    wanted = {path: slow.get(path) for path in paths}
    with ThreadPoolExecutor(16) as pool:
        found = list(pool.map(fast.get, paths * 3))
    for path, (status, _, body) in zip(paths * 3, found, strict=True):
        assert (status, body) == (200, wanted[path][2]), path


def test_a_port_that_is_taken_is_told(serve: Serve, store_factory: StoreFactory) -> None:
    client = serve(store_factory())
    with pytest.raises(SettingsError, match=rf"^port {client.server.server_port}: cannot be had .*--port"):
        BrowserServer(client.server.slides, port=client.server.server_port)
