"""The one exception a user sees without a traceback."""


class RecipeError(Exception):
    """A problem the user can fix: bad input, missing file, contradicting options.

    The message names the file, the key, what was found, what was expected and what
    to do. Command lines print it and exit with code 1.
    """
