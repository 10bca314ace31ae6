"""`dream`: the animation and its files, by the arguments that a user gives."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
from look_run import row, write_checkpoint, write_run
from PIL import Image
from test_run_report import refused

from wm_rllib.cli.main import main


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = write_run(tmp_path_factory.mktemp("runs") / "cartpole", [row(1)])
    return write_checkpoint(run, "best")


def frames_of(path: Path) -> list[np.ndarray]:
    """All frames of an animation."""
    with Image.open(path) as image:
        frames = []
        for index in range(image.n_frames):
            image.seek(index)
            frames.append(np.asarray(image.convert("RGB")))
        return frames


def test_a_gif_shows_real_beside_dreamed(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    files = [tmp_path / f"{name}.gif" for name in ("one", "again", "hot")]
    for output, temperature in zip(files, ("1.0", "1.0", "2.5"), strict=True):
        flags = ["--horizon", "6", "--seed", "3", "--temperature", temperature]
        assert main(["dream", str(checkpoint), "--output", str(output), *flags]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].startswith(f"{files[0]}: CartPole-v1 at temperature 1; real, same actions, own actions: ")
    one, again, hot = (frames_of(path) for path in files)
    assert len(one) == 7  # none may have ended before: an untrained policy holds the pole for six steps
    assert all(np.array_equal(*pair) for pair in zip(one, again, strict=True))
    real, dreamed = slice(0, 300), slice(308, None)
    # The first frame is the start in all panels; later on dreams differ by temperature, and reality does not.
    assert not np.array_equal(one[-1][:, dreamed], hot[-1][:, dreamed])
    assert np.abs(one[-1][44:60, real].astype(int) - hot[-1][44:60, real]).mean() < 5
    assert not np.array_equal(one[0], one[-1])


def test_a_png_is_a_sheet_of_frames(checkpoint: Path, tmp_path: Path):
    output = tmp_path / "sheet.png"
    assert main(["dream", str(checkpoint.parent.parent), "--output", str(output), "--horizon", "5"]) == 0
    with Image.open(output) as image:
        assert image.width == 916 and image.height > 4 * 60


@pytest.mark.skipif(importlib.util.find_spec("imageio_ffmpeg") is None, reason="imageio-ffmpeg is not installed")
def test_mp4(checkpoint: Path, tmp_path: Path):
    output = tmp_path / "dream.mp4"
    assert main(["dream", str(checkpoint), "--output", str(output), "--horizon", "5"]) == 0
    assert output.read_bytes()[4:8] == b"ftyp"


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--output", "dream.avi"], "must end with .gif, .mp4, .png"),
        (["--output", "{tmp}/none/dream.gif"], "does not exist"),
        (["--horizon", "0"], "--horizon is 0, but must be a whole number from 1 to 1000"),
        (["--temperature", "0"], "--temperature"),
        (["--temperature", "warm"], "--temperature"),
        (["--port", "8000"], "--port is for --play"),
        (["--play", "--horizon", "5"], "--horizon is for an animation"),
        (["--play", "--output", "x.gif"], "--output is for an animation"),
        (["--play", "--port", "70000"], "--port is 70000, but must be a whole number from 1 to 65535"),
        (["--env", "Pendulum-v1"], "the agent was trained on"),
    ],
)
def test_wrong_values_are_named(
    tmp_path: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str], flags: list[str], words: str
):
    assert words in refused(capsys, "dream", str(checkpoint), *(flag.replace("{tmp}", str(tmp_path)) for flag in flags))


def test_a_missing_encoder_is_named(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    message = refused(capsys, "dream", str(checkpoint), "--output", str(tmp_path / "dream.mp4"))
    assert "MP4 needs imageio-ffmpeg" in message and f"--output {tmp_path / 'dream.gif'}" in message


def test_what_is_no_checkpoint_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert "is no checkpoint of wm_rllib" in refused(capsys, "dream", str(tmp_path))
    assert "does not exist" in refused(capsys, "dream", str(tmp_path / "nowhere"), "--play")
