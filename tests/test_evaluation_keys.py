"""An evaluation's figures under RLlib's key and under this library's own."""

from __future__ import annotations

from typing import Any

import pytest
from tiny import tiny_config


@pytest.mark.integration
@pytest.mark.usefixtures("local_ray")
@pytest.mark.parametrize("interval", [{"evaluation_interval_steps": 32}, {"evaluation_interval": 1}], ids=str)
def test_rllibs_key_has_the_evaluation_of_this_iteration(interval: dict[str, Any]):
    algorithm = tiny_config().evaluation(**interval).build_algo()
    results = [algorithm.train() for _ in range(6)]
    algorithm.stop()
    evaluated = [result["evaluation"] for result in results if "episode_return_mean" in result.get("evaluation", {})]
    assert len(evaluated) >= 3
    for evaluation in evaluated:
        assert evaluation["env_runners"]["episode_return_mean"] == evaluation["episode_return_mean"]
    assert len({evaluation["episode_return_mean"] for evaluation in evaluated}) > 1  # one iteration late is another one
