"""The error of an environment that breaks its promises."""


class EnvironmentContractError(ValueError):
    """An environment gives something else than Gymnasium's interface, or its own spaces, promise."""
