"""The study's numbers as Markdown."""

from collections.abc import Sequence
from typing import Any

_METRIC = "balanced_accuracy"
_BASELINES = {"simsiam": "SimSiam", "supervised": "supervised from scratch"}


def write_markdown(values: dict[str, Any]) -> str:
    """Return the tables of a study: what `write_study` puts into study.json, in words."""
    scale = values["scale"]
    lines = [f"{values['folds']} of {scale['folds']} folds of patients, a seed each; {scale['steps']} steps a run."]
    if values["folds"] < scale["folds"]:
        lines.append("**Cut short**: folds that are not finished are left out.")
    for task, table in values["tasks"].items():
        lines += ["", f"### {task}: {', '.join(table['classes'])}", ""]
        lines += [f"{table['n_tiles']} tiles, {table['n_patients']} patients tested.", "", *_curve_table(table)]
        for baseline, rows in table["against"].items():
            lines += ["", f"Points over {_BASELINES[baseline]}:", "", *_difference_table(rows, table["curves"])]
    if values["encoders"]:
        lines += ["", "### The encoders without a head", "", *_encoder_table(values)]
    if values["purity"]:
        lines += ["", "### Gain from the neighbour by purity of the pairs", "", *_purity_table(values["purity"])]
    if values["remedies"]:
        lines += ["", "### Remedies, gland against stroma", "", *_remedy_table(values["remedies"])]
    return "\n".join(lines) + "\n"


def _curve_table(table: dict[str, Any]) -> list[str]:
    points = next(iter(table["curves"].values()))["points"]
    head = ["encoder", *(f"{point['share']:.0%} ({point['labels']:.0f})" for point in points)]
    rows = [[curve["title"], *(_interval(point[_METRIC]) for point in curve["points"])] for curve in _curves(table)]
    return _table(head, rows)


def _curves(table: dict[str, Any]) -> list[dict[str, Any]]:
    return list(table["curves"].values())


def _difference_table(rows: dict[str, Any], curves: dict[str, Any]) -> list[str]:
    shares = list(next(iter(rows.values())))
    head = ["encoder", *(f"{float(share):.0%}" for share in shares)]
    return _table(head, [[curves[name]["title"], *map(_difference, found.values())] for name, found in rows.items()])


def _encoder_table(values: dict[str, Any]) -> list[str]:
    columns = ("loss", "z_std", "effective_rank", "retrieval", "slide_leakage")
    head = ["encoder", "loss", "spread of z", "effective rank", "retrieval@5", "slide leakage"]
    curves = values["tasks"]["gland"]["curves"]
    rows = [
        [curves[name]["title"], *(f"{found[key]:.3g}" if key in found else "" for key in columns)]
        for name, found in values["encoders"].items()
    ]
    return _table(head, rows)


def _purity_table(rows: Sequence[dict[str, Any]]) -> list[str]:
    head = [
        "tiles",
        "neighbours",
        "purity",
        "by chance",
        "isolated",
        "objective",
        "1 % of labels",
        "10 %",
        "100 %",
        "folds",
    ]
    ordered = sorted(rows, key=lambda row: (row["family"], row["purity"]))
    return _table(
        head,
        [
            [
                f"{row['tile_um']:.0f} um",
                row["title"],
                f"{row['purity']:.2f}",
                f"{row['by_chance']:.2f}",
                f"{row['isolated']:.0%}",
                row["family"],
                *(_difference(row["gain"][share]) for share in ("0.01", "0.1", "1")),
                str(row["folds"]),
            ]
            for row in ordered
        ],
    )


def _remedy_table(rows: Sequence[dict[str, Any]]) -> list[str]:
    shares = ("0.01", "0.1", "1")
    head = [
        "remedy",
        "mends",
        *(f"{float(share):.0%}, gain" for share in shares),
        *(f"{share} %, over {rival}" for rival in ("SimSiam", "from scratch") for share in (1, 100)),
        "folds",
    ]
    return _table(
        head,
        [
            [
                row["title"],
                row["mends"],
                *(_difference(row["over_mended"][share]) for share in shares),
                *(
                    _difference(row[rival][share])
                    for rival in ("over_simsiam", "over_supervised")
                    for share in ("0.01", "1")
                ),
                str(row["folds"]),
            ]
            for row in rows
        ],
    )


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [_line(head), "|" + "---|" * len(head), *map(_line, rows)]


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _interval(value: dict[str, float]) -> str:
    return f"{value['value']:.3f} ({value['low']:.3f} to {value['high']:.3f})"


def _difference(value: dict[str, Any]) -> str:
    points = [100 * value[key] for key in ("difference", "low", "high")]
    p_value = f"p {value['p_value']:.2f}" if value["p_value"] >= 0.01 else "p < 0.01"
    return f"{points[0]:+.1f} ({points[1]:+.1f} to {points[2]:+.1f}), {p_value}"
