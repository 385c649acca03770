"""The error that is the user's to mend."""


class InputError(ValueError):
    """A flag, file or model that cannot work; its message is one line that says what was found and what to do."""
