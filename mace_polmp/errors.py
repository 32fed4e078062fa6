"""The error of input that a user can correct; the commands print its one line and exit with 1."""


class InputError(ValueError):
    """Something given by the user cannot be used; the message names it and the remedy."""
