"""C, and V and M, as RLlib's RLModules, and the gradient steps on one of them."""
