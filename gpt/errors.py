"""What can go wrong because of what a user gave. Every message is one line that names the thing and the way out."""


class UserError(Exception):
    """Base of the errors below; whoever drives a run from the outside catches this one."""


class ConfigError(UserError):
    """A configuration that cannot work; the message starts with the field's name."""


class DataError(UserError):
    """A text that cannot be read, is too short, or has characters the vocabulary lacks."""


class UnknownCharactersError(DataError):
    """Characters that the vocabulary lacks; the message lists them."""


class CheckpointError(UserError):
    """A checkpoint that is missing, damaged, or of another model."""


class TrainingError(UserError):
    """A run that cannot go on: the loss is no longer a number, or its folder is in use."""
