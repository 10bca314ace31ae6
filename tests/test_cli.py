"""The command line as users run it: processes of their own, on a tiny single-process setting unless a test says so."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import ray
import yaml
from tensorboardX.proto.event_pb2 import Event

from wm_rllib import load_policy
from wm_rllib.acting.evaluation import evaluate_policy
from wm_rllib.cli.main import main
from wm_rllib.metrics import is_documented

pytestmark = pytest.mark.integration

STEPS = 400
FREQUENCY = 3
SETTINGS = {
    "env": {"id": "CartPole-v1"},
    "seed": 3,
    "device": "cpu",
    "env_runners": {"num_envs_per_env_runner": 2},
    "world_model": {
        "vae": {"latent_dim": 3, "hidden_dims": [16]},
        "mdn_rnn": {"hidden_dim": 8, "head_hidden_dims": [16], "num_mixtures": 2},
        "training": {
            "pretrain_epochs": 4,
            "updates_per_step": 0.15,
            "sequence_length": 8,
            "sequence_batch_size": 4,
            "imagination_ratio": 0.8,
            "imagination_horizon": 5,
            "num_dream_rounds": 2,
            "burn_in": 4,
        },
        "data_collection": {"random_collection_steps": 60, "replay_capacity": 2000},
    },
    "ppo": {"train_batch_size_per_learner": 32, "minibatch_size": 64, "num_epochs": 2, "hidden_dims": [16]},
    "evaluation": {"interval": 150, "episodes": 3},
    "checkpoint": {"frequency": FREQUENCY},
    "stop": {"total_timesteps": STEPS},
}
REMOTE = [
    *("--set", "env_runners.num_env_runners=1", "--set", "env_runners.num_cpus_per_env_runner=0.5"),
    *("--set", "dreamers.num_dreamers=1", "--set", "dreamers.num_cpus_per_dreamer=0.5"),
]
REQUIRED = {
    "training_iteration",
    "phase",
    "num_env_steps_sampled_lifetime",
    "rows/real",
    "rows/imagined",
    "imagination/ratio",
    "evaluation/episode_return_mean",
    "world_model/version",
    "restarts/env_runners",
    "restarts/dreamers",
    "restarts/parameter_server",
    "seconds/iteration",
    "seconds/total",
}
STAGES = {f"seconds/{stage}" for stage in ("sample", "replay", "fit", "dream", "update", "publish")}


class Run:
    """One `python -m wm_rllib ...`, its output, and all processes that it started."""

    def __init__(self, folder: Path, *argv: str):
        self.folder = folder / "run"
        self._log = (folder / f"output-{time.monotonic_ns()}.txt").open("w+")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "wm_rllib", *argv],
            stdout=self._log,
            stderr=subprocess.STDOUT,
            cwd=folder,
            start_new_session=True,  # a group of its own, as a shell gives it
        )
        self._started: dict[int, psutil.Process] = {}
        self._noted_at = 0.0

    @classmethod
    def train(cls, folder: Path, *argv: str) -> Run:
        (folder / "tiny.yaml").write_text(yaml.safe_dump(SETTINGS))
        return cls(folder, "train", "--config", "tiny.yaml", "--run-dir", "run", *argv)

    @property
    def output(self) -> str:
        return Path(self._log.name).read_text()

    @property
    def rows(self) -> list[dict]:
        return read_rows(self.folder)

    def wait_for(self, iteration: int, timeout_s: float = 120.0) -> None:
        """Waits until progress.jsonl has an iteration."""
        deadline = time.monotonic() + timeout_s
        progress = self.folder / "progress.jsonl"
        while not progress.exists() or progress.read_text().count("\n") < iteration:
            if time.monotonic() > self._noted_at + 1.0:
                self._note_processes()
            assert self.process.poll() is None, f"ended with {self.process.returncode}:\n{self.output}"
            assert time.monotonic() < deadline, self.output
            time.sleep(0.02)
        self._note_processes()

    def wait(self, timeout_s: float = 120.0, may_stay: tuple[str, ...] = ()) -> int:
        """Waits for the end, and for the end of everything that it started but for what `may_stay`, by name."""
        deadline = time.monotonic() + timeout_s
        while self.process.poll() is None:
            self._note_processes()
            assert time.monotonic() < deadline, self.output
            time.sleep(0.2)
        awaited = [process for process in self._started.values() if _name(process) not in may_stay]
        _, alive = psutil.wait_procs(awaited, timeout=90)
        left = [process for process in alive if process.status() != psutil.STATUS_ZOMBIE]
        assert not left, f"processes were left behind: {left}"
        assert self._started or "error" in self.output
        return self.process.returncode

    def _note_processes(self) -> None:
        """Reads all of /proc, which takes as long as other things that wait for a processor."""
        self._noted_at = time.monotonic()
        try:
            for child in psutil.Process(self.process.pid).children(recursive=True):
                self._started.setdefault(child.pid, child)
        except psutil.NoSuchProcess:
            pass

    def end(self) -> None:
        """Ends it and what it started, by their ids, if a test failed on the way."""
        self._note_processes()
        for process in (
            psutil.Process(self.process.pid) if self.process.poll() is None else None,
            *self._started.values(),
        ):
            try:
                if process is not None:
                    process.kill()  # psutil checks that the id still means the same process
            except psutil.NoSuchProcess:
                pass
        self.process.wait()
        self._log.close()


def _name(process: psutil.Process) -> str | None:
    try:
        return process.name()
    except psutil.NoSuchProcess:
        return None


@pytest.fixture
def train(tmp_path):
    """Starts training runs in a folder of the test's own."""
    runs = []

    def start(*argv):
        runs.append(Run.train(tmp_path, *argv))
        return runs[-1]

    yield start
    for run in runs:
        run.end()


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run that nothing interrupted."""
    run = Run.train(tmp_path_factory.mktemp("finished"))
    try:
        assert run.wait() == 0, run.output
        yield run
    finally:
        run.end()


def read_rows(folder: Path) -> list[dict]:
    def refuse(constant):
        raise AssertionError(f"progress.jsonl has {constant}")

    text = (folder / "progress.jsonl").read_text()
    return [json.loads(line, parse_constant=refuse) for line in text.splitlines()]


def without_times(rows: list[dict]) -> list[dict]:
    """What two runs have in common, one of which was resumed."""
    own = ("seconds/", "steps_per_second/", "faults/resumes")
    return [{name: value for name, value in row.items() if not name.startswith(own)} for row in rows]


def weights(checkpoint: Path) -> dict[str, np.ndarray]:
    policy = load_policy(checkpoint)
    models = {f"world_model/{name}": value.numpy() for name, value in policy.world_model.state_dict().items()}
    return {**models, **{f"policy/{name}": np.asarray(v) for name, v in policy.module.get_state().items()}}


def assert_same_weights(one: Path, other: Path) -> None:
    ours, theirs = weights(one), weights(other)
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        np.testing.assert_array_equal(value, theirs[name], err_msg=name)


# --- a run that ends by itself ---------------------------------------------------------------------------------------


def test_plain_lines_in_a_pipe(finished):
    output = finished.output
    assert "\x1b" not in output and "\r" not in output
    lines = [line for line in output.splitlines() if re.match(r"(random|pretrain|mixed) +iteration \d+ ", line)]
    assert len(lines) == len(finished.rows)
    for word in ("steps", "return", "evaluation", "imagination 0.800", "steps/s", "ETA"):
        assert word in lines[-1]
    # Nothing else is said but where it runs, how it ended, what to use, and what it took.
    # Ray may say on a busy machine that it starts slowly.
    rest = [line for line in output.splitlines() if line not in lines and "did not start in time" not in line]
    assert len(rest) <= 6, rest
    assert "checkpoint: " in output and "peak memory" in output
    assert re.search(r"[\d.]+ GB resident", output)


def test_run_folder(finished):
    folder = finished.folder
    assert {path.name for path in folder.iterdir()} - {".lock"} == {
        "config.yaml",
        "progress.jsonl",
        "tensorboard",
        "checkpoints",
    }
    assert {path.name for path in (folder / "checkpoints").iterdir()} == {"last", "best"}
    config = yaml.safe_load((folder / "config.yaml").read_text())
    assert config["world_model"]["training"]["imagination_ratio"] == 0.8
    assert config["ppo"]["gamma"] == 0.99  # resolved: defaults are in it
    assert config["stop"]["total_timesteps"] == STEPS
    best = json.loads((folder / "checkpoints" / "best" / "wm_rllib.json").read_text())
    evaluations = [row["evaluation/episode_return_mean"] for row in finished.rows]
    assert best["best_return"] == max(value for value in evaluations if value is not None)


def test_progress(finished):
    rows = finished.rows
    assert [row["training_iteration"] for row in rows] == list(range(1, len(rows) + 1))
    assert [row["phase"] for row in rows[:3]] == ["random", "pretrain", "mixed"]
    assert all(row.keys() >= REQUIRED for row in rows)
    assert all(row.keys() >= STAGES for row in rows[2:])
    assert all(is_documented(name) for row in rows for name in row)
    assert rows[-1]["num_env_steps_sampled_lifetime"] >= STEPS > rows[-2]["num_env_steps_sampled_lifetime"]
    for row in rows[2:]:
        real, imagined = row["rows/real"] // 2, row["rows/imagined"] // 2
        assert imagined == 4 * real > 0
        assert row["imagination/ratio"] == pytest.approx(0.8)
    assert sum(row["evaluation/episode_return_mean"] is not None for row in rows) == STEPS // 150
    # The stages are what an iteration's time goes to.
    for row in rows:
        stages = [
            row[name]
            for name in row
            if name.startswith("seconds/") and name.split("/")[1] not in ("iteration", "total")
        ]
        assert all(seconds >= 0 for seconds in stages)
        if row["phase"] == "mixed":
            assert 0.5 * row["seconds/iteration"] < sum(stages) <= row["seconds/iteration"]
    seconds = [row["seconds/total"] for row in rows]
    assert seconds == sorted(seconds)


def test_tensorboard_has_the_same_names_and_values(finished):
    [path] = (finished.folder / "tensorboard").glob("events.*")
    found: dict[str, list[tuple[int, float]]] = {}
    data, at = path.read_bytes(), 0
    while at < len(data):  # a record: length, its checksum, an event, its checksum
        (length,) = struct.unpack_from("<Q", data, at)
        event = Event.FromString(data[at + 12 : at + 12 + length])
        at += 16 + length
        for value in event.summary.value:
            found.setdefault(value.tag, []).append((event.step, value.simple_value))
    expected: dict[str, list[tuple[int, float]]] = {}
    for row in finished.rows:
        for name, value in row.items():
            if isinstance(value, int | float):
                expected.setdefault(name, []).append((row["num_env_steps_sampled_lifetime"], value))
    assert found.keys() == expected.keys()
    for name in ("vae/reconstruction_loss", "vae/kl_divergence", "mdn/nll", "mdn/reward_loss", "mdn/termination_loss"):
        assert name in found
    assert {"imagination/ratio", "imagination/horizon", "imagination/return_gap"} <= found.keys()
    for name, points in found.items():
        assert [step for step, _ in points] == [step for step, _ in expected[name]]
        np.testing.assert_allclose([v for _, v in points], [v for _, v in expected[name]], rtol=1e-6)


def test_evaluate(finished, tmp_path, monkeypatch, capfd):
    """One line on standard output, whatever libraries print, and nothing is left behind."""
    monkeypatch.chdir(tmp_path)
    assert main(["evaluate", str(finished.folder), "--episodes", "25", "--seed", "7", "--json"]) == 0
    [line] = capfd.readouterr().out.splitlines()
    figures = json.loads(line)
    assert figures.keys() == {"episode_return_mean", "episode_return_std", "episodes"}
    best = load_policy(finished.folder / "checkpoints" / "best")
    result = evaluate_policy(best, "CartPole-v1", 25, 7)
    assert figures == {"episode_return_mean": result.mean, "episode_return_std": result.std, "episodes": 25}
    assert list(tmp_path.iterdir()) == []


def test_a_second_run_in_the_folder_is_refused(finished, monkeypatch, capsys):
    def contents():
        return {path: path.read_bytes() for path in finished.folder.rglob("*") if path.is_file()}

    before = contents()
    monkeypatch.chdir(finished.folder.parent)
    assert main(["train", "--config", "tiny.yaml", "--run-dir", "run"]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("wm_rllib: error: run folder run is in use") and "--resume auto" in line
    assert contents() == before


# --- runs that are ended ---------------------------------------------------------------------------------------------


def test_killed_and_resumed_is_the_run_that_was_not(train, finished):
    """kill -9 in the mixed phase, then --resume auto: contiguous, no repeat, bit for bit the uninterrupted run."""
    killed = train()
    killed.wait_for(2 * FREQUENCY + 1)
    os.kill(killed.process.pid, signal.SIGKILL)
    # Ray's own two agents notice within a minute that their Ray is gone.
    assert killed.wait(may_stay=("ray::DashboardAgent", "ray::RuntimeEnvAgent")) == -signal.SIGKILL
    lines = len(killed.rows)
    assert killed.rows[-1]["phase"] == "mixed" and lines < len(finished.rows)
    assert lines % FREQUENCY, "the last iteration was a checkpoint's: nothing was lost"

    resumed = train("--resume", "auto")
    assert resumed.wait() == 0, resumed.output
    assert f"resumed at iteration {lines - lines % FREQUENCY}," in resumed.output
    assert without_times(resumed.rows) == without_times(finished.rows)
    assert [row["faults/resumes"] for row in (resumed.rows[-1], finished.rows[-1])] == [1, 0]
    for name in ("last", "best"):
        assert_same_weights(resumed.folder / "checkpoints" / name, finished.folder / "checkpoints" / name)
    seconds = [row["seconds/total"] for row in resumed.rows]
    assert seconds == sorted(seconds)


def test_changes_on_resume_are_said_and_hold(finished, tmp_path, monkeypatch, capsys):
    """More steps for a run that had ended, and another discount."""
    shutil.copytree(finished.folder, tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    # Not the file again: it would ask for the steps that are done.
    assert main(["train", "--resume", "run", "--total-timesteps", str(STEPS + 60), "--set", "ppo.gamma=0.9"]) == 0
    output = capsys.readouterr().out
    assert f"changed on resume: stop.total_timesteps: {STEPS} -> {STEPS + 60}" in output
    assert "changed on resume: ppo.gamma: 0.99 -> 0.9" in output
    rows = read_rows(tmp_path / "run")
    assert rows[: len(finished.rows)] == finished.rows
    assert [row["training_iteration"] for row in rows] == list(range(1, len(rows) + 1))
    assert rows[-1]["num_env_steps_sampled_lifetime"] >= STEPS + 60
    assert yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["ppo"]["gamma"] == 0.9
    assert not ray.is_initialized()


def test_ctrl_c_writes_a_checkpoint(train):
    """Ctrl-C reaches every process of the terminal's group."""
    run = train("--total-timesteps", "1000000", "--checkpoint-frequency", "1000")
    run.wait_for(5)
    os.killpg(run.process.pid, signal.SIGINT)
    assert run.wait() == 130, run.output
    assert "Traceback" not in run.output
    meta = json.loads((run.folder / "checkpoints" / "last" / "wm_rllib.json").read_text())
    assert meta["training_iteration"] == len(run.rows) >= 5
    assert not meta["finished"]
    assert load_policy(run.folder / "checkpoints" / "last").compute_action(np.zeros(4, np.float32)) in (0, 1)


@pytest.mark.slow
def test_sigterm_in_the_middle_of_an_iteration(train):
    """Two thousand dream rounds take minutes; the checkpoint is there after the present one, and is gone on from."""
    rounds = ("--set", "world_model.training.num_dream_rounds=2000", "--set", "world_model.training.updates_per_step=0")
    run = train(*rounds, "--total-timesteps", "1000000", "--checkpoint-frequency", "1000")
    run.wait_for(2)
    time.sleep(2)
    os.kill(run.process.pid, signal.SIGTERM)
    assert run.wait() == 143, run.output
    assert re.search(r"checkpoint written \d+\.\d s after the signal", run.output) and "Traceback" not in run.output
    [*_, cut] = run.rows
    done = cut["rows/real"] // 32
    assert cut["training_iteration"] == len(run.rows) == 3 and cut["phase"] == "mixed"
    assert 0 <= done < 2000 and cut["rows/imagined"] == 4 * cut["rows/real"]
    meta = json.loads((run.folder / "checkpoints" / "last" / "wm_rllib.json").read_text())
    assert meta["training_iteration"] == 3
    resumed = train("--resume", "auto", "--total-timesteps", "200")
    assert resumed.wait() == 0, resumed.output
    assert [row["training_iteration"] for row in resumed.rows] == list(range(1, len(resumed.rows) + 1))


@pytest.mark.slow
def test_sigterm_with_actors_and_their_debug_lines(train):
    """Env runner and dreamer as actors: their loggers reach this terminal, and SIGTERM leaves none of them behind."""
    run = train(*REMOTE, "--total-timesteps", "1000000", "--checkpoint-frequency", "1000", "--log-level", "debug")
    run.wait_for(4)
    deadline = time.monotonic() + 20
    patterns = (
        r"WorldModelEnvRunner pid=\d+\).* DEBUG wm_rllib\.\w+: took world model",
        r"Dreamer pid=\d+\).* DEBUG wm_rllib\.dreamer: dreamed",
    )
    while not all(re.search(pattern, run.output) for pattern in patterns):
        assert time.monotonic() < deadline, run.output[-3000:]
        time.sleep(0.2)
    os.kill(run.process.pid, signal.SIGTERM)
    assert run.wait() == 143, run.output
    assert "Traceback" not in run.output
    rows = run.rows
    meta = json.loads((run.folder / "checkpoints" / "last" / "wm_rllib.json").read_text())
    assert meta["training_iteration"] == rows[-1]["training_iteration"] == len(rows)
    assert all(row["rows/imagined"] == 4 * row["rows/real"] > 0 for row in rows[2:-1])
    assert rows[-1]["rows/imagined"] == 4 * rows[-1]["rows/real"]  # the signal may have cut it short before any update
