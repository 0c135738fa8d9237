"""Errors that users can cause. Every message is one line that names the field or file and the way out."""


class UserError(Exception):
    """The base of the errors below. Catch this one to run training from another program."""


class ConfigError(UserError):
    """A configuration that cannot work. The message starts with the field's name."""


class DataError(UserError):
    """A text that cannot be read, is too short, or has characters that the vocabulary lacks."""


class UnknownCharactersError(DataError):
    """Characters that the vocabulary lacks. The message lists them."""


class CheckpointError(UserError):
    """A checkpoint that is missing or damaged, or that belongs to another model."""


class TrainingError(UserError):
    """A run that cannot continue: its loss is not finite, or another process uses its folder."""
