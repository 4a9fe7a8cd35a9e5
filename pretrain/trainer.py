"""Train a SimTriplet encoder on tile stores. Read it from top to bottom: what to train on, one step, the loop, the end."""

import logging
import math
import time
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

import torch

from simtriplet.pretrain.checkpoint import restore_rng, rng_state
from simtriplet.pretrain.cohort import Cohort
from simtriplet.pretrain.encoder import EncoderInfo, package_versions, save_encoder
from simtriplet.pretrain.interrupt import DeferredInterrupt
from simtriplet.pretrain.model import make_model
from simtriplet.pretrain.objective import make_objective
from simtriplet.pretrain.optimiser import make_optimiser, set_learning_rate
from simtriplet.pretrain.precision import autocast, cpu_threads, make_scaler, pick_device, pick_precision
from simtriplet.pretrain.result import PretrainResult
from simtriplet.pretrain.run_folder import RunFolder
from simtriplet.pretrain.sampler import TripletSampler, seed_of
from simtriplet.pretrain.schedule import Schedule, peak_learning_rate
from simtriplet.pretrain.settings import PretrainSettings
from simtriplet.pretrain.step_log import StepLog, StepReport, warn_of_collapse
from simtriplet.pretrain.tiles import TileSource, open_tiles
from simtriplet.pretrain.views import ViewMaker
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

    Args:
        stores: of one tile size and resolution, in any order.
        settings: see load_settings.
        out: the run folder; must not hold a run unless `resume` is set.
        resume: go on from the last checkpoint; a finished run returns its result at once.
        exclude_patients: whose slides are left out, for instance those of the test split.
        progress: called with every report.

    Raises:
        TrainingError: if there is nothing to train on, the folder is taken, or the loss is not finite.
        NeighbourError: if the objective uses neighbours and a store has no index.
        KeyboardInterrupt: on Ctrl-C or SIGTERM, after a checkpoint.
    """
    uses_neighbour = make_objective(settings.objective).uses_neighbour
    cohort = Cohort(
        stores, exclude_patients=exclude_patients, neighbours=settings.data.neighbours if uses_neighbour else None
    )
    folder = RunFolder(out)
    state = folder.begin(settings, cohort.describe(), resume=resume)
    if state is not None and state["finished"]:
        return PretrainResult(out=out, encoder=folder.encoder, **state["result"])
    device = pick_device(settings.run.device)
    tier, threads = settings.data.storage, settings.run.threads
    with (
        cpu_threads(threads),
        open_tiles(cohort.numbering, device=device, tier=tier, threads=threads or 4) as source,
    ):
        run = _Run(settings, cohort, source, folder, device)
        if state is not None:
            run.restore(state)
        return run.train(progress)


class _Run:
    """The state of one run, and the loop over its steps.

    Args:
        settings: of the run.
        cohort: what it trains on.
        source: the cohort's pixels.
        folder: where it writes.
        device: what it runs on.
    """

    def __init__(
        self, settings: PretrainSettings, cohort: Cohort, source: TileSource, folder: RunFolder, device: torch.device
    ) -> None:
        run = settings.run
        self.settings, self.cohort, self.source, self.folder, self.device = settings, cohort, source, folder, device
        self.precision = pick_precision(run.precision, device)
        self.layout = torch.channels_last if run.channels_last and device.type == "cuda" else torch.contiguous_format
        self.objective = make_objective(settings.objective)
        self.neighbours = cohort.neighbour_draw(source.id_device)
        self.sampler = self._make_sampler()
        self.schedule = self._make_schedule()
        self.views = ViewMaker(settings.views, image_size_px=settings.data.image_size_px)
        self.view_generator = torch.Generator(device).manual_seed(seed_of(run.seed, 0, 2))
        torch.manual_seed(run.seed)  # the weights, and whatever a backbone draws while it trains
        model = make_model(settings.model, with_predictor=self.objective.uses_predictor)
        self.model = model.to(device).to(memory_format=self.layout)
        self.optimiser = make_optimiser(self.model, settings.optimiser, peak_lr=self.schedule.peak)
        self.scaler = make_scaler(device, self.precision)
        self.log = StepLog(total_steps=self.schedule.total_steps, batch_size=self.sampler.batch_size)
        self.step = 0  # steps done
        self.between_steps = True  # so that all of the state is of that step
        self.last_saved: int | None = None
        self.last_report: StepReport | None = None

    def _make_sampler(self) -> TripletSampler:
        """Decide which tiles are anchors: all, or those with a neighbour."""
        run, neighbours = self.settings.run, self.neighbours
        anchors = torch.arange(len(self.cohort.numbering))
        if neighbours is not None and neighbours.n_isolated:
            drops = self.settings.data.isolated == "drop"
            anchors = neighbours.connected_ids if drops else anchors
            what = "are left out" if drops else "use a third view of themselves"
            logger.info("%d of %d tiles have no neighbour and %s", neighbours.n_isolated, len(neighbours.degrees), what)
        return TripletSampler(
            anchors,
            batch_size=run.batch_size,
            seed=run.seed,
            neighbours=neighbours,
            device=self.source.id_device,
        )

    def _make_schedule(self) -> Schedule:
        optimiser, run, per_epoch = self.settings.optimiser, self.settings.run, self.sampler.steps_per_epoch
        total, warmup = run.epochs * per_epoch, round(optimiser.warmup_epochs * per_epoch)
        if run.max_steps is not None and run.max_steps < total:
            total = run.max_steps
            warmup = min(warmup, total // 10)  # counted in epochs it could outlast a run that is counted in steps
        peak = peak_learning_rate(optimiser.base_lr, self.sampler.batch_size)
        return Schedule(peak=peak, warmup_steps=warmup, total_steps=total)

    def train(self, progress: Progress | None) -> PretrainResult:
        """Do all steps that are left."""
        run, last = self.settings.run, self.schedule.total_steps
        deadline = math.inf if run.max_minutes is None else time.monotonic() + 60 * run.max_minutes
        sizes = f"{len(self.sampler.anchors)} tiles, {last} steps of {self.sampler.batch_size}"
        logger.info("%s, %s on %s", sizes, self.precision, self.device)
        self.model.train()
        with DeferredInterrupt() as interrupt:
            try:
                while self.step < last and time.monotonic() < deadline:
                    self._train_one_step()
                    self._after_step(progress)
                    interrupt.raise_if_requested()
            except KeyboardInterrupt:
                if self.between_steps:
                    self._save(finished=False)
                logger.warning("interrupted after step %d; resume to go on", self.step)
                raise
            return self._end()

    def _train_one_step(self) -> None:
        """Gather, make views, forward, loss, backward, update; nothing in here waits for the device."""
        self.between_steps = False
        ids = self.sampler.ids(self.step)  # (v, n)
        tiles = self.source.gather(ids.flatten())  # (v * n, s, s, 3) uint8
        if self.step + 1 < self.schedule.total_steps:
            self.source.prefetch(self.sampler.ids(self.step + 1).flatten())
        with torch.no_grad():
            views = self.views(tiles, self.view_generator).contiguous(memory_format=self.layout)
        lr = set_learning_rate(self.optimiser, self.schedule, self.step)
        with autocast(self.device, self.precision):
            outputs = self.model(views.view(*ids.shape, *views.shape[1:]))  # p and z: v times (n, d)
        losses = self.objective(outputs)
        self.scaler.scale(losses.loss).backward()  # type: ignore[no-untyped-call]
        self.scaler.step(self.optimiser)
        self.scaler.update()
        self.optimiser.zero_grad(set_to_none=True)
        self.log.add(losses, lr=lr, z=outputs.z[0])
        self.step += 1
        self.between_steps = True

    def _after_step(self, progress: Progress | None) -> None:
        """Report and save where it is time to; each of these is a CPU-GPU sync point."""
        run = self.settings.run
        epochs_done, place = divmod(self.step, self.sampler.steps_per_epoch)
        last = self.step == self.schedule.total_steps
        epoch_ends = place == 0 or last
        if epoch_ends or self.step % run.log_every_steps == 0:
            report = self._report()
            if epoch_ends:
                logger.info("epoch %d: loss %.4f, z_std %.4f", report.epoch, report.loss, report.z_std)
                warn_of_collapse(report, self.settings.model.projector_dim)
            if progress is not None:
                progress(report)
        if place == 0 and epochs_done % run.checkpoint_every_epochs == 0 and not last:
            self._save(finished=False)

    def _report(self) -> StepReport:
        report, bad_step = self.log.report(step=self.step, epoch=self._epochs_begun())
        if bad_step is not None:
            kept = f"'{self.folder.checkpoint}' of step {self.last_saved}" if self.last_saved else "none yet"
            raise TrainingError(
                f"loss of step {bad_step}: is not finite; lower optimiser.base_lr or use run.precision=fp32 "
                f"(last good checkpoint: {kept})"
            )
        self.folder.add_metrics(report)
        self.last_report = report
        return report

    def _epochs_begun(self) -> int:
        return math.ceil(self.step / self.sampler.steps_per_epoch)

    def _save(self, *, finished: bool) -> None:
        if len(self.log):
            self._report()  # raises on a loss that is not finite: a checkpoint is always a good one
        self.folder.save(
            {
                "settings": to_values(self.settings),
                "stores": self.cohort.describe(),
                "device": self.device.type,
                "step": self.step,
                "model": self.model.state_dict(),
                "optimiser": self.optimiser.state_dict(),
                "scaler": self.scaler.state_dict(),
                "rng": rng_state({"views": self.view_generator}),
                "finished": finished,
                "result": self._result(finished),
            }
        )
        self.last_saved = self.step

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
        self.model.load_state_dict(state["model"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.scaler.load_state_dict(state["scaler"])
        self.step = self.last_saved = int(state["step"])
        restore_rng(state["rng"], {"views": self.view_generator})
        logger.info("resumed after step %d of %d", self.step, self.schedule.total_steps)

    def _result(self, finished: bool) -> dict[str, Any]:
        report = self.last_report
        return {
            "finished": finished,
            "steps": self.step,
            "epochs": self._epochs_begun(),
            "loss": math.nan if report is None else report.loss,
            "z_std": math.nan if report is None else report.z_std,
            "batch_size": self.sampler.batch_size,
            "n_tiles": len(self.sampler.anchors),
            "n_isolated": 0 if self.neighbours is None else self.neighbours.n_isolated,
        }

    def _end(self) -> PretrainResult:
        """Write the encoder first: a checkpoint that says `finished` promises that it is there."""
        finished = self.step == self.schedule.total_steps
        if len(self.log):
            self._report()
        save_encoder(self.folder.path, self.model.backbone, self._encoder_info())
        self._save(finished=finished)
        if not finished:
            logger.warning(
                "stopped after %s minutes, step %d; resume to go on", self.settings.run.max_minutes, self.step
            )
        return PretrainResult(out=self.folder.path, encoder=self.folder.encoder, **self._result(finished))

    def _encoder_info(self) -> EncoderInfo:
        settings = self.settings
        return EncoderInfo(
            backbone=settings.model.backbone,
            feature_dim=self.model.feature_dim,
            image_size_px=settings.data.image_size_px,
            mpp=self.cohort.numbering.mpp,
            mean=settings.views.mean,
            std=settings.views.std,
            checkpoint_hash="",  # of the file, known when it is written
            patients=self.cohort.patients,
            slides=self.cohort.slides,
            objective=settings.objective.name,
            steps=self.step,
            versions=package_versions(),
        )
