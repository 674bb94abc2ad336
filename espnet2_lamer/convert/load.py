"""``load_hubert``: one entry for every checkpoint format."""

from pathlib import Path

from torchaudio.models import Wav2Vec2Model

from espnet2_lamer.errors import RecipeError


def local_directory(source: str | Path) -> Path:
    """Return the local directory of a Hugging Face checkpoint, fetching an id once.

    Raises:
        RecipeError: Neither a directory nor an id that can be fetched.
    """
    path = Path(source)
    if path.is_dir():
        return path
    name = str(source)
    if name.count("/") != 1 or name.startswith(("/", ".")):
        raise RecipeError(
            f"{source}: no such directory; expected a Hugging Face HuBERT directory "
            "(config.json, model.safetensors) or an id such as "
            "facebook/hubert-large-ll60k"
        )
    from huggingface_hub import snapshot_download

    try:
        return Path(
            snapshot_download(
                name, allow_patterns=["*.json", "*.safetensors", "pytorch_model.bin"]
            )
        )
    except Exception as error:
        raise RecipeError(
            f"{source}: neither a local directory nor a model that could be fetched "
            f"({error})"
        ) from error


def load_hubert(source: str | Path) -> Wav2Vec2Model:
    """Load a HuBERT as a torchaudio model in eval mode.

    Args:
        source: Hugging Face directory or id.

    Returns:
        A ``Wav2Vec2Model`` that normalises waveforms itself where the checkpoint asks
        for it, with ``architecture``, ``normalize_waveform``, ``extractor_mode`` and
        ``mask_embedding`` (``[D]`` or ``None``) as attributes.

    Raises:
        RecipeError: Not found, damaged, or keys that do not match.
    """
    from espnet2_lamer.convert.huggingface import load_huggingface

    directory = local_directory(source)
    if not (directory / "config.json").is_file():
        raise RecipeError(
            f"{directory}: no config.json; expected a Hugging Face HuBERT directory"
        )
    return load_huggingface(directory).eval()


def source_sha256(source: str | Path) -> str:
    """SHA-256 of the weights file behind ``source``: its identity in metadata."""
    from espnet2_lamer.convert.huggingface import weights_file
    from espnet2_lamer.fileio.hashing import sha256_file

    return sha256_file(weights_file(local_directory(source)))
