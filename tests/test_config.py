"""What the config refuses before anything is started."""

from __future__ import annotations

from typing import Any, NoReturn

import pytest
from ray.rllib.connectors.env_to_module import MeanStdFilter
from tiny import tiny_config


@pytest.fixture
def nothing_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither Ray nor an actor."""

    def start(*args: Any, **kwargs: Any) -> NoReturn:
        raise AssertionError("started")

    monkeypatch.setattr("ray.init", start)
    monkeypatch.setattr("ray.actor.ActorClass._remote", start)


@pytest.mark.parametrize("num_env_runners", [0, 2])
def test_an_env_to_module_connector_is_refused(nothing_starts: None, num_env_runners: int):
    config = tiny_config(num_env_runners=num_env_runners)
    config.env_runners(env_to_module_connector=lambda *_, **__: MeanStdFilter())
    with pytest.raises(ValueError, match=r"(?s)env_to_module_connector is not supported.*Gymnasium wrapper"):
        config.build_algo()
    with pytest.raises(ValueError, match="env_to_module_connector is not supported"):
        config.validate()


def test_the_same_config_without_a_connector_is_valid(nothing_starts: None):
    tiny_config().env_runners(env_to_module_connector=None).validate()
