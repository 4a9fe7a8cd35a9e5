"""Which gates a user asks for, and the gates of one store that follow."""

import hashlib
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from simtriplet.wsi.adjacency import Adjacency
from simtriplet.wsi.errors import NeighbourError
from simtriplet.wsi.gates import MinTissueGate, PairGate, SameTissueGate
from simtriplet.wsi.reach import exists, is_folder
from simtriplet.wsi.similarity_gate import SimilarityGate
from simtriplet.wsi.store import TileStore

__all__ = ["GateSpec"]

_log = logging.getLogger(__name__)
_CLASS_COVER = 0.5


@dataclass(frozen=True, slots=True)
class GateSpec:
    """What a pair of tiles must fulfil besides the rule.

    Attributes:
        same_tissue: both lie in one tissue region.
        min_tissue: least share of tissue on both, in [0, 1]; None for no such gate.
        annotations: no border drawn in this file, or in `<slide_id>.geojson` (.xml, .csv) of this folder, lies between their
            centres, and the classes that cover at least half of each do not differ (see BorderGate).
        similar_to: name of features in the store, with or without the leading `X_`.
        min_similarity: quantile of those features' similarity over the candidate pairs, in [0, 1), that a pair must reach.

    Raises:
        NeighbourError: if a value is out of range, or one of the last two is given without the other.
    """

    same_tissue: bool = True
    min_tissue: float | None = None
    annotations: Path | None = None
    similar_to: str | None = None
    min_similarity: float | None = None

    def __post_init__(self) -> None:
        if self.min_tissue is not None and not 0 <= self.min_tissue <= 1:
            raise NeighbourError(f"minimum tissue {self.min_tissue}: must lie in 0..1; pass a fraction")
        if (self.similar_to is None) != (self.min_similarity is None):
            missing = "--min-similarity" if self.min_similarity is None else "--similar-to"
            raise NeighbourError(f"similarity gate: needs features and a quantile; pass {missing} too")
        if self.min_similarity is not None and not 0 <= self.min_similarity < 1:
            raise NeighbourError(
                f"minimum similarity {self.min_similarity}: is a quantile and must lie in 0..1, below 1; pass a fraction"
            )

    @property
    def features(self) -> str | None:
        """Name of the features as `embed` was given it."""
        return None if self.similar_to is None else self.similar_to.removeprefix("X_")

    def open_gates(self, store: TileStore) -> list[PairGate]:
        """Return the gates that look at each pair alone, that is all but the similarity gate.

        Raises:
            AnnotationError: if the annotation file cannot be understood.
            NeighbourError: if the annotations do not exist.
        """
        gates: list[PairGate] = []
        if self.same_tissue:
            gates.append(SameTissueGate(store.numbers("tissue_id")))
        if self.min_tissue is not None:
            gates.append(MinTissueGate(store.numbers("tissue_fraction"), self.min_tissue))
        if self.annotations is not None:
            gates.append(_open_border_gate(store, self.annotations))
        return gates

    def open_similarity_gate(self, store: TileStore, candidates: Adjacency) -> SimilarityGate | None:
        """Return the gate whose quantile is of these candidates, None where none was asked for.

        Raises:
            StoreError: if the store has no such features, or they are of older tiles.
            NeighbourError: if they are not finite.
        """
        if self.features is None or self.min_similarity is None:
            return None
        return SimilarityGate(store.features(self.features), candidates, self.min_similarity)

    def record(self, store: TileStore, gates: list[PairGate]) -> dict[str, Any]:
        """Return what an index of this store remembers of the gates; equal records mean equal pairs."""
        params: dict[str, Any] = {}
        for gate in gates:
            params.update(gate.record())
        if self.min_similarity is not None:
            params.update(self._features_record(store), min_similarity=self.min_similarity)
        return params

    def _features_record(self, store: TileStore) -> dict[str, Any]:
        name = self.features or ""
        if not store.features_exist(name):
            known = ", ".join(store.feature_names()) or "none"
            raise NeighbourError(
                f"store '{store.path.name}': has no features {name!r} (known: {known}); run simtriplet embed first"
            )
        return {"similar_to": f"X_{name}", "similar_to_encoder": store.features_id(name)}


def _open_border_gate(store: TileStore, annotations: Path) -> PairGate:
    from simtriplet.wsi.annotation import label_tiles
    from simtriplet.wsi.annotation_file import find_annotation, read_annotations
    from simtriplet.wsi.border_gate import BorderGate

    if not exists(annotations):
        raise NeighbourError(
            f"annotations '{annotations}': do not exist; pass a folder of <slide_id>.geojson, or a file"
        )
    file = find_annotation(annotations, store.slide_id) if is_folder(annotations) else annotations
    if file is None:
        _log.warning("slide %r has no annotation in '%s': no border gates its pairs", store.slide_id, annotations)
        return BorderGate((), store.centres())
    regions = read_annotations(file)
    source = {"border_file": file.name, "border_sha256": hashlib.sha256(file.read_bytes()).hexdigest()}
    labels = label_tiles(regions, store.base_xy(), store.base_size_px, min_cover=_CLASS_COVER)
    return BorderGate(regions, store.centres(), classes=labels.codes, source=source)
