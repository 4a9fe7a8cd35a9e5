"""How long a run takes, on what it computes, and how often it reports: the section `run` of the settings."""

from dataclasses import dataclass
from typing import Literal

from simtriplet.pretrain.setting_rules import require

__all__ = [
    "CollapseRule",
    "CompileChoice",
    "CompiledPart",
    "DeviceName",
    "ExportFormat",
    "NanRule",
    "PrecisionName",
    "RunSettings",
    "Switch",
]

PrecisionName = Literal["auto", "bf16", "fp16", "fp32"]
DeviceName = Literal["auto", "cpu", "cuda"]
Switch = Literal["auto", "on", "off"]
CollapseRule = Literal["stop", "warn"]
NanRule = Literal["stop", "skip"]
ExportFormat = Literal["torchscript", "onnx"]
CompileChoice = Literal["auto", "off", "encoder", "step"]
CompiledPart = Literal["off", "encoder", "step"]


_MOST_THREADS = 1024


@dataclass(frozen=True, slots=True)
class RunSettings:
    """How long, on what and how often.

    Attributes:
        epochs: passes over the tiles.
        max_steps: end (and finish the learning-rate schedule) after so many steps where that is sooner, with a warm-up
            of at most a tenth of them; None: never.
        max_minutes: stop after so long with a checkpoint to resume from, mid-schedule; None: never.
        batch_size: triplets a step.
        seed: of the weights, the order, the neighbours and the views.
        precision: of the encoder; auto is bf16 on a GPU that has it and fp32 elsewhere.
        device: auto is cuda where there is one.
        channels_last: memory layout of images in the encoder on a GPU, the faster one on tensor cores; a CPU keeps planes.
        checkpoint_every_epochs: how often checkpoints/last.pt is replaced.
        keep_every_epochs: how often a checkpoint is kept for good; None: never.
        log_every_steps: how often the device is asked for the loss; after the first step and at the end of an epoch it always is.
        monitor_every_epochs: how often the features are measured (and at the end), on tiles fixed by the seed; 0: never.
        monitor_tiles: how many tiles that takes, at most.
        tensorboard: write events for TensorBoard too; auto does where the package tensorboard is installed.
        on_collapse: what follows when z hardly varies for long after the warm-up, or lies on a line: a warning, or the end of
            the run.
        on_nan: what follows a loss or gradient that is not finite: the end, or the step counts for nothing.
        accumulate: micro-batches a step, of batch_size / accumulate triplets each: less memory. Batch normalisation and the
            terms of an objective that compare triplets see one micro-batch at a time.
        activation_checkpointing: keep the inputs of the backbone's blocks only and compute the rest again: less memory for
            about a third more time.
        compile: what torch.compile works on: nothing ("off", or false), the "encoder" (or true), or all that a "step" computes:
            views, encoder, heads and loss, on a GPU as CUDA graphs; "auto" is off until a gain has been measured on a GPU.
        tf32: let fp32 matrix products and convolutions on a GPU round their factors to 10 bits.
        export: forms the encoder is written in besides encoder.safetensors: "torchscript", "onnx".
        threads: CPU threads of torch and of the store reader; None leaves both alone. On a CPU another number may change the last
            bits of a sum.
    """

    epochs: int = 400
    max_steps: int | None = None
    max_minutes: float | None = None
    batch_size: int = 128
    seed: int = 0
    precision: PrecisionName = "auto"
    device: DeviceName = "auto"
    channels_last: bool = True
    checkpoint_every_epochs: int = 5
    keep_every_epochs: int | None = None
    log_every_steps: int = 50
    monitor_every_epochs: int = 10
    monitor_tiles: int = 2000
    tensorboard: Switch = "auto"
    on_collapse: CollapseRule = "stop"
    on_nan: NanRule = "stop"
    accumulate: int = 1
    activation_checkpointing: bool = False
    compile: bool | CompileChoice = "auto"
    tf32: bool = True
    export: tuple[ExportFormat, ...] = ()
    threads: int | None = None

    def __post_init__(self) -> None:
        require(self.batch_size >= 2, "run.batch_size", self.batch_size, "be at least 2 (batch normalisation)")
        require(0 <= self.seed < 2**63, "run.seed", self.seed, "be at least 0")
        for name in ("epochs", "checkpoint_every_epochs", "log_every_steps", "accumulate"):
            require(getattr(self, name) >= 1, f"run.{name}", getattr(self, name), "be at least 1")
        require(self.monitor_every_epochs >= 0, "run.monitor_every_epochs", self.monitor_every_epochs, "be at least 0")
        require(2 <= self.monitor_tiles <= 20_000, "run.monitor_tiles", self.monitor_tiles, "lie in 2..20000")
        divides = self.batch_size % self.accumulate == 0 and self.batch_size >= 2 * self.accumulate
        rule = f"divide run.batch_size ({self.batch_size}) into parts of at least 2"
        require(divides, "run.accumulate", self.accumulate, rule)
        clash = self.compiled != "off" and self.activation_checkpointing
        require(not clash, "run.compile", self.compile, "be off with run.activation_checkpointing")
        for name in ("max_steps", "threads", "keep_every_epochs"):
            value = getattr(self, name)
            require(value is None or value >= 1, f"run.{name}", value, "be at least 1")
        # torch crashes where the system starts no more
        require(self.threads is None or self.threads <= _MOST_THREADS, "run.threads", self.threads, "be at most 1024")
        require(self.max_minutes is None or self.max_minutes > 0, "run.max_minutes", self.max_minutes, "be above 0")

    @property
    def compiled(self) -> CompiledPart:
        """What is compiled; no gain of it has been measured on a GPU yet, so that "auto" is nothing."""
        if isinstance(self.compile, bool):
            return "encoder" if self.compile else "off"
        return "off" if self.compile == "auto" else self.compile
