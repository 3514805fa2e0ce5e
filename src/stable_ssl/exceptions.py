"""What a run can end with, apart from success."""


class BreakAllEpochs(Exception):
    """Raise it in a hook to end training: logs are closed, the last checkpoint stands, `after_fit` is skipped."""


class BreakEpoch(Exception):
    """Raise it in a hook to end the epoch at hand and go on with the next one."""


class BreakStep(Exception):
    """Raise it in a hook to leave out the rest of this mini-batch."""


class NanError(Exception):
    """The loss, or a weight, is not finite."""


class DataError(Exception):
    """A sample or batch that can't be read or used; says which one."""


class CheckpointError(Exception):
    """A checkpoint, weights file or run folder that can't be used; says which and why."""


class PeerError(Exception):
    """Another process of the run failed, is gone, or did not come."""


class ConfigError(Exception):
    """A request that can't be carried out as it is written.

    Parameters
    ----------
    problems
        One human sentence for each thing that is wrong, or a single sentence.
    """

    def __init__(self, problems: str | list[str]):
        self.problems = [problems] if isinstance(problems, str) else list(problems)
        super().__init__("\n".join(self.problems))


class Preempted(SystemExit):
    """The run was asked to stop, has saved its state and will go on from there when started again.

    A `SystemExit`, so that the line after `trainer()` does not take a half-trained model for a finished one.

    Attributes
    ----------
    code : int
        Exit status: 128 + the signal's number, or 75 for the time limit.
    """
