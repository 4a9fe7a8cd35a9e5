"""The command `evaluate`: what features, or networks trained with labels, are worth."""

import math
from collections.abc import Collection
from pathlib import Path
from typing import Any

import click

from simtriplet.evaluate.evaluation import evaluate_features
from simtriplet.evaluate.label_curve import CURVE_PROTOCOLS
from simtriplet.evaluate.label_curve_files import write_label_curves
from simtriplet.evaluate.label_efficiency import measure_label_curve
from simtriplet.evaluate.paired import compare_curves
from simtriplet.evaluate.protocol_registry import PROTOCOLS
from simtriplet.evaluate.report import write_report
from simtriplet.evaluate.saved_head import fit_result_head
from simtriplet.evaluate.saved_head import save_head as write_head
from simtriplet.evaluate.training_log import read_loss_curve
from simtriplet.pipelines.command_evaluate_checks import (
    check_head_file,
    check_label_options,
    parse_classes,
    read_test_patients,
    require_features,
)
from simtriplet.pipelines.console import say
from simtriplet.pipelines.model_steps import NETWORK_PROTOCOLS, evaluate_network, tell_result
from simtriplet.pipelines.options import AnyPath, stores_argument
from simtriplet.pipelines.output_hold import check_folder, holding
from simtriplet.pipelines.repeated_warnings import each_warning_once
from simtriplet.pipelines.result_tables import print_label_curves
from simtriplet.wsi.errors import SettingsError, UnknownNameError
from simtriplet.wsi.registry import nearest_name
from simtriplet.wsi.store import open_stores

__all__ = ["evaluate"]


@click.command()
@stores_argument
@click.option("--features", default="simtriplet", show_default=True, help="Name that embed was given.")
@click.option("--baseline", default=None, help="Features to compare with, measured the same way.")
@click.option("--out", required=True, type=AnyPath, help="Folder for results.json, predictions.csv and report.html.")
@click.option("--labels", type=AnyPath, default=None, help="CSV by slide or tile.  [default: the annotations' labels]")
@click.option("--label-column", default="label", show_default=True, help="Column of the classes.")
@click.option("--patient-column", default=None, help="Column of the patients in --labels.  [default: patient_id]")
@click.option(
    "--protocol",
    default="linear",
    show_default=True,
    help="linear, knn or paper on features; few-shot or label-efficiency for a curve over the number of labels; "
    "supervised or finetune for a whole network trained with the labels.",
)
@click.option("--encoder", default=None, help="finetune: what to start from, as for embed.")
@click.option(
    "--save-head", type=AnyPath, default=None, metavar="FILE.json", help="Fit a head on all labels, for predict."
)
@click.option(
    "--amounts",
    default=None,
    metavar="N,N,...",
    help="few-shot: tiles a class; label-efficiency: shares of the training labels."
    "  [default: 1,2,4,8,16; 0.01,0.1,0.25,1]",
)
@click.option(
    "--label-draws",
    type=click.IntRange(1),
    default=None,
    help="Draws of labels for each amount.  [default: few-shot 50, label-efficiency 5]",
)
@click.option(
    "--folds",
    type=click.IntRange(2),
    default=None,
    help="Folds, always by patient.  [default: 5, or as many as the rarest class has patients]",
)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of folds, heads and bootstrap.")
@click.option("--test-patients", type=AnyPath, default=None, help="Text file of patients to test on, instead of folds.")
@click.option(
    "--classes",
    default=None,
    metavar="NAME,NAME,...",
    help="Classes to tell apart; tiles of others are left out.  [default: all]",
)
@click.option("--run", type=AnyPath, default=None, help="Run folder, to show its loss curve in the report.")
@click.option("--report/--no-report", default=True, show_default=True, help="Write report.html.")
@click.option(
    "--set",
    "assignments",
    multiple=True,
    metavar="KEY=VALUE",
    help="supervised, finetune: a setting of the training, such as epochs=10 or backbone=resnet18; may be repeated.",
)
def evaluate(
    stores: tuple[Path, ...],
    features: str,
    baseline: str | None,
    out: Path,
    protocol: str,
    amounts: str | None,
    label_draws: int | None,
    run: Path | None,
    report: bool,
    test_patients: Path | None,
    classes: str | None,
    encoder: str | None,
    save_head: Path | None,
    assignments: tuple[str, ...],
    **options: Any,
) -> None:
    """Measure how well classes can be told apart from the features of STOREs, split by patient.

    few-shot and label-efficiency write label_curves.json and label_curves.csv, and no report. supervised and finetune
    train a network for each fold; with --baseline they are compared with features on the same folds.
    """
    _check_protocol(protocol)
    trains = protocol in NETWORK_PROTOCOLS
    _refuse_idle(protocol, {"--encoder": encoder is not None, "--set": bool(assignments)}, NETWORK_PROTOCOLS)
    _refuse_idle(
        protocol, {"--amounts": amounts is not None, "--label-draws": label_draws is not None}, CURVE_PROTOCOLS
    )
    if save_head is not None and (trains or protocol in CURVE_PROTOCOLS):
        raise SettingsError(
            f"--save-head with protocol {protocol!r}: a head reads features; choose linear, knn or paper"
        )
    _refuse_idle(protocol, {"--run": run is not None}, (*PROTOCOLS, *NETWORK_PROTOCOLS))
    if baseline == features and not trains:
        raise SettingsError(f"--baseline {baseline!r}: is what it would be compared with; name other features")
    check_label_options(options["labels"], options["patient_column"])
    options |= {"test_patients": read_test_patients(test_patients), "classes": parse_classes(classes)}
    opened = open_stores(stores)
    names = [*([] if trains else [features]), *([baseline] if baseline is not None else [])]
    require_features(opened, names)
    check_folder(out)
    if save_head is not None:
        check_head_file(save_head, out)
    if run is not None:
        read_loss_curve(run)  # what is missing is said before the work, not after it
    context = click.get_current_context()
    context.with_resource(each_warning_once())
    context.with_resource(holding(out))
    if protocol in CURVE_PROTOCOLS:
        learnt = {"amounts": _parse_amounts(amounts), "draws": label_draws, **options}
        curves = [measure_label_curve(opened, name, kind=CURVE_PROTOCOLS[protocol], **learnt) for name in names]
        differences = [compare_curves(curves[0], other) for other in curves[1:]]
        write_label_curves(out, curves, differences=differences)
        print_label_curves(curves, differences)
        return
    if trains:
        result = evaluate_network(opened, protocol, encoder, assignments, **options)
    else:
        result = evaluate_features(opened, features, protocol=protocol, **options)
    other = None
    if baseline is not None:
        other = evaluate_features(opened, baseline, protocol="linear" if trains else protocol, **options)
    tell_result(out, result, other)
    if save_head is not None:
        say(f"head: {write_head(save_head, fit_result_head(result))}")
    if report:
        say(f"report: {write_report(out, result=result, baseline=other, stores=opened, run=run)}")


def _check_protocol(protocol: str) -> None:
    known = (*PROTOCOLS, *CURVE_PROTOCOLS, *NETWORK_PROTOCOLS)
    if protocol not in known:
        raise UnknownNameError(
            f"protocol {protocol!r}: is not known{nearest_name(protocol, known)}; known are {', '.join(known)}"
        )


def _refuse_idle(protocol: str, given: dict[str, bool], protocols: Collection[str]) -> None:
    """An option that would do nothing is a misunderstanding."""
    idle = [name for name, is_given in given.items() if is_given]
    if idle and protocol not in protocols:
        raise SettingsError(
            f"{' and '.join(idle)} with protocol {protocol!r}: only for {' and '.join(protocols)}; "
            "leave it out or choose one of these"
        )


def _parse_amounts(text: str | None) -> tuple[float, ...] | None:
    if text is None:
        return None
    try:
        amounts = tuple(float(part) for part in text.split(","))
        if not all(map(math.isfinite, amounts)):
            raise ValueError("not finite")
    except ValueError as error:
        raise SettingsError(f"--amounts {text!r}: must be numbers with commas between; pass 1,2,4") from error
    return amounts
