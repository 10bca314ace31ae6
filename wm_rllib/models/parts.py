"""The parts of an agent that a run can take over from another, and leave as they are."""

VAE, MDN_RNN = "vae", "mdn_rnn"
"""The attributes of `WorldModel`, with which the names of their weights begin."""
WHOLE = frozenset({VAE, MDN_RNN})
CONTROLLER = "controller"
PARTS = {"v": frozenset({VAE}), "vm": WHOLE, "vmc": WHOLE | {CONTROLLER}}
"""What `world_model.transfer.parts` stands for."""
