"""What goes wrong with one sample, as opposed to a setting or a model."""


class SampleError(ValueError):
    """A sample that this model cannot use; `reason` is the short form under which a run counts it."""

    def __init__(self, reason: str, message: str):
        super().__init__(message)
        self.reason = reason
