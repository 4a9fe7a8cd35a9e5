"""Which training tiles a draw of labels takes: by class, spread over the patients, less within more."""

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from simtriplet.evaluate.label_curve import CurveKind
from simtriplet.wsi.errors import EvaluationError

__all__ = ["draw_labels", "draw_seeds"]

_Ints = npt.NDArray[np.int64]


def draw_seeds(seed: int, draws: int) -> tuple[int, ...]:
    """Return a seed for each draw, the first ones the same however many there are."""
    return tuple(int(np.random.SeedSequence([seed, number]).generate_state(1)[0]) for number in range(draws))


def draw_labels(
    codes: _Ints,
    patients: npt.NDArray[np.object_],
    *,
    kind: CurveKind,
    amounts: Sequence[float],
    seed: int | Sequence[int],
    classes: Sequence[str] = (),
) -> tuple[_Ints, ...]:
    """Choose the training tiles whose labels may be learnt from, for each amount.

    A class gives its number of tiles (share: that share of its tiles, rounded, at least one). Patients take turns: each
    of a class's patients, in random order, gives one random tile before any gives a second, so that a hundred tiles
    of one patient do not stand for ten patients. One order of turns serves all amounts: the tiles of an amount are
    among those of any larger one.

    Args:
        codes: (m,) class codes of the training tiles.
        patients: (m,) patient of each.
        kind: whether amounts are shares or tiles a class.
        amounts: shares in (0, 1], or whole numbers.
        seed: of the order.
        classes: names for messages, in code order.

    Returns:
        For each amount the places of its tiles, sorted.

    Raises:
        EvaluationError: if a class has fewer tiles than shots are asked for.
    """
    turns = _turns(codes, patients, np.random.default_rng(seed))
    present, sizes = np.unique(codes, return_counts=True)
    drawn = []
    for amount in amounts:
        taken = np.zeros(int(present.max()) + 1, dtype=np.int64)
        for code, size in zip(present.tolist(), sizes.tolist(), strict=True):
            if kind == "shots" and amount > size:
                name = classes[code] if classes else code
                raise EvaluationError(
                    f"class {name!r}: has {size} training tiles in a fold, {amount:g} shots need {amount:g}; "
                    "ask for fewer, label more, or leave the class out"
                )
            taken[code] = amount if kind == "shots" else max(1, math.floor(size * amount + 0.5))
        drawn.append(np.flatnonzero(turns < taken[codes]))
    return tuple(drawn)


def _turns(codes: _Ints, patients: npt.NDArray[np.object_], rng: np.random.Generator) -> _Ints:
    """Return (m,) when each tile is taken within its class, from 0."""
    _, numbers = np.unique(patients.astype(str), return_inverse=True)
    shuffled = rng.permutation(len(codes))
    lots = rng.random((int(codes.max()) + 1, int(numbers.max()) + 1))  # of patients, anew for each class
    turns = np.empty(len(codes), dtype=np.int64)
    for code in np.unique(codes):
        places = shuffled[codes[shuffled] == code]
        rounds = _running_count(numbers[places])
        order = np.lexsort([lots[code, numbers[places]], rounds])
        turns[places[order]] = np.arange(len(places))
    return turns


def _running_count(values: _Ints) -> _Ints:
    """Return how many equal values stand before each."""
    order = np.argsort(values, kind="stable")
    in_order = values[order]
    starts = np.searchsorted(in_order, in_order)
    counts = np.empty(len(values), dtype=np.int64)
    counts[order] = np.arange(len(values)) - starts
    return counts
