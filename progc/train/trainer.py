"""The trainer: runs stages one after another with a boundary between them, and saves checkpoints to resume from.

It knows no pass: `progc.stages` provides the stages. Everything it computes depends on the step, the seed and what a
checkpoint holds, so a run that was killed resumes as if it had not been.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.optim import Optimizer

from progc.checkpoints import Saver, load
from progc.data.loading import steps, steps_per_epoch
from progc.data.staged import check_sizes, for_stage, not_set
from progc.data.task import Task
from progc.errors import InputError
from progc.ir.program import Program
from progc.ir.random_state import seed_everything
from progc.lift.averages import Averages
from progc.schedule.controlling import Controller
from progc.schedule.running import RunningStage, stages, trained
from progc.schedule.schedule import Schedule
from progc.train.ahead import LookAhead
from progc.train.boundary import Clock, Crossing
from progc.train.emitting import emitted, expected_compiles
from progc.train.keeping import Keeping, Rules, newest
from progc.train.metrics import Metrics
from progc.train.parallel import Parallel
from progc.train.parallel.processes import opened_parallel
from progc.train.progress import Meter, Progress
from progc.train.run_folder import Asked, Result, held, listening
from progc.train.settings import Settings, factor, set_rates
from progc.train.stepping import Active, Guard, Outcome, Stepper
from progc.train.watching import Seen, Watch, never_told

if TYPE_CHECKING:
    from progc.checkpoints import Checkpoint

MakeOptimizer = Callable[[nn.Module], Optimizer]
"""Makes the optimizer for the module of the first stage; later stages keep it."""


class Trainer:
    """Trains the stages of a schedule.

        trainer = progc.Trainer(schedule, program=program, task=Task(samples), run="runs/one")
        trainer.fit()                       # the same call again resumes the run

    Attributes:
        step: optimizer steps done.
        active: the stage that trains; None before the first.
        notes: notes for the user about parts of the schedule that have no effect here.
    """

    def __init__(
        self,
        schedule: Schedule,
        *,
        program: Program,
        task: Task,
        run: str | Path,
        settings: Settings | None = None,
        source: Program | None = None,
        optimizer: MakeOptimizer | None = None,
        inits: Mapping[str, str] | None = None,
        parallel: Parallel | None = None,
        progress: Progress | None = None,
        config: Mapping[str, Any] | None = None,
        trackers: Mapping[str, Any] | None = None,
    ) -> None:
        """
        Args:
            schedule: the stages.
            program: the full program, for which the schedule was made; training starts from its weights.
            task: samples and loss.
            run: folder of the run; if it holds checkpoints, the run resumes from the newest one that verifies.
            settings: settings of the run; None uses the defaults.
            source: a smaller program to begin with, as for `progc.stages`.
            optimizer: makes the optimizer; None uses AdamW at the learning rate of the settings.
            inits: how new weights are made, as for `progc.stages`.
            parallel: the processes that train together; None follows `settings.parallel` and `settings.device`.
            progress: shows the progress; None shows it on stderr.
            config: saved with every checkpoint, plain JSON data.
            trackers: further arguments of `Metrics`: `tensorboard`, `wandb`.

        Raises:
            InputError: the length of the run is unknown or too short, the ranks cannot share a batch, samples cannot be
                mixed or resized as the schedule asks, or rules contradict each other.
        """
        self.schedule, self.program, self.task, self.run = schedule, program, task, Path(run)
        self.settings = settings or Settings()
        self.source, self.inits, self.config = source, inits, config
        self.parallel: Parallel = parallel or opened_parallel(self.settings.parallel, self.settings.device)
        self.progress = progress or Progress(None)
        self.trackers = dict(trackers or {})
        self._make_optimizer = optimizer or self._adamw
        per_epoch = steps_per_epoch(task, self.settings.batch)
        self._per_epoch = per_epoch
        self._per_unit = per_epoch if schedule.unit == "epochs" else 1
        units = self.settings.total or schedule.total
        schedule.starts(units)  # refuses a length that is unknown or too short
        assert units is not None
        self.units, self.total = units, units * self._per_unit
        if self.settings.cooldown >= units:
            raise InputError(
                f"cooldown: expected fewer than the {units} {schedule.unit} of the run, got {self.settings.cooldown}"
            )
        self._cooldown = self.settings.cooldown * self._per_unit
        check_sizes(task, [stage.point.resolution for stage in schedule.stages])
        self.notes = (*not_set(task, schedule.regularisations, program), *never_told(task, schedule, self.settings))
        self.step = 0
        self.active: Active | None = None
        self.guard, self.seen = Guard(self.settings), Seen()
        self.scaler = torch.amp.GradScaler(self.parallel.device.type, enabled=self.settings.amp == "fp16")
        self._ahead = LookAhead(
            program, schedule, task, self.settings, self.parallel.device, source=source, inits=inits,
            micro=max(self.settings.batch // self.parallel.world // self.settings.accumulate, 1),
        )  # fmt: skip
        self._asked = Asked()

    def fit(self, *, begin: Callable[[], None] | None = None) -> Result:
        """Trains to the end of the schedule, from the newest checkpoint in the run folder if there is one.

        Args:
            begin: called first on every rank, once no other process can write into the folder.

        Returns:
            The result of the run; it is not finished if a signal stopped it.

        Raises:
            InputError: the folder belongs to another run or is in use, or the disk refuses.
            CheckError: growth that should be lossless is not, ranks differ, or the loss is not finite.
        """
        writes = self.parallel.rank == 0
        with held(self.run, writes), listening() as self._asked, self.progress:
            if begin is not None:
                begin()
            for note in self.notes:
                self.progress.note(note)
            self.log = Metrics(self.run, writes=writes, **self.trackers)
            try:
                with Saver(
                    self.run, keep=self.settings.keep, background=self.settings.save_in_background,
                    tell=self.progress.note,
                ) as saver:  # fmt: skip
                    finished = self._stages(saver)
            finally:
                self.log.close()
        return Result(self.run, self.step, finished, self._asked.signal, self.watch.metrics, self.log.seconds)

    def _stages(self, saver: Saver) -> bool:
        """Trains stage by stage; returns whether the run is finished."""
        found = newest(self.run, self.progress.note)
        checkpoint = None if found is None else load(found)
        if checkpoint is None:
            self.log.cut(0, 0)  # removes lines of a run that was killed before its first checkpoint
        seed_everything(self.settings.seed)
        start = checkpoint.manifest.stage if checkpoint is not None else 0
        self.controller = self._controller(checkpoint)
        controllers: dict[str, Any] = {"guard": self.guard, "seen": self.seen}
        if self.controller is not None:
            controllers["stages"] = Rules(self.controller)
        self.keeping = Keeping(
            self.run, saver, self.schedule, self.settings, self.parallel, self.scaler, controllers, self._per_epoch,
            self.config,
        )  # fmt: skip
        self.watch = Watch(
            self.schedule, self.settings, self.parallel, self.keeping, self.seen, self.controller, self.log,
            self.progress, task=self.task, full=self.program, per_unit=self._per_unit, left=self._left,
        )  # fmt: skip
        programs = stages(
            self.program, self.schedule, source=self.source, optimizer=self._on_device(self._make_optimizer),
            ema=self._on_device(lambda module: Averages(module, self.settings.ema)) if self.settings.ema else None,
            inits=self.inits, start=start, total=self.units, controller=self.controller,
        )  # fmt: skip
        try:
            active: Active | None = self._entered(next(programs), checkpoint)
            while active is not None and self._train(active):
                if active.index + 1 == len(self.schedule.stages):
                    self._finish(active)
                    return True
                active = self._crossed(active, programs)
            return False
        finally:
            self._ahead.cancel()

    # --- a stage ----------------------------------------------------------------------------------------------------

    def _entered(self, running: RunningStage, checkpoint: Checkpoint | None = None) -> Active:
        """Makes a stage ready to train: emits it, restores a checkpoint if one is given, and wraps it."""
        running.module.to(self.parallel.device)
        program = trained(running.program, running.module)
        module = emitted(program, self.settings, self.parallel.device, self.progress.note)
        if checkpoint is not None:
            self.step = self.keeping.restore(checkpoint, running, module)
            self.log.cut(self.step, running.stage.index)
            self.progress.note(f"resumes from {checkpoint.path.name}, stage {running.stage.index}")
        elif self.active is None:
            seed_everything(self.settings.seed + 1_000_003 * self.parallel.rank)  # dropout differs between ranks
        self.watch.enter(running)
        wrapped = self.parallel.wrap(module, running.optimizer, running.ema)
        task = for_stage(self.task, running.stage.regularisation, running.program)
        stepper = Stepper(
            wrapped, task, running.inputs, running.optimizer, self.parallel, self.scaler, self.guard, self.settings
        )
        cost = running.stage.cost
        flops = None if cost is None else cost.flops * self.settings.batch // max(cost.batch, 1) // self.parallel.world
        start, stop = running.start * self._per_unit, running.stop * self._per_unit
        self.active = Active(running, module, task, stepper, Meter(flops, self.parallel.device), start, stop)
        later = self.schedule.later(running.stage.index, self.units)
        self.progress.stage(
            running.stage.index, len(self.schedule.stages), self.step, stop, self.total,
            None if later is None else later * self._per_unit,
        )  # fmt: skip
        for note in running.notes:
            self.progress.note(note)
        return self.active

    def _train(self, active: Active) -> bool:
        """Trains until the stage is over; returns False if a signal stopped the run before."""
        settings = self.settings
        active.meter.begin()
        self.watch.look(active, self.step)  # the run may have been stopped during a validation
        if self._left():  # the first step of a stage may have to compile
            self._leave(active)
            return False
        while not self.watch.over(active, self.step):
            for micro_batches in self._batches(active):
                active.meter.arrived()
                rate = factor(settings, self.step, self.total - self._cooldown, active.start)
                set_rates(active.running.optimizer, rate)
                outcome = active.stepper.step(micro_batches)
                if outcome.skipped is None and active.running.ema is not None:
                    active.running.ema.update(active.module)
                self.step += 1
                active.meter.step(outcome.samples)
                self._note(active, outcome)
                self.watch.look(active, self.step)
                if settings.save_every is not None and self.step % settings.save_every == 0:
                    self.keeping.save(active.running, active.module, self.step)
                if self._left():
                    self._leave(active)
                    return False
                if self.watch.over(active, self.step):
                    break
                self._ahead.begin(active.index)
        return True

    def _left(self) -> bool:
        """Whether a signal on any rank asks to stop: a rank that stopped alone would leave the others waiting.

        All ranks have to call this equally often.
        """
        return self.parallel.any(bool(self._asked))

    def _leave(self, active: Active) -> None:
        if self.step:
            self._saved(active)
            self.progress.note(f"saved at step {self.step}; run the same command again to resume")
        else:
            self.progress.note("stopped before the first step")

    def _saved(self, active: Active) -> None:
        """Saves a checkpoint of this step and waits until it is complete."""
        self.keeping.save(active.running, active.module, self.step)
        self.keeping.saver.wait()

    def _batches(self, active: Active) -> Iterator[list[Any]]:
        """Micro-batches of the rest of the current epoch; the position follows from the step."""
        position = self.keeping.position(self.step)
        return steps(
            active.task, batch=self.settings.batch, seed=position.seed, epoch=position.epoch, start=position.index,
            rank=self.parallel.rank, world=self.parallel.world, accumulate=self.settings.accumulate,
            workers=self.settings.workers, device=self.parallel.device,
        )  # fmt: skip

    def _note(self, active: Active, outcome: Outcome) -> None:
        """Writes the metrics of a step, and passes its loss to the rules of the schedule."""
        self.seen.add(outcome.loss, outcome.skipped is not None)
        if outcome.skipped is not None:
            self.log.write("note", self.step, {"skipped": outcome.skipped, "loss": outcome.loss})
        self.watch.trained(self.step, outcome.loss)
        self.progress.step(self.step, outcome.loss)
        if self.step % self.settings.log_every == 0:
            values = {
                "loss": self.seen.take(),
                "lr": max(group["lr"] for group in active.running.optimizer.param_groups),
                "grad_norm": outcome.norm,
                "skipped": self.seen.skipped,
                "epoch": (self.step - 1) // self._per_epoch,
                "stage": active.index,
            }
            measured = active.meter.read()
            self.log.write("train", self.step, {**values, "measured": measured})
            self.progress.measured(measured)

    # --- resuming --------------------------------------------------------------------------------------------------

    def _controller(self, checkpoint: Checkpoint | None) -> Controller | None:
        if not self.schedule.rules:
            return None
        if checkpoint is None:
            return Controller.of(self.schedule, self.units)
        return Controller.from_state(checkpoint.controller("stages"))

    # --- boundaries -------------------------------------------------------------------------------------------------

    def _crossed(self, active: Active, programs: Iterator[RunningStage]) -> Active | None:
        """Returns the next stage, with everything carried over; None if a signal stopped the run while it waited.

        The checkpoint comes first: growth depends on it and on nothing else, so a run that ends during a boundary does
        the same again when it resumes.
        """
        clock, running = Clock(), active.running
        with clock.timed("save"):
            self._saved(active)  # growth must not change tensors that are still being written
        with clock.timed("wrap"):
            self.parallel.unwrap(running.optimizer, running.ema)
        crossing = Crossing(running, self.task, self._sample(), self.parallel, self.settings, clock)
        with clock.timed("transform"):
            following = next(programs)
        with clock.timed("compile"):
            failed = self._ahead.finish(lambda: bool(self._asked))
        if self._left():
            self._leave(active)
            return None
        if failed is not None:
            self.progress.note(f"the next stage is compiled when it begins: {failed}")
        if running.ended is not None:
            self.progress.note(f"stage {active.index + 1} ends: {running.ended.reason}")
        record = crossing.close(following, self.step)
        with clock.timed("wrap"):
            entered = self._entered(following)
        record = dataclasses.replace(
            record, compiles=expected_compiles(entered.module), seconds=dict(clock.phases), lost=clock.total
        )
        self.guard.boundary()
        self.log.write("boundary", self.step, record.to_json())
        self.progress.crossed(record)
        return entered

    def _sample(self) -> Any:
        """The batch that a boundary is checked on, the same on all ranks."""
        return next(self.task.batches(min(self.settings.batch, 8), seed=self.settings.seed, count=1))

    def _finish(self, active: Active) -> None:
        """Writes the last checkpoint, and the weights of the network and its averages under the names of the model."""
        self._saved(active)
        running = active.running
        self.parallel.unwrap(running.optimizer, running.ema)
        if self.parallel.rank == 0:
            from progc.train.run_folder import write_weights

            write_weights(self.run / "model.safetensors", running.module.state_dict())
            for decay in running.ema.decays if running.ema is not None else ():
                write_weights(self.run / f"model-ema-{decay!r}.safetensors", running.ema.tensors[decay])

    # --- making -----------------------------------------------------------------------------------------------------

    def _adamw(self, module: nn.Module) -> Optimizer:
        return torch.optim.AdamW(module.parameters(), lr=self.settings.lr)

    def _on_device(self, make: Callable[[nn.Module], Any]) -> Callable[[nn.Module], Any]:
        """Moves the module to the training device before something is made from it."""
        return lambda module: make(module.to(self.parallel.device))
