"""What can go wrong offline. Messages say what was given, what is allowed and what to do."""


class TrainingError(Exception):
    """Any failure of the offline stages that a user can mend."""


class RecipeError(TrainingError):
    """A recipe that cannot be read or that asks for the impossible."""


class DataError(TrainingError):
    """Images that are missing, unreadable, or not fit for their role."""


class DivergedError(TrainingError):
    """The loss is no longer finite."""


class WeightsError(TrainingError):
    """Weights that no training can go on from."""


class ResumeError(TrainingError):
    """A run folder that holds results of another recipe."""


class OutputError(TrainingError):
    """A file or folder that cannot be written."""


class OptimisationError(TrainingError):
    """A bundle that cannot be put into a lower precision, or whose verdicts would change too much by it."""
