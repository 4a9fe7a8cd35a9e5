"""The steps with a network, pretrain, embed and evaluate, as plain functions: commands and recipe runner call these.

What stands on torch is imported where it is used: `--help`, a wrong option, and heads on stored features need not wait for it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from simtriplet.pipelines.console import print_table, progress_bar, say
from simtriplet.pipelines.result_tables import METRIC_TITLES, interval_cell, print_differences
from simtriplet.pipelines.stop_signals import STOP
from simtriplet.wsi.errors import SettingsError
from simtriplet.wsi.settings import build, parse_assignments
from simtriplet.wsi.store import TileStore

if TYPE_CHECKING:
    from simtriplet.evaluate.comparison import ComparisonSettings
    from simtriplet.evaluate.embed import EmbedSummary, Existing
    from simtriplet.evaluate.evaluation import EvaluationResult
    from simtriplet.evaluate.label_curve import LabelCurve
    from simtriplet.evaluate.paired import PairedDifference
    from simtriplet.evaluate.supervised_settings import SupervisedSettings
    from simtriplet.pretrain.encoder import Encoder
    from simtriplet.pretrain.result import PretrainResult
    from simtriplet.pretrain.settings import PrecisionName, PretrainSettings
    from simtriplet.pretrain.step_log import StepReport

__all__ = [
    "NETWORK_PROTOCOLS",
    "embed_stores",
    "evaluate_network",
    "pretrain_encoder",
    "tell_result",
    "train_for_comparison",
]

NETWORK_PROTOCOLS = ("supervised", "finetune")
"""Protocols that train a whole network with labels."""


def pretrain_encoder(
    stores: Sequence[TileStore],
    settings: PretrainSettings,
    out: Path,
    *,
    resume: bool,
    exclude_patients: Collection[str] = (),
    quiet: bool = False,
) -> PretrainResult:
    """Train an encoder with progress shown, and say where things lie; of several processes, the first one speaks."""
    with STOP.while_importing():
        from simtriplet.pretrain.distributed import is_first_process
        from simtriplet.pretrain.trainer import pretrain

    speaks = is_first_process()
    if speaks and settings.run.device == "auto" and settings.model.backbone != "resnet18":
        from simtriplet.pretrain.precision import pick_device

        if pick_device("auto").type == "cpu":
            say(f"no GPU: {settings.model.backbone} takes days on a CPU; --preset quick is made for one", warns=True)
    with progress_bar("pretrain", "steps", quiet=quiet or not speaks) as tick:

        def progress(report: StepReport) -> None:
            note = f"epoch {report.epoch}, loss {report.loss:.3f}, {report.triplets_per_s:.0f} triplets/s"
            skipped = f", {report.skipped_steps} skipped" if report.skipped_steps else ""
            tick(report.step, report.total_steps, note + skipped)

        result = pretrain(stores, settings, out, resume=resume, exclude_patients=exclude_patients, progress=progress)
    if speaks:
        _say_result(result)
    return result


def _say_result(result: PretrainResult) -> None:
    if result.finished:
        say(f"encoder: {result.encoder} ({result.steps} steps on {result.n_tiles} tiles, loss {result.loss:.3f})")
    else:
        say(f"stopped after {result.steps} steps, as run.max_minutes says; go on with --resume", warns=True)
    if result.n_isolated:
        say(f"{result.n_isolated} of {result.n_tiles} tiles have no neighbour", warns=True)
    if result.skipped_steps:
        said = f"{result.skipped_steps} of {result.steps} steps were left out: their loss or gradient was not finite"
        say(said, warns=True)
    from simtriplet.pretrain.run_folder import RunFolder

    folder = RunFolder(result.out)
    say(
        f"model card: {folder.card}; curves: {folder.metrics}"
        + (f", {folder.monitor}" if folder.monitor.exists() else "")
    )
    if folder.best_checkpoint.exists():
        say(f"best checkpoint: {folder.best_checkpoint} (an --encoder too)")


def embed_stores(
    stores: Sequence[TileStore],
    encoder: Encoder,
    *,
    name: str,
    batch_size: int = 256,
    device: str = "auto",
    precision: PrecisionName = "auto",
    existing: Existing = "replace",
    quiet: bool = False,
) -> list[EmbedSummary]:
    """Embed the tiles of stores with progress shown."""
    with STOP.while_importing():
        from simtriplet.evaluate.embed import embed_store

    summaries = []
    total = sum(len(store) for store in stores)
    done = 0

    with progress_bar(f"embed {name}", "tiles", quiet=quiet) as tick:

        def progress(count: int) -> None:
            nonlocal done
            done += count
            tick(done, total)

        for store in stores:
            start = done
            summary = embed_store(
                store,
                encoder,
                name=name,
                batch_size=batch_size,
                device=device,
                precision=precision,
                existing=existing,
                progress=progress,
            )
            summaries.append(summary)
            done = start + len(store)
    skipped = sum(summary.skipped for summary in summaries)
    say(
        f"features X_{name} of {total} tiles are in {len(stores)} stores" + (f" ({skipped} skipped)" if skipped else "")
    )
    return summaries


def evaluate_network(
    stores: Sequence[TileStore], protocol: str, encoder: str | None, assignments: Sequence[str], **options: Any
) -> EvaluationResult:
    """Train a network for each fold of patients, from scratch or from an encoder, and test it.

    Args:
        stores: the slides.
        protocol: supervised or finetune.
        encoder: what `finetune` starts from.
        assignments: `key=value` of SupervisedSettings.
        options: of evaluate_supervised.

    Raises:
        SettingsError: if finetune has no encoder, supervised has one, or a setting is not known.
    """
    if (encoder is None) == (protocol == "finetune"):
        hint = (
            "needs an encoder; pass --encoder" if encoder is None else "starts from random weights; leave --encoder out"
        )
        raise SettingsError(f"protocol {protocol!r}: {hint}")
    with STOP.while_importing():
        from simtriplet.evaluate.supervised_evaluation import evaluate_supervised
        from simtriplet.pretrain.encoder import load_encoder

    start = None if encoder is None else load_encoder(encoder)
    return evaluate_supervised(stores, _supervised_settings(assignments), encoder=start, **options)


def _supervised_settings(assignments: Sequence[str]) -> SupervisedSettings:
    from simtriplet.evaluate.supervised_settings import SupervisedSettings

    return build(SupervisedSettings, parse_assignments(assignments), source="--set")


def train_for_comparison(
    stores: Sequence[TileStore], settings: ComparisonSettings, assignments: Sequence[str], *, with_curve: bool
) -> tuple[EvaluationResult, tuple[LabelCurve, ...]]:
    """Train networks with labels from scratch, on the folds of a comparison, for a row of it.

    Args:
        stores: the slides.
        settings: of the comparison.
        assignments: `key=value` of SupervisedSettings.
        with_curve: also from fewer labels, the very ones that the heads of the comparison's label-efficiency curves get.

    Raises:
        SettingsError: if a setting is not known.
        As evaluate_supervised.
    """
    from simtriplet.evaluate.label_curve import DEFAULT_AMOUNTS, DEFAULT_DRAWS, CurveSettings

    with STOP.while_importing():
        from simtriplet.evaluate.supervised_evaluation import evaluate_supervised, supervised_curve

    training = _supervised_settings(assignments)
    where, split = settings.label_options, settings.fold_options
    result = evaluate_supervised(stores, training, **where, **split)
    if not with_curve:
        return result, ()
    curve = CurveSettings("share", DEFAULT_AMOUNTS["share"], DEFAULT_DRAWS["share"], **split)
    return result, (supervised_curve(stores, training, curve, **where),)


def tell_result(out: Path, result: EvaluationResult, baseline: EvaluationResult | None = None) -> None:
    """Print the numbers of an evaluation and write its files, with how far it is from the baseline."""
    from simtriplet.evaluate.paired import compare_paired
    from simtriplet.evaluate.results import write_results

    differences = None if baseline is None else compare_paired(result, baseline)
    _print_result(result, baseline, differences)
    write_results(out, result, baseline=baseline, differences=differences)


def _print_result(
    result: EvaluationResult,
    baseline: EvaluationResult | None,
    differences: Mapping[str, PairedDifference] | None,
) -> None:
    """Print the numbers of an evaluation, per class with their counts, and how far it is from the baseline."""
    results = [result, *([baseline] if baseline is not None else [])]
    names = ("balanced_accuracy", "macro_f1", "macro_auroc")
    header = ("features", "protocol", *(f"{METRIC_TITLES[name]} (95 %)" for name in names), "leakage")
    rows = [
        [one.features, one.settings.protocol, *(interval_cell(one.intervals.get(name)) for name in names), one.leakage]
        for one in results
    ]
    print_table("evaluation", header, rows)
    if baseline is not None and differences is not None:
        print_differences(f"{result.features} - {baseline.features}", differences)
    geometry = [[one.features, *map(" ".join, one.geometry.cells())] for one in results if one.geometry is not None]
    if geometry:
        header = ("features", "retrieval@5 (chance)", "slide leakage (chance)", "effective rank")
        print_table("without a head", header, geometry)
    classes = [
        [
            one.name,
            *(f"{value:.3f}" for value in (one.precision, one.recall, one.f1)),
            "-" if one.auroc is None else f"{one.auroc:.3f}",
            str(one.n_tiles),
            str(one.n_patients),
        ]
        for one in result.metrics.per_class
    ]
    header = ("class", "precision", "recall", "F1", "AUROC", "tiles", "patients")
    print_table(f"classes ({result.features})", header, classes)
