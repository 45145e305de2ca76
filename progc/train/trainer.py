"""The trainer: stages one after another, a boundary between two of them, and a checkpoint to go on from at any time.

It knows no pass: what a stage is made of comes from `progc.stages`. All that decides what is computed follows from the
step, the seed and what a checkpoint holds, so that a run that was killed goes on as if it had not been.
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
from progc.data.staged import for_stage, not_set
from progc.data.task import Task
from progc.ir.program import Program
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
"""Makes the optimizer of the first stage's module; later stages go on with it."""


class Trainer:
    """Runs a schedule.

        trainer = progc.Trainer(schedule, program=program, task=Task(samples), run="runs/one")
        trainer.fit()                       # the same call again goes on where the run was

    Attributes:
        step: optimizer steps done.
        active: the stage that trains.
        notes: what the schedule asks for and cannot have here, for people.
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
            program: the full program, which the schedule was made for; its weights are where training begins.
            task: samples and loss.
            run: folder of the run; checkpoints that are there are gone on from.
            source: a smaller program to begin with, as for `progc.stages`.
            optimizer: makes the optimizer; None: AdamW at the learning rate of the settings.
            inits: how new weights are made, as for `progc.stages`.
            parallel: the processes that train together; None: this one.
            config: saved with every checkpoint, plain JSON data.
            trackers: further arguments of `Metrics`: `tensorboard`, `wandb`.

        Raises:
            InputError: a length that is not known or too short, a batch that the ranks cannot share, mixup of what
                cannot be mixed, or rules that want the opposite of one another.
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
        """Trains to the end, from the last whole checkpoint in the run's folder if there is one.

        Args:
            begin: called on every rank once no other process can write into the folder, before anything else is.

        Raises:
            InputError: the folder belongs to another run or is in use.
            CheckError: growth that ought to be lossless is not, ranks differ, or the loss is not finite any more.
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
        """Whether the run came to its end."""
        found = newest(self.run, self.progress.note)
        checkpoint = None if found is None else load(found)
        if checkpoint is None:
            self.log.cut(0, 0)  # of a run that was killed before its first checkpoint
        _seed(self.settings.seed)
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
            self.progress, per_unit=self._per_unit, left=self._left,
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
        """A stage ready to train: emitted, restored if there is something to restore, and wrapped."""
        running.module.to(self.parallel.device)
        program = trained(running.program, running.module)
        module = emitted(program, self.settings, self.parallel.device, self.progress.note)
        if checkpoint is not None:
            self.step = self.keeping.restore(checkpoint, running, module)
            self.log.cut(self.step, running.stage.index)
            self.progress.note(f"goes on from {checkpoint.path.name}, stage {running.stage.index}")
        elif self.active is None:
            _seed(self.settings.seed + 1_000_003 * self.parallel.rank)  # ranks drop different units
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
        """Steps until the stage is over; False if a signal ended the run before."""
        settings = self.settings
        active.meter.begin()
        self.watch.look(active, self.step)  # the run may have been ended in the midst of it
        if self._left():  # the first step of a stage may take the time of a compilation
            self._leave(active)
            return False
        while not self.watch.over(active, self.step):
            for micro_batches in self._batches(active):
                active.meter.arrived()
                rate = factor(settings, self.step, self.total, active.start)
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
        """Whether a signal asks to leave, to any rank: one that left alone would leave the rest waiting.

        All ranks ask equally often.
        """
        return self.parallel.any(bool(self._asked))

    def _leave(self, active: Active) -> None:
        if self.step:
            self._saved(active)
            self.progress.note(f"saved at step {self.step}; the same command goes on from there")
        else:
            self.progress.note("ended before the first step")

    def _saved(self, active: Active) -> None:
        """There is a whole checkpoint of this step behind this."""
        self.keeping.save(active.running, active.module, self.step)
        self.keeping.saver.wait()

    def _batches(self, active: Active) -> Iterator[list[Any]]:
        """Micro-batches of the rest of the present epoch: which epoch and where in it follows from the step."""
        position = self.keeping.position(self.step)
        return steps(
            active.task, batch=self.settings.batch, seed=position.seed, epoch=position.epoch, start=position.index,
            rank=self.parallel.rank, world=self.parallel.world, accumulate=self.settings.accumulate,
            workers=self.settings.workers, device=self.parallel.device,
        )  # fmt: skip

    def _note(self, active: Active, outcome: Outcome) -> None:
        """Metrics of a step that was done, and what the schedule's rules are told."""
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

    # --- going on --------------------------------------------------------------------------------------------------

    def _controller(self, checkpoint: Checkpoint | None) -> Controller | None:
        if not self.schedule.rules:
            return None
        if checkpoint is None:
            return Controller.of(self.schedule, self.units)
        return Controller.from_state(checkpoint.controller("stages"))

    # --- boundaries -------------------------------------------------------------------------------------------------

    def _crossed(self, active: Active, programs: Iterator[RunningStage]) -> Active | None:
        """The next stage, with everything carried over; None if a signal ended the run while it waited.

        The checkpoint comes first: growth follows from it and from nothing else, so a run that ends anywhere in here
        does the same again.
        """
        clock, running = Clock(), active.running
        with clock.timed("save"):
            self._saved(active)  # what is written must not be what growth already works on
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
            self.progress.note(f"the next stage is compiled in place: {failed}")
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
        """A batch of the whole data, the same whoever asks: what the boundary is checked on."""
        return next(self.task.batches(min(self.settings.batch, 8), seed=self.settings.seed, count=1))

    def _finish(self, active: Active) -> None:
        """The last checkpoint, and weights of the network and of its averages under the user's names."""
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
        """What is made of a module is made where the module trains."""
        return lambda module: make(module.to(self.parallel.device))


def _seed(seed: int) -> None:
    import random

    import numpy as np

    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed % 2**32)
