"""Both pytest plugins, in separate runs of pytest: the one that installs with the package, and `device_plugin`."""

import sys
from pathlib import Path
from typing import Any

import pytest

pytest_plugins = ["pytester"]

DEVICE_PLUGIN = ("-p", "adamshap.verify.device_plugin")

# Makes the plugin see a GPU, and changes nothing else.
PRETEND_GPU = """
from adamshap.verify import device_plugin, receipt

device_plugin._real_devices = lambda: 1
receipt.this_machine = lambda: receipt.Machine("Made-up GPU", "13.2", "13.0", "14.2.0")
"""
ON_A_GPU = """
import pytest

@pytest.mark.gpu
def test_property(record_error, record_throughput):
    record_error("additivity", 2e-7)
    record_error("additivity", 1e-7)
    record_throughput("secant", 0.9)

def test_without_gpu():
    pass
"""


@pytest.fixture
def project(pytester: pytest.Pytester) -> pytest.Pytester:
    """A project that uses none of our options."""
    pytester.makeini("[pytest]\naddopts = --strict-markers --strict-config\nfilterwarnings = error\n")
    return pytester


@pytest.fixture
def device_project(project: pytest.Pytester) -> pytest.Pytester:
    """A project that loads `device_plugin` in its configuration."""
    options = f"--strict-markers --strict-config {' '.join(DEVICE_PLUGIN)}"
    project.makeini(f"[pytest]\naddopts = {options}\nfilterwarnings = error\n")
    return project


def test_the_plugin_costs_nothing_when_it_is_not_used(project: pytest.Pytester) -> None:
    project.makepyfile("""
        import sys

        def test_nothing_is_loaded():
            names = "cupy", "adamshap.verify.cpu_device", "adamshap.verify.device_plugin", "adamshap.verify.receipt"
            assert not set(names) & set(sys.modules)
    """)
    assert project.runpytest_subprocess().ret == 0


THEIR_OWN = """
import pytest

def pytest_addoption(parser):
    for name in ("--receipt", "--receipt-source", "--target", "--profile", "--seed", "--timeout"):
        parser.addoption(name, default="theirs")

def pytest_configure(config):
    config.addinivalue_line("markers", "gpu: their own marker")

@pytest.fixture
def device():
    return "their device"

@pytest.fixture
def cupy_on_cpu():
    return "theirs"
"""
WITH_THEIR_OWN = """
import pytest

OPTIONS = ("--receipt", "--receipt-source", "--target", "--profile", "--seed", "--timeout")

@pytest.mark.gpu
def test_on_their_gpu(device, cupy_on_cpu, pytestconfig):
    assert (device, cupy_on_cpu) == ("their device", "theirs")
    assert [pytestconfig.getoption(name) for name in OPTIONS] == ["here", *["theirs"] * 5]
"""


def test_a_project_with_names_like_ours_is_left_alone(project: pytest.Pytester) -> None:
    project.makeconftest(THEIR_OWN)
    project.makepyfile(WITH_THEIR_OWN)
    result = project.runpytest_subprocess("--receipt", "here")
    result.assert_outcomes(passed=1)
    assert not (project.path / "here").exists()


def test_a_marker_that_no_plugin_of_theirs_has_is_unknown(project: pytest.Pytester) -> None:
    """Otherwise even a misspelt marker of theirs would match ours, and skip their test."""
    project.makepyfile("import pytest\n\n@pytest.mark.gpu\ndef test_it(): pass")
    result = project.runpytest_subprocess()
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*'gpu' not found in `markers`*"])


@pytest.mark.parametrize("name", ["device", "cupy_on_cpu", "record_error", "record_throughput"])
def test_no_fixture_of_ours_is_there_unasked(project: pytest.Pytester, name: str) -> None:
    project.makepyfile(f"def test_it({name}): pass")
    result = project.runpytest_subprocess()
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines([f"*fixture '{name}' not found*"])


def test_every_option_of_ours_has_a_name_of_its_own(project: pytest.Pytester) -> None:
    added = {True: set(), False: set()}
    for plugin, words in added.items():
        text = project.runpytest_subprocess("--help", *(() if plugin else ("-p", "no:adamshap"))).stdout.str()
        words.update(word for word in text.replace("=", " ").split() if word.startswith("--"))
    ours = added[True] - added[False]
    assert "--adamshap-target" in ours
    assert all(word.startswith(("--adamshap-", "--cupy-on-cpu")) for word in ours), ours


def test_what_a_project_runs_on_is_not_said_unasked(project: pytest.Pytester, cupy_on_cpu: Any) -> None:
    project.makepyfile("""
        from adamshap.verify import cpu_device

        def test_it():
            cpu_device.install()
    """)
    result = project.runpytest_subprocess()
    result.assert_outcomes(passed=1)
    result.stdout.no_fnmatch_line("*CuPy on CPU:*")


def test_pytest_runs_without_the_plugin(project: pytest.Pytester) -> None:
    project.makepyfile("def test_something(request): assert not request.config.pluginmanager.hasplugin('adamshap')")
    assert project.runpytest_subprocess("-p", "no:adamshap").ret == 0


@pytest.mark.usefixtures("cupy_on_cpu")
def test_the_option_installs_before_anything_can_import_cupy(device_project: pytest.Pytester) -> None:
    device_project.makeconftest("import cupy")
    device_project.makepyfile("""
        import cupy

        def test_it_runs_on_the_cpu(cupy_on_cpu):
            assert cupy.cuda.runtime.getDeviceProperties(0)["name"] == b"CuPy on CPU"
            assert cupy_on_cpu.current_modes() == cupy_on_cpu.Modes(reverse=True, poison=True)
    """)
    result = device_project.runpytest_subprocess("--cupy-on-cpu", "--cupy-on-cpu-modes=reverse,poison")
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(["CuPy on CPU: real CuPy code and kernels*(reverse, poison); not a GPU"])


@pytest.mark.usefixtures("cupy_on_cpu")
def test_workers_install_it_too(project: pytest.Pytester) -> None:
    project.makepyfile("""
        import cupy

        def test_it_runs_on_the_cpu():
            assert int(cupy.arange(4).sum()) == 6
    """)
    project.runpytest_subprocess("--cupy-on-cpu", "-n", "1").assert_outcomes(passed=1)


@pytest.mark.usefixtures("cupy_on_cpu")
@pytest.mark.parametrize("more", [(), ("-n", "1")])
def test_the_modes_hold_in_the_tests_of_this_repository(project: pytest.Pytester, more: tuple[str, ...]) -> None:
    project.makeconftest((Path(__file__).parent / "conftest.py").read_text(encoding="utf-8"))
    project.makepyfile("""
        from adamshap.verify import cpu_device

        def test_modes():
            assert cpu_device.current_modes() == cpu_device.Modes(reverse=True, poison=True)
    """)
    result = project.runpytest_subprocess("--cupy-on-cpu", "--cupy-on-cpu-modes=reverse,poison", *more)
    result.assert_outcomes(passed=1)


@pytest.mark.usefixtures("cupy_on_cpu")
def test_the_device_fixture_gives_numpy_and_cupy_on_the_cpu_and_skips_a_real_device(
    device_project: pytest.Pytester,
) -> None:
    device_project.makepyfile("""
        def test_sum(device):
            assert int(device.xp.arange(4).sum()) == 6
            print("ran on", device.name, device.xp.__name__)
    """)
    result = device_project.runpytest_subprocess("-rs", "-s")
    result.assert_outcomes(passed=2, skipped=1)
    result.stdout.fnmatch_lines(["*ran on cpu numpy*", "*ran on cupy-on-cpu cupy*", "*not CuPy on CPU*"])
    result.stdout.fnmatch_lines(["CuPy on CPU: real CuPy code and kernels, executed on the CPU; not a GPU"])


@pytest.mark.usefixtures("cupy_on_cpu")
def test_the_fixtures_serve_properties_of_hypothesis(device_project: pytest.Pytester) -> None:
    device_project.makepyfile("""
        from hypothesis import given, settings, strategies as st

        @settings(deadline=None)  # the first example compiles a kernel
        @given(n=st.integers(1, 9))
        def test_sum(device, record_error, n):
            assert int(device.xp.arange(n).sum()) == n * (n - 1) // 2
            record_error("sum", 0.0)
    """)
    device_project.runpytest_subprocess().assert_outcomes(passed=2, skipped=1)


@pytest.mark.usefixtures("cupy_on_cpu")
def test_cupy_that_is_imported_too_early_is_an_error_and_no_skip(device_project: pytest.Pytester) -> None:
    device_project.makepyfile("import cupy\ndef test_it(cupy_on_cpu): pass")
    result = device_project.runpytest_subprocess()
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*CuPy was imported before*pytest --cupy-on-cpu does so before it collects tests*"])


def test_what_is_missing_skips_a_test_and_ends_a_run_that_asked_for_it(
    device_project: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ADAMSHAP_CPU_DEVICE_CXX", "no-such-compiler")
    device_project.makepyfile("def test_it(cupy_on_cpu): pass")
    silent = device_project.runpytest_subprocess("-rs")
    silent.assert_outcomes(skipped=1)
    asked = device_project.runpytest_subprocess("--cupy-on-cpu")
    assert asked.ret == pytest.ExitCode.USAGE_ERROR
    for output in (silent.stdout, asked.stderr):
        output.fnmatch_lines(["*no-such-compiler*"])


def test_an_unknown_mode_ends_the_run(project: pytest.Pytester) -> None:
    result = project.runpytest_subprocess("--cupy-on-cpu", "--cupy-on-cpu-modes=backwards")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*modes: got 'backwards'*"])


def test_tests_for_a_gpu_are_skipped_without_one(device_project: pytest.Pytester) -> None:
    device_project.makepyfile(ON_A_GPU)
    device_project.makeconftest("from adamshap.verify import device_plugin\ndevice_plugin._real_devices = lambda: 0")
    result = device_project.runpytest_subprocess("-rs")
    result.assert_outcomes(passed=1, skipped=1)
    result.stdout.fnmatch_lines(["*needs a real CUDA device: none found*"])


def test_a_run_on_a_gpu_writes_its_receipt(device_project: pytest.Pytester) -> None:
    from adamshap.verify import receipt

    device_project.makeconftest(PRETEND_GPU)
    device_project.makepyfile(ON_A_GPU)
    device_project.mkdir("gpu").joinpath("engine.py").write_text("x = 1\n")
    result = device_project.runpytest_subprocess("-m", "gpu", "--receipt", "receipts")
    result.assert_outcomes(passed=1, deselected=1)
    written = receipt.newest(device_project.path / "receipts")
    assert written is not None
    assert written.machine.card == "Made-up GPU"
    assert written.largest_errors == {"additivity": 2e-7}
    assert written.throughput == {"secant": 0.9}
    assert written.passed == 1
    assert receipt.why_stale(written, device_project.path / "gpu") is None
    result.stdout.fnmatch_lines(["receipt: *.json"])


@pytest.mark.parametrize(
    "tests",
    [
        ON_A_GPU + "\n@pytest.mark.gpu\ndef test_wrong(): assert False\n",
        "def test_without_gpu(): pass\n",
    ],
)
def test_a_run_that_failed_or_ran_nothing_writes_none(device_project: pytest.Pytester, tests: str) -> None:
    device_project.makeconftest(PRETEND_GPU)
    device_project.makepyfile(tests)
    result = device_project.runpytest_subprocess("--receipt", "receipts")
    result.stdout.fnmatch_lines(["no receipt: *"])
    assert not (device_project.path / "receipts").exists()


@pytest.mark.parametrize(
    ("options", "devices", "message"),
    [
        (("--receipt", "receipts"), 0, "*--receipt is for a real GPU: none found*"),
        (("--receipt", "receipts", "--cupy-on-cpu"), 1, "*CuPy on CPU cannot make one*"),
        (("--receipt", "receipts", "-n", "2"), 1, "*--receipt needs one process*"),
    ],
)
def test_a_receipt_that_cannot_be_is_refused_at_once(
    device_project: pytest.Pytester, options: tuple[str, ...], devices: int, message: str
) -> None:
    device_project.makeconftest(
        f"from adamshap.verify import device_plugin\ndevice_plugin._real_devices = lambda: {devices}"
    )
    device_project.makepyfile(ON_A_GPU)
    result = device_project.runpytest_subprocess(*options)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([message])


@pytest.mark.usefixtures("cupy_on_cpu")
def test_pytest_runs_under_the_sanitizer(device_project: pytest.Pytester) -> None:
    device_project.makepyfile("""
        def test_sum(device):
            assert int(device.xp.arange(4).sum()) == 6
    """)
    command = [sys.executable, "-m", "adamshap.verify.cpu_device", "--sanitize", "-m", "pytest"]
    result: Any = device_project.run(*command)
    result.assert_outcomes(passed=2, skipped=1)
    result.stdout.fnmatch_lines(["CuPy on CPU:*(sanitize); not a GPU"])
