"""The command `view`: stores in a web browser."""

import os
import sys
import webbrowser
from pathlib import Path
from threading import Thread

import click

from simtriplet.evaluate.slide_browser import BrowserServer
from simtriplet.evaluate.slide_browser_slides import BrowsedSlides
from simtriplet.pipelines.console import say
from simtriplet.pipelines.manifest import collect_jobs
from simtriplet.pipelines.options import AnyPath, stores_argument
from simtriplet.wsi.errors import SettingsError
from simtriplet.wsi.reach import is_folder
from simtriplet.wsi.store import open_stores

__all__ = ["view"]


@click.command()
@stores_argument
@click.option(
    "--slides",
    type=AnyPath,
    default=None,
    help="Folder, manifest or file of the slides, to zoom into them.  [default: the stores' own tiles]",
)
@click.option("--recursive", is_flag=True, help="Look for slides in the folders of --slides too.")
@click.option("--predictions", type=AnyPath, default=None, help="Folder that predict wrote, for layers.")
@click.option("--port", type=click.IntRange(0, 65535), default=0, help="Port on 127.0.0.1.  [default: a free one]")
@click.option(
    "--open/--no-open",
    "open_page",
    default=None,
    help="Open the page in the web browser.  [default: where there is a terminal and a screen]",
)
def view(
    stores: tuple[Path, ...],
    slides: Path | None,
    recursive: bool,
    predictions: Path | None,
    port: int,
    open_page: bool | None,
) -> None:
    """Look at STOREs in a web browser: tiles, neighbours, labels, and the nearest tiles by features.

    Serves on this machine only, until Ctrl-C. The address holds a key; whoever has it can see the slides.
    """
    opened = open_stores(stores)
    if predictions is not None and not is_folder(predictions):
        raise SettingsError(f"--predictions '{predictions}': is no folder; pass the --out of simtriplet predict")
    files = (
        {job.slide_id: job.path for job in collect_jobs([slides], recursive=recursive)} if slides is not None else {}
    )
    browsed = BrowsedSlides(opened, slides=files, predictions=predictions)
    with BrowserServer(browsed, port=port) as server:
        click.echo(server.address)
        sys.stdout.flush()
        say(f"{'1 slide' if len(opened) == 1 else f'{len(opened)} slides'}; Ctrl-C ends")
        if open_page or (open_page is None and _has_screen()):
            # in a thread, since some browsers hold their caller up until they end, and the page is served below
            Thread(target=webbrowser.open, args=(server.address_once(),), daemon=True).start()
        try:
            server.serve_forever()
        finally:
            browsed.close()


def _has_screen() -> bool:
    shown = sys.platform == "darwin" or any(os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY"))
    return shown and sys.stderr.isatty()
