"""The options of the network and of its optimiser: what they make of a run, its resumption, and their refusals."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_helpers import TINY, Command

from adamshap import gpu
from adamshap.reference import Adam, Network, Schedule, convnet
from adamshap.reference.command import images, results, trainers
from adamshap.reference.command.datasets import load
from adamshap.reference.command.errors import CommandError
from adamshap.reference.command.preparation import prepare

Refused = Callable[..., None]
OPTIMISER = ("--betas", "0.8,0.95", "--eps", "1e-6", "--weight-decay", "0.1")


def _scores(folder: Path) -> dict[str, Any]:
    with np.load(folder / "scores.npz", allow_pickle=False) as archive:
        return dict(archive)


def _stop_after(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """Let the trainer fail after `step` steps, until `monkeypatch` is undone."""
    trainer = trainers.installed_trainer()

    def engine(*arguments: Any, on_step: Callable[[Any], None], **options: Any) -> Any:
        def fail(progress: Any) -> None:
            on_step(progress)
            if progress.step > step:
                raise CommandError("stopped", 1)

        return trainer.attribute(*arguments, on_step=fail, **options)

    monkeypatch.setattr(trainers, "installed_trainer", lambda: trainers.Trainer("a test", engine))


# --- the optimiser ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", ["constant", "linear", "cosine"])
@pytest.mark.parametrize("warmup", [0, 2])
def test_the_options_are_those_of_the_optimiser(
    here: Path, command: Command, blobs: Path, shape: Any, warmup: int
) -> None:
    given = ("--activation", "relu", "--schedule", shape, "--warmup", warmup, "--lr", "0.01", *OPTIMISER)
    result = command("attribute", blobs, *TINY, *given, "--out", "o")
    assert (result.exit_code, result.stderr) == (0, "")
    said = "Adam with betas 0.8, 0.95, eps 1e-06, weight decay 0.1"
    if shape != "constant" or warmup:
        said += f", learning rate 0.01, {shape}" + (" after 2 steps of warm-up" if warmup else "")
    assert f"{said}." in " ".join(result.stdout.split())
    prepared = prepare(load(str(blobs)), flip=0, seed=0)
    adam = Adam(0.01, (0.8, 0.95), 1e-6, weight_decay=0.1)
    run = gpu.attribute(
        Network((6, 4, 2), "relu"),
        Schedule(adam, shape, warmup, None if shape == "constant" else 4),
        prepared.train,
        prepared.valid,
        epochs=1,
        batch_size=8,
    )
    assert np.array_equal(_scores(here / "o")["total"], run.scores)


def test_the_defaults_are_not_mentioned(command: Command, blobs: Path) -> None:
    assert "Adam with" not in command("attribute", blobs, *TINY).stdout


def test_a_run_goes_on_with_its_options(
    here: Path, command: Command, blobs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = (*TINY, *OPTIMISER, "--schedule", "cosine", "--warmup", "1", "--activation", "silu", "--epochs", "2")
    assert command("attribute", blobs, *options, "--out", "whole").exit_code == 0
    with monkeypatch.context() as patch:
        _stop_after(patch, 3)
        assert command("attribute", blobs, *options, "--checkpoint-seconds", "0", "--out", "o").exit_code == 1
    result = command("attribute", "--resume", "o")
    assert (result.exit_code, result.stderr) == (0, "")
    assert np.array_equal(_scores(here / "o")["score"], _scores(here / "whole")["score"])


def test_the_folder_of_an_older_version_goes_on(
    here: Path, command: Command, blobs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config_of = results.config_of
    younger = (
        "activation",
        "betas",
        "eps",
        "weight_decay",
        "schedule",
        "warmup",
        "device",
        "model",
        "width",
        "depth",
        "heads",
        "context",
        "more",
    )

    def older(*arguments: Any) -> dict[str, Any]:
        config = config_of(*arguments)
        return config | {"options": {name: v for name, v in config["options"].items() if name not in younger}}

    assert command("attribute", blobs, *TINY, "--out", "whole").exit_code == 0
    with monkeypatch.context() as patch:
        _stop_after(patch, 2)
        patch.setattr(results, "config_of", older)
        assert command("attribute", blobs, *TINY, "--checkpoint-seconds", "0", "--out", "o").exit_code == 1
    assert "betas" not in json.loads((here / "o" / "config.json").read_text())["options"]
    result = command("attribute", "--resume", "o")
    assert (result.exit_code, result.stderr) == (0, "")
    assert np.array_equal(_scores(here / "o")["score"], _scores(here / "whole")["score"])


# --- the device ------------------------------------------------------------------------------------------------------


def test_the_device_of_the_run_and_of_its_resumption(
    here: Path, command: Command, blobs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    trainer = trainers.installed_trainer()

    def engine(*arguments: Any, device: str = "auto", on_step: Callable[[Any], None], **options: Any) -> Any:
        asked.append(device)

        def fail(progress: Any) -> None:
            on_step(progress)
            if len(asked) < 3 and progress.step > 1:
                raise CommandError("stopped", 1)

        return trainer.attribute(*arguments, on_step=fail, **options)

    monkeypatch.setattr(
        trainers, "installed_trainer", lambda: trainers.Trainer("a test", engine, "a test on {}".format)
    )
    assert command("attribute", blobs, *TINY, "--device", "cuda", "--out", "o").exit_code == 1
    assert command("attribute", "--resume", "o", "--checkpoint-seconds", "0").exit_code == 1
    assert command("attribute", "--resume", "o", "--device", "cpu").exit_code == 0
    assert asked == ["cuda", "cuda", "cpu"]
    starts = json.loads((here / "o" / "environment.json").read_text())
    assert [start["computed_by"] for start in starts] == [f"a test on {device}" for device in asked]


def test_the_engine_on_the_cpu(here: Path, command: Command) -> None:
    result = command("attribute", "wine", *TINY, "--device", "cpu", "--out", "o")
    assert f"computed by {gpu.describe('cpu')}" in " ".join(result.stdout.split())


def test_the_oracle_has_no_gpu(refused: Refused, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trainers, "installed_trainer", lambda: trainers.ORACLE)
    refused(("attribute", "wine", *TINY, "--device", "cuda"), "--device: got 'cuda'", "the oracle", "needs cpu")


# --- images ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "layout", "size"),
    [
        ((4, 5), (4, 5), (1, 4, 5)),
        ((1, 4, 5), (4, 5), (1, 4, 5)),
        ((4, 5, 1), (4, 5), (1, 4, 5)),
        ((3, 4, 5), (3, 4, 5), (3, 4, 5)),
        ((4, 5, 3), (4, 5, 3), (3, 4, 5)),
        ((4, 5, 4), (4, 5, 4), (4, 5, 4)),
        ((7,), None, None),
        ((2, 2, 2, 2), None, None),
    ],
)
def test_layouts(shape: tuple[int, ...], layout: images.Layout | None, size: tuple[int, int, int] | None) -> None:
    assert images.layout_of(shape) == layout
    assert layout is None or images.size_of(layout) == size


@pytest.mark.parametrize("layout", [(4, 5), (3, 4, 5), (4, 5, 3)])
def test_the_numbers_of_an_image_keep_their_place(layout: images.Layout) -> None:
    rows = np.random.default_rng(0).integers(0, 256, (6, int(np.prod(layout)))).astype(float)
    stored = rows.reshape(6, *layout)
    first = images.channels_first(rows, layout)
    assert np.array_equal(first, stored.reshape(first.shape) if layout[0] != 4 or len(layout) == 2 else first)
    pixels = images.pixels_of(rows, layout)
    for image, at in np.ndindex(6, 20):
        row, column = divmod(at, 5)
        if len(layout) == 2:
            pixel = [stored[image, row, column]]
        else:
            pixel = list(stored[image, :, row, column] if layout[0] == 3 else stored[image, row, column])
        assert first[image, :, row, column].tolist() == pixels[20 * image + at].tolist() == pixel
    values = np.arange(pixels.shape[1], dtype=float)
    of_numbers = images.channels_first(images.for_each_number(values, layout)[None], layout)[0]
    assert (of_numbers == values[:, None, None]).all()


@pytest.mark.parametrize(
    ("values", "drawn"), [([0, 0.5, 1], [0, 0.5, 1]), ([0, 51, 255], [0, 0.2, 1]), ([-1, 0, 1], [0, 0.5, 1])]
)
def test_colours_are_drawn_from_0_to_1(values: list[float], drawn: list[float]) -> None:
    assert images.picture_of(np.repeat(values, 3), (3, 1, 3)).tolist() == [3 * [drawn]]


@pytest.fixture
def photos(here: Path) -> Path:
    """Return a .npz file of two classes of images of 3 channels, 6 by 4, with the channels last."""
    generator = np.random.default_rng(2)
    y = np.repeat([0, 1], 20)
    x = generator.normal(size=(40, 6, 4, 3)) * [1, 10, 100] + 3 * y[:, None, None, None] + [0, 50, 0]
    path = here.parent / "photos.npz"
    np.savez(path, x=x, y=np.array(["dog", "cat"])[y])
    return path


SMALL = ("--model", "convnet", "--width", "2", "--depth", "2", "--epochs", "2", "--batch-size", "8")


def test_a_convnet_sees_images(here: Path, command: Command, photos: Path) -> None:
    result = command("attribute", photos, *SMALL, "--out", "o")
    assert (result.exit_code, result.stderr) == (0, "")
    said = " ".join(result.stdout.split())
    assert "convolutional network of 2-4 channels" in said
    assert "each example is an image of 6 by 4 with 3 channels" in said
    dataset = load(str(photos))
    prepared = prepare(dataset, flip=0, seed=0, as_images=True)
    with np.load(photos) as archive:
        stored = archive["x"].transpose(0, 3, 1, 2)
    train, valid = stored[prepared.train_index], stored[prepared.valid_index]
    mean, scale = train.mean(axis=(0, 2, 3), keepdims=True), train.std(axis=(0, 2, 3), keepdims=True)
    assert np.allclose(prepared.train.x, (train - mean) / scale, rtol=1e-12, atol=1e-12)
    assert np.allclose(prepared.valid.x, (valid - mean) / scale, rtol=1e-12, atol=1e-12)
    network = convnet(image=(3, 6, 4), channels=(2, 4), outputs=2)
    run = gpu.attribute(network, Adam(), prepared.train, prepared.valid, epochs=2, batch_size=8)
    assert np.array_equal(_scores(here / "o")["total"], run.scores)
    assert (here / "o" / "examples.png").read_bytes().startswith(b"\x89PNG")
    page = command("show", "o", "--html", "p.html")
    assert page.exit_code == 0
    assert (here / "p.html").read_text(encoding="utf-8").count("data:image/png;base64") == 20
    assert "convolutional network of 2-4 channels" in " ".join(command("show", "o").stdout.split())


def test_a_convnet_of_a_memory_map_for_quantities(here: Path, command: Command) -> None:
    generator = np.random.default_rng(3)
    x = generator.normal(size=(30, 5, 4))
    np.save("x.npy", x)
    np.save("y.npy", np.stack([x.mean(axis=(1, 2)), x[:, 0, 0]], axis=1))
    assert command("attribute", "x.npy,y.npy", *SMALL, "--out", "o").exit_code == 0
    np.savez("same.npz", x=x, y=np.load("y.npy"))
    assert command("attribute", "same.npz", *SMALL, "--out", "same").exit_code == 0
    assert np.array_equal(_scores(here / "o")["score"], _scores(here / "same")["score"])


def test_a_convnet_goes_on(here: Path, command: Command, photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert command("attribute", photos, *SMALL, "--out", "whole").exit_code == 0
    with monkeypatch.context() as patch:
        _stop_after(patch, 3)
        assert command("attribute", photos, *SMALL, "--checkpoint-seconds", "0", "--out", "o").exit_code == 1
    result = command("attribute", "--resume", "o")
    assert (result.exit_code, result.stderr) == (0, "")
    assert np.array_equal(_scores(here / "o")["score"], _scores(here / "whole")["score"])


def test_many_channels_have_no_pictures(here: Path, command: Command) -> None:
    generator = np.random.default_rng(4)
    np.savez("many.npz", x=generator.normal(size=(20, 5, 6, 6)), y=np.arange(20) % 2)
    result = command("attribute", "many.npz", *SMALL, "--out", "o")
    assert result.exit_code == 0
    assert "an image of 6 by 6 with 5 channels; pictures are drawn of 1 or 3" in " ".join(result.stdout.split())
    assert not (here / "o" / "examples.png").exists()
    assert command("show", "o", "--html", "p.html").exit_code == 0
    assert "No pictures" not in (here / "p.html").read_text(encoding="utf-8")


# --- refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("betas", ["0.9", "0.9,1", "-0.1,0.9", "nan,0.9", "0.9,0.99,0.999", "high,low", ""])
def test_betas_are_two_numbers_below_1(refused: Refused, betas: str) -> None:
    refused(("attribute", "wine", *TINY, "--betas", betas), f"--betas: got {betas!r}; needs two numbers")


def test_a_warmup_ends_before_the_run(refused: Refused) -> None:
    refused(("attribute", "wine", *TINY, "--warmup", "18"), "--warmup: got 18, for a run of 18 steps; needs fewer")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--model", "convnet", "--hidden", "4"), "--hidden: got it with the model convnet; needs --model mlp"),
        (("--width", "4"), "--width: got it with the model mlp; needs --model convnet"),
        (("--depth", "4"), "--depth: got it with the model mlp; needs --model convnet"),
    ],
)
def test_an_option_of_another_model(refused: Refused, blobs: Path, options: tuple[str, ...], said: str) -> None:
    refused(("attribute", blobs, *options), said)


def test_a_convnet_needs_images(refused: Refused) -> None:
    refused(
        ("attribute", "wine", "--model", "convnet"), "--model: got 'convnet' with 'wine'", "needs digits, or arrays"
    )
