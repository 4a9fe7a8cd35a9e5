"""The command `check`: every byte of a store against its checksum, and how to make again what is damaged."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import click

from simtriplet.evaluate.visible_text import visible
from simtriplet.pipelines.console import progress_bar
from simtriplet.pipelines.manifest import collect_jobs
from simtriplet.pipelines.options import AnyPath, quiet, stores_argument
from simtriplet.pipelines.repair_commands import RepairSources, repair_lines
from simtriplet.pipelines.stop_signals import STOP
from simtriplet.wsi.check import Problem, StoreCheck, inspect_store
from simtriplet.wsi.errors import SimTripletError, SlideOpenError, StoreError, UnreachableError
from simtriplet.wsi.reach import exists
from simtriplet.wsi.repair import plan_repair
from simtriplet.wsi.store import find_stores

__all__ = ["check"]


@click.command()
@stores_argument
@click.option("--repair", is_flag=True, help="Print the commands that make again what is damaged; nothing is changed.")
@click.option(
    "--slides",
    type=AnyPath,
    multiple=True,
    metavar="SLIDE|FOLDER|MANIFEST.csv",
    help="For --repair: where the slides are, as a store keeps no paths; may repeat.",
)
@click.option("--annotations", type=AnyPath, default=None, help="For --repair: their folder or file.")
@click.option(
    "--encoder",
    "encoders",
    multiple=True,
    help="For --repair: the run or encoder that features are of; may repeat, each is named for its own features.",
)
def check(
    stores: tuple[Path, ...],
    repair: bool,
    slides: tuple[Path, ...],
    annotations: Path | None,
    encoders: tuple[str, ...],
) -> None:
    """Verify STOREs: every tile, array and metadata file against its checksum, neighbour indices against the tiles."""
    if not repair and (slides or annotations or encoders):
        raise click.UsageError("--slides, --annotations and --encoder: are for --repair; pass it too")
    for path in slides:
        if not exists(path):
            raise SlideOpenError(f"slide '{path}': does not exist; check the path")
    files = {job.slide_id: job.path for job in collect_jobs(slides)} if slides else {}
    sources = RepairSources(files, annotations, _by_hash(encoders))
    n_unreachable, damaged = 0, []
    looked_for = _look_for(stores)
    for path, unreachable in looked_for.items():
        found = unreachable or _inspect(path)
        _tell(path, found)
        if unreachable:
            n_unreachable += 1
        elif found.problems:
            damaged.append((path, found.problems))
    if repair:
        _tell_repair(damaged, sources)
    if damaged or n_unreachable:
        raise StoreError(_verdict(len(damaged), n_unreachable, len(looked_for), repair=repair))


def _look_for(given: Iterable[Path]) -> dict[Path, StoreCheck | None]:
    """Return the stores that are named; with those out of reach the problem that they are, as the others are looked at."""
    found: dict[Path, StoreCheck | None] = {}
    for path in given:
        try:
            found.update({store: _refusal(store) for store in find_stores([path])})
        except UnreachableError as error:
            found[path] = StoreCheck((Problem("", str(error)),), ())
    return found


def _refusal(store: Path) -> StoreCheck | None:
    try:
        exists(store / "zarr.json")
    except UnreachableError as error:
        return StoreCheck((Problem("", str(error)),), ())
    return None


def _verdict(n_damaged: int, n_unreachable: int, n_stores: int, *, repair: bool) -> str:
    """Say how many stores are not well, and what to do."""
    if not n_damaged:
        return f"{n_unreachable} of {n_stores} stores are out of reach; check their paths, rights and disks"
    cure = "see the commands above" if repair else "check --repair tells how to make again what is damaged"
    beside = f", {n_unreachable} out of reach" if n_unreachable else ""
    return f"{n_damaged} of {n_stores} stores are damaged{beside}; {cure}"


def _by_hash(encoders: Sequence[str]) -> dict[str, str]:
    """Return the SHA-256 of each encoder's weights, by which features know theirs, and what `embed` takes for it."""
    if not encoders:
        return {}
    with STOP.while_importing():
        from simtriplet.pretrain.encoder import load_encoder
    return {load_encoder(encoder).info.checkpoint_hash: encoder for encoder in encoders}


def _inspect(path: Path) -> StoreCheck:
    try:
        with progress_bar(f"check {path.name}", "tiles", quiet=quiet()) as tick:
            return inspect_store(path, progress=tick)
    except OSError as error:  # the other stores are looked at all the same
        why = str(error) if isinstance(error, SimTripletError) else f"cannot be read ({error.strerror}); check its disk"
        return StoreCheck((Problem("", why),), ())


def _tell(path: Path, found: StoreCheck) -> None:
    for problem in found.problems:
        click.echo(visible(f"{path.name}: {problem.text}"))
    for note in found.notes:
        click.echo(visible(f"{path.name}: note: {note}"))
    if not found.problems:
        click.echo(visible(f"{path.name}: ok"))


def _tell_repair(damaged: list[tuple[Path, tuple[Problem, ...]]], sources: RepairSources) -> None:
    for path, problems in damaged:
        plan = plan_repair(path, problems)
        what = ["tiles"] if plan.tiles else []
        what += [f"neighbour index {name}" for name in plan.indices] + [f"features {name}" for name in plan.features]
        click.echo(visible(f"{path.name}: to make {', '.join(what)} again, run"))
        for line in repair_lines(path, plan, sources):
            click.echo("  " + visible(line))
