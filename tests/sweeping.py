"""A sweep's command in a process of its own, and tiny settings to sweep over."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, ClassVar

import psutil
import yaml

TINY: dict[str, Any] = {
    "env": {"id": "CartPole-v1"},
    "env_runners": {"num_envs_per_env_runner": 1},
    "world_model": {
        "vae": {"latent_dim": 3, "hidden_dims": [16]},
        "mdn_rnn": {"hidden_dim": 8, "head_hidden_dims": [16], "num_mixtures": 2},
        "training": {
            "imagination_ratio": 0.5,
            "imagination_horizon": 5,
            "num_dream_rounds": 2,
            "burn_in": 4,
            "sequence_length": 8,
            "sequence_batch_size": 4,
            "updates_per_step": 0.25,
            "pretrain_epochs": 4,
        },
        "data_collection": {"random_collection_steps": 60},
    },
    "ppo": {"train_batch_size_per_learner": 32, "minibatch_size": 64, "num_epochs": 2, "hidden_dims": [16]},
    "evaluation": {"interval": 64, "episodes": 2},
    "stop": {"total_timesteps": 512},
}


def write_sweep(folder: Path, search: dict[str, Any], spaces: dict[str, Any], **sections: Any) -> None:
    """Writes sweep.yaml: the tiny settings, with spaces by dotted path."""
    values = {key: value for section in TINY.items() for key, value in _flat(*section)} | spaces | sections
    (folder / "sweep.yaml").write_text(yaml.safe_dump({**values, "search": search}))


def _flat(key: str, value: Any):
    if isinstance(value, dict):
        for name, item in value.items():
            yield from _flat(f"{key}.{name}", item)
    else:
        yield key, value


class Sweep:
    """One `python -m wm_rllib ...`, its output, and all processes that it started."""

    started: ClassVar[list[Sweep]] = []

    def __init__(self, folder: Path, *argv: str):
        self.started.append(self)
        self._log = (folder / f"output-{time.monotonic_ns()}.txt").open("w+")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "wm_rllib", *argv],
            stdout=self._log,
            stderr=subprocess.STDOUT,
            cwd=folder,
            start_new_session=True,
        )

    @property
    def output(self) -> str:
        return Path(self._log.name).read_text()

    def wait_for(self, text: str, count: int = 1, timeout_s: float = 240.0) -> None:
        """Waits until the output has a text so many times."""
        deadline = time.monotonic() + timeout_s
        while self.output.count(text) < count:
            assert self.process.poll() is None, f"ended with {self.process.returncode}:\n{self.output}"
            assert time.monotonic() < deadline, self.output
            time.sleep(0.05)

    def wait(self, timeout_s: float = 280.0) -> int:
        return self.process.wait(timeout_s)

    def kill(self) -> None:
        """kill -9 of this process alone; gives Ray's own processes time to notice, and ends the rest."""
        started = psutil.Process(self.process.pid).children(recursive=True)
        self.process.kill()
        self.process.wait()
        _, alive = psutil.wait_procs(started, timeout=10)
        for process in alive:
            process.kill()


def trial_results(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """The results of each trial in a sweep's folder, as Tune wrote them."""
    return {
        path.parent.name: [json.loads(line) for line in path.read_text().splitlines()]
        for path in folder.glob("trials/*/result.json")
    }
