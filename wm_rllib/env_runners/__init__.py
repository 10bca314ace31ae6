"""Real experience: RLlib's env runners, acting on [z, h], and what the driver asks of them."""
