"""Which checkpoint of a run is the best one: by what labels say of the features, else by the loss."""

import math
from typing import Any

__all__ = ["BestSoFar"]


class BestSoFar:
    """Remember the best measure of a run.

    The accuracy of a vote of nearest neighbours, where tiles have labels: more is better. Else the loss, less is better,
    which says how well the task is solved and not what the features are worth.

    Attributes:
        by: "knn_accuracy" or "loss"; empty while there is none.
        value: the best.
        step: when.
    """

    def __init__(self) -> None:
        self.by, self.value, self.step = "", math.nan, 0

    def offer(self, *, knn_accuracy: float | None, loss: float, step: int) -> bool:
        """Take a measurement; return whether it is the best so far."""
        by = "loss" if knn_accuracy is None else "knn_accuracy"
        value = loss if knn_accuracy is None else knn_accuracy
        if not math.isfinite(value) or (self.by == "knn_accuracy" and by == "loss"):
            return False
        better = value < self.value if by == "loss" else value > self.value
        if self.by == by and not better:
            return False
        self.by, self.value, self.step = by, value, step
        return True

    def state(self) -> dict[str, Any]:
        """Return what a resumed run needs to go on."""
        return {"by": self.by, "value": self.value, "step": self.step} if self.by else {}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a `state()`."""
        if state:
            self.by, self.value, self.step = state["by"], state["value"], state["step"]
