"""Teachers: from samples to the frame features that are clustered into units."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import numpy as np

from espnet2_lamer.data.frames import RECEPTIVE_FIELD, num_frames
from espnet2_lamer.errors import RecipeError
from espnet2_lamer.fileio.hashing import sha256_value


@contextmanager
def single_thread() -> Iterator[None]:
    """Run torch on one thread: sums then come in one order, whatever the machine."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


class Teacher:
    """Feature extractor at HuBERT's frame rate, in inference mode and float32.

    A teacher is pickled as its source and layer, so that a worker process loads it
    once instead of receiving the weights with every task.

    Attributes:
        dim: Feature dimension ``D``.
        identity: ``source`` as given, ``sha256`` of what determines the features,
            ``layer`` and ``normalisation``.
    """

    dim: int
    identity: dict[str, Any]

    def __reduce__(self):
        """Pickle as a call of :func:`load_teacher`."""
        identity = self.identity
        return load_teacher, (identity["source"], identity["layer"])

    def forward(self, samples: np.ndarray) -> np.ndarray:
        """Return features ``[num_frames(n), D]`` of samples ``[n]`` at 16 kHz.

        Raises:
            RecipeError: There are fewer samples than one frame needs.
        """
        import torch

        frames = num_frames(len(samples))
        if not frames:
            raise RecipeError(
                f"{len(samples)} samples are shorter than one frame of "
                f"{RECEPTIVE_FIELD}; drop the utterance"
            )
        with single_thread(), torch.inference_mode():
            waveform = torch.tensor(samples, dtype=torch.float32)
            features = self._features(waveform)
        if features.shape != (frames, self.dim):
            raise RecipeError(
                f"teacher {self.identity['source']}: {tuple(features.shape)} features "
                f"for {len(samples)} samples, expected {(frames, self.dim)}; only "
                "teachers with 20 ms frames of 25 ms can label for HuBERT"
            )
        return features.numpy()

    def _features(self, waveform):
        """Features ``[T, D]`` of a waveform tensor ``[n]``."""
        raise NotImplementedError


class MfccTeacher(Teacher):
    """13 MFCC with first and second differences at HuBERT's frames, 39 dimensions.

    The features of HuBERT's first iteration (arXiv:2106.07447, section IV-A),
    computed every 20 ms instead of 10 so that frame t covers the samples of HuBERT's
    frame t, and normalised to zero mean and unit variance per utterance.
    """

    _conf = {
        "sample_frequency": 16000.0,
        "frame_length": 25.0,
        "frame_shift": 20.0,
        "snip_edges": True,
        "num_ceps": 13,
        "use_energy": False,
        "dither": 0.0,
    }

    def __init__(self):
        self.dim = 39
        self.identity = {
            "source": "mfcc",
            "sha256": sha256_value({**self._conf, "differences": 2}),
            "layer": 0,
            "normalisation": "utterance mean and variance",
        }

    def _features(self, waveform):
        import torch
        from torchaudio.compliance.kaldi import mfcc
        from torchaudio.functional import compute_deltas

        static = mfcc(waveform[None], **self._conf).T  # [13, T]
        delta = compute_deltas(static)
        features = torch.cat([static, delta, compute_deltas(delta)]).T  # [T, 39]
        centred = features - features.mean(0)
        # Digital silence has no variance; the floor keeps it at zero.
        scale = centred.square().mean(0).sqrt().clamp(min=1e-5)
        return (centred / scale).contiguous()


class HubertTeacher(Teacher):
    """Output of transformer block ``layer`` (from 1) of a HuBERT; stops there.

    Utterances go through one at a time: group norm in the feature extractor would
    mix padding into the statistics of a padded batch.
    """

    def __init__(self, source: str, layer: int | None):
        from espnet2_lamer.convert.load import load_hubert, source_sha256

        self._model = load_hubert(source).float().eval()
        blocks = self._model.encoder.transformer.layers
        if layer is None or not 1 <= layer <= len(blocks):
            raise RecipeError(
                f"--layer {layer}: teacher {source} has layers 1 to {len(blocks)}"
            )
        normalize = self._model.normalize_waveform
        self.dim = self._model.encoder.feature_projection.projection.out_features
        self.identity = {
            "source": str(source),
            "sha256": source_sha256(source),
            "layer": layer,
            "normalisation": "waveform mean and variance" if normalize else "none",
        }
        del blocks[layer:]  # never run, and a Large model's are a gigabyte

    def _features(self, waveform):
        layer = self.identity["layer"]
        states, _ = self._model.extract_features(waveform[None], num_layers=layer)
        return states[-1][0]


def _load_mfcc(source: str, layer: int | None) -> Teacher:
    if layer not in (None, 0):
        raise RecipeError(f"--layer {layer}: teacher {source} has no layers, give 0")
    return MfccTeacher()


@lru_cache(maxsize=1)
def load_teacher(source: str, layer: int | None = None) -> Teacher:
    """Load the teacher that ``source`` names; the last one is kept in memory.

    Args:
        source: ``mfcc``, or what :func:`espnet2_lamer.convert.load_hubert` takes, such
            as a Hugging Face HuBERT directory or id.
        layer: Transformer block whose output is the feature, from 1. Not for
            ``mfcc``.

    Raises:
        RecipeError: The source or the layer does not exist.
    """
    source = str(source)
    loaders = {"mfcc": _load_mfcc}
    return loaders.get(source, HubertTeacher)(source, layer)
