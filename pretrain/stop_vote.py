"""Several processes stop after the same step, whichever of them has a reason to."""

import time

import torch

from simtriplet.pretrain.distributed import World

__all__ = ["OUT_OF_TIME", "StopVote"]

OUT_OF_TIME = 1
"""A reason to stop beside the numbers of SIGINT and SIGTERM, and weaker than these."""

_MOST_STEPS = 10
_MOST_SECONDS = 2.0


class StopVote:
    """Ask all processes for a reason to stop, every ten steps or two seconds, whichever is less.

    A process alone is asked before each step. Asking is one exchange of two numbers, between the hosts where they can, so
    that none of them waits for its GPU.

    Args:
        world: the processes of the run.
        device: where they compute.
    """

    def __init__(self, world: World, device: torch.device) -> None:
        self.world, self.device = world, device
        self._next: int | None = None  # step
        self._asked, self._asked_at = 0, time.monotonic()

    def ask(self, step: int, reason: int, *, is_last: bool) -> int:
        """Return the strongest reason of any process, 0 to go on; the same in all of them.

        Args:
            step: steps done; all processes ask after the same ones.
            reason: this process's: 0, OUT_OF_TIME or the number of a signal.
            is_last: whether there will be no other occasion.
        """
        if self.world.size == 1:
            return reason
        if not is_last and self._next is not None and step < self._next:
            return 0
        strongest, negated = self.world.largest((reason, -self._steps_until_next(step)), self.device)
        self._next = step - negated
        self._asked, self._asked_at = step, time.monotonic()
        return strongest

    def _steps_until_next(self, step: int) -> int:
        """Judge by how long the steps since the last vote took; the first few are slower than those that follow."""
        if step <= self._asked or self._next is None:
            return 1
        seconds = (time.monotonic() - self._asked_at) / (step - self._asked)
        return max(1, min(_MOST_STEPS, int(_MOST_SECONDS / max(seconds, 1e-9))))
