"""Sweeps over this algorithm's own settings with Ray Tune: search spaces, schedulers, what a trial reports."""
