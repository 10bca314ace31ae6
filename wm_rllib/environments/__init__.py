"""Environments: by name, made ready for V, and checked before anything starts."""
