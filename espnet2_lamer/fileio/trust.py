"""What this package never does with a file from outside, and the one exception.

``docs/safety.md`` has the rule in words.
"""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from espnet2_lamer.errors import RecipeError

S3PRL_PREFIX = "s3prl:"
OPTION = "trust_s3prl_files"
_trusted: ContextVar[bool] = ContextVar(OPTION, default=False)


def protect() -> None:
    """Make torch read every checkpoint of this process and its children as data.

    ESPnet and S3PRL ask ``torch.load`` to unpickle whatever a file holds. This
    variable of torch's overrules them. Our own loads do not need it: they say
    ``weights_only=True`` themselves.
    """
    if os.environ.pop("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", None) is not None:
        logging.warning(
            "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD is not heeded: checkpoints are data here"
        )
    os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = "1"


def s3prl_files_trusted() -> bool:
    """Whether the user trusts the files that S3PRL upstreams are to read."""
    return _trusted.get()


@contextmanager
def trusting_s3prl_files(trust: bool) -> Iterator[None]:
    """Let S3PRL upstreams read files inside the block, if the user said so.

    Models that ESPnet builds from a config get the user's word through this: a key of
    the config would be the word of whoever wrote it. ``False`` changes nothing.
    """
    token = _trusted.set(trust or _trusted.get())
    try:
        yield
    finally:
        _trusted.reset(token)


def split_s3prl(source: str) -> tuple[str, list[str]]:
    """Split ``s3prl:NAME[:FILE]`` into the name and a list with the file, if any.

    Upstreams named ``*_custom``, ``*_local`` and ``*_url`` take a path or URL.

    Raises:
        RecipeError: A file is named, and the user did not say that it is trusted.
    """
    name, *file = source.removeprefix(S3PRL_PREFIX).split(":", 1)
    if file and not s3prl_files_trusted():
        raise RecipeError(
            f"{source}: found an S3PRL upstream with a file of its own ({file[0]!r}); "
            "S3PRL runs code that such a file holds: it evaluates texts in it, "
            "unpickles, and fetches URLs. If you trust where the file comes from, add "
            f"--{OPTION} true (in Python: {OPTION}=True)"
        )
    return name, file
