"""The one exception a user sees without a traceback."""

import re


class RecipeError(ValueError):
    """A problem the user can fix: bad input, missing file, contradicting options.

    The message names the file, the key, what was found, what was expected and what
    to do. Command lines print it and exit with code 1. It is a ``ValueError``, so that
    users of the library need not know this class.
    """

    def __init__(self, message: str) -> None:
        # A worker of torch's DataLoader puts its traceback before the message.
        name = f"{type(self).__module__}.{type(self).__qualname__}: "
        message = message.rpartition(name)[2]
        # Messages of libraries, YAML's for one, have several lines.
        super().__init__(re.sub(r"\s*\n\s*", " ", message).strip())
