"""The examples' own V and M go through all phases."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
from tiny import tiny_config

EXAMPLES = Path(__file__).parents[1] / "examples"


def example_of(example: str) -> Any:
    spec = importlib.util.spec_from_file_location(example, EXAMPLES / f"{example}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def class_of(example: str, name: str) -> Any:
    return getattr(example_of(example), name)


@pytest.mark.integration
@pytest.mark.usefixtures("local_ray")
@pytest.mark.parametrize(
    ("setting", "example", "name"),
    [("vae_class", "custom_vae", "FourierVAE"), ("mdn_rnn_class", "custom_mdn_rnn", "BoundedRewardMDNRNN")],
)
def test_parts_of_ones_own_learn_and_dream(setting: str, example: str, name: str):
    own = class_of(example, name)
    algorithm = tiny_config(imagination_ratio=0.9, **{setting: own}).build_algo()
    for _ in range(3):
        result = algorithm.train()
    assert result["phase"] == "mixed" and result["rows"]["imagined"]
    policy = algorithm.get_policy()
    assert isinstance(policy.world_model.vae if setting == "vae_class" else policy.world_model.mdn_rnn, own)
    rewards = policy.imagine_rollout([[0.0] * 4], horizon=10, num_samples=20, seed=0)["rewards"]
    assert setting == "vae_class" or (0.0 <= rewards.min() and rewards.max() <= 1.0)
    algorithm.stop()


@pytest.mark.integration
@pytest.mark.parametrize("example", ["custom_vae", "custom_mdn_rnn"])
@pytest.mark.usefixtures("local_ray")
def test_what_an_example_prints(example: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    module = example_of(example)
    monkeypatch.setattr(module.ray, "init", lambda **_: None)  # it is there
    own_part = {key: value for key, value in vars(module).items() if key.endswith(("VAE", "MDNRNN"))}
    setting = "vae_class" if example == "custom_vae" else "mdn_rnn_class"
    own = next(part for name, part in own_part.items() if name not in ("VariationalAutoencoder", "MDNRNN"))
    tiny = tiny_config(imagination_ratio=0.9, **{setting: own})
    monkeypatch.setattr(module.WorldModelPPOConfig, "build_algo", lambda _, build=tiny.build_algo: build())
    module.main()
    assert "mixed" in capsys.readouterr().out
