"""What can go wrong in a way a person can mend.

Every message says in one line what was expected, what was found, where (file, subject), and what to do. The command
line prints these without a traceback and exits with code 2; anything else is a defect of brainage and keeps its own.
"""


class BrainageError(Exception):
    """Base of every error that a person can mend."""


class ConfigError(BrainageError):
    """An experiment, key or value that does not exist or does not fit."""


class DataError(BrainageError):
    """A table, file or array that is not what its layout promises."""


class LeakageError(BrainageError):
    """A person on both sides of a split, or scored after having been trained on."""


class ContractError(BrainageError):
    """Arrays that an encoder must not be fed."""


class StoreError(BrainageError):
    """An array store that is absent, locked, torn, or does not fit on the disk."""


class CheckpointError(BrainageError):
    """A checkpoint that is torn, of another schema, or of another configuration."""


class TrainingStopped(BrainageError):  # noqa: N818 - a verdict on the run, not a fault of the code
    """A run that collapsed, turned NaN or stalled; the message says which and what to try."""
