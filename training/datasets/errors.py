"""The one error of everything that reads or writes data."""


class DatasetError(ValueError):
    """Data that cannot be used; the message names the file and what is wrong with it."""
