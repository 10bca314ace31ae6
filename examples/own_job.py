"""A training script of your own as a Ray job: submitted again, it goes on from its last checkpoint.

    ray job submit --address http://127.0.0.1:8265 --working-dir examples -- python own_job.py /mnt/runs/mine 3000

wm_rllib has to be installed where the job runs, here by the environment from which `ray start` was called. The folder
must outlast the job, on storage that all nodes share. `python -m wm_rllib train` does all of this and more (signals,
progress, the best checkpoint); write a script where you need your own loop.
"""

import shutil
import sys
from pathlib import Path

import ray

from wm_rllib import WorldModelPPO, WorldModelPPOConfig

EVERY = 5
"""Iterations between checkpoints."""


def find(folder: Path) -> Path | None:
    """The newest checkpoint: it moves to its place when it is whole, and the one before stays until then."""
    return next((place for place in (folder / "current", folder / "previous") if place.exists()), None)


def save(algorithm: WorldModelPPO, folder: Path) -> None:
    """Writes a checkpoint; a kill at any moment leaves a whole one."""
    new, current, previous = folder / "new", folder / "current", folder / "previous"
    shutil.rmtree(new, ignore_errors=True)
    algorithm.save_to_path(str(new))
    if current.exists():  # else a kill came between the moves below, and `previous` is all there is
        shutil.rmtree(previous, ignore_errors=True)
        current.rename(previous)
    new.rename(current)


def main(folder: Path, total_steps: int) -> None:
    """Trains until so many real steps are done, whoever did them."""
    folder.mkdir(parents=True, exist_ok=True)
    ray.init()  # joins the cluster that the job runs on
    if (checkpoint := find(folder)) is not None:
        algorithm = WorldModelPPO.from_checkpoint(str(checkpoint))
    else:
        config = WorldModelPPOConfig().environment("CartPole-v1").env_runners(num_env_runners=1)
        algorithm = config.build_algo()
    steps = algorithm.metrics.peek(("env_runners", "num_env_steps_sampled_lifetime"), default=0)
    print(f"starts at iteration {algorithm.iteration}, {steps:.0f} real steps")
    while steps < total_steps:
        result = algorithm.train()
        steps = result["num_env_steps_sampled_lifetime"]
        if algorithm.iteration % EVERY == 0 or steps >= total_steps:
            save(algorithm, folder)
    print(f"done at iteration {algorithm.iteration}, {steps:.0f} real steps")
    algorithm.stop()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
