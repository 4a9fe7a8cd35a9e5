"""One part of a step through torch.compile."""

import functools
import warnings
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch

from simtriplet.wsi.errors import TrainingError

__all__ = ["begin_graphs", "compile_part"]

P = ParamSpec("P")
R = TypeVar("R")


def compile_part(part: Callable[P, R], *, mode: str | None) -> Callable[P, R]:
    """Return what compiles `part` when it is first called, for inputs of one shape, and runs it from then on.

    Args:
        part: of a step.
        mode: of torch.compile; "reduce-overhead" makes CUDA graphs, whose outputs the next step writes over.

    The result raises a TrainingError if it cannot be compiled.
    """
    compiled = torch.compile(part, dynamic=False, mode=mode)

    @functools.wraps(part)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        with warnings.catch_warnings():
            # While it compiles, torch looks for the gradient of every input, and warns of those that other parts made.
            warnings.filterwarnings("ignore", message="The .grad attribute of a Tensor", category=UserWarning)
            try:
                return compiled(*args, **kwargs)
            except torch._dynamo.exc.TorchDynamoException as error:
                reason = str(error).strip().partition("\n")[0]
                raise TrainingError(
                    f"torch.compile: failed ({reason}); pass run.compile=off, or install a C++ compiler where it lacks one"
                ) from error

    return call


def begin_graphs(mode: str | None) -> None:
    """Say that CUDA graphs, where there are any, may write over what earlier ones gave."""
    if mode == "reduce-overhead":
        torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
