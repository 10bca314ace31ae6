"""The fast dream is the plain one: same noise, same rows; and what a step of it costs."""

from __future__ import annotations

import math
from typing import Any

import gymnasium as gym
import pytest
import torch
from ray.rllib.core.columns import Columns
from ray.rllib.core.distribution.torch.torch_distribution import TorchCategorical
from test_dreaming import AnyActions, by_hand
from tiny import tiny_config
from tiny_models import HIDDEN_DIM, LATENT_DIM, mdn_config, world_model
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from wm_rllib.benchmark.dream_flops import paper_step_flops, step_flops
from wm_rllib.env_runners.env_runner import WorldModelEnvRunner
from wm_rllib.models.controller import ActionSampler, CategoricalSampler, Controller, GaussianSampler
from wm_rllib.models.dreaming import Dream, DreamNoise, draw_dream_noise, dream
from wm_rllib.models.fused import can_fuse
from wm_rllib.models.mdn_rnn import MDNRNN
from wm_rllib.models.stack import Stack
from wm_rllib.models.world_model import WorldModel
from wm_rllib.rl_modules.policy_network import make_policy

SPACES = [
    gym.spaces.Discrete(3),
    gym.spaces.MultiDiscrete([2, 3]),
    gym.spaces.Box(-2.0, 6.0, (2,)),
    gym.spaces.Box(-math.inf, math.inf, (1,)),
]


class Overridden(MDNRNN):
    """MDNRNN under another name: dreams cannot know that nothing has changed, and take the plain way."""

    def step(self, *args: Any) -> Any:
        return super().step(*args)


def sampler_of(space: gym.Space[Any]) -> ActionSampler:
    if isinstance(space, gym.spaces.Discrete):
        return CategoricalSampler([int(space.n)], scalar=True)
    if isinstance(space, gym.spaces.MultiDiscrete):
        return CategoricalSampler([int(n) for n in space.nvec], scalar=False)
    return GaussianSampler(space.shape[0], clipped=space.is_bounded())  # type: ignore[index,attr-defined]


def controller_for(model: WorldModel, space: gym.Space[Any]) -> Controller:
    sampler = sampler_of(space)
    layers = [
        nn.Linear(model.feature_dim, 16),
        nn.Tanh(),
        nn.Linear(16, 16),
        nn.ReLU(),
        nn.Linear(16, sampler.input_dim),
    ]
    return Controller(nn.Sequential(*layers), sampler)


def choose(inputs: Tensor, noise: Tensor, space: gym.Space[Any]) -> Tensor:
    """Actions by the textbook: Gumbel arg max, or mean plus deviation times noise."""
    if isinstance(space, gym.spaces.Box):
        mean, log_std = inputs.chunk(2, -1)
        return mean + log_std.exp() * noise
    if isinstance(space, gym.spaces.Discrete):
        return (inputs.log_softmax(-1) + noise).argmax(-1)
    sizes = [int(n) for n in space.nvec]  # type: ignore[attr-defined]
    parts = zip(inputs.split(sizes, -1), noise.split(sizes, -1), strict=True)
    return torch.stack([(logits.log_softmax(-1) + gumbel).argmax(-1) for logits, gumbel in parts], -1)


def draw(params: Any, temperature: float, gumbel: Tensor, normal: Tensor) -> Tensor:
    """A draw from the mixture, one lane and one dimension after the other."""
    rows = []
    for b in range(len(normal)):
        scores = params.log_pi[b] / temperature + gumbel[b]
        row = []
        for d in range(normal.shape[1]):
            k = int((scores if params.joint else scores[:, d]).argmax())
            sigma = params.log_sigma[b, k, d].exp() * math.sqrt(temperature)
            row.append(params.mean[b, k, d] + sigma * normal[b, d])
        rows.append(torch.stack(row))
    return torch.stack(rows)


@torch.no_grad()
def by_the_book(
    model: WorldModel, controller: Controller, start_z: Tensor, start: Any, tau: float, noise: DreamNoise, space: Any
) -> dict[str, Tensor]:
    """The dream as the documentation tells it, by M's public methods."""
    rows: list[tuple[Tensor, ...]] = []
    z, (h, c), horizon = start_z, start, len(noise.restart)
    for t in range(horizon):
        features = torch.cat([z, h], -1)[:, : model.feature_dim]
        inputs = controller.network(features)
        actions = choose(inputs, noise.action[t], space)  # type: ignore[index]
        encoded = model.codec.encode(actions)
        h, c = model.mdn_rnn.step(z, encoded, (h, c))
        next_z = draw(model.mdn_rnn.predict(h, z, encoded), tau, noise.mixture.gumbel[t], noise.mixture.normal[t])
        outcome, ends_head = model.mdn_rnn.outcome(z, encoded, next_z), model.mdn_rnn.ends_head
        logit = outcome.termination_logit if ends_head is None else ends_head(torch.cat([h, z, encoded], -1))[:, 0]
        dies = torch.sigmoid(logit) > torch.sigmoid(noise.death_logit[t])
        rows.append(
            (
                features,
                actions,
                by_hand(inputs, actions, space),
                inputs,
                torch.where(dies, outcome.last_reward, outcome.reward),
                dies,
            )
        )
        z = next_z.clone()
        for lane in torch.nonzero(dies).flatten().tolist() if t + 1 < horizon else []:
            origin = noise.restart[t, lane]
            z[lane], h[lane], c[lane] = start_z[origin], start[0][origin], start[1][origin]
    columns = ("features", "actions", "action_logp", "action_dist_inputs", "rewards", "terminateds")
    result = {name: torch.stack(column, 1) for name, column in zip(columns, zip(*rows, strict=True), strict=True)}
    return {**result, "bootstrap_features": torch.cat([z, h], -1)[:, : model.feature_dim]}


def starts(lanes: int, latent_dim: int, hidden_dim: int) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    return torch.randn(lanes, latent_dim), (torch.randn(lanes, hidden_dim), torch.randn(lanes, hidden_dim))


def assert_equal(result: Dream, expected: dict[str, Tensor]) -> None:
    for name, value in expected.items():
        torch.testing.assert_close(
            getattr(result, name), value, rtol=1e-4, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}"
        )


@pytest.mark.parametrize("space", SPACES, ids=str)
@pytest.mark.parametrize("mixture", ["joint", "per_dimension"])
@pytest.mark.parametrize("inputs", ["zh", "z"])
@pytest.mark.parametrize("mdn_rnn_class", [None, Overridden])
@pytest.mark.parametrize(("head", "residual", "temperature"), [((16,), True, 1.0), ((), False, 0.7)])
def test_dream_equals_the_one_by_the_book(
    space: Any, mixture: str, inputs: str, mdn_rnn_class: Any, head: Any, residual: bool, temperature: float
):
    mdn = {"mixture": mixture, "head_hidden_dims": head, "residual": residual}
    model = world_model(space, mdn=mdn, controller_inputs=inputs, mdn_rnn_class=mdn_rnn_class)
    model.mdn_rnn.set_normalisation(*map(torch.tensor, (2.0, 3.0, 20.0, 0.3)))
    model.mdn_rnn.change_scale.copy_(torch.tensor([0.5, 2.0, 0.1]))
    assert can_fuse(model.mdn_rnn) is (mdn_rnn_class is None)
    controller = controller_for(model, space)
    start_z, state = starts(7, LATENT_DIM, HIDDEN_DIM)
    noise = draw_dream_noise(model, controller, 6, 7)
    result = dream(model, controller, start_z, state, 6, temperature, noise=noise)
    expected = by_the_book(model, controller, start_z, state, temperature, noise, space)
    assert 0 < expected["terminateds"].sum() < 42
    assert_equal(result, expected)


@pytest.mark.parametrize("mdn_rnn_class", [None, Overridden])
@pytest.mark.parametrize("space", SPACES[:2], ids=str)
def test_ends_read_from_memory_are_those_by_the_book(space: Any, mdn_rnn_class: Any):
    model = world_model(space, mdn={"ends_from": "memory"}, mdn_rnn_class=mdn_rnn_class)
    model.mdn_rnn.set_normalisation(*map(torch.tensor, (2.0, 3.0, 20.0, 0.3)))
    assert can_fuse(model.mdn_rnn) is (mdn_rnn_class is None)
    controller = controller_for(model, space)
    start_z, state = starts(7, LATENT_DIM, HIDDEN_DIM)
    noise = draw_dream_noise(model, controller, 6, 7)
    result = dream(model, controller, start_z, state, 6, 1.0, noise=noise)
    expected = by_the_book(model, controller, start_z, state, 1.0, noise, space)
    assert 0 < expected["terminateds"].sum() < 42
    assert_equal(result, expected)


def test_products_large_enough_for_onednn_give_the_same():
    sizes: dict[str, Any] = {"hidden_dim": 64, "head_hidden_dims": (128,)}
    model, space = world_model(mdn=sizes), gym.spaces.Discrete(2)
    controller = controller_for(model, space)
    start_z, state = starts(300, LATENT_DIM, 64)
    noise = draw_dream_noise(model, controller, 3, 300)
    result = dream(model, controller, start_z, state, 3, 1.0, noise=noise)
    assert_equal(result, by_the_book(model, controller, start_z, state, 1.0, noise, space))


def test_nothing_in_a_dream_waits_for_the_device():
    model = world_model().to("meta")  # tensors without values: reading one back is an error
    controller = controller_for(model, gym.spaces.Discrete(2))
    controller.network.to("meta")  # type: ignore[union-attr]
    start = torch.zeros(4, LATENT_DIM, device="meta")
    result = dream(model, controller, start, model.mdn_rnn.initial_state(4), 3, 1.0)
    assert result.rewards.device.type == "meta"
    assert result.features.shape == (4, 3, LATENT_DIM + HIDDEN_DIM)


def test_start_states_are_left_as_they_were():
    model = world_model()
    start_z, state = starts(5, LATENT_DIM, HIDDEN_DIM)
    before = [tensor.clone() for tensor in (start_z, *state)]
    dream(model, controller_for(model, gym.spaces.Discrete(2)), start_z, state, 4, 1.0)
    assert all(torch.equal(now, then) for now, then in zip((start_z, *state), before, strict=True))


def test_gradients_can_be_computed_of_what_is_made_of_a_dream():
    model = world_model()
    result = dream(model, controller_for(model, gym.spaces.Discrete(2)), *starts(5, LATENT_DIM, HIDDEN_DIM), 4, 1.0)
    value = nn.Linear(model.feature_dim, 1)
    (value(result.features).squeeze(-1) * result.rewards + result.action_logp).mean().backward()
    assert value.weight.grad is not None


@pytest.mark.parametrize("method", ["step", "predict", "outcome", "outcome_of", "decode_mixture", "decode_outcome"])
def test_an_m_that_overrides_a_method_is_not_fused(method: str):
    changed = type("Changed", (MDNRNN,), {method: lambda self, *args: getattr(super(type(self), self), method)(*args)})
    assert can_fuse(MDNRNN(mdn_config()))
    assert not can_fuse(changed(mdn_config()))


def test_an_m_with_other_parts_is_not_fused():
    model = MDNRNN(mdn_config())
    model.lstm = nn.LSTM(LATENT_DIM + 2, HIDDEN_DIM, num_layers=2, batch_first=True)
    assert not can_fuse(model)
    model = MDNRNN(mdn_config())
    model.mixture_head.append(nn.Tanh())
    assert not can_fuse(model)


@pytest.mark.parametrize("rows", [3, 400])
@pytest.mark.parametrize(
    "kinds",
    [
        [nn.Tanh, nn.Tanh],
        [nn.SiLU, nn.ReLU],
        [lambda: nn.LayerNorm(64), nn.SiLU],
        [lambda: nn.LayerNorm(64), nn.Tanh],
        [nn.Tanh, lambda: nn.LayerNorm(64)],
        [nn.ELU, nn.Identity],
    ],
)
def test_stack_computes_what_its_layers_do(kinds: list[Any], rows: int):
    layers = [kinds[1](), nn.Linear(64, 64), kinds[0](), nn.Linear(64, 64, bias=False), kinds[1](), nn.Linear(64, 5)]
    network, x = nn.Sequential(*layers), torch.randn(rows, 64)
    before = x.clone()
    with torch.no_grad():
        for cut in range(1, 7):
            torch.testing.assert_close(Stack(layers[:cut], rows)(x), network[:cut](before), rtol=1e-5, atol=1e-5)
    assert torch.equal(x, before)


def test_layers_with_hooks_are_called():
    layer = nn.Linear(4, 2)
    layer.register_forward_hook(lambda module, inputs, output: output + 100.0)
    with torch.no_grad():
        assert torch.all(Stack([layer], 3)(torch.zeros(3, 4)) > 50.0)


@pytest.mark.parametrize("space", SPACES, ids=str)
def test_burn_in_in_place_equals_step_by_step(space: gym.Space[Any]):
    model = world_model(space).eval()
    observations = torch.randn(6, 5, 4)
    actions = torch.stack([torch.as_tensor(space.sample()) for _ in range(24)]).reshape(6, 4, *space.shape)
    mask = torch.arange(4)[None] >= torch.tensor([0, 1, 2, 3, 4, 0])[:, None]
    z, (h, c) = model.burn_in(observations, actions, mask)  # with gradients: by `step`
    assert h.requires_grad
    with torch.no_grad():
        fast_z, (fast_h, fast_c) = model.burn_in(observations, actions, mask)
    torch.testing.assert_close((fast_z, fast_h, fast_c), (z.detach(), h.detach(), c.detach()), rtol=1e-5, atol=1e-6)
    assert not fast_h[4].any()


def rllib_module(space: gym.Space[Any]) -> Any:
    config = tiny_config(AnyActions).environment(env_config={"action_space": space})
    return WorldModelEnvRunner(config=config).module


@pytest.mark.parametrize("space", SPACES, ids=str)
def test_rllibs_policy_runs_in_place(space: gym.Space[Any]):
    module = rllib_module(space)
    policy = make_policy(module)
    assert isinstance(policy, Controller)
    assert isinstance(policy.network, nn.Sequential)
    features = torch.randn(50, module.observation_space.shape[0])
    expected = module.forward_exploration({Columns.OBS: features})[Columns.ACTION_DIST_INPUTS]
    with torch.no_grad():
        torch.testing.assert_close(policy.network(features), expected)
        torch.testing.assert_close(Stack([policy.network], 50)(features), expected)


def test_a_distribution_of_ones_own_is_sampled_by_itself(monkeypatch: pytest.MonkeyPatch):
    class Mine(TorchCategorical):
        def sample(self, **kwargs: Any) -> Tensor:
            return super().sample(**kwargs) * 0 + 2

    module = rllib_module(gym.spaces.Discrete(3))
    monkeypatch.setattr(module, "get_exploration_action_dist_cls", lambda: Mine)
    policy = make_policy(module)
    assert not isinstance(policy, Controller)
    actions, logp, inputs = policy(torch.randn(9, module.observation_space.shape[0]))
    assert actions.tolist() == [2] * 9
    torch.testing.assert_close(logp, inputs.log_softmax(-1)[:, 2])


@pytest.mark.parametrize("space", SPACES[:3], ids=str)
def test_samplers_draw_from_their_distribution(space: gym.Space[Any]):
    sampler = sampler_of(space)
    inputs = torch.randn(1, sampler.input_dim).expand(40_000, -1)
    actions = sampler.sample(inputs, sampler.draw((40_000,), inputs.device))
    torch.testing.assert_close(sampler.logp(inputs, actions), by_hand(inputs, actions, space))
    if isinstance(space, gym.spaces.Box):
        mean, log_std = inputs[0].chunk(2)
        assert torch.all((actions.mean(0) - mean).abs() < 5 * log_std.exp() / 200)
        assert torch.all((actions.std(0) / log_std.exp() - 1).abs() < 0.05)
        return
    sizes = [3] if isinstance(space, gym.spaces.Discrete) else [2, 3]
    for part, column in zip(inputs[0].split(sizes), actions.reshape(40_000, -1).unbind(1), strict=True):
        frequencies = torch.bincount(column, minlength=len(part)) / 40_000
        assert torch.all((frequencies - part.softmax(-1)).abs() < 5 * 0.5 / 200)


PAPER: dict[str, Any] = {"latent_dim": 32, "hidden_dim": 256, "num_mixtures": 5, "head_hidden_dims": ()}


def test_flops_of_a_step_by_hand():
    mdn = mdn_config(**PAPER)
    lstm = 593_920  # 2 x 1024 x (32 + 2 + 256)
    policy = 147_456 + 65_536 + 512  # 2 x (288 x 256 + 256 x 128 + 128 x 2)
    assert paper_step_flops(mdn, [256, 128], 2) == lstm + policy + 167_424 == 974_848  # 2 x 256 x (5 + 320 + 2)
    # 2 x 290 x 325 for the mixture on [h, z, a], 2 x 66 x 3 for rewards and termination on [z, a, z']
    assert step_flops(mdn, [256, 128], 2) == lstm + policy + 188_500 + 396 == 996_320


@pytest.mark.parametrize("head", [(), (16,), (16, 24)])
@pytest.mark.parametrize("mixture", ["joint", "per_dimension"])
def test_flops_of_a_step_are_those_that_torch_counts(mixture: str, head: Any):
    model = world_model(mdn={"mixture": mixture, "head_hidden_dims": head, "hidden_dim": 8})
    controller = controller_for(model, gym.spaces.Discrete(2))
    with FlopCounterMode(display=False) as counter:
        dream(model, controller, *starts(3, LATENT_DIM, 8), 5, 1.0)
    assert counter.get_total_flops() == 15 * step_flops(model.config.mdn_rnn, [16, 16], 2)
