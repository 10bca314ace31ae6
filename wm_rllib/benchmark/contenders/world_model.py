"""This package's algorithm and its ablations."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from wm_rllib.acting.evaluation import GreedyPolicy
from wm_rllib.benchmark.job import Job
from wm_rllib.benchmark.trainer import Contender
from wm_rllib.environments.names import env_spaces
from wm_rllib.runs.errors import CommandError
from wm_rllib.runs.options import apply_to_config, resolved_tree
from wm_rllib.settings.settings import SettingError, parse_tree
from wm_rllib.settings.yaml_files import read_yaml
from wm_rllib.spaces import check_spaces

TUNE_CONFIGS = Path("tune_configs")

_TRAINING = "world_model.training."
_RATIO, _HORIZON = f"{_TRAINING}imagination_ratio", f"{_TRAINING}imagination_horizon"
_FROZEN, _TEMPERATURE = "world_model.mdn_rnn.frozen", "world_model.mdn_rnn.temperature"


class WorldModelTrainer:
    """WorldModelPPO, evaluated from outside.

    Args:
        job: What to measure.
        values: Settings by dotted path; the rest are the defaults.
    """

    def __init__(self, job: Job, values: Mapping[str, Any]):
        config = make_config(job, values)
        self.settings: Mapping[str, Any] = resolved_tree(config, {})
        self._algorithm = config.build_algo()
        with suppress(OSError):  # Ray makes a folder for every algorithm; this one stays empty
            Path(self._algorithm.logdir).rmdir()

    def train(self) -> int:
        """One iteration."""
        return int(self._algorithm.train()["num_env_steps_sampled_lifetime"])

    def policy(self) -> GreedyPolicy:
        """V, M and C as published last."""
        policy: GreedyPolicy = self._algorithm.get_policy()
        return policy

    def stop(self) -> None:
        """Ends the algorithm's actors."""
        self._algorithm.stop()


def make_config(job: Job, values: Mapping[str, Any]) -> Any:
    """Return the `WorldModelPPOConfig` of a job, without an evaluation of its own."""
    from wm_rllib.config import WorldModelPPOConfig
    from wm_rllib.runs.plan import register_env

    config = WorldModelPPOConfig().learners(device="cpu")  # as the others are, on a machine with a GPU too
    apply_to_config(config, values)
    config.env, config.env_config, config.seed = job.env_id, dict(job.env_config), job.seed
    apply_to_config(config, job.pixels.to_values())
    config.evaluation_interval_steps = None
    config.log_level = "ERROR"
    register_env(job.env_id)
    try:
        config.copy(copy_frozen=False).validate()
    except ValueError as error:
        raise CommandError(f"contender {job.contender!r}: {str(error).strip()}") from None
    return config


def _resolve(job: Job, values: Mapping[str, Any]) -> Mapping[str, Any]:
    return resolved_tree(make_config(job, values), {})


def _check(job: Job, values: Mapping[str, Any]) -> None:
    if not values.get("world_model.data_collection.online", True):
        raise CommandError(
            f"contender {job.contender!r} takes no real steps after the random phase, but a benchmark counts them. "
            "Fix: world_model.data_collection.online true."
        )
    spaces = env_spaces(job.env_id, job.env_config, job.pixels)
    try:
        check_spaces(*spaces, default_v=values.get("world_model.vae.class") is None)
    except ValueError as error:
        raise CommandError(f"environment {job.env_id!r}: {error}") from None


def tuned_values(env_id: str, folder: Path | None = None) -> dict[str, Any]:
    """Return the settings of the file in tune_configs/ that is for an environment.

    Raises:
        CommandError: If there is none.
    """
    folder = folder or TUNE_CONFIGS
    for path in sorted(folder.glob("*.yaml")):
        with suppress(SettingError):  # files of sweeps hold search spaces
            values = parse_tree(read_yaml(path))
            if values.get("env.id") == env_id:
                return values
    raise CommandError(
        f"contender 'wm-tuned': no file in {folder}/ has env.id {env_id}. Fix: add one, or take the contender wm."
    )


def _make_tuned(job: Job, values: Mapping[str, Any]) -> WorldModelTrainer:
    return WorldModelTrainer(job, {**tuned_values(job.env_id), **values})


def _resolve_tuned(job: Job, values: Mapping[str, Any]) -> Mapping[str, Any]:
    return _resolve(job, {**tuned_values(job.env_id), **values})


def _check_tuned(job: Job, values: Mapping[str, Any]) -> None:
    _check(job, {**tuned_values(job.env_id), **values})


def _ablation(name: str, description: str, values: Mapping[str, Any]) -> Contender:
    return Contender(name, description, WorldModelTrainer, _check, values, takes_settings=True, resolve=_resolve)


def _sweep(suffix: str, path: str, *values: float) -> tuple[Contender, ...]:
    leaf = path.rpartition(".")[2]
    return tuple(_ablation(f"wm-{suffix}-{value:g}", f"wm with {leaf} {value:g}", {path: value}) for value in values)


WORLD_MODEL_CONTENDERS = (
    _ablation("wm", "WorldModelPPO with its defaults", {}),
    Contender(
        "wm-tuned",
        "WorldModelPPO as tune_configs/ has it for the environment",
        _make_tuned,
        _check_tuned,
        takes_settings=True,
        resolve=_resolve_tuned,
    ),
    _ablation("wm-auto", "the gate chooses ratio and horizon", {_RATIO: "auto"}),
    _ablation("wm-no-imagination", "V and M trained, C learns from real steps alone (ratio 0)", {_RATIO: 0.0}),
    _ablation("wm-untrained-m", "M keeps its initial weights, and is dreamed in", {_FROZEN: True}),
    _ablation(
        "wm-untrained-m-no-imagination",
        "M keeps its initial weights, h is a random feature, no dreams",
        {_FROZEN: True, _RATIO: 0.0},
    ),
    _ablation("wm-z", "C sees z alone", {f"{_TRAINING}controller_inputs": "z"}),
    *_sweep("ratio", _RATIO, 0.5, 0.9),
    *_sweep("horizon", _HORIZON, 5, 15, 100),
    *_sweep("temperature", _TEMPERATURE, 0.7, 1.3),
)
