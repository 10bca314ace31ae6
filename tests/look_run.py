"""A run folder with a checkpoint of random weights and a real replay, made in a second or two without Ray."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow.fs
import torch
from tiny import tiny_config

from wm_rllib.columns import WORLD_MODEL_MODULE_ID
from wm_rllib.env_runners.env_runner import WorldModelEnvRunner
from wm_rllib.metrics import ALWAYS
from wm_rllib.replay.service import ReplayService
from wm_rllib.runs import checkpoints
from wm_rllib.runs.checkpoints import CheckpointMeta
from wm_rllib.runs.options import resolved_tree
from wm_rllib.settings.yaml_files import write_yaml


def settings_tree() -> dict[str, Any]:
    """The tiny config's settings, as config.yaml has them."""
    return resolved_tree(tiny_config(), {"env.id": "CartPole-v1", "stop.return": 475.0})


def write_checkpoint(run: Path, name: str, *, iteration: int = 5, finished: bool = False) -> Path:
    """A whole checkpoint, as far as loading an agent goes."""
    runner = WorldModelEnvRunner(config=tiny_config())
    episodes = runner.features.take_raw(runner.sample(num_episodes=4, explore=True), [])
    replay = ReplayService(2000, seed=0)
    replay._replay.add(episodes)
    modules = tiny_config().get_multi_rl_module_spec(spaces=runner.get_spaces()).build()
    with torch.no_grad():  # a head that knows nothing would end every other step
        modules[WORLD_MODEL_MODULE_ID].world_model.mdn_rnn.outcome_head[-1].bias[2] = -50.0

    def save_to(path: Path) -> None:
        modules.save_to_path(str((path / "learner_group" / "learner" / "rl_module").absolute()))
        replay.save(str(path / "replay"), pyarrow.fs.LocalFileSystem())

    meta = CheckpointMeta(iteration, 100 * iteration, 60.0, best_return=20.0, finished=finished)
    return checkpoints.write(run / "checkpoints", name, meta, settings_tree(), save_to)


def row(iteration: int, **metrics: Any) -> dict[str, Any]:
    """A line of progress.jsonl."""
    phase = {1: "random", 2: "pretrain"}.get(iteration, "mixed")
    fixed = {"training_iteration": iteration, "phase": phase, "num_env_steps_sampled_lifetime": 100 * iteration}
    return {**dict.fromkeys(ALWAYS), **fixed, "seconds/sample": 1.5, "seconds/total": 2.0 * iteration, **metrics}


def write_run(run: Path, rows: list[dict[str, Any]]) -> Path:
    """The folder of a run with these lines, and no checkpoint."""
    run.mkdir(parents=True, exist_ok=True)
    (run / "progress.jsonl").write_text("".join(json.dumps(line) + "\n" for line in rows))
    write_yaml(run / "config.yaml", settings_tree())
    return run
