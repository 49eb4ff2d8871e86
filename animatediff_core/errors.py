"""What can go wrong for a user, each with the exit code that the command line gives it.

A message says where, what was wrong with the value, and what would work. It is shown without a
stack trace, so it must be enough on its own.
"""


class AnimateDiffError(Exception):
    """Base of every error that is meant for the user."""

    exit_code = 2
    """2 the request is wrong, found before anything ran; 3 the surroundings failed the run."""


class PromptFileError(AnimateDiffError):
    """A prompt file, preset or job that cannot be run as written."""


class CheckpointError(AnimateDiffError):
    """A weight file that is missing, broken, of another kind or family, or does not fit."""


class TrainingError(AnimateDiffError):
    """A training configuration or data set that cannot be used."""


class MediaError(AnimateDiffError):
    """A video or picture that cannot be read or written."""


class ClipError(AnimateDiffError):
    """A clip that came out broken: no numbers, one flat colour, no motion, frames missing."""


class SurroundingsError(AnimateDiffError):
    """Not the request but the machine failed: memory, disk, network."""

    exit_code = 3
