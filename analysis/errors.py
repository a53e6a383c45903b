"""What a measurement cannot say about one sample, as opposed to a setting that cannot work."""


class Unmeasurable(ValueError):
    """This sample gives nothing to measure; `reason` is the short form under which a run counts it."""

    def __init__(self, reason: str, message: str):
        super().__init__(message)
        self.reason = reason
