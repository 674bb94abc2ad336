"""What models make of one recording: text, language, and experts over time."""

import base64
import logging
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from espnet2_lamer.asr.upstream import Upstream
from espnet2_lamer.constants import RECEPTIVE_FIELD, SAMPLE_RATE, STRIDE
from espnet2_lamer.convert.espnet_experiment import CONFIG, read_config
from espnet2_lamer.convert.packed import unpack_model
from espnet2_lamer.data.audio_decoding import Unusable, duration, open_audio
from espnet2_lamer.data.usable import usable_speech
from espnet2_lamer.errors import RecipeError
from espnet2_lamer.evaluation.head_decoding import (
    GREEDY,
    TAG,
    greedy_prefix_search,
    language_tags,
    load_speech2text,
    most_probable_tag,
)
from espnet2_lamer.fileio.archive import check_zip
from espnet2_lamer.layers import record_routing
from espnet2_lamer.upstream import load_model

# Points of the waveform that a page draws.
_COLUMNS = 1200
# What files of a format begin with, and what libsndfile is told of it.
_FORMATS = ((b"RIFF", ".wav"), (b"fLaC", ".flac"), (b"OggS", ".ogg"), (b"ID3", ".mp3"))


class NotAudio(RecipeError):
    """Bytes of a format that this package does not read."""


@dataclass
class Head:
    """A finished recogniser: ESPnet's ``Speech2Text`` with its frontend taken out."""

    name: str
    speech2text: Any
    frontend: Any

    @property
    def tags(self) -> list[int]:
        """Ids of the languages that it can tell apart."""
        return language_tags(self.speech2text.asr_model.token_list)

    @property
    def writes(self) -> bool:
        """Whether it knows more tokens than languages and the special ones."""
        tokens = self.speech2text.asr_model.token_list
        return any(not TAG.fullmatch(t) and not t.startswith("<") for t in tokens)


class Listener:
    """Models that listen to the same recording.

    Args:
        sources: Packed zips of pretrained models and of heads, ``exp/asr_*`` and
            ``exp/lid_*`` directories, and whatever else ``load_model`` takes.
        device: Where they compute.
        max_seconds: Longer recordings are refused.

    Raises:
        RecipeError: A source is none of these.
    """

    def __init__(
        self, sources: Sequence[str], device: str = "cpu", max_seconds: float = 60.0
    ) -> None:
        self.device, self.max_seconds = device, max_seconds
        self.heads: list[Head] = []
        self.upstream: Upstream | None = None
        names = []
        for source in sources:
            path = _head_directory(Path(source))
            if path is None and _is_head(Path(source)):
                with tempfile.TemporaryDirectory() as scratch:
                    members = unpack_model(source, scratch)
                    self._add_head(source, Path(members["asr_train_config"]).parent)
            elif path is not None:
                self._add_head(source, path)
            else:
                model = load_model(source).to(device)
                if self.upstream is None and isinstance(model, Upstream):
                    self.upstream = model
            names.append(Path(source).name)
        for head in self.heads if self.upstream is None else ():
            parts = [*head.frontend.modules(), *head.speech2text.asr_model.modules()]
            found = [part for part in parts if isinstance(part, Upstream)]
            if found:
                self.upstream = found[0]
                break
        self.name = ", ".join(names)

    def _add_head(self, source: str, directory: Path) -> None:
        speech2text = load_speech2text(directory, GREEDY, self.device)
        model = speech2text.asr_model
        if getattr(model, "ctc", None) is None or model.frontend is None:
            raise RecipeError(
                f"{source}: found a recogniser without CTC or without a frontend, "
                "expected one of this recipe's heads; leave it out"
            )
        frontend, model.frontend = model.frontend, None
        self.heads.append(Head(Path(source).stem, speech2text, frontend))

    def describe(self) -> dict[str, Any]:
        """Say in plain values what is loaded, for the page's first lines."""
        upstream = self.upstream
        return {
            "name": self.name,
            "model": ""
            if upstream is None
            else repr(upstream).partition(": ")[2].splitlines()[0],
            "languages": [] if upstream is None else list(upstream.languages),
            "text": [head.name for head in self.heads if head.writes],
            "language": [head.name for head in self.heads if head.tags],
            "max_seconds": self.max_seconds,
        }

    def read(self, content: bytes) -> np.ndarray:
        """Decode an audio file as the recipe does: float32 ``[n]``, 16 kHz, mono.

        Raises:
            NotAudio: It begins like no format that libsndfile reads here.
            RecipeError: It cannot be used, is too long or too short.
        """
        suffix = next((s for start, s in _FORMATS if content.startswith(start)), None)
        if suffix is None and content[:1] == b"\xff" and content[1:2] >= b"\xe0":
            suffix = ".mp3"
        if suffix is None:
            raise NotAudio("found no WAV, FLAC, Ogg or MP3 file; expected one of these")
        with tempfile.TemporaryDirectory() as directory:
            path = Path(directory) / f"recording{suffix}"
            path.write_bytes(content)
            try:
                with open_audio(str(path)) as source:
                    seconds = duration(source)
                if seconds > self.max_seconds:
                    raise RecipeError(
                        f"found {seconds:.1f} s, expected at most {self.max_seconds:g} "
                        "s: give a part of it, or raise --max_seconds"
                    )
                # Anew: a stream without a stated length has been read to its end.
                with open_audio(str(path)) as source:
                    wave, _ = usable_speech(source)
            except Unusable as error:
                reason = str(error).replace(str(path), "the file")
                raise RecipeError(f"the recording cannot be used: {reason}") from error
        if len(wave) < RECEPTIVE_FIELD:
            raise RecipeError(
                f"the recording has {len(wave)} samples at 16 kHz, expected at least "
                f"{RECEPTIVE_FIELD} (25 ms)"
            )
        return wave

    @torch.no_grad()
    def listen(self, wave: np.ndarray) -> dict[str, Any]:
        """Return what the page shows of a waveform ``[n]``, 16 kHz.

        ``text`` and ``language`` have an entry for each head that gives one, ``layers``
        one for each router: block number from 1, its name, N experts, and ``gates``
        ``[T, N]`` as base64 of bytes, 255 for a gate of 1.
        """
        samples = torch.from_numpy(wave).to(self.device)
        result = {
            "seconds": len(wave) / SAMPLE_RATE,
            "frame_seconds": STRIDE / SAMPLE_RATE,
            "envelope": envelope(wave),
            "text": [],
            "language": [],
            "layers": [] if self.upstream is None else routing(self.upstream, samples),
        }
        for head in self.heads:
            found = _decode(head, samples)
            for key, value in found.items():
                result[key].append({"head": head.name, key: value})
        return result


def _head_directory(path: Path) -> Path | None:
    """Return the folder of a finished head, ``config.yaml`` and ``model.pth``."""
    for folder in (path / "final", path):
        there = all((folder / name).is_file() for name in (CONFIG, "model.pth"))
        if there and "num_classes" not in read_config(folder):
            return folder
    return None


def _is_head(path: Path) -> bool:
    if not (path.is_file() and path.suffix == ".zip"):
        return False
    return "asr_model_file" in check_zip(path)["files"]


def _decode(head: Head, wave: Tensor) -> dict[str, str]:
    model = head.speech2text.asr_model
    length = torch.tensor([len(wave)], device=wave.device)
    features, frames = head.frontend(wave[None], length)
    encoded, _ = model.encode(features, frames)
    log_probs = model.ctc.log_softmax(encoded)[0].float().cpu()
    found = {}
    if head.tags:
        tag = most_probable_tag(log_probs, head.tags, model.blank_id)
        found["language"] = model.token_list[tag].strip("[]")
    if head.writes:
        ids = greedy_prefix_search(log_probs.numpy(), model.blank_id, model.eos)
        tokens = head.speech2text.converter.ids2tokens(ids)
        found["text"] = head.speech2text.tokenizer.tokens2text(tokens)
    return found


def envelope(wave: np.ndarray, columns: int = _COLUMNS) -> list[list[float]]:
    """Return the least and largest sample of each of at most so many columns."""
    edges = np.linspace(0, len(wave), min(columns, len(wave)) + 1).astype(int)[:-1]
    pairs = np.stack([f.reduceat(wave, edges) for f in (np.minimum, np.maximum)], 1)
    return np.round(pairs.astype(float), 4).tolist()


def routing(upstream: Upstream, wave: Tensor) -> list[dict[str, Any]]:
    """Return every router's gates over a waveform ``[n]``; see ``Listener.listen``."""
    with record_routing(upstream) as record:
        upstream.extract_features(wave)
    layers = []
    for one in record:
        gates = one.gates[0].float().clamp(0, 1)
        values = (gates * 255).round().to(torch.uint8).cpu().numpy()
        layers.append(
            {
                "layer": one.layer + 1,
                "router": one.name,
                "frames": len(values),
                "experts": values.shape[1],
                "gates": base64.b64encode(values.tobytes()).decode(),
            }
        )
    if not layers:
        logging.info("no routers in this model: there is nothing to light up")
    return layers
