"""A stand-in for the algorithm in tests of the command line: it trains nothing, and needs no Ray."""

import json
from pathlib import Path
from types import SimpleNamespace


class FakeAlgorithm:
    """Takes 100 real steps an iteration, and evaluates when the script of returns has one for the iteration."""

    def __init__(self, returns=None, confirmations=(), on_train=None, mixed_from=None):
        self.returns = returns or {}
        self.confirmations = list(confirmations)
        self.on_train = on_train
        self.mixed_from = mixed_from
        self.iteration = 0
        self.stopped = False
        self.cut_short_in = []

    def train(self):
        self.iteration += 1
        if self.on_train:
            self.on_train(self.iteration)
        result = {
            "training_iteration": self.iteration,
            "phase": "mixed",
            "num_env_steps_sampled_lifetime": 100 * self.iteration,
            "imagination": {"ratio": 0.5},
        }
        if self.mixed_from is not None and self.iteration >= self.mixed_from:
            result["mixed_iterations"] = self.iteration - self.mixed_from
        if self.iteration in self.returns:
            result["evaluation"] = {"episode_return_mean": self.returns[self.iteration], "episodes": 20}
        return result

    def cut_short(self):
        self.cut_short_in.append(self.iteration)

    def evaluate_return(self, num_episodes):
        return SimpleNamespace(mean=self.confirmations.pop(0))

    def save_to_path(self, path):
        (Path(path) / "state.json").write_text(json.dumps(self.iteration))

    def restore_from_path(self, path):
        self.iteration = json.loads((Path(path) / "state.json").read_text())

    def stop(self):
        self.stopped = True
