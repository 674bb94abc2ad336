"""The one exception a user sees without a traceback, and what others' say."""

import re
from importlib.util import find_spec

#: The extra of this distribution that brings a package, by the name of the import.
EXTRAS = {
    "babel": "mini",
    "espeakng_loader": "mini",
    "hsk_sentences_audio": "mini",
    "tensorboard": "train",
    "whisper": "whisper",
    "datasets": "readers",
    "lhotse": "readers",
    "pyarrow": "readers",
    "ctranslate2": "ctranslate2",
    "cloudpickle": "dask",
    "distributed": "dask",
    "peft": "bench",
    "pyopenjtalk": "japanese",
    "onnx": "onnx",
    "onnxruntime": "onnx",
    "onnxscript": "onnx",
}
# In torch's messages.
_ADVICE = re.compile("weights_only|add_safe_globals|trusted source|torch.load")


class RecipeError(ValueError):
    """A problem the user can fix: bad input, missing file, contradicting options.

    The message names the file, the key, what was found, what was expected and what
    to do. Command lines print it and exit with code 1. It is a ``ValueError``, so that
    users of the library need not know this class.
    """

    def __init__(self, message: str) -> None:
        # A worker of torch's DataLoader puts its traceback before the message.
        name = f"{type(self).__module__}.{type(self).__qualname__}: "
        super().__init__(message.rpartition(name)[2].strip())


def require(package: str, what: str) -> None:
    """Raise ``RecipeError``, naming the extra, where a package of one is missing."""
    if find_spec(package) is None:
        raise RecipeError(
            f"{what} needs the package {package}, which is not installed: "
            f"pip install 'espnet2-lamer[{EXTRAS[package]}]'"
        )


def short_reason(error: BaseException) -> str:
    """Return the point of a message, without torch's advice to load unsafely."""
    text = str(error)
    if _ADVICE.search(text):
        # What is wrong stands between the advice and a link to the documentation.
        text = text.partition("WeightsUnpickler error:")[2] or text
        lines = (line.partition(" Please use")[0].strip() for line in text.splitlines())
        text = next((x for x in lines if x and not _ADVICE.search(x)), "")
        text = text or "it holds more than tensors and plain values"
    text = " ".join(text.split())
    return text[:300] or type(error).__name__
