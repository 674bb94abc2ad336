"""A teacher's outputs, and their store: the teacher is the same in every epoch."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from espnet2_lamer.fileio.atomic import atomic_path


@dataclass
class TeacherOutputs:
    """Outputs of blocks for a batch.

    Args:
        encoder: ``[B, T, D]`` of every encoder block; none when they are not needed.
        decoder: ``[B, U, D]`` of every decoder block, or of the last one alone. The
            logits follow from the last one.
        frames: Real frames ``[B]``.
        tokens: Real positions ``[B]``.
    """

    encoder: list[Tensor]
    decoder: list[Tensor]
    frames: Tensor
    tokens: Tensor

    def to(self, like: Tensor) -> "TeacherOutputs":
        """Return the outputs on the device of ``like``, in float32."""
        return TeacherOutputs(
            [state.to(like.device, torch.float32) for state in self.encoder],
            [state.to(like.device, torch.float32) for state in self.decoder],
            self.frames.to(like.device),
            self.tokens.to(like.device),
        )


class TeacherCache:
    """One safetensors file an utterance, in bfloat16.

    A second of speech takes 0.3 MB for Whisper-base and 2.5 MB for medium: meant for
    small sets. An entry answers for one teacher, one audio length and one text; any
    other is made anew.

    Args:
        folder: Where to; it may be shared by runs with the same experts.
        teacher: Identity of the experts and of Whisper.
    """

    def __init__(self, folder: str | Path, teacher: str) -> None:
        self.folder = Path(folder)
        self.teacher = teacher

    def key(self, utterance: str, samples: int, tokens: list[int]) -> str:
        """Return what an entry answers for."""
        what = (self.teacher, utterance, samples, tokens)
        return hashlib.sha256(repr(what).encode()).hexdigest()

    def read(self, keys: list[str], encoder: bool) -> TeacherOutputs | None:
        """Return the outputs of a batch, or ``None`` when one is missing.

        Args:
            keys: Of the utterances.
            encoder: Whether the encoder's outputs, and all of the decoder's, are
                needed.
        """
        entries = []
        for key in keys:
            try:
                with safe_open(self._path(key), "pt") as file:
                    names = sorted(file.keys())
                    if encoder and "encoder" not in names:
                        return None
                    entries.append({name: file.get_tensor(name) for name in names})
            except (OSError, SafetensorError):
                return None
        sides = {}
        for side in ("encoder", "decoder"):
            # [layers, T, D] each; time first, to be padded.
            rows = [e[side].transpose(0, 1) for e in entries if side in e]
            whole = len(rows) == len(entries)
            padded = pad_sequence(rows, batch_first=True) if whole else None
            sides[side] = [] if padded is None else list(padded.unbind(2))
        decoder = sides["decoder"]
        return TeacherOutputs(
            sides["encoder"] if encoder else [],
            decoder if encoder else decoder[-1:],
            torch.tensor([e["frames"].item() for e in entries]),
            torch.tensor([e["decoder"].shape[1] for e in entries]),
        )

    def write(self, keys: list[str], outputs: TeacherOutputs) -> None:
        """Store the outputs of a batch, one file an utterance, each atomically."""
        for row, key in enumerate(keys):
            frames, tokens = int(outputs.frames[row]), int(outputs.tokens[row])
            entry = {
                "decoder": torch.stack([s[row, :tokens] for s in outputs.decoder]),
                "frames": torch.tensor(frames),
            }
            if outputs.encoder:
                entry["encoder"] = torch.stack(
                    [s[row, :frames] for s in outputs.encoder]
                )
            for name, value in entry.items():
                if value.is_floating_point():
                    value = value.to(torch.bfloat16)
                entry[name] = value.cpu().contiguous()
            with atomic_path(self._path(key)) as temporary:
                save_file(entry, temporary)

    def _path(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key}.safetensors"
