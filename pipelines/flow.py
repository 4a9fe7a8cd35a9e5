"""The whole job: tile, index, pretrain, embed, evaluate, report; each step skips what an earlier run finished."""

import logging
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from simtriplet.evaluate.evaluation import EvaluationResult, evaluate_features
from simtriplet.evaluate.label_file import read_label_file
from simtriplet.evaluate.labels import has_labels
from simtriplet.evaluate.protocol_registry import PROTOCOLS
from simtriplet.evaluate.report import write_report
from simtriplet.evaluate.unlabelled import UnlabelledResult, describe_features
from simtriplet.evaluate.unlabelled_report import write_unlabelled_report
from simtriplet.pipelines.begun_run import Asked, has_begun, needs_no_training, slides_of_run, stores_to_train_on
from simtriplet.pipelines.console import print_table, say
from simtriplet.pipelines.index_steps import index_stores
from simtriplet.pipelines.manifest import collect_jobs
from simtriplet.pipelines.model_steps import embed_stores, pretrain_encoder, tell_result
from simtriplet.pipelines.output_hold import holding
from simtriplet.pipelines.recipe import Recipe, SlidesSection, relative_to_out
from simtriplet.pipelines.slide_steps import tile_slides, write_settings
from simtriplet.pipelines.stop_signals import STOP
from simtriplet.pretrain.settings import PretrainSettings, load_settings
from simtriplet.wsi.errors import SettingsError, SlideOpenError, StoreError, TrainingError
from simtriplet.wsi.index_writer import check_index_name
from simtriplet.wsi.reach import is_file
from simtriplet.wsi.store import STORE_SUFFIX, TileStore, open_stores
from simtriplet.wsi.tile_request import SlideJob

__all__ = ["FlowResult", "run_recipe"]

log = logging.getLogger(__name__)

_RUN = "pretrain"


@dataclass(frozen=True, slots=True)
class FlowResult:
    """Where the results of a recipe lie.

    Attributes:
        stores: folder of tile stores.
        run: folder of the pretraining run.
        report: the page.
        result: the evaluation; None where the slides have no labels.
        n_failed: slides that could not be tiled.
    """

    stores: Path
    run: Path
    report: Path
    result: EvaluationResult | None
    n_failed: int


def run_recipe(
    recipe: Recipe, *, source: Path | None = None, title: str = "SimTriplet", quiet: bool = False
) -> FlowResult:
    """Carry out a recipe.

    Args:
        recipe: what to do.
        source: the file it was read from, which the resolved recipe never replaces.
        title: heading of the report.
        quiet: show no progress.

    Raises:
        SimTripletError: if a step fails; what earlier steps finished is kept and used by the next run.
    """
    settings = load_settings(preset=recipe.pretrain.preset, values=recipe.pretrain.changes())
    _check_last_steps(recipe)
    with holding(recipe.out):
        return _carry_out(recipe, settings, source, title, quiet)


def _check_last_steps(recipe: Recipe) -> None:
    """Refuse now what would end the job after days of training."""
    recipe.index.make_rule()
    recipe.index.make_gates()
    check_index_name(recipe.index.name)
    weights = recipe.pretrain.model.get("weights")
    if weights is not None and not is_file(Path(weights)) and not has_begun(recipe.out / _RUN):
        raise SettingsError(f"pretrain.model.weights '{weights}': is no file; correct it, or leave it out")
    section = recipe.evaluate
    PROTOCOLS.get(section.protocol)
    if section.labels is not None:
        read_label_file(section.labels, label_column=section.label_column, patient_column=section.patient_column)


def _carry_out(recipe: Recipe, settings: PretrainSettings, source: Path | None, title: str, quiet: bool) -> FlowResult:
    resolved = recipe.out / "recipe.toml"
    if source is None or not (resolved.exists() and resolved.samefile(source)):  # which has comments, perhaps
        write_settings(resolved, relative_to_out(recipe))
    run = recipe.out / _RUN
    begun = slides_of_run(run)
    stores, n_failed = _tile(recipe, quiet, begun)
    say("[2/5] index")
    index_stores(stores, recipe.index, quiet=quiet, skip_same=True)
    _pretrain(recipe, stores, begun, settings, run, quiet)
    say("[4/5] embed")
    names = _embed(recipe, stores, settings, run, quiet)
    say("[5/5] evaluate")
    report, result = _evaluate(recipe, stores, names, run, title)
    return FlowResult(recipe.out / "stores", run, report, result, n_failed)


def _tile(recipe: Recipe, quiet: bool, begun: Collection[str] = ()) -> tuple[list[TileStore], int]:
    """Tile what is new; return the stores to work on, those that a run was begun with among them, and how many slides failed."""
    say("[1/5] tile")
    slides, request, folder = recipe.slides, recipe.tile_request(), recipe.out / "stores"
    asked = Asked(_jobs(slides, begun), request, folder, slides.annotations, slides.slide_mpp)
    outcomes = tile_slides(
        asked.jobs,
        folder,
        request,
        existing="skip",
        workers=slides.workers,
        scheduler=slides.scheduler,
        slide_timeout_s=slides.timeout_s or None,
        quiet=quiet,
    )
    done = [asked.store_of(outcome.slide_id) for outcome in outcomes if outcome.summary is not None]
    done += asked.stores_without_slides(outcomes)
    n_failed = len(outcomes) - len(done)
    refused = [outcome.slide_id for outcome in outcomes if outcome.is_mismatch]
    known = {path.name.removesuffix(STORE_SUFFIX) for path in done}
    back = asked.stores_of_run(set(begun) - known, refused=refused)
    if refused:
        refusal = (
            f"output '{recipe.out}': holds the store of slide {refused[0]!r}, which was made from another file or with other "
            "settings; choose another folder with --set out=FOLDER, or remove that store"
        )
        if not done:
            raise SettingsError(refusal)
        log.warning("%s", refusal)
    if not done and not back:
        failed = outcomes[0].reason if len(outcomes) == 1 else f"none of {len(outcomes)} slides could be tiled"
        raise StoreError(failed)
    return sorted([*open_stores(sorted(done)), *back], key=lambda store: store.slide_id), n_failed


def _jobs(slides: SlidesSection, begun: Collection[str]) -> list[SlideJob]:
    try:
        return collect_jobs(
            slides.inputs, annotations=slides.annotations, slide_mpp=slides.slide_mpp, recursive=slides.recursive
        )
    except SlideOpenError as error:
        if not begun:
            raise
        log.warning("%s", error)  # all of them were moved away, and the stores are there
        return []


def _pretrain(
    recipe: Recipe,
    stores: Sequence[TileStore],
    begun: Collection[str],
    settings: PretrainSettings,
    run: Path,
    quiet: bool,
) -> None:
    say(f"[3/5] pretrain ({settings.objective.name}, {settings.model.backbone}, preset {recipe.pretrain.preset})")
    excluded = recipe.pretrain.exclude_patients
    to_train_on = stores_to_train_on(stores, begun, excluded)
    if begun and needs_no_training(run, settings):
        return
    if begun:  # the slides of patients who are left out may have gone too
        excluded = tuple(patient for patient in excluded if patient in {store.patient_id for store in stores})
    result = pretrain_encoder(to_train_on, settings, run, resume=run.exists(), exclude_patients=excluded, quiet=quiet)
    if not result.finished:
        raise TrainingError(f"run '{run}': stopped after run.max_minutes; run the same command again to go on")


def _embed(
    recipe: Recipe, stores: Sequence[TileStore], settings: PretrainSettings, run: Path, quiet: bool
) -> list[str]:
    """Embed with the trained encoder and, as a baseline, with the same network untrained; return the features' names."""
    with STOP.while_importing():  # torch: after what can be refused without it
        from simtriplet.pretrain.encoder import load_encoder

    encoders = {recipe.embed.name: load_encoder(run)}
    if recipe.embed.baseline:
        encoders["random"] = load_encoder(f"random:{settings.model.backbone}:{settings.data.image_size_px}")
    for name, encoder in encoders.items():
        embed_stores(
            stores,
            encoder,
            name=name,
            batch_size=recipe.embed.batch_size,
            device=recipe.embed.device,
            precision=recipe.embed.precision,
            existing="skip",
            quiet=quiet,
        )
    return list(encoders)


def _evaluate(
    recipe: Recipe, stores: Sequence[TileStore], names: Sequence[str], run: Path, title: str
) -> tuple[Path, EvaluationResult | None]:
    out = recipe.out / "evaluation"
    if recipe.evaluate.labels is None and not has_labels(stores, recipe.evaluate.label_column):
        say("the slides have no labels: features are described without them")
        described = [describe_features(stores, name, out=out if name == names[0] else None) for name in names]
        _print_described(described)
        baseline = described[1] if len(described) > 1 else None
        page = write_unlabelled_report(out, result=described[0], baseline=baseline, stores=stores, run=run, title=title)
        return page, None
    results = [_measure(recipe, stores, name) for name in names]
    other = results[1] if len(results) > 1 else None
    tell_result(out, results[0], other)
    page = write_report(out, result=results[0], baseline=other, stores=stores, run=run, title=title)
    return page, results[0]


def _measure(recipe: Recipe, stores: Sequence[TileStore], name: str) -> EvaluationResult:
    section = recipe.evaluate
    return evaluate_features(
        stores,
        name,
        labels=section.labels,
        label_column=section.label_column,
        patient_column=section.patient_column,
        protocol=section.protocol,
        folds=section.folds,
        seed=section.seed,
    )


def _print_described(found: Sequence[UnlabelledResult]) -> None:
    rows = [
        [
            one.features,
            "no neighbours" if one.neighbour_auc is None else f"{one.neighbour_auc:.3f}",
            f"{one.effective_rank:.1f}",
            str(one.feature_dim),
        ]
        for one in found
    ]
    print_table("features", ("features", "neighbour likeness", "effective rank", "dimensions"), rows)
