"""A run: its settings and plan, its folder and checkpoints, its loop, and what it shows and writes on the way."""
