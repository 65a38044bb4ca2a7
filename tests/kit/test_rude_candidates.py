"""Candidates that misbehave: the kit continues, is unchanged, and reports the cause.

Each kind is the body of a function. In this process, in one of its own, and under pytest each must have the outcome
next to it; `test_rude_commands.py` does the same for programs.
"""

import locale
import os
import random
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from textwrap import indent
from typing import Any

import numpy as np
import pytest

from adamshap.verify.checking import MOST_HANGS, Outcome, check, with_answers
from adamshap.verify.implementation import Implementation, LoadError, load
from adamshap.verify.isolation import isolated
from adamshap.verify.oracle import ORACLE
from adamshap.verify.properties import PROPERTIES

BY_NAME = {one.name: one for one in PROPERTIES}
INFLUENCE = BY_NAME["influence"]
PATIENCE = 0.3
"""Time limit, in seconds, of a call of a candidate that hangs."""


@dataclass(frozen=True)
class Kind:
    """The body of a function, and the kit's message about it; "" if its answer is right."""

    does: str
    says: str = ""


RIGHT = "return influence_of(step)"

RAISES = {
    "exits": Kind("sys.exit(0)", "raised SystemExit: 0"),
    "exits_by_quit": Kind("quit()", "raised SystemExit"),
    "exits_at_once": Kind("os._exit(0)", "raised Exited: os._exit(0)"),
    "base_exception": Kind("raise BaseException('mine')", "raised BaseException: mine"),
    "generator_exit": Kind("raise GeneratorExit", "raised GeneratorExit"),
    "keyboard_interrupt": Kind("raise KeyboardInterrupt", "raised KeyboardInterrupt"),
    "cancelled": Kind("raise asyncio.CancelledError", "raised CancelledError"),
    "stop_iteration": Kind("raise StopIteration(3)", "raised StopIteration: 3"),
    "exception_group": Kind("raise ExceptionGroup('all', [ValueError()])", "raised ExceptionGroup: all"),
    "recursion": Kind("return influence(step)", "raised RecursionError"),
    "no_memory": Kind("raise MemoryError", "raised MemoryError"),
    "skips": Kind("pytest.skip('no')", "raised Skipped: no"),
    "ends_pytest": Kind("pytest.exit('no')", "raised Exit: no"),
    "rejects": Kind("raise hypothesis.errors.UnsatisfiedAssumption", "raised UnsatisfiedAssumption"),
    "message_that_raises": Kind("raise Unprintable", "raised Unprintable: (a message that cannot be printed: Silent)"),
    "message_of_megabytes": Kind("raise ValueError('a' * 10**7)", "aaa…"),
    "message_of_no_text": Kind("raise ValueError('\\ud800\\x00\\x1b[2J')", r"raised ValueError: \ud800\x00\x1b[2J"),
    "unsupported_of_no_text": Kind("raise NotImplementedError('\\ud800')", r"not supported: \ud800"),
    "floating_point_error": Kind("np.seterr(all='raise'); np.float64(1) / 0", "raised FloatingPointError"),
    "warning_as_error": Kind("warnings.simplefilter('error'); warnings.warn('mine')", "raised UserWarning: mine"),
    "class_without_a_name": Kind("raise Nameless('mine')", "raised Nameless: mine"),
    "message_of_another_kind_of_text": Kind("raise Odd", "raised Odd: mine"),
    "exception_of_the_kit": Kind("raise Hung('mine')", "raised Hung: mine"),
    "exception_of_the_kit_that_raises": Kind("raise OddMisbehaviour", "raised OddMisbehaviour: (a message that cannot"),
    "system_exit_of_an_object": Kind("raise SystemExit(step)", "raised SystemExit: Step("),
}

STATE = {
    "floating_point": Kind("np.seterr(all='raise')"),
    "floating_point_handler": Kind("np.seterrcall(print); np.seterr(all='call')"),
    "rounding_of_the_processor": Kind(
        "answer = influence_of(step); ctypes.CDLL(None).fesetround(UPWARD); return answer"
    ),
    "warnings_are_errors": Kind("warnings.simplefilter('error')"),
    "warnings_are_lost": Kind("warnings.filters = []; warnings.showwarning = print"),
    "random_state": Kind("random.seed(0); np.random.seed(0)"),
    "random_generator": Kind("np.random.set_bit_generator(np.random.PCG64(0))"),
    "folder": Kind("os.chdir('/')"),
    "deleted_folder": Kind("d = tempfile.mkdtemp(); os.chdir(d); os.rmdir(d)"),
    "locale": Kind("locale.setlocale(locale.LC_ALL, 'C')"),
    "closed_output": Kind("sys.stdout.close(); sys.stderr.close(); sys.__stdout__.close()"),
    "output_in_ascii": Kind("sys.stdout.reconfigure(encoding='ascii', errors='strict')"),
    "mask_of_new_files": Kind("os.umask(0o777)"),
    "closed_buffer": Kind("sys.stdout.buffer.close()"),
    "no_output": Kind("sys.stdout = sys.stderr = None"),
    "output_elsewhere": Kind("sys.stdout = io.StringIO(); print('lost')"),
    "closed_descriptors": Kind("os.close(0); os.close(1); os.close(2)"),
    "descriptors_elsewhere": Kind("os.dup2(os.open(os.devnull, os.O_WRONLY), 1)"),
    "megabytes_of_output": Kind("print('a' * 5_000_000)"),
    "recursion_limit": Kind("sys.setrecursionlimit(400)"),
    "signals_ignored": Kind("[signal.signal(s, signal.SIG_IGN) for s in (signal.SIGINT, signal.SIGALRM)]"),
    "alarm_left_on": Kind("signal.setitimer(signal.ITIMER_REAL, 0.001)"),
    "thread_lingers": Kind("threading.Thread(target=time.sleep, args=(600,), daemon=True).start()"),
    "sys_path": Kind("sys.path[:0] = ['/nowhere']; sys.path.pop(0)"),
    "collector_off": Kind("gc.disable(); gc.enable()"),
}

INPUTS = {
    "adds_a_name": Kind("step.params['mine'] = 1", "changed its input: the names in step.params, now"),
    "removes_a_name": Kind("step.params.popitem()", "changed its input: the names in step.params, now"),
    "empties_the_moments": Kind("step.state.m.clear()", "changed its input: the names in step.state.m, now []"),
    "rebinds_a_moment": Kind(
        "step.state.m['0.weight'] = step.state.m['0.weight'] + 1", "changed its input: step.state.m['0.weight']"
    ),
    "rebinds_to_a_list": Kind(
        "step.params['0.weight'] = step.params['0.weight'].tolist()", "changed its input: step.params['0.weight']"
    ),
    "writes_to_a_parameter": Kind("step.params['0.weight'][...] = 0", "raised ValueError: assignment destination is"),
    "writes_around_the_view": Kind("step.params['0.weight'].base[...] += 1", "changed its input: step.params['0.wei"),
    "allows_itself_to_write": Kind(
        "step.state.v['0.weight'].setflags(write=True); step.state.v['0.weight'][...] += 1",
        "changed its input: step.state.v['0.weight']",
    ),
    "changes_the_sign_of_zero": Kind(
        "x = step.train.x.base; x[...] = 0.0 * x - 0.0", "changed its input: step.train.x"
    ),
    "reshapes": Kind("step.valid.x.shape = (-1,)", "changed its input: step.valid.x"),
    "replaces_the_labels": Kind(
        "object.__setattr__(step.train, 'y', step.train.y + 0.5)", "changed its input: step.train.y"
    ),
    "sets_the_reduction": Kind("object.__setattr__(step, 'reduction', 'none')", "changed its input: step.reduction"),
    "sets_the_network": Kind("object.__setattr__(step.net, 'sizes', (1, 1))", "changed its input: step.net"),
    "sets_the_step": Kind("object.__setattr__(step.state, 'step', -1)", "changed its input: step.state.step"),
    "sets_what_equals_everything": Kind(
        "object.__setattr__(step, 'adam', EqualsAll())", "changed its input: step.adam"
    ),
    "sets_what_cannot_be_compared": Kind(
        "object.__setattr__(step.adam, 'lr', Incomparable())",
        "a field cannot be compared with its original (SystemExit)",
    ),
    "sets_an_array_for_a_number": Kind(
        "object.__setattr__(step.state, 'step', np.ones(2))", "changed its input: step.state.step"
    ),
    "removes_the_parameters": Kind(
        "object.__setattr__(step, 'params', None)", "changed its input: a field cannot be compared"
    ),
    "removes_a_field": Kind("object.__delattr__(step, 'params')", "changed its input: a field is gone"),
}

RESULTS = {
    "view_of_its_input": Kind("return np.broadcast_to(step.train.x[0, :1], step.n)", "values as a view of its input"),
    "wrong_shape": Kind("return np.zeros((step.n, 1))", "returned values of shape"),
    "too_long": Kind("return np.zeros(step.n + 1)", "returned values of shape"),
    "uneven_lists": Kind("return [[1.0], [1.0, 2.0]]", "as a list, which is not a NumPy array"),
    "nothing": Kind("return None", "returned values as a NoneType, which is not an array of numbers"),
    "complex": Kind("return np.zeros(step.n, complex)", "returned values of dtype complex128"),
    "strings": Kind("return ['1.0'] * step.n", "returned values of dtype <U3"),
    "booleans": Kind("return np.ones(step.n, bool)", "returned values of dtype bool"),
    "dates": Kind("return np.zeros(step.n, 'M8[s]')", "returned values of dtype datetime64[s]"),
    "records": Kind("return np.zeros(step.n, 'f8,f8')", "returned values of dtype"),
    "objects": Kind(
        "return np.zeros(step.n, object)", "returned values as a ndarray, which is not an array of numbers"
    ),
    "dictionary": Kind("return {i: 0.0 for i in range(step.n)}", "returned values as a dict"),
    "generator": Kind("return (0.0 for _ in range(step.n))", "returned values as a generator"),
    "coroutine": Kind("async def later(): return 0\nreturn later()", "returned a coroutine"),
    "not_a_number": Kind("return np.full(step.n, np.nan)", "values NaN or infinite"),
    "infinite": Kind("return [1e999] * step.n", "values NaN or infinite"),
    "beyond_float64": Kind("return np.full(step.n, 2, np.longdouble) ** 10_000", "values NaN or infinite"),
    "integers_of_any_size": Kind("return [10**400] * step.n", "as a list, which is not an array of numbers"),
    "matrix": Kind("return np.zeros((1, step.n)).view(np.matrix)", "returned values of shape (1, "),
    "masked": Kind("return np.ma.masked_all(step.n)", "masked values"),
    "subclass": Kind("return reference.influence(step).view(Mine)"),
    "memory_map": Kind(
        "with tempfile.TemporaryFile() as f: a = np.memmap(f, 'f8', 'w+', shape=step.n)\n"
        "a[:] = influence_of(step); return a"
    ),
    "memory_used_again": Kind(
        "MEMORY[: step.n] = influence_of(step); return MEMORY[: step.n]", "changed the result of an earlier call"
    ),
    "array_that_exits": Kind("return Exits()", "raised SystemExit: 0"),
    "array_that_changes_its_input": Kind("return Spoils(step)", "changed its input: step.train.x"),
}

HANGS = {
    "loops": Kind("while True: time.sleep(0.01)"),
    "swallows_exceptions": Kind("while True:\n    try: time.sleep(0.01)\n    except Exception: pass"),
    "swallows_it_once": Kind(f"try: time.sleep(60)\nexcept BaseException: {RIGHT}"),
    "array_that_hangs": Kind("return Hangs()"),
    "message_that_hangs": Kind("raise Hanging"),
}

DEADLY = {
    "killed": Kind("os.kill(os.getpid(), signal.SIGKILL)", "was ended by SIGKILL"),
    "kills_its_group": Kind("os.killpg(os.getpgid(0), signal.SIGKILL)", "was ended by SIGKILL"),
    "terminated": Kind("os.kill(os.getpid(), signal.SIGTERM)", "was ended by SIGTERM"),
    "aborts": Kind("sys.stderr.write('my last words'); os.abort()", "was ended by SIGABRT; it printed: my last words"),
    "segmentation_fault": Kind("ctypes.string_at(0)", "was ended by SIGSEGV"),
    "real_time_signal": Kind("os.kill(os.getpid(), 40)", "was ended by signal 40"),
    "exits_in_c": Kind("ctypes.CDLL(None)._exit(3)", "ended with exit status 3"),
    "becomes_another_program": Kind("os.execv(sys.executable, [sys.executable, '-c', ''])", "ended with exit status 0"),
    "closes_all_descriptors": Kind("os.closerange(0, 256)", "ended with exit status"),
    "writes_to_every_descriptor": Kind("write_everywhere()", "wrote to its connection to the kit"),
}

ALONE = {
    "forks_and_goes_on": Kind("os.fork()"),
    "child_lingers": Kind("subprocess.Popen(['sleep', '601.25'])"),
    "thread_keeps_the_process": Kind("threading.Thread(target=time.sleep, args=(600,)).start()"),
    "no_environment": Kind("os.environ.clear()"),
    "other_numpy": Kind("np.isfinite = lambda a: np.ones(1, bool); return [float('nan')] * step.n", "NaN or infinite"),
}

HEAD = '''
import asyncio, ctypes, gc, io, locale, os, platform, random, signal, subprocess, sys, tempfile, threading, time
import warnings
import hypothesis, numpy as np, pytest
from adamshap import reference
from adamshap.verify.implementation import Hung, Misbehaviour

MEMORY = np.zeros(100)
UPWARD = 0x400000 if platform.machine() == "aarch64" else 0x800

def influence_of(step):
    with np.errstate(all="ignore"):  # whatever was set before
        return reference.influence(step)

class Mine(np.ndarray):
    pass

class Silent(Exception):
    pass

class Unprintable(Exception):
    def __str__(self):
        raise Silent

class Unnamed(type):
    __name__ = property(lambda cls: 1 / 0)

class Nameless(Exception, metaclass=Unnamed):
    pass

class Text(str):
    def __len__(self):
        return -1

class Odd(Exception):
    def __str__(self):
        return Text("mine")

class OddMisbehaviour(Misbehaviour):
    def __str__(self):
        raise Silent

class EqualsAll:
    def __eq__(self, other):
        return True
    def __ne__(self, other):
        return False

class Incomparable:
    def __eq__(self, other):
        sys.exit(0)

class Hanging(Exception):
    def __str__(self):
        time.sleep(60)

class Exits:
    def __array__(self, *_, **__):
        sys.exit(0)

class Hangs:
    def __array__(self, *_, **__):
        time.sleep(60)

class Spoils:
    def __init__(self, step):
        self.step = step
    def __array__(self, *_, **__):
        self.step.train.x.base[...] += 1
        return influence_of(self.step)

def write_everywhere():
    for number in range(3, 64):
        try:
            os.write(number, b"\\xff" * 64)
        except OSError:
            pass
    time.sleep(60)

class Chosen:
    """The kind whose name a file holds, so that one process serves many."""
    @staticmethod
    def influence(step):
        with open(__file__ + ".now") as file:
            return globals()["kind_" + file.read()].influence(step)
'''

HERE = RAISES | STATE | INPUTS | RESULTS
ALL = HERE | HANGS | DEADLY | ALONE


def source() -> str:
    """Return the source of a module with a class of each kind."""
    parts = [HEAD]
    for name, kind in ALL.items():
        body = indent(f"{kind.does}\n{RIGHT}", " " * 8)
        parts.append(f"class kind_{name}:\n    @staticmethod\n    def influence(step):\n{body}\n")
    return "\n".join(parts).replace("return influence(step)", "return kind_recursion.influence(step)")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    made = tmp_path_factory.mktemp("rude")
    (made / "rude.py").write_text(source(), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(made)
        outcome_of(ORACLE)  # modules imported on first use may set warnings filters
        yield made


@pytest.fixture(scope="module")
def chosen(folder: Path) -> Iterator[Implementation]:
    with isolated("rude:Chosen", 20.0) as candidate:
        yield candidate


def outcome_of(candidate: Implementation, timeout: float | None = 20.0) -> Outcome:
    (outcome,) = check(candidate, [INFLUENCE], timeout=timeout, shrink_seconds=0)
    return outcome


def message_of(outcome: Outcome) -> str:
    """Return the kit's message about a property that does not hold, "" for one that holds."""
    if outcome.finding is not None:
        assert outcome.status == "failed"
        return outcome.finding.sentence
    reasons = [reason for reason, _ in outcome.unsupported]
    return "" if outcome.status == "passed" else f"{outcome.status}: {', '.join(reasons)}"


def assert_as_said(outcome: Outcome, kind: Kind) -> None:
    sentence = message_of(outcome)
    assert kind.says in sentence
    assert bool(kind.says) == bool(sentence), sentence
    assert sentence.isprintable()


def state() -> list[Any]:
    """Return the process state that a candidate must not change."""
    streams = [sys.stdin, sys.stdout, sys.stderr, sys.__stdout__]
    return [
        np.geterr(),
        np.geterrcall(),
        (np.float64(1) / np.float64(3)).hex(),
        list(warnings.filters),
        warnings.showwarning,
        random.getstate(),
        str(np.random.get_bit_generator().state),
        os.getcwd(),
        locale.setlocale(locale.LC_ALL),
        streams,
        [(stream.closed, getattr(stream, "encoding", None)) for stream in streams if stream is not None],
        mask_of_new_files(),
        [os.path.realpath(f"/proc/self/fd/{number}") for number in range(3)],
        sys.getrecursionlimit(),
    ]


def mask_of_new_files() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


# --- in this process --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", HERE)
def test_in_this_process_a_candidate_is_found_out_and_leaves_nothing(folder: Path, name: str) -> None:
    before = state()
    outcome = outcome_of(load(f"rude:kind_{name}"))
    assert state() == before
    assert_as_said(outcome, HERE[name])
    assert outcome_of(ORACLE).status == "passed"


@pytest.mark.parametrize("name", HANGS)
def test_in_this_process_python_code_that_hangs_is_interrupted(folder: Path, name: str) -> None:
    outcome = outcome_of(load(f"rude:kind_{name}"), timeout=PATIENCE)
    assert message_of(outcome) == f"influence(step): the candidate gave no answer within {PATIENCE:g} s"


def test_a_user_can_interrupt_a_candidate_that_swallows_it(folder: Path) -> None:
    def stubborn(step: Any) -> Any:
        try:
            os.kill(os.getpid(), 2)  # as Ctrl-C does
            time.sleep(1)
        except KeyboardInterrupt:
            pass
        return np.zeros(step.n)

    with pytest.raises(KeyboardInterrupt):
        outcome_of(Implementation("mine", frozenset({"influence"}), lambda step, query: stubborn(step)))


def test_state_that_a_candidate_set_is_restored_for_it() -> None:
    def ask(step: Any, query: Any) -> Any:
        seen.append(np.geterr()["divide"])
        np.seterr(divide="ignore")
        return ORACLE.ask(step, query)

    seen: list[str] = []
    outcome_of(Implementation("mine", frozenset({"influence"}), ask))
    assert seen[0] == np.geterr()["divide"] != "ignore"
    assert set(seen[1:]) == {"ignore"}


def test_a_coalition_that_is_changed_is_a_finding() -> None:
    def ask(step: Any, query: Any) -> Any:
        query.options["coalition"][:] = True
        return ORACLE.ask(step, query)

    (outcome,) = check(Implementation("mine", frozenset({"utility"}), ask), [BY_NAME["utility"]], shrink_seconds=0)
    assert "changed its input: options['coalition']" in message_of(outcome)


# --- in a process of its own ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", HERE | DEADLY)
def test_in_its_own_process_a_candidate_is_found_out(folder: Path, chosen: Implementation, name: str) -> None:
    (folder / "rude.py.now").write_text(name)
    outcome = outcome_of(chosen, None)
    assert_as_said(outcome, ALL[name])
    if name in DEADLY:
        assert outcome.finding is not None
        assert outcome.finding.lost
        assert with_answers([outcome]) == []
        (folder / "rude.py.now").write_text("folder")
        assert outcome_of(chosen, None).status == "passed"  # in a new process


@pytest.mark.parametrize("name", ALONE)
def test_lasting_changes_end_with_the_process(folder: Path, name: str) -> None:
    with isolated(f"rude:kind_{name}") as candidate:
        outcome = outcome_of(candidate, None)
    assert_as_said(outcome, ALONE[name])
    until = time.monotonic() + 20
    while still_running() and time.monotonic() < until:
        time.sleep(0.01)
    assert still_running() == []


def still_running() -> list[str]:
    """Return the command lines of running processes that candidates here started."""
    lines = []
    for place in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            lines.append(place.read_text().replace("\0", " ").strip())
    return [line for line in lines if line == "sleep 601.25"]


@pytest.mark.parametrize(
    ("name", "body"),
    [
        *((name, kind.does) for name, kind in HANGS.items()),
        ("swallows_everything", "while True:\n    try: time.sleep(0.01)\n    except BaseException: pass"),
        ("stopped", "os.kill(os.getpid(), signal.SIGSTOP)"),
        ("hears_no_alarm", "signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGALRM]); time.sleep(60)"),
    ],
)
def test_in_its_own_process_any_hang_is_ended(tmp_path: Path, name: str, body: str) -> None:
    module = f"hang_{name}"
    text = f"{HEAD}\ndef influence(step):\n{indent(body, '    ')}\n    {RIGHT}\n"
    (tmp_path / f"{module}.py").write_text(text, encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(tmp_path)
        with isolated(module, PATIENCE) as candidate:
            outcome = outcome_of(candidate, None)
    assert message_of(outcome) == f"influence(step): the candidate gave no answer within {PATIENCE:g} s"


def test_a_run_ends_after_a_few_hangs() -> None:
    def ask(step: Any, query: Any) -> Any:
        calls.append(query)
        time.sleep(60)

    calls: list[Any] = []
    candidate = Implementation("mine", ORACLE.offers, ask)
    outcomes = check(candidate, PROPERTIES, timeout=0.05)
    assert len(calls) == MOST_HANGS
    tried = [outcome for outcome in outcomes if outcome.status != "not offered"]
    assert [outcome.status for outcome in tried[:MOST_HANGS]] == ["failed"] * MOST_HANGS
    assert {outcome.status for outcome in tried[MOST_HANGS:]} == {"not tried"}


# --- at import --------------------------------------------------------------------------------------------------------


IMPORTS = {
    "import_exits": ("import sys; sys.exit(0)", "SystemExit: 0"),
    "import_exits_at_once": ("import os; os._exit(0)", "Exited: os._exit(0)"),
    "import_raises": ("raise BaseException('mine')", "BaseException: mine"),
    "import_interrupts": ("raise KeyboardInterrupt", "KeyboardInterrupt"),
    "import_breaks": ("def (", "SyntaxError"),
    "import_of_no_text": ("raise ValueError('\\ud800')", r"ValueError: \ud800"),
    "import_of_nothing": ("", "has none of the functions"),
    "import_lies": ("def __getattr__(name): raise SystemExit", "SystemExit"),
}


def module(folder: Path, name: str, text: str) -> str:
    (folder / f"{name}.py").write_text(text, encoding="utf-8")
    return name


@pytest.mark.parametrize("name", IMPORTS)
def test_a_module_that_cannot_be_imported_is_refused(folder: Path, name: str) -> None:
    text, says = IMPORTS[name]
    before, target = state(), module(folder, name, text)
    with pytest.raises(LoadError) as here:
        load(target)
    with pytest.raises(LoadError) as there, isolated(target):
        pass
    assert state() == before
    assert says in str(here.value)
    assert str(there.value) == str(here.value)


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("import_is_killed", "import os; os.kill(os.getpid(), 9)", "it was ended by SIGKILL"),
        ("import_exits_in_c", "import ctypes; ctypes.CDLL(None)._exit(0)", "it ended with exit status 0"),
    ],
)
def test_a_module_that_ends_its_process_is_refused(folder: Path, name: str, text: str, says: str) -> None:
    with pytest.raises(LoadError, match=says), isolated(module(folder, name, text)):
        pass


def test_a_module_that_sets_everything_leaves_nothing(folder: Path) -> None:
    settings = "\n".join(kind.does for kind in STATE.values() if "step" not in kind.does)
    before = state()
    text = f"{HEAD}\n{settings}\ninfluence = influence_of\n"
    candidate = load(module(folder, "import_sets", text))
    assert state() == before
    assert outcome_of(candidate).status == "passed"


def test_a_second_import_that_fails_is_a_finding(folder: Path) -> None:
    text = """
import os, pathlib, signal
seen = pathlib.Path(__file__ + ".seen")
if seen.exists():
    raise SystemExit("only once")
seen.touch()

def influence(step):
    os.kill(os.getpid(), signal.SIGKILL)
"""
    with isolated(module(folder, "import_once", text)) as candidate:
        assert "was ended by SIGKILL" in message_of(outcome_of(candidate, None))
        assert "could not be loaded again: cannot load 'import_once': SystemExit: only once" in message_of(
            outcome_of(candidate, None)
        )
