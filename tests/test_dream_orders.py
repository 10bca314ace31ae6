"""What the settings say of dreams is what the dreamers are told."""

from __future__ import annotations

from typing import Any

import pytest
from tiny import HORIZON, tiny_config

SETTINGS = {"optimism": 0.7, "exploration_bonus": 0.3, "temperature": 1.2, "max_disagreement": 50.0, "burn_in": 3}


@pytest.mark.integration
@pytest.mark.usefixtures("local_ray")
def test_dreamers_are_told(monkeypatch: pytest.MonkeyPatch):
    algorithm = tiny_config(**SETTINGS).build_algo()
    dreamer, orders, requests = algorithm._pool._local, [], []
    dream, order_dreams = dreamer.dream, algorithm._pool.dream

    def note_request(request: Any) -> Any:
        requests.append(request)
        return dream(request)

    def note_order(order: Any, *args: Any) -> Any:
        orders.append(order)
        return order_dreams(order, *args)

    monkeypatch.setattr(dreamer, "dream", note_request)
    monkeypatch.setattr(algorithm._pool, "dream", note_order)
    try:
        for _ in range(3):
            algorithm.train()
    finally:
        algorithm.stop()
    assert orders and len(requests) == len(orders)
    for order in orders:
        assert {name: getattr(order, name) for name in SETTINGS} == SETTINGS and order.horizon == HORIZON
    for request in requests:  # burn-in is in the starts that it names
        told = {name: value for name, value in SETTINGS.items() if name != "burn_in"}
        assert {name: getattr(request, name) for name in told} == told and request.horizon == HORIZON
