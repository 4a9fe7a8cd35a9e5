"""Run an encoder over a store's tiles and keep the features in its table."""

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from simtriplet.evaluate.feature_array import check_feature_name, claim_features, remove_feature_leftovers
from simtriplet.pretrain.encoder import Encoder
from simtriplet.pretrain.precision import pick_precision
from simtriplet.pretrain.settings import PrecisionName
from simtriplet.wsi.errors import EvaluationError, SettingsError, StoreExistsError
from simtriplet.wsi.store import TileStore

__all__ = ["EmbedSummary", "Existing", "embed_store", "encoder_attributes"]

Existing = Literal["skip", "replace", "error"]

MPP_WARNING = 0.05
"""Above this relative difference the tiles look other than those trained on, though features still make sense."""

MPP_LIMIT = 2.0
"""Beyond this factor nuclei have the size of other structures: an error, because no result would mean anything."""

_CPU_BATCH = 32
"""Tiles a CPU takes at once, whose activations then stay in its caches: ResNet-50 at 128 px on one core, 52 tiles/s, and 37
with 256.
"""

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class EmbedSummary:
    """What `embed` prints for one store.

    Attributes:
        slide_id: the slide.
        name: the features' name.
        n_tiles: rows.
        feature_dim: columns.
        seconds: time taken; 0 where skipped.
        skipped: the same encoder's features of the same tiles were there.
    """

    slide_id: str
    name: str
    n_tiles: int
    feature_dim: int
    seconds: float
    skipped: bool


def embed_store(
    store: TileStore,
    encoder: Encoder,
    *,
    name: str,
    batch_size: int = 256,
    device: str = "auto",
    precision: PrecisionName = "auto",
    existing: Existing = "replace",
    progress: Callable[[int], None] | None = None,
) -> EmbedSummary:
    """Embed all tiles of a store into `obsm/X_<name>`, (n, d) float32.

    The next batch is read while the encoder works on the present one.

    Args:
        store: the tiles.
        encoder: maps tiles to features.
        name: letters, digits, `_`, `.` and `-`.
        batch_size: tiles per forward pass, at most; a CPU takes up to 32.
        device: a torch device, or `auto`: the GPU where there is one.
        precision: of the network; `auto` is bf16 on a GPU that has it and fp32 elsewhere.
        existing: what to do with features of this name: `skip` keeps those this encoder made of these tiles at this size
            and precision, so that an interrupted job goes on store by store, and replaces all others; `error` keeps any.
        progress: called with the number of tiles done since the last call.

    Raises:
        SettingsError: if the name, the batch size or the device is not valid.
        StoreError: if the store cannot be read or written; StoreExistsError for `existing="error"`.
        EvaluationError: if the store's resolution is over twice or under half the encoder's, features overflow, or a batch
            does not fit into memory.
    """
    check_feature_name(name)
    if batch_size < 1:
        raise SettingsError(f"batch size {batch_size}: must be at least 1; pass a larger one")
    if existing == "error" and store.features_exist(name):
        raise StoreExistsError(
            f"store '{store.path.name}': has features {name!r}; choose another --name or --existing replace"
        )
    place = _resolve_device(device)
    used = pick_precision(precision, place)
    wanted = encoder_attributes(encoder, used)
    found = store.feature_attributes(name) if existing == "skip" and store.features_exist(name) else {}
    if _is_current(store, found, wanted):
        remove_feature_leftovers(store, name)
        return EmbedSummary(store.slide_id, name, len(store), encoder.info.feature_dim, 0.0, skipped=True)
    _check_mpp(store, encoder)
    if found.get("encoder_hash") not in (None, wanted["encoder_hash"]):
        _logger.warning(
            "store '%s': features %r are of another encoder and are replaced; give these another name to keep both",
            store.path.name,
            name,
        )
    started = time.perf_counter()
    with claim_features(store, name) as claimed:
        features = _embed(store, encoder, place, precision=used, batch_size=batch_size, progress=progress)
        claimed.write(features, wanted)
    seconds = time.perf_counter() - started
    return EmbedSummary(store.slide_id, name, len(store), features.shape[1], seconds, skipped=False)


def _embed(
    store: TileStore,
    encoder: Encoder,
    place: torch.device,
    *,
    precision: PrecisionName,
    batch_size: int,
    progress: Callable[[int], None] | None,
) -> npt.NDArray[np.float32]:
    encoder.to(memory_format=torch.channels_last).to(place)  # as tiles lie; ResNet-18 on a CPU: 7 % more tiles
    try:
        features = _forward(store, encoder, batch_size=batch_size, precision=precision, progress=progress)
    except RuntimeError as error:
        if not _lacks_memory(error):
            raise
        raise EvaluationError(
            f"slide {store.slide_id!r}: {batch_size} images of {encoder.info.image_size_px} px do not fit into the memory of "
            f"{place}; pass a smaller --batch-size, or an encoder of smaller images"
        ) from error
    if not np.isfinite(features).all():
        raise EvaluationError(
            f"slide {store.slide_id!r}: features are not finite in {precision}; use --precision fp32 or another encoder"
        )
    return features


def _lacks_memory(error: RuntimeError) -> bool:
    """Tell what a CPU says of memory, for which it has no error of its own, and a GPU."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def _is_current(store: TileStore, found: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
    """Tell whether the features of which `found` is kept are what embedding again would give, up to rounding."""
    # networks of one hash may look at images of different size; the rest of the record follows from the hash
    same = all(found.get(key) == wanted[key] for key in ("encoder_hash", "image_size_px", "precision"))
    return same and found.get("tiles_id") == store.attributes["tiles_id"]


def _check_mpp(store: TileStore, encoder: Encoder) -> None:
    """Compare what the network sees: tiles are resized to its images, so their size counts as much as their mpp."""
    info = encoder.info
    trained, shown = info.mpp, store.mpp
    advice = f"tile with --mpp {trained:g}" if trained is not None else ""
    if info.image_mpp is not None:
        trained, shown = info.image_mpp, store.mpp * store.size_px / info.image_size_px
        advice = f"tile with --mpp {info.mpp:g} --size {info.tile_size_px}"
    if trained is None:
        return  # random or natural-image weights have no resolution
    factor = max(shown / trained, trained / shown)
    what = (
        f"slide {store.slide_id!r}: its tiles are seen at {shown:.3g} um/px, the encoder was trained at {trained:.3g}"
    )
    if factor > MPP_LIMIT:
        raise EvaluationError(f"{what}: must be within a factor of {MPP_LIMIT:g}; {advice}")
    if factor > 1 + MPP_WARNING:
        _logger.warning("%s; features may be poor, %s", what, advice)


def _resolve_device(device: str) -> torch.device:
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        place = torch.device(device)
    except RuntimeError as error:
        raise SettingsError(f"device {device!r}: is not a torch device; pass auto, cpu or cuda") from error
    if place.type not in ("cpu", "cuda"):
        raise SettingsError(f"device {device!r}: is not supported; pass auto, cpu or cuda")
    if place.type == "cuda" and (place.index or 0) >= torch.cuda.device_count() > 0:
        raise SettingsError(f"device {device!r}: this machine has {torch.cuda.device_count()}; pass a lower number")
    if place.type == "cuda" and not torch.cuda.is_available():
        raise SettingsError(f"device {device!r}: no CUDA device is available; pass auto or cpu")
    return place


def _forward(
    store: TileStore,
    encoder: Encoder,
    *,
    batch_size: int,
    precision: PrecisionName,
    progress: Callable[[int], None] | None,
) -> npt.NDArray[np.float32]:
    features = np.empty((len(store), encoder.info.feature_dim), np.float32)
    step = batch_size if encoder.device.type == "cuda" else min(batch_size, _CPU_BATCH)
    start = 0
    for found in _one_behind(
        encoder.embed(tiles, precision=precision) for tiles in _read_ahead(store, step, encoder.device)
    ):
        stop = start + len(found)
        features[start:stop] = found
        if progress is not None:
            progress(stop - start)
        start = stop
    return features


def _one_behind(batches: Iterable[Tensor]) -> Iterator[npt.NDArray[np.float32]]:
    """Copy results to the host while the device works on the next batch."""
    waiting: list[tuple[Tensor, torch.cuda.Event | None]] = []
    for batch in batches:
        copied = batch.to("cpu", non_blocking=True)  # from a GPU into pinned memory
        event = torch.cuda.Event() if batch.is_cuda else None  # type: ignore[no-untyped-call]
        if event is not None:
            event.record(torch.cuda.current_stream(batch.device))
        waiting.append((copied, event))
        if len(waiting) > 1:
            yield _arrived(*waiting.pop(0))
    for one in waiting:
        yield _arrived(*one)


def _arrived(batch: Tensor, event: torch.cuda.Event | None) -> npt.NDArray[np.float32]:
    if event is not None:
        event.synchronize()
    return np.asarray(batch.numpy(), dtype=np.float32)


def _read_ahead(store: TileStore, batch_size: int, device: torch.device) -> Iterator[Tensor]:
    """Yield (b, s, s, 3) uint8 batches on the device in storage order, reading one ahead in a thread."""

    def read(batch: npt.NDArray[np.int64]) -> Tensor:
        shape = (len(batch), store.size_px, store.size_px, 3)
        # only from pinned memory does a GPU fetch while it computes; numpy's is in huge pages
        pixels = (
            torch.empty(shape, dtype=torch.uint8, pin_memory=True)
            if on_gpu
            else torch.from_numpy(np.empty(shape, np.uint8))
        )
        store.images.read(batch, out=pixels.numpy())
        return pixels

    on_gpu = device.type == "cuda"
    batches = [np.arange(start, min(start + batch_size, len(store))) for start in range(0, len(store), batch_size)]
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="read-tiles") as reader:
        following = reader.submit(read, batches[0]) if batches else None
        for batch in [*batches[1:], None]:
            present, following = following, reader.submit(read, batch) if batch is not None else None
            if present is not None:
                yield present.result().to(device, non_blocking=True)


def encoder_attributes(encoder: Encoder, precision: str) -> dict[str, Any]:
    """Return what is kept beside features of the encoder that made them."""
    info = encoder.info
    return {
        "encoder_hash": info.checkpoint_hash,
        "backbone": info.backbone,
        "objective": info.objective,
        "steps": info.steps,
        "mpp": info.mpp,
        "image_size_px": info.image_size_px,
        "precision": precision,
        "pretraining_patients": list(info.patients),
        "pretraining_slides": list(info.slides),
    }
