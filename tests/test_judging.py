"""How M is judged: skill of models whose skill is known, and returns by hand."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from ray.rllib.algorithms.ppo.torch.default_ppo_torch_rl_module import DefaultPPOTorchRLModule
from ray.rllib.core.columns import Columns
from ray.rllib.core.distribution.torch.torch_distribution import TorchCategorical
from ray.rllib.core.rl_module.default_model_config import DefaultModelConfig
from ray.rllib.core.rl_module.rl_module import RLModuleSpec
from ray.rllib.env.single_agent_episode import SingleAgentEpisode
from test_dreaming import clockwork_dream
from tiny_models import HIDDEN_DIM, LATENT_DIM, OBSERVATION_DIM, vae_config, world_model
from torch import Tensor, nn

from wm_rllib.columns import CHUNK, GREEDY, MASK, OFFSET, REACH
from wm_rllib.learners.judge import _gap, _skill_by_step, judge_world_model
from wm_rllib.models import VariationalAutoencoder
from wm_rllib.models.judging import Windows, discounted, dreamed_returns, open_loop_skill, real_returns
from wm_rllib.models.mdn_rnn import MDNRNN, State
from wm_rllib.models.mixture import MixtureParams
from wm_rllib.models.outcome import Outcome
from wm_rllib.models.world_model import WorldModel
from wm_rllib.replay.replay import SequenceReplay
from wm_rllib.rl_modules.policy_module import WorldModelPPOModule

BOX = gym.spaces.Box(-1.0, 1.0, (1,), np.float32)
SHIFT = torch.tensor([0.1, -0.2, 0.0])
MEAN, REWARD_MEAN = torch.tensor([0.3, -0.4, 0.05]), 1.5


class FirstThree(nn.Module):
    """The first three numbers of an observation and a log variance of 0; three latents and a zero."""

    def forward(self, x: Tensor) -> Tensor:
        rest = x.new_zeros(len(x), 3 if x.shape[1] == OBSERVATION_DIM else 1)
        return torch.cat([x[:, :3], rest], -1)


class ExactVAE(VariationalAutoencoder):
    """z is the observation's first three numbers; the fourth is always 0."""

    def make_encoder(self) -> nn.Module:
        return FirstThree()

    def make_decoder(self) -> nn.Module:
        return FirstThree()


def certain(mean: Tensor, components: int) -> MixtureParams:
    mean = mean.unsqueeze(-2).expand(*mean.shape[:-1], components, -1)
    return MixtureParams(torch.zeros(mean.shape[:-1]).log_softmax(-1), mean, torch.full_like(mean, -20.0))


class Perfect(MDNRNN):
    """Knows the system below: z moves by a shift that the action turns round, and pays for where it was."""

    def predict(self, next_h: Tensor, z: Tensor, action: Tensor) -> MixtureParams:
        return certain(z + SHIFT * (action[:, :1] - action[:, 1:]), self.config.num_mixtures)

    def outcome(self, z: Tensor, action: Tensor, next_z: Tensor) -> Outcome:
        return Outcome(10.0 * z[..., 0], torch.full_like(z[..., 0], -50.0))


class Mean(MDNRNN):
    """Always says the means that the test gives it."""

    def predict(self, next_h: Tensor, z: Tensor, action: Tensor) -> MixtureParams:
        return certain(self.says.expand_as(z), self.config.num_mixtures)

    def outcome(self, z: Tensor, action: Tensor, next_z: Tensor) -> Outcome:
        reward = self.pays.expand_as(z[..., 0])
        return Outcome(reward, torch.zeros_like(reward))


class Counting(Perfect):
    """Its h counts steps."""

    def step(self, z: Tensor, action: Tensor, state: State) -> State:
        return state[0] + 1.0, state[1]

    def unroll(self, z: Tensor, action: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        assert state is not None
        steps = torch.arange(1.0, z.shape[1] + 1.0)[None, :, None]
        return state[0][:, None] + steps, (state[0] + z.shape[1], state[1])


def model_of(mdn_rnn_class: type) -> WorldModel:
    return world_model(mdn_rnn_class=mdn_rnn_class, vae=vae_config(), vae_class=ExactVAE).eval()


def windows(burn_in: int = 2, horizon: int = 4, count: int = 40) -> Windows:
    """Real experience of that system, all of it valid and without an end."""
    width = burn_in + horizon
    actions = torch.randint(2, (count, width))
    observations = torch.zeros(count, width + 1, OBSERVATION_DIM)
    observations[:, 0, :3] = torch.randn(count, 3)
    for t in range(width):
        observations[:, t + 1, :3] = observations[:, t, :3] + SHIFT * (1.0 - 2.0 * actions[:, t, None])
    return Windows(
        burn_in=burn_in,
        observations=observations,
        actions=actions,
        rewards=10.0 * observations[:, :-1, 0],
        terminateds=torch.zeros(count, width, dtype=torch.bool),
        mask=torch.ones(count, width, dtype=torch.bool),
    )


def shortened(whole: Windows, lengths: dict[int, int], *, terminated: bool) -> Windows:
    """Some rows with fewer steps after their start."""
    mask, terminateds = whole.mask.clone(), whole.terminateds.clone()
    for row, length in lengths.items():
        mask[row, whole.burn_in + length :] = False
        terminateds[row, whole.burn_in + length - 1] = terminated
    nonsense = torch.where(mask, whole.rewards, torch.full_like(whole.rewards, 1e6))
    return dataclasses.replace(whole, mask=mask, terminateds=terminateds, rewards=nonsense)


def test_a_perfect_model_has_a_skill_of_one():
    skill = open_loop_skill(model_of(Perfect), windows())
    torch.testing.assert_close(skill.observation, torch.ones(4), atol=1e-5, rtol=0)
    torch.testing.assert_close(skill.reward, torch.ones(4), atol=1e-5, rtol=0)


def mean_model(of: Windows) -> WorldModel:
    """A model that always says the mean of all valid steps."""
    model, valid = model_of(Mean), of.mask[:, of.burn_in :]
    model.mdn_rnn.says = of.observations[:, of.burn_in + 1 :][valid][:, :3].mean(0)
    model.mdn_rnn.pays = of.rewards[:, of.burn_in :][valid].mean()
    return model


def test_the_mean_has_a_skill_of_zero():
    fresh = windows(count=3000)
    skill = open_loop_skill(mean_model(fresh), fresh)
    # By steps ahead around zero, since spread grows along the way; over all steps exactly zero.
    for values in (skill.observation, skill.reward):
        assert values.abs().max() < 0.1
        assert values.mean().item() == pytest.approx(0.0, abs=1e-4)


def test_skill_by_hand():
    fresh, model = shortened(windows(count=5), {0: 1, 3: 3}, terminated=False), model_of(Mean)
    model.mdn_rnn.says, model.mdn_rnn.pays = MEAN, torch.tensor(REWARD_MEAN)
    model.vae.set_normalisation(torch.zeros(4), torch.tensor([1.0, 2.0, 4.0, 1.0]))
    model.mdn_rnn.reward_scale.fill_(5.0)
    # Latents are in units of their own, here; the prediction is decoded into those of observations and back.
    units, future = np.array([1.0, 2.0, 4.0]), fresh.observations[:, 3:, :3].numpy()
    valid = fresh.mask[:, 2:].numpy()
    real = future / units
    variance = sum(real[..., d][valid].var() for d in range(3))
    rewards = fresh.rewards[:, 2:].numpy() / 5.0
    skill = open_loop_skill(model, fresh)
    for step in range(4):
        rows = valid[:, step]
        error = ((MEAN.numpy() - real[rows, step]) ** 2).sum(-1).mean()
        assert skill.observation[step].item() == pytest.approx(1.0 - error / variance, rel=1e-4)
        reward_error = ((REWARD_MEAN / 5.0 - rewards[rows, step]) ** 2).mean()
        assert skill.reward[step].item() == pytest.approx(1.0 - reward_error / rewards[valid].var(), rel=1e-4)


def test_skill_is_unknown_where_no_window_reaches():
    fresh = shortened(windows(count=6), dict.fromkeys(range(6), 2), terminated=True)
    skill = open_loop_skill(model_of(Perfect), fresh)
    for values in (skill.observation, skill.reward):
        torch.testing.assert_close(values[:2], torch.ones(2), atol=1e-5, rtol=0)
        assert values[2:].isnan().all()


def test_what_does_not_vary_need_not_be_predicted_to_its_last_digit():
    fresh = windows(count=20)
    constant = dataclasses.replace(
        fresh, rewards=torch.ones_like(fresh.rewards), observations=torch.zeros_like(fresh.observations)
    )
    model = model_of(Mean)
    model.mdn_rnn.says, model.mdn_rnn.pays = torch.full((3,), 1e-3), torch.tensor(1.01)
    skill = open_loop_skill(model, constant)
    assert skill.observation.min() > 0.9
    assert skill.reward.min() > 0.9


def sees_h(features: Tensor) -> Tensor:
    """A critic that reads the count of steps in h, and z."""
    return 100.0 * features[:, LATENT_DIM] + features[:, 0]


def test_real_returns_by_hand():
    fresh = windows(burn_in=2, horizon=4, count=5)
    fresh = shortened(fresh, {1: 2}, terminated=True)
    fresh = shortened(fresh, {2: 4}, terminated=True)
    fresh = shortened(fresh, {3: 3}, terminated=False)
    fresh.mask[4, :1] = False  # one step of burn-in, not two
    returns = real_returns(model_of(Counting), fresh, sees_h, 0.5).tolist()

    def rewards(row: int, count: int) -> float:
        return sum(0.5**k * fresh.rewards[row, 2 + k].item() for k in range(count))

    def after(row: int, steps: int, count: int = 4) -> float:
        return 0.5**count * (100.0 * steps + fresh.observations[row, 2 + count, 0].item())

    assert returns[0] == pytest.approx(rewards(0, 4) + after(0, 6), rel=1e-5)
    assert returns[1] == pytest.approx(rewards(1, 2), rel=1e-5)
    assert returns[2] == pytest.approx(rewards(2, 4), rel=1e-5)
    assert returns[3] == pytest.approx(rewards(3, 3) + after(3, 5, 3), rel=1e-5)
    assert returns[4] == pytest.approx(rewards(4, 4) + after(4, 5), rel=1e-5)


def test_dreamed_returns_by_hand():
    dreams = clockwork_dream([9, 9, 9, 9], horizon=3)
    rewards = torch.tensor([[1.0, 2.0, 4.0]] * 4)
    terminateds = torch.tensor([[0, 0, 0], [0, 1, 0], [0, 0, 1], [1, 0, 1]]).bool()
    features = torch.arange(4.0)[:, None, None] + torch.zeros(4, 3, dreams.features.shape[2])
    features[:, 2] += 100.0  # after two steps
    dreams = dataclasses.replace(
        dreams,
        rewards=rewards,
        terminateds=terminateds,
        features=features,
        bootstrap_features=torch.full((4, features.shape[2]), 80.0),
    )

    def values(features: Tensor) -> Tensor:
        return features[:, 0]

    whole, two, one = (dreamed_returns(dreams, values, 0.5, torch.full((4,), reach)).tolist() for reach in (3, 2, 1))
    assert whole == [1.0 + 1.0 + 1.0 + 10.0, 2.0, 3.0, 1.0]
    assert two == [2.0 + 100.0 / 4, 2.0, 2.0 + 102.0 / 4, 1.0]
    assert one == [1.0, 1.0 + 1.0 / 2, 1.0 + 2.0 / 2, 1.0]
    assert dreamed_returns(dreams, values, 0.5, torch.tensor([3, 1, 2, 3])).tolist() == [whole[0], one[1], two[2], 1.0]


def test_discounted_by_hand():
    assert discounted(torch.tensor([[1.0, 1.0, 1.0], [0.0, 0.0, 8.0]]), 0.5).tolist() == [1.75, 2.0]


class Critic:
    """What the judge needs of C: it acts at random, and its values are constant."""

    action_space = world_model().config.action_space
    value_scale = 4.0

    def get_exploration_action_dist_cls(self) -> Any:
        return TorchCategorical

    def get_inference_action_dist_cls(self) -> Any:
        return TorchCategorical

    def forward_exploration(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        return {Columns.ACTION_DIST_INPUTS: torch.zeros(len(batch[Columns.OBS]), 2)}

    def compute_values(self, batch: dict[str, Tensor]) -> Tensor:
        return torch.zeros(len(batch[Columns.OBS]))


def arrays_of(fresh: Windows) -> dict[str, np.ndarray]:
    names = {
        Columns.OBS: fresh.observations,
        Columns.ACTIONS: fresh.actions,
        Columns.REWARDS: fresh.rewards,
        Columns.TERMINATEDS: fresh.terminateds,
        MASK: fresh.mask,
    }
    steps = fresh.mask[:, fresh.burn_in :].sum(1).numpy()
    places = {CHUNK: np.arange(len(steps)), OFFSET: np.zeros(len(steps), int)}  # no two of them overlap
    return {**{name: value.numpy() for name, value in names.items()}, REACH: steps, GREEDY: steps < 0, **places}


def judge(model: WorldModel, fresh: Windows) -> Any:
    return judge_arrays(model, arrays_of(fresh))


def judge_arrays(model: WorldModel, arrays: dict[str, np.ndarray], critic: Any = None) -> Any:
    return judge_world_model(model, critic or Critic(), arrays, burn_in=2, gamma=0.9, temperature=1e-6)


def test_a_judgement_of_a_perfect_model():
    judgement = judge(model_of(Perfect), windows(count=400))
    assert judgement.skill == pytest.approx([1.0] * 4, abs=1e-4)
    # Dreams and real episodes were both acted in at random: what differs is chance.
    assert judgement.gap_error > 0
    assert abs(judgement.gap) < 4 * judgement.gap_error
    assert judgement.return_scale == 4.0  # the critic's


def test_a_judgement_takes_the_worse_of_both_skills():
    model = model_of(Perfect)
    fresh = windows(count=400)
    for changed in (
        dataclasses.replace(fresh, rewards=fresh.rewards + 20.0 * torch.randn_like(fresh.rewards)),
        dataclasses.replace(fresh, observations=fresh.observations + 2.0 * torch.randn_like(fresh.observations)),
    ):
        skill = open_loop_skill(model, changed)
        assert (skill.observation - skill.reward).abs().min() > 0.1
        assert judge(model, changed).skill == pytest.approx(torch.minimum(skill.observation, skill.reward).tolist())


def test_a_model_that_promises_too_much_has_a_gap():
    fresh = windows(count=400)
    judgement = judge(model_of(Perfect), dataclasses.replace(fresh, rewards=fresh.rewards - 1.0))
    promised = 1.0 + 0.9 + 0.81 + 0.729
    assert judgement.gap == pytest.approx(promised, abs=4 * judgement.gap_error)
    assert judgement.gap > 2 * judgement.gap_error


def test_a_critic_that_knows_no_returns_yet_is_not_asked_for_their_spread(monkeypatch):
    """Rewards in the thousands: before the first merged update a gap counts in deviations of what was met."""
    monkeypatch.setattr(Critic, "value_scale", 1.0)
    fresh = windows(count=400)
    large = dataclasses.replace(fresh, rewards=1000.0 * fresh.rewards)
    returns = real_returns(model_of(Perfect), large, lambda features: torch.zeros(features.shape[:-1]), 0.9)
    assert judge(model_of(Perfect), large).return_scale == pytest.approx(float(returns.std(correction=0)), rel=1e-5)
    small = dataclasses.replace(fresh, rewards=1e-6 * fresh.rewards)
    assert judge(model_of(Perfect), small).return_scale == 1.0


class OwnDistribution(TorchCategorical):
    """One whose noise nobody can draw for it."""


class DrawsItself(Critic):
    """Acts at random by a distribution of its own."""

    def get_exploration_action_dist_cls(self) -> Any:
        return OwnDistribution


class Hazardous(MDNRNN):
    """Every step pays 1 and ends the episode with a probability of `HAZARD`; z stays as it is."""

    def predict(self, next_h: Tensor, z: Tensor, action: Tensor) -> MixtureParams:
        return certain(z, self.config.num_mixtures)

    def outcome(self, z: Tensor, action: Tensor, next_z: Tensor) -> Outcome:
        one = torch.ones_like(z[..., 0])
        return Outcome(one, one * math.log(HAZARD / (1.0 - HAZARD)))


HAZARD = 0.1


class ExactCritic(Critic):
    """Knows what every state of it is worth with a discount of 0.9."""

    def compute_values(self, batch: dict[str, Tensor]) -> Tensor:
        return torch.full((len(batch[Columns.OBS]),), 1.0 / (1.0 - 0.9 * (1.0 - HAZARD)))


@pytest.mark.parametrize("critic", [Critic(), ExactCritic()])
def test_short_chunks_do_not_make_a_perfect_model_promise_too_much(critic: Any):
    """Windows that end count no more often than those that go on beyond what was sampled."""
    rng, count, chunk, horizon = np.random.default_rng(0), 6000, 6, 4
    fresh = windows(burn_in=2, horizon=horizon, count=count)
    left = chunk - rng.integers(chunk, size=count)  # steps until the call is over
    life = rng.geometric(HAZARD, size=count)
    lengths = np.minimum(np.minimum(left, life), horizon)
    dead = {row: int(n) for row, n in enumerate(lengths) if life[row] == n}
    alive = {row: int(n) for row, n in enumerate(lengths) if row not in dead}
    fresh = dataclasses.replace(fresh, rewards=torch.ones_like(fresh.rewards))
    fresh = shortened(shortened(fresh, alive, terminated=False), dead, terminated=True)
    arrays = {**arrays_of(fresh), REACH: np.minimum(left, horizon)}
    judgement = judge_arrays(model_of(Hazardous), arrays, critic)
    assert abs(judgement.gap) < 3.5 * judgement.gap_error < 0.2
    # Had the dreams gone on where the real steps could not have, they would promise more, or have less to promise.
    unfair = judge_arrays(model_of(Hazardous), {**arrays, REACH: np.full(count, horizon)}, Critic())
    assert abs(unfair.gap) > 5 * unfair.gap_error


def decided_module() -> Any:
    """RLlib's default module, which takes the second action with a probability of 0.75 whatever it sees."""
    module = RLModuleSpec(
        module_class=DefaultPPOTorchRLModule,
        observation_space=gym.spaces.Box(-np.inf, np.inf, (LATENT_DIM + HIDDEN_DIM,), np.float32),
        action_space=gym.spaces.Discrete(2),
        model_config=vars(DefaultModelConfig(fcnet_hiddens=[16], vf_share_layers=False)),
    ).build()
    with torch.no_grad():
        for layer in module.pi.net.mlp:
            if isinstance(layer, nn.Linear):
                layer.weight.zero_()
                layer.bias.copy_(torch.tensor([0.0, math.log(3.0)]))
    return module


class Pays(Perfect):
    """Pays 1 for the second action."""

    def outcome(self, z: Tensor, action: Tensor, next_z: Tensor) -> Outcome:
        return Outcome(action[..., 1], torch.full_like(z[..., 0], -50.0))


def test_dreams_act_as_the_real_steps_did():
    """Greedy steps earn what exploring ones do not; a perfect model must not seem to promise too little."""
    module = decided_module()
    fresh = windows(count=800)
    model = model_of(Pays)
    greedy = np.arange(800) < 400
    inputs = module.forward_exploration({Columns.OBS: torch.zeros(1, model.feature_dim)})[Columns.ACTION_DIST_INPUTS]
    probability = inputs.softmax(-1)[0, 1]
    assert probability == pytest.approx(0.75)
    chosen = torch.where(torch.from_numpy(greedy)[:, None], torch.ones(()), (torch.rand(800, 6) < probability).float())
    fresh = dataclasses.replace(fresh, actions=chosen.long(), rewards=chosen)
    judgement = judge_arrays(model, {**arrays_of(fresh), GREEDY: greedy}, module)
    assert abs(judgement.gap) < 3.5 * judgement.gap_error < 0.3
    without = judge_arrays(model, {**arrays_of(fresh), GREEDY: greedy & False}, module)
    assert without.gap < -3.5 * without.gap_error


def wide_module() -> Any:
    """The project's module on one action in [-1, 1], of a mean of 2 and a deviation of exp(1.5) whatever it sees."""
    module = RLModuleSpec(
        module_class=WorldModelPPOModule,
        observation_space=gym.spaces.Box(-np.inf, np.inf, (LATENT_DIM + HIDDEN_DIM,), np.float32),
        action_space=BOX,
        model_config={**vars(DefaultModelConfig(fcnet_hiddens=[16], vf_share_layers=False)), "latent_dim": LATENT_DIM},
    ).build()
    with torch.no_grad():
        for layer in module.pi.net.mlp:
            if isinstance(layer, nn.Linear):
                layer.weight.zero_()
                layer.bias.copy_(torch.tensor([2.0, 1.5]))
    return module


class PaysTheAction(Perfect):
    """Stands still, and pays what the action is."""

    def predict(self, next_h: Tensor, z: Tensor, action: Tensor) -> MixtureParams:
        return certain(z, self.config.num_mixtures)

    def outcome(self, z: Tensor, action: Tensor, next_z: Tensor) -> Outcome:
        return Outcome(action[..., 0], torch.full_like(z[..., 0], -50.0))


def test_greedy_steps_in_a_box_are_dreamed_as_env_runners_take_them():
    """By the mean of the clipped Gaussian: by its mode, which is at the bound, exact dreams would promise too much."""
    module, count = wide_module(), 800
    inputs = module.forward_inference({Columns.OBS: torch.zeros(1, LATENT_DIM + HIDDEN_DIM)})
    inputs = inputs[Columns.ACTION_DIST_INPUTS].expand(count * 6, -1)
    exploring = module.get_exploration_action_dist_cls().from_logits(inputs).sample().clamp(-1.0, 1.0)
    best = module.get_inference_action_dist_cls().from_logits(inputs).to_deterministic().sample()
    greedy = np.arange(count) < 400
    chosen = torch.where(torch.from_numpy(greedy)[:, None, None], best.view(count, 6, 1), exploring.view(count, 6, 1))
    still = windows(count=count)
    still = dataclasses.replace(still, observations=still.observations[:, :1].expand(-1, 7, -1).clone())
    fresh = dataclasses.replace(still, actions=chosen, rewards=chosen[..., 0])
    model = world_model(BOX, mdn_rnn_class=PaysTheAction, vae=vae_config(), vae_class=ExactVAE).eval()
    judgement = judge_arrays(model, {**arrays_of(fresh), GREEDY: greedy}, module)
    assert abs(judgement.gap) < 3.5 * judgement.gap_error < 0.5
    as_if_explored = judge_arrays(model, {**arrays_of(fresh), GREEDY: greedy & False}, module)
    assert as_if_explored.gap_error > judgement.gap_error


def test_who_draws_its_own_noise_is_compared_where_it_explored():
    fresh = windows(count=400)
    fresh.rewards[:200] += 1000.0
    judgement = judge_arrays(model_of(Perfect), {**arrays_of(fresh), GREEDY: np.arange(400) < 200}, DrawsItself())
    assert abs(judgement.gap) < 4 * judgement.gap_error


@pytest.mark.parametrize(("num_chunks", "length"), [(4, 16), (1, 64), (8, 8)])
def test_a_gap_by_chance_is_within_two_errors_though_windows_overlap(num_chunks: int, length: int):
    rng = np.random.default_rng(0)
    beyond, discounts = 0, 0.99 ** np.arange(15)
    for repeat in range(300):
        replay = SequenceReplay(10_000, repeat)
        replay.add([noisy_chunk(f"{repeat}-{index}", rng.normal(size=length)) for index in range(num_chunks)])
        windows = replay.newest_windows(128, 15, 50)
        assert windows is not None
        near = slice(15, 30)
        returns = (windows[Columns.REWARDS][:, near] * windows[MASK][:, near]) @ discounts
        gap, error = _gap(-returns, np.stack([windows[CHUNK], windows[OFFSET] // 15]))
        assert gap is not None and error is not None
        beyond += abs(gap) > 2 * error
    assert beyond <= 0.2 * 300  # as independent measurements 70 % of them


def noisy_chunk(name: str, rewards: np.ndarray) -> SingleAgentEpisode:
    steps = len(rewards)
    episode = SingleAgentEpisode(
        id_=name,
        observations=[np.zeros(2, np.float32)] * (steps + 1),
        actions=[np.int64(0)] * steps,
        rewards=list(rewards),
        len_lookback_buffer=0,
    )
    return episode.to_numpy()


def test_an_error_beyond_all_numbers_is_no_skill_and_an_unmeasured_one_is_none():
    assert _skill_by_step(torch.tensor([-math.inf, math.nan, 0.5])) == [-1.0, None, 0.5]


def test_without_windows_to_compare_there_is_no_gap():
    all_greedy = {**arrays_of(windows(count=6)), GREEDY: np.ones(6, bool)}
    judgement = judge_arrays(model_of(Perfect), all_greedy, DrawsItself())
    assert judgement.gap is None and judgement.gap_error is None
    assert None not in judgement.skill
    fresh = shortened(windows(count=6), dict.fromkeys(range(6), 2), terminated=False)
    assert judge(model_of(Perfect), fresh).skill[2:] == [None, None]


def test_the_start_is_burnt_in_from_its_own_past():
    fresh = windows(burn_in=3, horizon=2, count=2)
    fresh.mask[1, :2] = False
    z, (h, _) = fresh.start(model_of(Counting))
    torch.testing.assert_close(z, fresh.observations[:, 3, :3])
    assert h.tolist() == [[3.0] * HIDDEN_DIM, [1.0] * HIDDEN_DIM]
    assert fresh.horizon == 2
