"""What a run is made of, from its settings; saved and restored together."""

import dataclasses
import logging
import math
from pathlib import Path
from typing import Any

import torch

from simtriplet.pretrain.batches import BatchMaker
from simtriplet.pretrain.best import BestSoFar
from simtriplet.pretrain.checkpoint import restore_rng, rng_state
from simtriplet.pretrain.cohort import Cohort
from simtriplet.pretrain.compiling import make_run_objective
from simtriplet.pretrain.distributed import World
from simtriplet.pretrain.encoder import EncoderInfo
from simtriplet.pretrain.network import Network
from simtriplet.pretrain.precision import pick_precision
from simtriplet.pretrain.regate import RunPlace
from simtriplet.pretrain.run_folder import RunFolder
from simtriplet.pretrain.run_monitor import RunMonitor
from simtriplet.pretrain.run_product import describe_encoder
from simtriplet.pretrain.run_records import RunRecords
from simtriplet.pretrain.safeguards import Safeguards
from simtriplet.pretrain.schedule import plan_schedule
from simtriplet.pretrain.settings import PretrainSettings
from simtriplet.pretrain.step_log import StepLog
from simtriplet.pretrain.tiles import TileSource
from simtriplet.pretrain.timetable import Timetable
from simtriplet.pretrain.torch_archive import understanding
from simtriplet.pretrain.warm_in import WarmIn
from simtriplet.wsi.errors import TrainingError
from simtriplet.wsi.settings import to_values

__all__ = ["RunParts"]

logger = logging.getLogger(__name__)


class RunParts:
    """Everything that a run consists of and remembers; what is done with it is the trainer's.

    Args:
        settings: of the run.
        cohort: what it trains on.
        source: the cohort's pixels.
        folder: where it writes.
        device: what it runs on.
        world: the processes it is shared by.
        state: of the checkpoint that it goes on from, None where it begins.

    Raises:
        TrainingError: if the state was saved on another kind of device, or the batch cannot be shared.
        MissingDependencyError: if TensorBoard events are asked for and cannot be written.
    """

    def __init__(
        self,
        settings: PretrainSettings,
        cohort: Cohort,
        source: TileSource,
        folder: RunFolder,
        device: torch.device,
        world: World,
        state: dict[str, Any] | None,
    ) -> None:
        run = settings.run
        self.settings, self.cohort, self.folder, self.device, self.world = settings, cohort, folder, device, world
        precision = pick_precision(run.precision, device)
        layout = torch.channels_last if run.channels_last and device.type == "cuda" else torch.contiguous_format
        self.place = RunPlace(device, precision, layout)
        self.warning_level = logging.WARNING if world.is_first else logging.DEBUG  # one process says what all do
        self.objective = make_run_objective(settings, device)
        self.batches = BatchMaker(settings, cohort, source, self.place, world)
        steps_per_epoch, self.batch_size = self.batches.sampler.steps_per_epoch, self.batches.sampler.batch_size
        self.schedule = plan_schedule(settings, steps_per_epoch=steps_per_epoch, batch_size=self.batch_size)
        self.times = Timetable(run, steps_per_epoch, self.schedule.total_steps)
        self.warm_in = WarmIn(round(settings.objective.inter_warmup_epochs * steps_per_epoch))
        with_predictor, restored = self.objective.uses_predictor, state is not None
        self.network = Network(
            settings, self.place, self.schedule, world, with_predictor=with_predictor, restored=restored
        )
        self.model = self.network.model
        self.log = StepLog(total_steps=self.schedule.total_steps, batch_size=self.batch_size)
        self.monitor = RunMonitor(settings, cohort.numbering, self.place, isolated_share=self._isolated_share())
        self.best = BestSoFar()
        self.safeguards = Safeguards(
            settings,
            folder,
            schedule=self.schedule,
            best=self.best,
            precision=precision,
            warning_level=self.warning_level,
        )
        self.step = 0  # steps done
        self.between_steps = True  # so that all of the state is of that step
        self.last_loss = self.last_z_std = math.nan
        if state is not None:
            with understanding(self.folder.checkpoint):
                self.restore(state)
        self.records = RunRecords(folder, writes=world.is_first, tensorboard=run.tensorboard, after_step=self.step)

    def _isolated_share(self) -> float | None:
        return None if self.batches.neighbours is None else self.batches.n_isolated / self.batches.n_tiles

    def chosen(self) -> dict[str, str | int]:
        """Return what the run chose where its settings leave that open, by `section.key`."""
        return {
            "run.device": self.device.type,
            "run.precision": self.place.precision,
            "run.compile": self.settings.run.compiled,
            "run.tensorboard": "off" if self.records.events is None else "on",
            "run.threads": torch.get_num_threads(),
            "processes": self.world.size,
        }

    def state(self, finished: bool) -> dict[str, Any]:
        """Return everything that an exact resume needs; tensors and plain values only."""
        neighbours = self.batches.neighbours
        return {
            "settings": to_values(_without_folders(self.settings)),
            "stores": self.cohort.describe(),
            "device": self.device.type,
            "step": self.step,
            **self.network.state(),
            "rng": rng_state({"views": self.batches.view_generator}),
            "kept_edges": None if neighbours is None else neighbours.state(),
            "skipped": [self.log.skipped, self.log.skipped_in_a_row],
            **self.safeguards.state(),
            "monitor": self.monitor.state(),
            "best": self.best.state(),
            "encoder": self.describe().to_values(),
            "finished": finished,
            "result": self.result(finished),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go back to where a checkpoint was saved.

        Raises:
            TrainingError: if it was saved on another kind of device, whose random numbers are others.
        """
        if state["device"] != self.device.type:
            raise TrainingError(
                f"run folder '{self.folder.path}': was begun on {state['device']}, not {self.device.type}; "
                "resume there, or choose another --out"
            )
        self.network.restore(state)
        self.step = self.safeguards.last_saved = int(state["step"])
        restore_rng(state["rng"], {"views": self.batches.view_generator})
        if self.batches.neighbours is not None:
            self.batches.neighbours.restore(state["kept_edges"])
        self.log.skipped, self.log.skipped_in_a_row = map(int, state["skipped"])
        self.safeguards.restore(state)
        self.monitor.restore(state["monitor"])
        self.best.restore(state["best"])
        self.last_loss, self.last_z_std = state["result"]["loss"], state["result"]["z_std"]
        logger.info("resumed after step %d of %d", self.step, self.schedule.total_steps)

    def result(self, finished: bool) -> dict[str, Any]:
        """Return the fields of PretrainResult but for its paths."""
        return {
            "finished": finished,
            "steps": self.step,
            "epochs": self.times.epochs_begun(self.step),
            "loss": self.last_loss,
            "z_std": self.last_z_std,
            "batch_size": self.batch_size,
            "n_tiles": len(self.batches.sampler.anchors),
            "n_isolated": self.batches.n_isolated,
            "skipped_steps": self.log.skipped,
        }

    def describe(self) -> EncoderInfo:
        """Return what the encoder is by now."""
        return describe_encoder(self.settings, self.cohort, self.model, steps=self.step)


def _without_folders(settings: PretrainSettings) -> PretrainSettings:
    """Name the file of the first weights alone: a checkpoint may be passed on, and names no place of this machine."""
    weights = settings.model.weights
    if weights is None:
        return settings
    return dataclasses.replace(settings, model=dataclasses.replace(settings.model, weights=Path(weights.name)))
