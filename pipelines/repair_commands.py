"""The commands that make the damaged parts of a store again, as a person can run them."""

import csv
import io
import shlex
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from simtriplet.wsi.repair import RepairPlan
from simtriplet.wsi.tile_request import slide_id_of

__all__ = ["RepairSources", "repair_lines"]

_PROGRAM = "simtriplet"
_ASKED = {"mpp", "size_px", "min_tissue", "edge", "mpp_tolerance"}
_MANIFEST_COLUMNS = ("path", "slide_id", "patient_id", "label")


class RepairSources(NamedTuple):
    """What a store does not say, as it keeps no paths.

    Attributes:
        slides: slide id to file.
        annotations: file or folder, None where it was not given.
        encoders: SHA-256 of an encoder's weights to what `embed` takes for it.
    """

    slides: Mapping[str, Path]
    annotations: Path | None = None
    encoders: Mapping[str, str] = MappingProxyType({})


def repair_lines(store: Path, plan: RepairPlan, sources: RepairSources) -> list[str]:
    """Return shell commands, in the order in which they have to be run; comments begin with `#`."""
    lines = _tile_lines(store, plan, sources) if plan.tiles else []
    similar = {name: params for name, params in plan.indices.items() if params and "min_similarity" in params}
    for name, params in plan.indices.items():
        lines += [] if name in similar else _index_lines(store, name, params, sources)
    for name, record in plan.features.items():
        if "imported_from" in record:
            lines += _import_lines(store, plan, sources, "--existing", "skip", features=(name, record["imported_from"]))
        else:
            lines += _embed_lines(store, name, record, sources)
    for name, params in similar.items():  # these compare the features
        lines += _index_lines(store, name, params, sources)
    return lines


def _tile_lines(store: Path, plan: RepairPlan, sources: RepairSources) -> list[str]:
    record = plan.made_from
    if record is not None and record["tiling"].get("grid") == "given":
        return _import_lines(store, plan, sources, "--existing", "replace")
    if record is None or not set(record["tiling"].get("asked") or ()) >= _ASKED:
        return [
            f"# tile slide {plan.slide_id} as it was tiled before; the store has lost how",
            _join("tile", "SLIDE", "--out", store.parent, "--existing", "replace"),
        ]
    lines, given = _slide_lines(store, plan, record["slide"], sources)
    told, labels = _annotation_lines(record, sources)
    options = [*_tile_options(record, plan), *labels]
    return [*lines, *told, _join("tile", given, "--out", store.parent, "--existing", "replace", *options)]


def _import_lines(
    store: Path, plan: RepairPlan, sources: RepairSources, *existing: str, features: tuple[str, str] | None = None
) -> list[str]:
    """Return the `import` that makes the tiles again, or with `features` (their name and file) adds those to what is there."""
    record: Mapping[str, Any] = plan.made_from or {"slide": {}, "tiling": {}}
    file = str((record["tiling"].get("coordinates") or {}).get("file") or "not known any more")
    lines, given = _slide_lines(store, plan, record["slide"], sources)
    told, options = _annotation_lines(record, sources)
    options += _import_options(record)
    lines += [f"# COORDINATES is the file of the other program; its name was {file}", *told]
    if features is not None:
        name, source = features
        options += ["--features", name]
        if source != file:
            lines.append(f"# FEATURES is the folder of {source}")
            options += ["--feature-files", "FEATURES"]
    return [*lines, _join("import", "COORDINATES", "--slide", given, "--out", store.parent, *existing, *options)]


def _import_options(record: Mapping[str, Any]) -> list[object]:
    asked = record["tiling"].get("asked") or {}
    names = ("codec", "jpeg_quality", "reader")
    options: list[object] = [
        word for name in names if name in asked for word in (f"--{name.replace('_', '-')}", asked[name])
    ]
    options += ["--slide-mpp", record["slide"]["mpp"]] if record["slide"].get("mpp_source") == "option" else []
    return options + _label_options(asked.get("labels") or {})


def _slide_lines(
    store: Path, plan: RepairPlan, slide: Mapping[str, Any], sources: RepairSources
) -> tuple[list[str], Path | str]:
    """Return what to do before, and the slide file or the manifest that says whose slide it is."""
    file = sources.slides.get(plan.slide_id)
    lines = [] if file else [f"# SLIDE is the file of slide {plan.slide_id}; pass --slides to have it filled in"]
    given: Path | str = file.absolute() if file else "SLIDE"
    manifest = _manifest(plan.slide_id, slide, given)
    if manifest is None:
        return lines, given
    table = store.with_name(f"{plan.slide_id}.repair.csv")
    rows = shlex.join(["printf", "%s\\n", *manifest])
    return [*lines, f"{rows} > {shlex.quote(str(table))}"], table


def _annotation_lines(record: Mapping[str, Any], sources: RepairSources) -> tuple[list[str], list[object]]:
    if not record["tiling"].get("labelled"):
        return [], []
    lines = [] if sources.annotations else ["# ANNOTATIONS is their file or folder; pass --annotations"]
    return lines, ["--annotations", sources.annotations or "ANNOTATIONS"]


def _manifest(slide_id: str, slide: Mapping[str, Any], file: Path | str) -> list[str] | None:
    """Return the rows of a manifest, None where the file alone says as much."""
    named = (slide.get("patient_id") or "", slide.get("label") or "")
    if not any(named) and slide_id == slide_id_of(Path(file)):
        return None
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([_MANIFEST_COLUMNS, (str(file), slide_id, *named)])
    return text.getvalue().splitlines()


def _tile_options(record: Mapping[str, Any], plan: RepairPlan) -> list[object]:
    tiling, tissue, asked = record["tiling"], record["tissue"], record["tiling"]["asked"]
    native = tiling.get("grid") == "native"
    options: list[object] = ["--level", asked["level"]] if asked.get("level") is not None else ["--mpp", asked["mpp"]]
    if native:
        options += ["--grid", "native"]
    else:
        options += ["--size", asked["size_px"]]
        options += ["--stride", asked["stride_px"]] if asked.get("stride_px") is not None else []
        options += ["--upsample"] if asked.get("upsample") else []
        options += ["--codec", tiling.get("codec", "none")]
        options += ["--jpeg-quality", plan.jpeg_quality] if plan.jpeg_quality is not None else []
    options += ["--min-tissue", asked["min_tissue"], "--edge", asked["edge"], "--mpp-tolerance", asked["mpp_tolerance"]]
    for mpp in asked.get("context_mpp", ()):
        options += ["--context-mpp", mpp]
    options += ["--tissue", tissue.get("detector", "otsu"), "--min-region-um2", tissue.get("min_region_um2")]
    options += ["--max-hole-um2", tissue.get("max_hole_um2"), "--reader", tiling.get("reader", "auto")]
    for name, value in (tiling.get("quality") or {}).items():
        options += [] if value is None else [f"--{name.replace('_', '-')}", value]
    options += ["--slide-mpp", record["slide"]["mpp"]] if record["slide"].get("mpp_source") == "option" else []
    return options + _label_options(tiling.get("labels") or {})


def _label_options(labels: Mapping[str, Any]) -> list[object]:
    options: list[object] = ["--min-label-cover", labels["min_cover"]] if "min_cover" in labels else []
    return options + (["--background", labels["background"]] if labels.get("background") else [])


def _index_lines(store: Path, name: str, params: Mapping[str, Any] | None, sources: RepairSources) -> list[str]:
    options: list[object] = ["--name", name]
    if params is None:
        told = f"# the rule of index {name} is lost: this builds the default one, add --rule if it was another"
        return [told, _join("index", store, *options)]
    options += ["--rule", params["rule"]]
    radius = params.get("outer_um", params.get("radius_um"))
    values = {"connectivity": "connectivity", "inner_um": "inner-um", "k": "k", "min_tissue": "min-tissue"}
    values |= {"similar_to": "similar-to", "min_similarity": "min-similarity"}
    for key, option in values.items():
        options += [f"--{option}", params[key]] if key in params else []
    options += ["--radius-um", radius] if radius is not None else []
    options += ["--allow-overlap"] if params.get("allow_overlap") else []
    options += [] if params.get("same_tissue") else ["--any-tissue"]
    lines = []
    if "border_file" in params:
        options += ["--annotations", sources.annotations or "ANNOTATIONS"]
        lines += [] if sources.annotations else ["# ANNOTATIONS is their file or folder; pass --annotations"]
    return [*lines, _join("index", store, *options)]


def _embed_lines(store: Path, name: str, record: Mapping[str, Any], sources: RepairSources) -> list[str]:
    made_by = str(record.get("encoder_hash", ""))
    encoder, lines = sources.encoders.get(made_by), []
    if record.get("objective") == "random":  # whose weights do not say the size of their images
        encoder = f"random:{record['backbone']}:{record['image_size_px']}"
    if encoder is None and not record and len(sources.encoders) == 1:  # the record itself is what was damaged
        (encoder,) = sources.encoders.values()
        lines = [f"# which encoder the features {name} were of is lost: this takes the one that was given"]
    if encoder is None:
        known = made_by or "not known, or not ours"
        lines = [f"# ENCODER is the one whose weights have the SHA-256 {known}; pass --encoder to have it filled in"]
    options: list[object] = ["--precision", record["precision"]] if record.get("precision") else []
    options = ["--encoder", encoder or "ENCODER", "--name", name, *options, "--existing", "replace"]
    return [*lines, _join("embed", store, *options)]


def _join(*words: object) -> str:
    return shlex.join([_PROGRAM, *map(str, words)])
