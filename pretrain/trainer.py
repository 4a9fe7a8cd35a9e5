"""Train a SimTriplet encoder on tile stores. Read it from top to bottom: what to train on, one step, the loop, the end."""

import logging
import math
import time
from collections.abc import Callable, Collection, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import torch

from simtriplet.pretrain.batches import BatchMaker
from simtriplet.pretrain.best import BestSoFar
from simtriplet.pretrain.checkpoint import restore_rng, rng_state
from simtriplet.pretrain.cohort import Cohort
from simtriplet.pretrain.collapse import warn_of_collapse
from simtriplet.pretrain.distributed import World, join_world
from simtriplet.pretrain.encoder import EncoderInfo
from simtriplet.pretrain.export import check_exports
from simtriplet.pretrain.interrupt import DeferredInterrupt
from simtriplet.pretrain.model import ViewOutputs
from simtriplet.pretrain.network import Network
from simtriplet.pretrain.objective import LossTerms, make_objective
from simtriplet.pretrain.optimiser import set_learning_rate
from simtriplet.pretrain.precision import cpu_threads, float32_rounding, pick_device, pick_precision
from simtriplet.pretrain.regate import RunPlace
from simtriplet.pretrain.result import PretrainResult
from simtriplet.pretrain.run_folder import RunFolder, begin_together
from simtriplet.pretrain.run_monitor import RunMonitor
from simtriplet.pretrain.run_product import describe_encoder, write_product
from simtriplet.pretrain.run_records import RunRecords
from simtriplet.pretrain.safeguards import Safeguards
from simtriplet.pretrain.schedule import plan_schedule
from simtriplet.pretrain.settings import PretrainSettings
from simtriplet.pretrain.step_log import StepLog, StepReport
from simtriplet.pretrain.tiles import TileSource, open_tiles
from simtriplet.pretrain.warm_in import WarmIn
from simtriplet.wsi.errors import TrainingError
from simtriplet.wsi.settings import to_values
from simtriplet.wsi.store import TileStore

__all__ = ["PretrainResult", "pretrain"]

logger = logging.getLogger(__name__)

Progress = Callable[[StepReport], None]


def pretrain(
    stores: Sequence[TileStore],
    settings: PretrainSettings,
    out: Path,
    *,
    resume: bool = False,
    exclude_patients: Collection[str] = (),
    progress: Progress | None = None,
) -> PretrainResult:
    """Train an encoder and write it, its metrics and its checkpoints into `out`.

    Under torchrun, or in a process group, every process calls this; they share each batch, and the first one writes.

    Args:
        stores: of one tile size and resolution, in any order.
        settings: see load_settings.
        out: the run folder; must not hold a run unless `resume` is set.
        resume: go on from the last checkpoint; a finished run returns its result at once.
        exclude_patients: whose slides are left out, for instance those of the test split.
        progress: called with every report, in the first process.

    Raises:
        TrainingError: if there is nothing to train on, the folder is taken, the loss is not finite, or z has collapsed.
        NeighbourError: if the objective uses neighbours and a store has no index.
        MissingDependencyError: if TensorBoard events or a form of export are asked for and cannot be written.
        KeyboardInterrupt: on Ctrl-C or SIGTERM, after a checkpoint.
    """
    check_exports(settings.run.export)
    uses_neighbour = make_objective(settings.objective).uses_neighbour
    cohort = Cohort(
        stores,
        exclude_patients=exclude_patients,
        neighbours=settings.data.neighbours if uses_neighbour else None,
        pair_weights=settings.data.pair_weights,
        similarity_features=settings.data.similarity_features,
    )
    folder, run, threads = RunFolder(out), settings.run, settings.run.threads
    with join_world(run.device) as world, cpu_threads(threads):
        state = begin_together(world, folder, settings, cohort.describe(), resume=resume)
        if state is not None and state["finished"]:
            return PretrainResult(out=out, encoder=folder.encoder, **state["result"])
        device = pick_device(run.device)
        tier = settings.data.storage
        with (
            float32_rounding(run.tf32, device),
            open_tiles(cohort.numbering, device=device, tier=tier, threads=threads or 4) as source,
        ):
            return _Run(settings, cohort, source, folder, device, world).train(state, progress)


class _Run:
    """The state of one run, and the loop over its steps.

    Args:
        settings: of the run.
        cohort: what it trains on.
        source: the cohort's pixels.
        folder: where it writes.
        device: what it runs on.
        world: the processes it is shared by.
    """

    def __init__(
        self,
        settings: PretrainSettings,
        cohort: Cohort,
        source: TileSource,
        folder: RunFolder,
        device: torch.device,
        world: World,
    ) -> None:
        run = settings.run
        self.settings, self.cohort, self.folder, self.device, self.world = settings, cohort, folder, device, world
        precision = pick_precision(run.precision, device)
        layout = torch.channels_last if run.channels_last and device.type == "cuda" else torch.contiguous_format
        self.place = RunPlace(device, precision, layout)
        self.objective = make_objective(settings.objective)
        self.batches = BatchMaker(settings, cohort, source, self.place, world)
        self.steps_per_epoch = self.batches.sampler.steps_per_epoch
        self.batch_size = self.batches.sampler.batch_size
        self.schedule = plan_schedule(settings, steps_per_epoch=self.steps_per_epoch, batch_size=self.batch_size)
        self.warm_in = WarmIn(round(settings.objective.inter_warmup_epochs * self.steps_per_epoch))
        with_predictor = self.objective.uses_predictor
        self.network = Network(settings, self.place, self.schedule, world, with_predictor=with_predictor)
        self.model = self.network.model
        self.log = StepLog(total_steps=self.schedule.total_steps, batch_size=self.batch_size)
        self.monitor = RunMonitor(settings, cohort.numbering, self.place, isolated_share=self._isolated_share())
        self.best = BestSoFar()
        self.safeguards = Safeguards(settings, folder, warmup_steps=self.schedule.warmup_steps, best=self.best)
        self.step = 0  # steps done
        self.between_steps = True  # so that all of the state is of that step
        self.last_report: StepReport | None = None

    def _isolated_share(self) -> float | None:
        return None if self.batches.neighbours is None else self.batches.n_isolated / self.batches.n_tiles

    def train(self, state: dict[str, Any] | None, progress: Progress | None) -> PretrainResult:
        """Do all steps that are left after a checkpoint's, or after none."""
        if state is not None:
            self._restore(state)
        run, last = self.settings.run, self.schedule.total_steps
        self.records = RunRecords(
            self.folder, writes=self.world.is_first, tensorboard=run.tensorboard, after_step=self.step
        )
        deadline = math.inf if run.max_minutes is None else time.monotonic() + 60 * run.max_minutes
        sizes = f"{len(self.batches.sampler.anchors)} tiles, {last} steps of {self.batch_size}"
        logger.info("%s, %s on %s x %d", sizes, self.place.precision, self.device, self.world.size)
        self.model.train()
        with DeferredInterrupt() as interrupt, closing(self.records):
            try:
                while self.step < last and not self._agreed(time.monotonic() >= deadline):
                    self._train_one_step()
                    self._after_step(progress)
                    if self._agreed(interrupt.requested):
                        raise KeyboardInterrupt
            except KeyboardInterrupt:
                if self.between_steps:
                    self._save(finished=False)
                logger.warning("interrupted after step %d; resume to go on", self.step)
                raise
            return self._end()

    def _agreed(self, wish: bool) -> bool:
        """Several processes stop after the same step, and ask each other only where they wait for the device anyway."""
        if self.world.size == 1:
            return wish
        return self.step % self.settings.run.log_every_steps == 0 and self.world.any(wish, self.device)

    def _train_one_step(self) -> None:
        """Gather, make views, forward, loss, backward, update; nothing in here waits for the device."""
        self.between_steps = False
        is_last = self.step + 1 == self.schedule.total_steps
        self.batches.choose_neighbours(self.step, self.model.backbone)
        batch = self.batches.make(self.step, is_last=is_last)
        lr = set_learning_rate(self.network.optimiser, self.schedule, self.step)
        warm_in = self.warm_in.on(self.device, self.step)

        def loss_of(outputs: ViewOutputs, part: slice) -> LossTerms:
            weights = None if batch.pair_weights is None else batch.pair_weights[part]
            return self.objective(outputs, warm_in=warm_in, pair_weights=weights)

        outcome = self.network.updater.step(batch.views, loss_of, measure_gradient=self._reports_after(self.step + 1))
        self.log.add(outcome, lr=lr, waited_s=batch.waited_s)
        self.step += 1
        self.between_steps = True

    def _ends_epoch(self, step: int) -> bool:
        return step % self.steps_per_epoch == 0 or step == self.schedule.total_steps

    def _reports_after(self, step: int) -> bool:
        return self._ends_epoch(step) or step % self.settings.run.log_every_steps == 0

    def _after_step(self, progress: Progress | None) -> None:
        """Report, measure and save where it is time to; each of these is a CPU-GPU sync point."""
        if not self._reports_after(self.step):
            return
        report = self._report()
        if self._ends_epoch(self.step):
            logger.info("epoch %d: loss %.4f, z_std %.4f", report.epoch, report.loss, report.z_std)
            warn_of_collapse(report, self.settings.model.projector_dim)
            start = time.perf_counter()
            self._end_epoch(report)
            self.log.leave_out(time.perf_counter() - start)
        if progress is not None and self.world.is_first:
            progress(report)

    def _end_epoch(self, report: StepReport) -> None:
        run, last = self.settings.run, self.step == self.schedule.total_steps
        epochs_done, place = divmod(self.step, self.steps_per_epoch)
        is_best = self.monitor.is_due(epochs_done, place, is_last=last) and self._measure(report)
        keep = run.keep_every_epochs is not None and place == 0 and epochs_done % run.keep_every_epochs == 0
        if is_best or keep or (place == 0 and epochs_done % run.checkpoint_every_epochs == 0 and not last):
            self._save(finished=False, is_best=is_best, keep_as_epoch=epochs_done if keep else None)

    def _measure(self, report: StepReport) -> bool:
        """Write a monitor report; return whether this is the best state of the run so far."""
        measured = self.monitor.measure(self.model, self._describe(), report) if self.world.is_first else None
        measured = self.world.tell(measured)
        assert measured is not None
        self.monitor.begin_anew()
        self.records.add_monitor(measured)
        accuracy, healthy = measured.features.knn_accuracy, self.safeguards.watch.since is None
        return healthy and self.best.offer(knn_accuracy=accuracy, loss=measured.loss, step=self.step)

    def _report(self) -> StepReport:
        report, bad_step = self.log.report(step=self.step, epoch=self._epochs_begun())
        skipped = self.log.skipped_in_a_row
        self.safeguards.check_losses(self.step, bad_step=bad_step, skipped_in_a_row=skipped)
        self.monitor.add_losses(self.log.losses)
        self.records.add_step(report)
        self.last_report = report
        self.safeguards.check_spread(report)
        return report

    def _epochs_begun(self) -> int:
        return math.ceil(self.step / self.steps_per_epoch)

    def _save(self, *, finished: bool, is_best: bool = False, keep_as_epoch: int | None = None) -> None:
        if len(self.log):
            self._report()  # raises on a loss that is not finite: a checkpoint is always a good one
        if self.world.is_first:
            self.folder.save(self._state(finished), is_best=is_best, keep_as_epoch=keep_as_epoch)
        self.safeguards.last_saved = self.step

    def _state(self, finished: bool) -> dict[str, Any]:
        """Everything that an exact resume needs; tensors and plain values only."""
        neighbours = self.batches.neighbours
        return {
            "settings": to_values(self.settings),
            "stores": self.cohort.describe(),
            "device": self.device.type,
            "step": self.step,
            **self.network.state(),
            "rng": rng_state({"views": self.batches.view_generator}),
            "kept_edges": None if neighbours is None else neighbours.state(),
            "skipped": [self.log.skipped, self.log.skipped_in_a_row],
            "collapse": self.safeguards.watch.state(),
            "monitor": self.monitor.state(),
            "best": self.best.state(),
            "encoder": self._describe().to_values(),
            "finished": finished,
            "result": self._result(finished),
        }

    def _restore(self, state: dict[str, Any]) -> None:
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
        self.log.skipped, self.log.skipped_in_a_row = state["skipped"]
        self.safeguards.watch.restore(state["collapse"])
        self.monitor.restore(state["monitor"])
        self.best.restore(state["best"])
        logger.info("resumed after step %d of %d", self.step, self.schedule.total_steps)

    def _result(self, finished: bool) -> dict[str, Any]:
        report = self.last_report
        return {
            "finished": finished,
            "steps": self.step,
            "epochs": self._epochs_begun(),
            "loss": math.nan if report is None else report.loss,
            "z_std": math.nan if report is None else report.z_std,
            "batch_size": self.batch_size,
            "n_tiles": len(self.batches.sampler.anchors),
            "n_isolated": self.batches.n_isolated,
        }

    def _describe(self) -> EncoderInfo:
        return describe_encoder(self.settings, self.cohort, self.model, steps=self.step)

    def _end(self) -> PretrainResult:
        """Write the encoder first: a checkpoint that says `finished` promises that it is there."""
        finished = self.step == self.schedule.total_steps
        if len(self.log):
            self._report()
        result = PretrainResult(out=self.folder.path, encoder=self.folder.encoder, **self._result(finished))
        if self.world.is_first:
            write_product(self.folder, self.model.backbone, self._describe(), self.settings, result)
        self._save(finished=finished)
        self.world.tell(None)  # nobody leaves before the files are there
        if not finished:
            logger.warning(
                "stopped after %s minutes, step %d; resume to go on", self.settings.run.max_minutes, self.step
            )
        return result
