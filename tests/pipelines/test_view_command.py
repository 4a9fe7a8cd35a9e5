"""`view` as a user runs it: it says its address, serves, and ends when told to."""

import http.client
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from subprocess import CompletedProcess
from urllib.parse import urlsplit

import pytest

Run = Callable[..., "CompletedProcess[str]"]
Failure = Callable[["CompletedProcess[str]"], str]


@pytest.fixture(scope="module")
def stores(program: Run, cohort: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("stores")
    program("tile", cohort, "--out", out, "--mpp", 1.0, "--size", 64)
    return out


@contextmanager
def viewing(*arguments: object) -> Iterator["subprocess.Popen[str]"]:
    command = [sys.executable, "-m", "simtriplet.pipelines", "view", *map(str, arguments)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def get(address: str, path: str) -> tuple[int, bytes]:
    place = urlsplit(address)
    assert place.hostname == "127.0.0.1"
    connection = http.client.HTTPConnection(place.hostname, place.port, timeout=60)
    connection.request("GET", place.path + path)
    answer = connection.getresponse()
    found = answer.status, answer.read()
    connection.close()
    return found


def test_slides_in_folders_of_folders_are_found(stores: Path, cohort: Path, tmp_path: Path) -> None:
    (tmp_path / "slides").mkdir()
    (tmp_path / "slides" / "case").symlink_to(cohort.parent)
    with viewing(stores, "--slides", tmp_path / "slides", "--recursive", "--no-open") as process:
        assert process.stdout is not None
        about = json.loads(get(process.stdout.readline().strip(), "api/slides/0")[1])
        assert (about["from_slide"], about["notes"]) == (True, [])


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_it_serves_until_it_is_stopped(stores: Path, cohort: Path, number: signal.Signals, status: int) -> None:
    with viewing(stores, "--slides", cohort, "--no-open") as process:
        assert process.stdout is not None
        address = process.stdout.readline().strip()
        status_page, page = get(address, "")
        assert status_page == 200
        assert b"<title>" in page
        slides = json.loads(get(address, "api/slides")[1])
        assert [slide["id"] for slide in slides] == [f"patient{patient:02d}-slide1" for patient in range(1, 5)]
        about = json.loads(get(address, "api/slides/2")[1])
        assert (about["from_slide"], about["notes"]) == (True, [])
        assert get(address, f"api/slides/2/squares/{about['pyramid']['max']}/1/1")[0] == 200
        os.kill(process.pid, number)
        _, said = process.communicate(timeout=60)
        assert process.returncode == status
        assert "Traceback" not in said
        assert said.splitlines()[0] == "4 slides; Ctrl-C ends"
        assert said.splitlines()[-1].startswith("Error: ")
        assert said.splitlines()[-1].endswith("; the page is served no more")
        assert said.count("Error: ") == 1
        with pytest.raises(ConnectionRefusedError):
            get(address, "")


def test_the_key_stands_on_no_command_line(stores: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A browser in the foreground, which holds its caller up until it has shown the page."""
    browser, seen = tmp_path / "browser", tmp_path / "seen.json"
    browser.write_text(
        f"#!{sys.executable}\nimport json, sys, urllib.request\n"
        "with urllib.request.urlopen(sys.argv[1], timeout=30) as page:\n"
        "    found = json.dumps([sys.argv[1], page.url, page.read().decode()])\n"
        f"open({str(seen)!r} + '.new', 'w').write(found)\n"
        f"__import__('os').rename({str(seen)!r} + '.new', {str(seen)!r})\n"
    )
    browser.chmod(0o755)
    monkeypatch.setenv("BROWSER", str(browser))
    with viewing(stores, "--open") as process:
        assert process.stdout is not None
        address = process.stdout.readline().strip()
        deadline = time.monotonic() + 60
        while not seen.exists():
            assert time.monotonic() < deadline
            time.sleep(0.02)
    told, led_to, page = json.loads(seen.read_text())
    assert led_to == address
    assert urlsplit(address).path.strip("/") not in told
    assert "<title>" in page


def test_what_cannot_be_viewed_is_one_line(program: Run, failure: Failure, stores: Path, tmp_path: Path) -> None:
    assert "run simtriplet tile first" in failure(program("view", tmp_path / "none", status=1))
    line = failure(program("view", stores, "--predictions", tmp_path / "none", status=1))
    assert "is no folder; pass the --out of simtriplet predict" in line
