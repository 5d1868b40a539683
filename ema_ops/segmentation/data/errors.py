"""The error of files that can be read but do not hold what they should."""


class DataError(ValueError):
    """A list, folder, picture or mask of a data set is not as it should be; the message names it."""
