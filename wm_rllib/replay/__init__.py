"""The replay of raw experience: sequences and frames, as a process of its own, and its files in a checkpoint."""
