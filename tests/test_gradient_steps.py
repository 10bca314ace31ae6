"""The learner's own loop: minibatches, clipping, and steps equal to those of RLlib's loop."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.core.columns import Columns
from ray.rllib.policy.sample_batch import MultiAgentBatch, SampleBatch
from ray.rllib.utils.metrics import NUM_ENV_STEPS_SAMPLED_LIFETIME
from test_merge import SPACES, config_of, imagined_block, make_learner, make_stock, policy_state, real_episodes
from torch import Tensor, nn

from wm_rllib.models.masks import places
from wm_rllib.rl_modules.gradient_steps import LENGTHS, Minibatches, Silent, clip_and_step


def batches(num_rows: int, **settings: Any) -> list[Tensor]:
    """The minibatches of rows 0 .. N - 1, which two columns must agree on."""
    columns = {"row": torch.arange(num_rows), "twice": 2 * torch.arange(num_rows)[:, None]}
    made = Minibatches("module", columns, **settings)
    result = []
    for minibatch in made:
        assert list(minibatch.policy_batches) == ["module"]
        batch = minibatch.policy_batches["module"]
        assert torch.equal(batch["twice"][:, 0], 2 * batch["row"])
        result.append(batch["row"])
    assert len(result) == len(made)
    return result


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize(
    ("num_rows", "size", "num_epochs"), [(12, 4, 3), (10, 10, 2), (7, 1, 1), (10, 4, 2), (10, 7, 1)]
)
def test_every_row_comes_once_an_epoch(num_rows: int, size: int, num_epochs: int, shuffle: bool):
    rows = batches(num_rows, size=size, num_epochs=num_epochs, shuffle=shuffle)
    assert {len(batch) for batch in rows} == {size}
    flat = torch.cat(rows)
    assert len(flat) == -(-num_rows * num_epochs // size) * size  # rounded up to whole minibatches
    for epoch in range(num_epochs):
        assert sorted(flat[epoch * num_rows : (epoch + 1) * num_rows].tolist()) == list(range(num_rows))
    rest = flat[num_epochs * num_rows :].tolist()
    assert len(set(rest)) == len(rest)


def test_no_shuffle_keeps_the_order():
    assert torch.cat(batches(6, size=4, num_epochs=2, shuffle=False)).tolist() == [*range(6), *range(6)]


def test_each_epoch_is_shuffled_anew():
    first, second = torch.cat(batches(50, size=50, num_epochs=2, shuffle=True)).split(50)
    assert len({tuple(first.tolist()), tuple(second.tolist()), tuple(range(50))}) == 3


@pytest.mark.parametrize("count", [1, 3, 9])
def test_a_count_of_minibatches_is_kept(count: int):
    rows = batches(10, size=4, num_epochs=2, count=count, shuffle=True)
    assert [len(batch) for batch in rows] == [4] * count
    seen = torch.bincount(torch.cat(rows), minlength=10)
    assert seen.max() - seen.min() <= 1


@pytest.mark.parametrize(("num_rows", "size", "num_epochs"), [(12, 4, 3), (10, 4, 2), (7, 7, 1)])
def test_lengths_are_those_of_the_rows(num_rows: int, size: int, num_epochs: int):
    lengths = torch.randint(6, (num_rows,))
    made = Minibatches(
        "module", {"of": lengths}, size=size, num_epochs=num_epochs, shuffle=False, lengths=lengths.tolist()
    )
    batches_made = [minibatch.policy_batches["module"] for minibatch in made]
    assert len(batches_made) == len(made)
    assert all(batch[LENGTHS] == batch["of"].tolist() for batch in batches_made)


@pytest.mark.parametrize("shape", [(1,), (40,), (5, 7)])
def test_places_are_the_same_if_the_host_knows_how_many(shape: tuple[int, ...]):
    for mask in (torch.rand(shape) < 0.4, torch.zeros(shape, dtype=torch.bool), torch.ones(shape, dtype=torch.bool)):
        assert torch.equal(places(mask, int(mask.sum())), places(mask))


def with_gradients(scale: float = 1.0) -> list[Tensor]:
    """Parameters with gradients, and one without."""
    torch.manual_seed(1)
    params = [torch.zeros(shape, requires_grad=True) for shape in ((3, 4), (5,), (2,))]
    for param in params[:2]:
        param.grad = scale * torch.randn_like(param)
    return params


def adam(params: list[Tensor], *, fused: bool = True) -> torch.optim.Adam:
    return torch.optim.Adam(params, lr=0.1, fused=fused)


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("max_norm", [0.01, 1.0, 1e3, None])
def test_clipping_and_the_step_are_torchs(max_norm: float | None, fused: bool):
    ours, theirs = with_gradients(), with_gradients()
    one, other = adam(ours, fused=fused), adam(theirs, fused=fused)
    for _ in range(3):
        assert clip_and_step(one, max_norm) == 0
        if max_norm is not None:
            torch.nn.utils.clip_grad_norm_(theirs, max_norm)
        other.step()
    for mine, his in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, his)
    assert ours[2].grad is None


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_gradient_that_is_not_finite_changes_nothing(bad: float, fused: bool):
    params, theirs = with_gradients(), with_gradients()
    optimizer, other = adam(params, fused=fused), adam(theirs, fused=fused)
    clip_and_step(optimizer, 1.0)
    before = [param.detach().clone() for param in params]
    assert params[1].grad is not None
    for max_norm in (1.0, None):
        params[1].grad[2] = bad
        assert clip_and_step(optimizer, max_norm) == 1
        assert all(torch.equal(param, old) for param, old in zip(params, before, strict=True))
    clip_and_step(other, 1.0)
    for param, his in zip(params[:2], theirs[:2], strict=True):
        assert his.grad is not None
        param.grad = his.grad.clone()
    clip_and_step(optimizer, None)
    clip_and_step(other, None)
    for mine, his in zip(params, theirs, strict=True):
        torch.testing.assert_close(mine, his)  # neither the moments nor the count of steps noticed


def test_networks_without_gradients_are_left_alone():
    params = with_gradients()[2:]
    assert clip_and_step(adam(params), 1.0) == 0
    assert torch.equal(params[0], torch.zeros(2))


def light_update(
    learner: Any, space: str, monkeypatch: pytest.MonkeyPatch, **settings: Any
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """A merged update; returns the batch and C's weights as they were before the first step, in the new units."""
    caught: list[Any] = []
    original = learner._merged

    def catch(training_data: Any) -> Any:
        merged = original(training_data)
        caught.append((copy.deepcopy(merged[1]), policy_state(learner)))
        return merged

    with monkeypatch.context() as patch:
        patch.setattr(learner, "_merged", catch)
        learner.update(
            episodes=real_episodes(SPACES[space]),
            imagined=[[[imagined_block(SPACES[space], 6, 5)]]],
            timesteps={NUM_ENV_STEPS_SAMPLED_LIFETIME: 1},
            **settings,
        )
    return caught[0]


@pytest.mark.usefixtures("no_ray")
@pytest.mark.parametrize("grad_clip", [None, 0.5])
@pytest.mark.parametrize("minibatch_size", [31, None])
@pytest.mark.parametrize("space", SPACES)
def test_merged_updates_equal_those_of_rllibs_loop(
    space: str, minibatch_size: int | None, grad_clip: float | None, monkeypatch: pytest.MonkeyPatch
):
    config = config_of(space, grad_clip=grad_clip)
    learner = make_learner(config)
    settings = {"num_epochs": 1, "minibatch_size": minibatch_size, "shuffle_batch_per_epoch": False}
    columns, before = light_update(learner, space, monkeypatch, **settings)
    assert before["value_scale"] != 1.0
    stock = make_stock(config_of(space, grad_clip=grad_clip, imagination_ratio=0.0), learner)
    stock.module[DEFAULT_MODULE_ID].set_state(before)
    batch = MultiAgentBatch({DEFAULT_MODULE_ID: SampleBatch(columns)}, len(columns[Columns.OBS]))
    stock.update(batch=batch, timesteps={NUM_ENV_STEPS_SAMPLED_LIFETIME: 1}, **settings)
    ours, theirs = policy_state(learner), policy_state(stock)
    for name in theirs:
        torch.testing.assert_close(torch.tensor(ours[name]), torch.tensor(theirs[name]), rtol=1e-4, atol=2e-6)
    # A step of Adam is a hundred times larger than what is allowed for.
    assert max(np.abs(ours[name] - before[name]).max() for name in ours) > 2e-4
    assert float(learner.curr_kl_coeffs_per_module[DEFAULT_MODULE_ID]) == pytest.approx(
        float(stock.curr_kl_coeffs_per_module[DEFAULT_MODULE_ID])
    )


@pytest.mark.usefixtures("no_ray")
@pytest.mark.parametrize(("grad_clip_by", "measure"), [("global_norm", "norm"), ("value", "largest")])
def test_ppos_own_clipping_is_honoured(grad_clip_by: str, measure: str, monkeypatch: pytest.MonkeyPatch):
    sizes = {}
    for clip in (0.01, None):
        learner = make_learner(config_of(grad_clip=clip, grad_clip_by=grad_clip_by))
        light_update(learner, "discrete", monkeypatch, num_epochs=1, minibatch_size=10)
        module = learner.module[DEFAULT_MODULE_ID].unwrapped()
        grads = torch.cat([param.grad.flatten() for param in module.parameters() if param.grad is not None])
        sizes[clip] = (grads.norm() if measure == "norm" else grads.abs().max()).item()
    assert sizes[0.01] == pytest.approx(0.01, rel=1e-3)
    assert sizes[None] > 0.02


@pytest.mark.usefixtures("no_ray")
def test_one_bad_minibatch_costs_one_step_alone(monkeypatch: pytest.MonkeyPatch):
    learner = make_learner(config_of())
    original, losses = learner.compute_losses, []

    def poisoned(**kwargs: Any) -> Any:
        result = original(**kwargs)
        losses.append(1)
        factor = float("nan") if len(losses) == 2 else 1.0
        return {name: loss * factor for name, loss in result.items()}

    monkeypatch.setattr(learner, "compute_losses", poisoned)
    light_update(learner, "discrete", monkeypatch, num_epochs=1, minibatch_size=31)
    ((_, optimizer),) = learner.get_optimizers_for_module(DEFAULT_MODULE_ID)
    assert len(losses) == 2
    assert {int(state["step"]) for state in optimizer.state.values()} == {1}
    assert all(bool(torch.isfinite(torch.tensor(value)).all()) for value in policy_state(learner).values())


@pytest.mark.usefixtures("no_ray")
def test_only_the_last_minibatch_is_reported(monkeypatch: pytest.MonkeyPatch):
    learner = make_learner(config_of())
    original, kept = learner.compute_losses, []

    def watched(**kwargs: Any) -> Any:
        kept.append(isinstance(learner.metrics, Silent))
        return original(**kwargs)

    monkeypatch.setattr(learner, "compute_losses", watched)
    light_update(learner, "discrete", monkeypatch, num_epochs=2, minibatch_size=31)
    assert kept == [True, True, True, False]
    assert not isinstance(learner.metrics, Silent)


def test_layers_of_a_network_are_clipped_together():
    network = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 1))
    network(torch.ones(1, 3)).sum().backward()
    clip_and_step(adam(list(network.parameters())), 0.1)
    norm = torch.cat([param.grad.flatten() for param in network.parameters() if param.grad is not None]).norm()
    assert norm.item() == pytest.approx(0.1, rel=1e-4)


@pytest.mark.usefixtures("no_ray")
def test_steps_that_were_left_out_are_told_once_an_update(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    learner = make_learner(config_of())
    original = learner.compute_losses

    def not_finite(**kwargs: Any) -> Any:
        return {name: loss * float("nan") for name, loss in original(**kwargs).items()}

    light_update(learner, "discrete", monkeypatch, num_epochs=2, minibatch_size=31)
    assert "left out" not in caplog.text
    monkeypatch.setattr(learner, "compute_losses", not_finite)
    _, before = light_update(learner, "discrete", monkeypatch, num_epochs=2, minibatch_size=31)
    after = policy_state(learner)
    assert all(np.array_equal(after[name], value) for name, value in before.items())
    assert caplog.text.count("4 gradient steps were left out") == 1
