"""Runs over several seeds: a process for each, at most one per core, to the end of all or the first Ctrl-C."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from adamshap.reference.command import folder, overview, per_validation, report, results, running, seeds
from adamshap.reference.command.checkpointing import EXIT_CODES
from adamshap.reference.command.errors import INTERNAL, TRAINING_DIVERGED, CommandError
from adamshap.reference.command.job import Device, Options
from adamshap.reference.command.preparation import Prepared
from adamshap.reference.command.trainers import Trainer
from adamshap.reference.contract import LazyRows

ONE_THREAD = {
    f"{library}_THREADS": "1" for library in ("OMP_NUM", "OPENBLAS_NUM", "MKL_NUM", "VECLIB_MAXIMUM", "NUMBA_NUM")
}
COPIES = 4
"""Copies of the inputs that a process may hold at a time: as read, as float64, standardised, and on the device."""

PAUSE = 0.05


@dataclass
class _Process:
    """A run in a process, the number of its completed steps, and what it printed to stderr."""

    seed: int
    popen: subprocess.Popen[str]
    step: int = 0
    complaints: list[str] = field(default_factory=list)
    readers: list[threading.Thread] = field(default_factory=list)

    @classmethod
    def started(cls, path: Path, seed: int, seconds: float, device: Device | None) -> "_Process":
        module = "adamshap.reference.command.seed_process"
        popen = subprocess.Popen(
            # -P: modules in the current folder are not ours. A session of its own: the parent passes signals on.
            [sys.executable, "-P", "-m", module, str(seeds.folder_of(path, seed)), str(seconds), device or ""],
            env=os.environ | ONE_THREAD,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="backslashreplace",
            start_new_session=True,
        )
        process = cls(seed, popen)
        process.readers = [threading.Thread(target=read, daemon=True) for read in (process._count, process._listen)]
        for reader in process.readers:
            reader.start()
        return process

    def _count(self) -> None:
        assert self.popen.stdout is not None
        for line in self.popen.stdout:
            self.step = int(line)

    def _listen(self) -> None:
        assert self.popen.stderr is not None
        self.complaints += [line.strip() for line in self.popen.stderr if line.strip()]

    def failure(self) -> str | None:
        """Return why the ended process failed, in one sentence; None if it did not."""
        for reader in self.readers:
            reader.join()
        for pipe in (self.popen.stdout, self.popen.stderr):
            if pipe is not None:
                pipe.close()
        code = self.popen.returncode
        if code == 0:
            return None
        if code < 0:
            memory = " (perhaps for want of memory)" if -code == getattr(signal, "SIGKILL", None) else ""
            return f"its process was ended by {signal.Signals(-code).name}{memory} after step {self.step}"
        return self.complaints[-1] if self.complaints else f"its process ended with exit code {code}"


def start(
    console: Console, options: Options, count: int, trainer: Trainer, out: Path | None, seconds: float, top: int
) -> None:
    """Run `options` with `count` seeds from its own on, and write a new folder: `out`, or one named after the data.

    Raises
    ------
    CommandError
        Bad data, a folder that cannot be written, an interruption, or a run that failed.
    """
    trainer = trainer.on(options.device)
    dataset, prepared, config = running.prepared_run(options)
    columns, in_file = results.columns_of(prepared, None, config), prepared.in_file

    def create_run(empty: Path, seed: int) -> None:
        folder.create(empty, seeds.config_of_run(config, seed), columns, in_file)

    which = tuple(range(options.seed, options.seed + count))
    target = results.choose_folder(out, dataset.name)
    path, _ = results.write_folder(target, lambda empty: seeds.create(empty, config, which, create_run))
    report.announce(console, options, dataset, prepared, trainer.description)
    processes = processes_for(options, prepared)
    del dataset, prepared  # each process reads its own
    _run(console, path, processes, seconds, top, None)


def resume(console: Console, path: Path, seconds: float, top: int, device: Device | None = None) -> None:
    """Go on with the runs in the folder `path`: interrupted ones from their checkpoints, missing ones from the start.

    Raises
    ------
    CommandError
        The data has changed, or as for `start`.
    """
    path = Path(os.path.abspath(path))
    if not seeds.read(path).unfinished:
        console.print(f"{path}: these runs have ended; nothing to resume", markup=False, soft_wrap=True)
        _finish(console, path, top, show=console.quiet)
        return
    config = seeds.config_in(path)
    options = running.options_of(path, config)
    dataset, prepared = running.prepared_again(options, config, "--resume")
    for seed in config["seeds"]:
        if not seeds.folder_of(path, seed).exists():
            own = seeds.config_of_run(config, seed)
            results.create_folder(
                seeds.folder_of(path, seed), own, results.columns_of(prepared, None, config), prepared.in_file
            )
    processes = processes_for(options, prepared)
    del dataset, prepared  # each process reads its own
    _run(console, path, processes, seconds, top, device)


def processes_for(options: Options, prepared: Prepared) -> int:
    """Return how many processes may run at a time: one for each core, and no more than the free memory holds."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    train = prepared.train
    needed = 0.0 if isinstance(train.x, LazyRows) else COPIES * float(train.x.nbytes)
    if options.per_validation:
        scores = per_validation.bytes_of(train.n, prepared.valid.n, options.length(train.n)[1], options.batch_size)
        needed += per_validation.COPIES * scores
    try:
        free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # not on this system
        return cores
    return max(1, min(cores, int(free / needed))) if needed else cores


def _run(console: Console, path: Path, most: int, seconds: float, top: int, device: Device | None) -> None:
    saved = seeds.read(path)
    waiting = list(saved.unfinished)
    every = len(saved.config["seeds"])
    console.print(
        f"{every} runs, {seeds.named(tuple(saved.config['seeds']))}: the same data, another initialisation and order"
        f" of the batches; {min(most, len(waiting))} at a time.",
        markup=False,
        highlight=False,
    )
    per_run = saved.config["steps"]["total"]
    ended = {seed: per_run for seed in saved.config["seeds"] if seed not in waiting}
    failures: dict[int, tuple[int, str]] = {}
    active: list[_Process] = []
    with _bar(console, every, per_run * every) as show, _signals(active) as received:
        while active or (waiting and not received):
            while waiting and not received and len(active) < most:
                active.append(_Process.started(path, waiting.pop(0), seconds, device))
                for process in active[-1:] if received else ():  # a signal came before it was in the list
                    process.popen.send_signal(_to_pass_on(received))
            time.sleep(PAUSE)
            for process in [process for process in active if process.popen.poll() is not None]:
                active.remove(process)
                failure = process.failure()
                ended[process.seed] = process.step
                if failure is not None:
                    failures[process.seed] = process.popen.returncode, failure
                else:
                    for line in process.complaints:
                        print(f"adamshap: seed {process.seed}: {line.removeprefix('adamshap: ')}", file=sys.stderr)
            done = every - len(waiting) - len(active) - len(failures)
            show(done, sum(ended.values()) + sum(process.step for process in active))
    hint = folder.resume_hint(path)
    if received:
        done = every - len(seeds.read(path).unfinished)
        raise CommandError(
            f"interrupted; {done} of {every} runs have ended; to resume: {hint}", EXIT_CODES[received[0]]
        )
    _finish(console, path, top, show=True)
    if failures:
        whole = "; ".join(f"seed {seed}: {why}" for seed, (_, why) in sorted(failures.items()))
        codes = [code for code, _ in failures.values()]
        if set(codes) == {TRAINING_DIVERGED}:
            raise CommandError(whole, TRAINING_DIVERGED)
        raise CommandError(f"{whole}; to resume: {hint}", INTERNAL if INTERNAL in codes else 2)


def _finish(console: Console, path: Path, top: int, *, show: bool) -> None:
    """Write what the runs have in common, if all have ended, and show it."""
    saved = seeds.read(path)
    try:
        seeds.write(saved)
    except OSError as error:
        raise CommandError(
            f"cannot write to {str(path)!r}: {error.strerror or error}; to resume: {folder.resume_hint(path)}"
        ) from error
    notes: list[str] = []
    if saved.results is not None:
        pictures = overview.pictures_of(saved)
        notes = [pictures.missing] if pictures.missing else []
        if pictures.images is not None:
            notes += results.write_pictures(saved, pictures.images, top)
    if not show:
        return
    if saved.results is not None:
        report.show(console, saved, top, notes)
    if console.quiet:
        print(results.as_json(results.summary(saved, top) | {"notes": notes}))


@contextmanager
def _bar(console: Console, runs: int, steps: int) -> Iterator[Callable[[int, int], None]]:
    """Show one bar for all runs (on a terminal only), and yield the function that moves it."""
    columns = (
        TextColumn("{task.fields[done]} of " + f"{runs} runs"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("steps"),
        TimeRemainingColumn(),
    )
    with Bar(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=steps, done=0)
        yield lambda done, step: bar.update(task, completed=step, done=done)


def _to_pass_on(received: list[signal.Signals]) -> signal.Signals:
    return signal.SIGTERM if len(received) == 1 else signal.SIGKILL


@contextmanager
def _signals(active: list[_Process]) -> Iterator[list[signal.Signals]]:
    """Pass the first Ctrl-C or SIGTERM on, so that the runs are saved; a second one kills them. Yield what came."""
    received: list[signal.Signals] = []

    def handle(number: int, _: FrameType | None) -> None:
        received.append(signal.Signals(number))
        for process in active:
            if process.popen.poll() is None:
                process.popen.send_signal(_to_pass_on(received))

    if threading.current_thread() is not threading.main_thread():
        yield received
        return
    before = {number: signal.signal(number, handle) for number in EXIT_CODES}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for process in active:  # after an error of ours
            process.popen.kill()
