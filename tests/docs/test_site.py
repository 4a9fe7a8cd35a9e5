"""The site builds without a warning, its links lead somewhere, it fetches nothing, and it names only options that exist."""

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import unquote, urlsplit

import click
import pytest
import yaml

import simtriplet.evaluate
import simtriplet.pretrain
import simtriplet.wsi
from simtriplet.pipelines.cli import cli

ROOT = Path(__file__).parents[2]

OF_OTHERS = {
    *("--array", "--gres", "--requeue", "--signal", "--job-name", "--cpus-per-task", "--mem", "--time"),  # SLURM
    *("--nproc-per-node", "--nthreads", "--nworkers", "--host", "--port"),  # torchrun, dask
    *("--data", "--limit-gb", "--scale", "--device", "--strict"),  # benchmarks, mypy
    *("--steps", "--tile", "--k"),  # examples
    "--no-crop",  # QuPath
}
"""Options on pages that are not this program's."""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built site; strict, so that a warning is an error."""
    pytest.importorskip("material", reason="the extra docs is not installed")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    ended = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, check=False)
    assert ended.returncode == 0, ended.stderr[-4000:]
    return folder


class Page(HTMLParser):
    """What a page links to, what it loads, and the places one can link to."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.loads: list[str] = []
        self.places: set[str] = {""}
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        self.places |= {values[key] for key in ("id", "name") if key in values}
        if tag == "a" and "href" in values:
            self.links.append(values["href"])
        elif tag in ("script", "img", "iframe", "source") and "src" in values:
            self.loads.append(values["src"])
        elif tag == "link" and values.get("rel") not in ("canonical", "next", "prev"):
            self.loads.append(values.get("href", ""))


@pytest.mark.slow
def test_site_builds_strictly_and_its_links_lead_somewhere(site: Path) -> None:
    pages = {path: Page(path) for path in site.rglob("*.html") if path.name != "404.html"}
    assert len(pages) > 20
    for path, page in pages.items():
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            target = target / "index.html" if target.is_dir() else target
            assert target.exists(), f"{path.name} links to {link}"
            if target in pages and parts.fragment:
                assert unquote(parts.fragment) in pages[target].places, f"{path.name} links to {link}"


@pytest.mark.slow
def test_pages_load_nothing_from_elsewhere(site: Path) -> None:
    for path in site.rglob("*.html"):
        loads = Page(path).loads
        assert loads
        assert not [load for load in loads if urlsplit(load).netloc], path.name


@pytest.mark.parametrize(
    "package", [simtriplet.wsi, simtriplet.pretrain, simtriplet.evaluate], ids=lambda one: one.__name__
)
def test_reference_lists_every_name_that_a_package_exports(package: ModuleType) -> None:
    page = (ROOT / "docs" / "api.md").read_text()
    listed = set(re.findall(r"^::: (\S+)", page, re.MULTILINE))
    homes = {name: f"{package.__name__}.{package._HOMES[name]}" for name in package.__all__}
    assert set(package._HOMES) == set(package.__all__) == set(dir(package))
    assert [name for name, home in homes.items() if not {home, f"{home}.{name}"} & listed] == []


@pytest.mark.slow
def test_reference_has_every_command_and_every_public_name_it_lists(site: Path) -> None:
    commands = (site / "cli.html").read_text(encoding="utf-8")
    for name in cli.list_commands(click.Context(cli)):
        assert f'id="simtriplet-{name}"' in commands or f'id="{name}"' in commands, name
    listed = re.findall(r"^::: (\S+)", (ROOT / "docs" / "api.md").read_text(), re.MULTILINE)
    places = Page(site / "api.html").places
    assert [name for name in listed if name not in places] == []


def options_of_the_program() -> set[str]:
    context = click.Context(cli)
    commands = [cli, *(cli.get_command(context, name) for name in cli.list_commands(context))]
    found = {"--help"}
    for command in commands:
        assert command is not None
        for option in command.params:
            found |= {name for name in (*option.opts, *option.secondary_opts) if name.startswith("--")}
    return found


def code_of(page: Path) -> Iterator[str]:
    text = page.read_text(encoding="utf-8")
    yield from re.findall(r"^```sh\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    yield from re.findall(r"`([^`\n]+)`", text)


def test_pages_name_only_options_that_exist(pages: list[Path], read_blocks: Callable[[Path], list[Any]]) -> None:
    known = options_of_the_program() | OF_OTHERS
    named = {
        (page.name, option)
        for page in pages
        for code in code_of(page)
        if "pip install" not in code
        for option in re.findall(r"(?<![\w-])--[a-z][a-z0-9-]*", code)
    }
    assert len(named) > 60
    assert sorted((page, option) for page, option in named if option not in known) == []


def test_commands_within_a_sentence_are_those_of_the_program(pages: list[Path]) -> None:
    """Blocks of commands are run by other tests; these are parsed: their options must belong to that very command."""
    context = click.Context(cli)
    shown = {text for page in pages for text in code_of(page) if re.match(r"simtriplet [a-z]", text)}
    n_parsed = 0
    for text in shown:
        for line in text.replace("\\\n", " ").splitlines():
            name, *words = shlex.split(re.sub(r"[][]", "", line), comments=True)[1:]
            command = cli.get_command(context, name)
            assert command is not None, line
            known = {option for one in command.params for option in (*one.opts, *one.secondary_opts)}
            assert {word for word in words if word.startswith("-")} <= known, line
            if words and not words[0].startswith("-") and not any(word.isupper() for word in words):
                command.make_context(name, words)
                n_parsed += 1
    assert n_parsed > 20


def test_every_block_says_its_language(pages: list[Path]) -> None:
    """One that does not is run by no test."""
    for page in pages:
        fences = re.findall(r"^```(.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
        assert all(fences[::2]), page.name
        assert not any(fences[1::2]), page.name


def test_every_page_is_in_the_navigation(pages: list[Path]) -> None:
    def names(items: Any) -> Iterator[str]:
        for item in items if isinstance(items, list) else items.values():
            if isinstance(item, str):
                yield item
            else:
                yield from names(item)

    listed = set(names(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]))
    docs = ROOT / "docs"
    assert listed == {page.relative_to(docs).as_posix() for page in pages if docs in page.parents}
