"""Train a SimTriplet encoder on tile stores. Read it from top to bottom: what to train on, one step, the loop, the end."""

import logging
import math
import time
from collections.abc import Callable, Collection, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, NoReturn

from simtriplet.pretrain.backbone import check_backbone
from simtriplet.pretrain.cohort import Cohort
from simtriplet.pretrain.collapse import warn_of_collapse
from simtriplet.pretrain.distributed import World, join_world
from simtriplet.pretrain.export import check_exports
from simtriplet.pretrain.interrupt import DeferredInterrupt
from simtriplet.pretrain.model import ViewOutputs
from simtriplet.pretrain.objective import LossTerms, make_objective
from simtriplet.pretrain.optimiser import set_learning_rate
from simtriplet.pretrain.precision import cpu_threads, float32_rounding, pick_device
from simtriplet.pretrain.result import PretrainResult
from simtriplet.pretrain.run_folder import RunFolder, begin_together
from simtriplet.pretrain.run_parts import RunParts
from simtriplet.pretrain.run_product import write_missing_exports, write_product
from simtriplet.pretrain.settings import PretrainSettings
from simtriplet.pretrain.step_log import StepReport
from simtriplet.pretrain.stop_vote import OUT_OF_TIME, StopVote
from simtriplet.pretrain.tiles import open_tiles, pick_tier
from simtriplet.pretrain.torch_archive import understanding
from simtriplet.wsi.store import TileStore

__all__ = ["PretrainResult", "pretrain"]

logger = logging.getLogger(__name__)

Progress = Callable[[StepReport], None]


def pretrain(
    stores: Sequence[TileStore],
    settings: PretrainSettings,
    out: str | Path,
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
        resume: go on from the last checkpoint; a finished run only writes the exports that it lacks.
        exclude_patients: whose slides are left out, for instance those of the test split.
        progress: called with every report, in the first process.

    Raises:
        TrainingError: if there is nothing to train on, the folder is taken, a loss, gradient or weight is not finite (with
            run.on_nan "skip": in most steps or in the last ones), or z has collapsed.
        NeighbourError: if the objective uses neighbours and a store has no index.
        MissingDependencyError: if TensorBoard events or a form of export are asked for and cannot be written.
        KeyboardInterrupt: on Ctrl-C or SIGTERM, after a checkpoint; or what the caller's own handler of it raises.
    """
    out = Path(out)
    check_exports(settings.run.export)
    if not resume:  # a run that goes on needs the file of its first weights no more
        check_backbone(settings.model, image_size_px=settings.data.image_size_px)
    uses_neighbour = make_objective(settings.objective).uses_neighbour
    cohort = Cohort(
        stores,
        exclude_patients=exclude_patients,
        neighbours=settings.data.neighbours if uses_neighbour else None,
        pair_weights=settings.data.pair_weights,
        similarity_features=settings.data.similarity_features,
    )
    folder, run, threads = RunFolder(out), settings.run, settings.run.threads
    with closing(folder), join_world(run.device) as world, cpu_threads(threads):
        state = begin_together(world, folder, settings, cohort.describe(), resume=resume)
        if state is not None and state["finished"]:
            return _take_finished(world, folder, settings, state)
        device, tier = pick_device(run.device), settings.data.storage
        if tier == "auto":
            tier = pick_tier(cohort.numbering.n_bytes, device=device)
        with (
            float32_rounding(run.tf32, device),
            open_tiles(cohort.numbering, device=device, tier=tier, threads=threads or 4) as source,
        ):
            training = _Run(settings, cohort, source, folder, device, world, state)
            if world.is_first:
                folder.write_settings(settings, {**training.chosen(), "data.storage": tier})
            return training.train(progress)


def _take_finished(
    world: World, folder: RunFolder, settings: PretrainSettings, state: dict[str, Any]
) -> PretrainResult:
    if world.is_first:
        folder.write_settings(settings)
        write_missing_exports(folder, settings.run.export)
    world.tell(None)  # nobody leaves before the files are there
    with understanding(folder.checkpoint):
        return PretrainResult(out=folder.path, encoder=folder.encoder, **state["result"])


class _Run(RunParts):
    """The loop over the steps of a run."""

    def train(self, progress: Progress | None) -> PretrainResult:
        """Do all steps that are left after a checkpoint's, or after none."""
        sizes = f"{len(self.batches.sampler.anchors)} tiles, {self.schedule.total_steps} steps of {self.batch_size}"
        logger.info("%s, %s on %s x %d", sizes, self.place.precision, self.device, self.world.size)
        self.model.train()
        self.log.start_clock()
        with DeferredInterrupt() as interrupt:
            try:
                reason = self._take_steps(interrupt, progress)
            except KeyboardInterrupt:  # the second, impatient one, or the caller's own
                if self.between_steps and not interrupt.number:
                    self._save(finished=False)
                    logger.log(self.warning_level, "interrupted after step %d; resume to go on", self.step)
                raise
            if reason > OUT_OF_TIME:
                self._stop_on_signal(interrupt, reason)
            return self._end()

    def _take_steps(self, interrupt: DeferredInterrupt, progress: Progress | None) -> int:
        """Train to the end, or until there is a reason to stop; returns that, 0 for the end."""
        minutes, last = self.settings.run.max_minutes, self.schedule.total_steps
        deadline = math.inf if minutes is None else time.monotonic() + 60 * minutes
        vote = StopVote(self.world, self.device)
        while True:
            own = interrupt.number or (OUT_OF_TIME if time.monotonic() >= deadline else 0)
            reason = vote.ask(self.step, own, is_last=self.step == last)
            if reason or self.step == last:
                return reason
            self._train_one_step()
            self._after_step(progress)

    def _stop_on_signal(self, interrupt: DeferredInterrupt, number: int) -> NoReturn:
        self._save(finished=False)
        self.world.tell(None)  # torchrun ends all processes when one leaves: not before the file is there
        logger.log(self.warning_level, "interrupted after step %d; resume to go on", self.step)
        interrupt.hand_on(number)

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

        outcome = self.network.updater.step(batch.views, loss_of, measure_gradient=self.times.reports(self.step + 1))
        self.log.add(outcome, lr=lr, waited_s=batch.waited_s)
        self.step += 1
        self.between_steps = True

    def _after_step(self, progress: Progress | None) -> None:
        """Report, measure and save where it is time to; each of these is a CPU-GPU sync point."""
        if not self.times.reports(self.step):
            return
        report = self._report()
        if self.times.ends_epoch(self.step):
            logger.info("epoch %d: loss %.4f, z_std %.4f", report.epoch, report.loss, report.z_std)
            warn_of_collapse(report, self.settings.model.projector_dim, level=self.warning_level)
            start = time.perf_counter()
            self._end_epoch(report)
            self.log.leave_out(time.perf_counter() - start)
        if progress is not None and self.world.is_first:
            progress(report)

    def _end_epoch(self, report: StepReport) -> None:
        epochs_done, place = divmod(self.step, self.times.steps_per_epoch)
        is_last = self.step == self.schedule.total_steps
        is_best = self.monitor.is_due(epochs_done, place, is_last=is_last) and self._measure(report)
        keep = self.times.kept_epoch(self.step)
        if is_best or keep is not None or self.times.saves(self.step):
            self._save(finished=False, is_best=is_best, keep_as_epoch=keep)

    def _measure(self, report: StepReport) -> bool:
        """Write a monitor report; return whether this is the best state of the run so far."""
        measured = self.monitor.measure(self.model, self.describe(), report) if self.world.is_first else None
        measured = self.world.tell(measured)
        assert measured is not None
        self.monitor.begin_anew()
        self.records.add_monitor(measured)
        self.safeguards.check_rank(measured)
        accuracy, healthy = measured.features.knn_accuracy, self.safeguards.is_healthy
        return healthy and self.best.offer(knn_accuracy=accuracy, loss=measured.loss, step=self.step)

    def _report(self) -> StepReport:
        report, bad = self.log.report(step=self.step, epoch=self.times.epochs_begun(self.step))
        self.safeguards.check_losses(self.step, bad=bad, skipped_in_a_row=self.log.skipped_in_a_row)
        self.monitor.add_losses(self.log.losses)
        self.records.add_step(report)
        self.last_loss, self.last_z_std = report.loss, report.z_std
        self.safeguards.check_spread(report)
        return report

    def _settle(self) -> None:
        """Report what is left, and raise on what is not finite: what is written next is always good."""
        if len(self.log):
            self._report()
        self.safeguards.check_weights(self.step, finite=self.network.is_finite())

    def _save(self, *, finished: bool, is_best: bool = False, keep_as_epoch: int | None = None) -> None:
        self._settle()
        if self.world.is_first:
            self.folder.save(self.state(finished), is_best=is_best, keep_as_epoch=keep_as_epoch)
        self.safeguards.last_saved = self.step

    def _end(self) -> PretrainResult:
        """Write the encoder first: a checkpoint that says `finished` promises that it is there."""
        finished = self.step == self.schedule.total_steps
        self._settle()
        if finished:
            self.safeguards.check_end(self.step, skipped=self.log.skipped, skipped_in_a_row=self.log.skipped_in_a_row)
        result = PretrainResult(out=self.folder.path, encoder=self.folder.encoder, **self.result(finished))
        if self.world.is_first:
            write_product(self.folder, self.model.backbone, self.describe(), self.settings, result)
        self._save(finished=finished)
        self.world.tell(None)  # nobody leaves before the files are there
        if not finished:
            minutes = self.settings.run.max_minutes
            logger.log(self.warning_level, "stopped after %s minutes, step %d; resume to go on", minutes, self.step)
        return result
