"""The trainer: runs stages one after another with a boundary between them, and saves checkpoints to resume from.

It knows no pass: `progc.stages` provides the stages. Everything it computes depends on the step, the seed and what a
checkpoint holds, so a run that was killed resumes as if it had not been.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Generator, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.optim import Optimizer

from progc.checkpoints import Saver, load
from progc.data.loading import served, steps
from progc.data.staged import candidate_tasks, check_sizes, for_stage
from progc.data.task import Task
from progc.errors import CheckError
from progc.ir.program import Program
from progc.ir.random_state import seed_everything
from progc.ir.writes import written_buffers
from progc.lift.averages import Averages
from progc.schedule.running import RunningStage, SearchStage, trained
from progc.schedule.schedule import PLAN, Schedule
from progc.search.online import stages
from progc.train.ahead import LookAhead
from progc.train.boundary import Clock, Crossing, check_same, digest
from progc.train.deciding import as_saved, decision_line, next_batches, online_search
from progc.train.emitting import emitted, expected_compiles
from progc.train.ending import Ending
from progc.train.failing import explained
from progc.train.keeping import Keeping, Rules, Searching, controller_of, newest
from progc.train.machine import Profile, device_settings
from progc.train.metrics import Metrics
from progc.train.pacing import rate_factor, run_pace
from progc.train.parallel import Parallel
from progc.train.parallel.processes import opened_parallel
from progc.train.progress import Meter, Progress
from progc.train.reading import Readings
from progc.train.run_folder import Asked, Result, held, listening, write_results
from progc.train.settings import Settings, set_rates
from progc.train.skipping import adamw
from progc.train.stepping import Active, Guard, Stepper
from progc.train.telling import told
from progc.train.watching import Seen, Watch

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
        pace: the batch of each stage, and where its steps are in the run and in the data.
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
                mixed or resized as the schedule asks, rules contradict each other, or layers need all processes.
        """
        self.settings = settings or Settings()
        self.settings.check_stages(len(schedule.stages))
        schedule = schedule.with_batches(self.settings.stage_batch)
        self.schedule, self.program, self.task, self.run = schedule, program, task, Path(run)
        self.source, self.inits, self.config = source, inits, config
        self.parallel: Parallel = parallel or opened_parallel(self.settings.parallel, self.settings.device)
        self.progress = progress or Progress(None)
        self.trackers = dict(trackers or {})
        self._make_optimizer = optimizer or functools.partial(adamw, lr=self.settings.lr)
        self.pace = run_pace(schedule, self.settings, len(task.samples), self.parallel)
        check_sizes(task, [stage.point.resolution for stage in schedule.stages])
        self.notes = told(task, schedule, program, self.settings, self.parallel.world)
        self.step = 0
        self.active: Active | None = None
        self.guard, self.seen = Guard(self.settings), Seen()
        self.scaler = torch.amp.GradScaler(self.parallel.device.type, enabled=self.settings.amp == "fp16")
        self._ahead = LookAhead(
            program, schedule, task, self.settings, self.parallel.device,
            micro=[batch // (self.parallel.world * self.settings.accumulate) for batch in self.pace.batches],
        )  # fmt: skip
        self._asked = Asked()
        self._ending = Ending(self._asked, self.parallel)
        self._online = online_search(
            program, schedule, task, self.settings, self.parallel, self.progress, steps=self.pace.steps
        )
        self._searching = Searching()

    def fit(self, *, begin: Callable[[], None] | None = None) -> Result:
        """Trains to the end of the schedule, from the newest checkpoint in the run folder if there is one.

        Args:
            begin: called first on every rank, once no other process can write into the folder.

        Returns:
            The result of the run; it is not finished if a signal stopped it.

        Raises:
            InputError: the folder belongs to another run or is in use, the disk refuses, or data or loss fail.
            CheckError: growth that should be lossless is not, ranks differ, or the loss is not finite.
        """
        writes = self.parallel.rank == 0
        self._profile = Profile(self.run, self.settings, self.parallel.rank, self.parallel.device, self.progress.note)
        with (
            explained(lambda: self.step), held(self.run, writes), listening() as self._asked, self.progress,
            device_settings(self.settings), self._profile,
        ):  # fmt: skip
            self._ending = Ending(self._asked, self.parallel)
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
        return Result(
            self.run, self.step, finished, self._asked.signal, self.watch.metrics, self.log.seconds, self.seen.skipped,
            self.seen.skipped_samples, self.seen.skipped_at,
        )  # fmt: skip

    def _stages(self, saver: Saver) -> bool:
        """Trains stage by stage; returns whether the run is finished."""
        found = newest(self.run, self.progress.note)
        checkpoint = None if found is None else load(found)
        if checkpoint is None:
            self.log.cut(0, 0)  # removes lines of a run that was killed before its first checkpoint
        seed_everything(self.settings.seed)
        start = checkpoint.manifest.stage if checkpoint is not None else 0
        self.schedule = as_saved(self.schedule, checkpoint)
        self._ahead.follow(self.schedule)
        self.controller = controller_of(self.schedule, self.pace.units, checkpoint)
        controllers: dict[str, Any] = {"guard": self.guard, "seen": self.seen}
        if self.controller is not None:
            controllers["stages"] = Rules(self.controller)
        if self._online is not None:
            controllers["search"] = self._searching
        self.keeping = Keeping(
            self.run, saver, self.schedule, self.settings, self.parallel, self.scaler, controllers, self.pace,
            self.config,
        )  # fmt: skip
        self.readings = Readings(self.seen, self.log, self.keeping, len(self.task.samples))
        self.watch = Watch(
            self.schedule, self.settings, self.parallel, self.keeping, self.seen, self.controller, self.log,
            self.progress, task=self.task, full=self.program, pace=self.pace, ending=self._ending,
        )  # fmt: skip
        programs = stages(
            self.program, self.schedule, source=self.source, optimizer=self._on_device(self._make_optimizer),
            ema=self._on_device(lambda module: Averages(module, self.settings.ema)) if self.settings.ema else None,
            inits=self.inits, start=start, total=self.pace.units, controller=self.controller, search=self._online,
        )  # fmt: skip
        try:
            first = next(programs)
            self._decided(first)
            active: Active | None = self._entered(first, checkpoint)
            while active is not None and self._train(active):
                if active.index + 1 == len(self.schedule.stages):
                    self._finish(active)
                    return True
                searched = active.running.search is not None
                active = self._chosen(active, programs) if searched else self._crossed(active, programs)
            return False
        finally:
            self._ahead.cancel()

    # --- a stage ----------------------------------------------------------------------------------------------------

    def _entered(self, running: RunningStage, checkpoint: Checkpoint | None = None) -> Active:
        """Makes a stage ready to train: emits it, restores a checkpoint if one is given, and wraps it."""
        search = running.search
        self._searching.stage = search
        index, pace = running.stage.index, self.pace
        if self.controller is not None:
            pace.follow(self.controller.log)
        running.module.to(self.parallel.device)
        program = trained(running.program, running.module)
        # Every step of a search runs another part of its network, so that is not compiled.
        module: nn.Module = (
            emitted(program, self.settings, self.parallel.device, self.progress.note)
            if search is None else search.twin().train()
        )  # fmt: skip
        if checkpoint is not None:
            self.step = self.keeping.restore(checkpoint, running, module)
            self.log.cut(self.step, running.stage.index, searching=search is not None)
            self.progress.note(f"resumes from {checkpoint.path.name}, stage {running.stage.index}")
        elif self.active is None:
            seed_everything(self.settings.seed + 1_000_003 * self.parallel.rank)  # dropout differs between ranks
        self.watch.enter(running)
        stepper = self._stepper(running, module)
        cost = running.stage.cost
        flops = None if cost is None else cost.flops * pace.batches[index] // max(cost.batch, 1) // self.parallel.world
        start, stop = pace.start(index), pace.step(index, running.stop)
        loading, candidates = stepper.task, tuple[Task, ...]()
        if search is not None:
            stop = start + search.total
            loading, candidates = candidate_tasks(self.task, running.stage.regularisation, search.programs)
        self.active = Active(
            running, module, stepper.task, stepper, Meter(flops, self.parallel.device), start, stop, loading, candidates
        )
        later = self.schedule.later(index, pace.units)
        self.progress.stage(
            index, len(self.schedule.stages), self.step, stop, pace.total,
            None if later is None else later * pace.per_unit[index],
        )  # fmt: skip
        for note in running.notes:
            self.progress.note(note)
        return self.active

    def _stepper(self, running: RunningStage, module: nn.Module) -> Stepper:
        """Wraps the module of a stage, and makes what trains it."""
        wrapped = self.parallel.wrap(module, running.optimizer, running.ema)
        task = for_stage(self.task, running.stage.regularisation, running.program)
        # A search writes to buffers of its sub-networks, which are in no graph of the stage.
        names = None if running.search is not None else written_buffers(running.program)
        return Stepper(
            wrapped, task, running.inputs, running.optimizer, self.parallel, self.scaler, self.guard, self.settings,
            [b for name, b in module.named_buffers(remove_duplicate=False) if names is None or name in names],
        )  # fmt: skip

    def _train(self, active: Active) -> bool:
        """Trains until the stage is over; returns False if a signal stopped the run before."""
        active.meter.begin()
        self.watch.look(active, self.step)  # the run may have been stopped during a validation
        if self._ending.now():  # the first step of a stage may have to compile
            self._leave(active)
            return False
        with served(self._batches(active)) as batches:
            return self._steps(active, batches)

    def _steps(self, active: Active, batches: Iterator[list[Any]]) -> bool:
        """Trains to the end of the stage; returns False if a signal stopped the run before."""
        while not self.watch.over(active, self.step):
            micro_batches = next(batches)
            active.meter.arrived()
            self._profile.begin(self.step)
            if active.running.search is not None:
                micro_batches = self._choose(active, active.running.search, micro_batches)
            self._step(active, micro_batches)
            if active.running.search is not None:
                active.module.chosen = None  # type: ignore[assignment]  # validation runs the whole supernet
            self._profile.end(self.step)
            if self._ends(active):
                self._leave(active)
                return False
            if active.running.search is None and not self.watch.over(active, self.step):
                self._ahead.begin(active.index)
        return True

    # --- searches ---------------------------------------------------------------------------------------------------

    def _choose(self, active: Active, search: SearchStage, micro_batches: list[Any]) -> list[Any]:
        """Prepares a step of a search, and returns the micro-batches at the image size of the chosen sub-network."""
        place = self.step - active.start
        if place in search.marks:
            self._evaluate(active, search, place)
        return next_batches(active, search, place, micro_batches)

    def _evaluate(self, active: Active, search: SearchStage, place: int) -> None:
        """Evaluates the candidates on rank 0, with whole tensors."""
        running = active.running
        self.readings.read()
        self._ending.settle()
        sharded = self.parallel.name == "fsdp"
        if sharded:
            self.parallel.unwrap(running.optimizer, running.ema)
        if self.parallel.rank == 0:
            search.evaluate(place)
        if sharded:
            active.module = search.twin().train()
            active.stepper = self._stepper(running, active.module)

    def _chosen(self, active: Active, programs: Iterator[RunningStage]) -> Active | None:
        """Ends a search: returns the stage with the network that it chose; None if a signal stopped the run.

        The checkpoint comes first, as at a boundary: a run that ends here decides the same again.
        """
        running, clock = active.running, Clock()
        with clock.timed("save"):
            self._closed(active)
        with clock.timed("wrap"):
            self.parallel.unwrap(running.optimizer, running.ema)
        with clock.timed("search"):
            following = next(programs)
        if self._ending.now():
            self._leave(active)
            return None
        following.module.to(self.parallel.device)
        own = digest(following.module, following.optimizer, following.ema)
        check_same(own)
        with clock.timed("wrap"):
            entered = self._entered(following)
        self._decided(following, seconds=dict(clock.phases), hash=own, compiles=expected_compiles(entered.module))
        self.guard.boundary()
        return entered

    def _decided(self, running: RunningStage, seconds: Mapping[str, float] | None = None, **more: Any) -> None:
        """Records what a search decided, in the metrics and in the plan of the run."""
        if running.schedule is not None and running.schedule is not self.schedule:
            self.schedule = self.keeping.schedule = running.schedule
            self._ahead.follow(self.schedule)
        decision = running.decision
        if decision is None:
            return
        if self.parallel.rank == 0:
            self.schedule.write(self.run / PLAN)
        self.log.write("decision", self.step, decision_line(running, seconds or {}, **more))
        self.progress.note(f"stage {decision.stage + 1} is decided: {decision.reason}")

    def _step(self, active: Active, micro_batches: list[Any]) -> None:
        """Takes one step. The host does not wait for the device here, unless something needs a value of this step."""
        set_rates(active.running.optimizer, rate_factor(self.settings, self.pace, active.index, self.step))
        try:
            outcome = active.stepper.step(micro_batches)
        except CheckError as error:
            raise CheckError(f"step {self.step + 1}: {error}") from error
        if active.running.ema is not None:
            if outcome.left_out is not None:
                active.running.ema.update(active.module, unless=outcome.left_out)
            elif outcome.skipped is None:
                active.running.ema.update(active.module)
        self.step += 1
        self.readings.add(active.index, self.step, outcome)
        if outcome.left_out is None or active.stepper.full or self.watch.wants_loss(active, self.step):
            self.readings.read()
        active.meter.step(outcome.samples)
        self.watch.trained(active, self.step, self.seen.last)
        self.progress.step(self.step, self.seen.last)
        if self.step % self.settings.log_every == 0:
            self._log(active)

    def _ends(self, active: Active) -> bool:
        """Validates and saves if that is due; returns whether the run has to end."""
        if self.watch.due(active, self.step):
            self.readings.read()
            self._ending.settle()
        self.watch.look(active, self.step)
        every = self.settings.save_every
        if every is not None and self.step % every == 0:
            self._save(active)
        # At a boundary ranks exchange other messages, so none of these may be under way.
        return self._ending.now() if self.watch.over(active, self.step) else self._ending.later()

    def _leave(self, active: Active) -> None:
        if self.step:
            self._saved(active)
        saved = f"saved at step {self.step}; run the same command again to resume"
        self.progress.note(saved if self.step else "stopped before the first step")

    def _save(self, active: Active) -> None:
        """Saves a checkpoint of this step, which holds what the values of all steps so far amount to."""
        self.readings.read()
        self._ending.settle()
        self.keeping.save(active.running, active.module, self.step)

    def _saved(self, active: Active) -> None:
        """Saves a checkpoint of this step and waits until it is complete."""
        self._save(active)
        self.keeping.saver.wait()

    def _closed(self, active: Active) -> None:
        """Checks that outputs are finite, and saves the last checkpoint of a stage."""
        self.readings.read()
        self.watch.check(active, self.step, self._sample)
        self._saved(active)

    def _batches(self, active: Active) -> Generator[list[Any], None, None]:
        """Micro-batches from the current position on, which follows from the step, without an end."""
        position = self.keeping.position(active.index, self.step)
        return steps(
            active.loading, batch=self.pace.batches[active.index], seed=position.seed, epoch=position.epoch,
            start=position.index, epochs=None, rank=self.parallel.rank, world=self.parallel.world,
            accumulate=self.settings.accumulate, workers=self.settings.workers, device=self.parallel.device,
        )  # fmt: skip

    def _log(self, active: Active) -> None:
        """Writes the metrics of this step."""
        self.readings.read()
        values = {
            "loss": self.seen.take(),
            "lr": max(group["lr"] for group in active.running.optimizer.param_groups),
            "grad_norm": self.seen.norm,
            "skipped": self.seen.skipped,
            "epoch": self.pace.position(active.index, self.step - 1)[0],
            "stage": active.index,
            "batch": self.pace.batches[active.index],
        }
        measured = active.meter.read()
        self.log.write("train", self.step, {**values, "measured": measured})
        self.progress.measured(measured)

    # --- boundaries -------------------------------------------------------------------------------------------------

    def _crossed(self, active: Active, programs: Iterator[RunningStage]) -> Active | None:
        """Returns the next stage, with everything carried over; None if a signal stopped the run while it waited.

        The checkpoint comes first: growth depends on it and on nothing else, so a run that ends during a boundary does
        the same again when it resumes.
        """
        clock, running = Clock(), active.running
        with clock.timed("save"):
            self._closed(active)  # growth must not change tensors that are still being written
        with clock.timed("wrap"):
            self.parallel.unwrap(running.optimizer, running.ema)
        crossing = Crossing(running, self.task, self._sample(), self.parallel, self.settings, clock)
        with clock.timed("transform"):
            following = next(programs)
        with clock.timed("compile"):
            failed = self._ahead.finish(lambda: bool(self._asked))
        if self._ending.now():
            self._leave(active)
            return None
        if failed is not None:
            self.progress.note(f"the next stage is compiled when it begins: {failed}")
        if running.ended is not None:
            self.progress.note(f"stage {active.index + 1} ends: {running.ended.reason}")
        record = crossing.close(following, self.step)
        self._decided(following)
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
        return next(self.task.batches(min(*self.pace.batches, 8), seed=self.settings.seed, count=1))

    def _finish(self, active: Active) -> None:
        """Writes the last checkpoint, and the weights of the network and its averages under the names of the model."""
        self._closed(active)
        running = active.running
        self.parallel.unwrap(running.optimizer, running.ema)
        if self.parallel.rank == 0:
            write_results(self.run, running.module, running.ema)

    def _on_device(self, make: Callable[[nn.Module], Any]) -> Callable[[nn.Module], Any]:
        """Moves the module to the training device before something is made from it."""
        return lambda module: make(module.to(self.parallel.device))
