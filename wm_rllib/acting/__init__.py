"""The agent: observation in, features [z, h], action out; in env runners, in evaluations and outside of training."""
