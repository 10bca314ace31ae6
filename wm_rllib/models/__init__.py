r"""V, M and the dream: networks and their mathematics, free of Ray.

Shape letters, used in every docstring of the package:
B batch, T time, H horizon, K mixtures, Z latent, D hidden, A action (as model input), O observation, F features.

Time, once for all (tests/test_timeline.py holds the code to it)::

    o_0 --V--> z_0   h_0 = 0
     |           \   /
     |         a_0 ~ C([z_0, h_0])
     |             |
     |      M: (z_0, a_0), h_0 -> h_1, p(z_1);  (z_0, a_0, z_1) -> r_0, done_0
     v             |
    o_1 --V--> z_1 | h_1
                 \ |  /
               a_1 ~ C([z_1, h_1])   ...

r_t and done_t belong to the transition (o_t, a_t) -> o_{t+1}; h_t summarises (z_0, a_0) .. (z_{t-1}, a_{t-1}) and
knows neither z_t nor a_t. A sequence of T transitions has T + 1 observations; the last one is only ever bootstrapped
from.
"""

from wm_rllib.models.config import MDNRNNConfig, VAEConfig, WorldModelConfig
from wm_rllib.models.mdn_rnn import MDNRNN
from wm_rllib.models.vae import VariationalAutoencoder
from wm_rllib.models.world_model import WorldModel

__all__ = ["MDNRNN", "MDNRNNConfig", "VAEConfig", "VariationalAutoencoder", "WorldModel", "WorldModelConfig"]
