"""Teachers: from samples to the frame features that are clustered into units."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from espnet2_lamer.data.frames import RECEPTIVE_FIELD, STRIDE, num_frames
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

    Args:
        source: Where the model comes from, as given.
        layer: Block whose output is the feature.
        model: From ``load_hubert`` or ``load_model``; normalises waveforms itself.
        sha256: Hash of the weights; None to hash those that are used.
    """

    def __init__(self, source: str, layer: int | None, model, sha256: str | None):
        blocks = model.encoder.transformer.layers
        if layer is None or not 1 <= layer <= len(blocks):
            raise RecipeError(
                f"--layer {layer}: teacher {source} has layers 1 to {len(blocks)}"
            )
        del blocks[layer:]  # never run, and a Large model's are a gigabyte
        self._model = model.float().eval()
        self.dim = model.encoder.feature_projection.projection.out_features
        normalize = model.normalize_waveform
        self.identity = {
            "source": source,
            "sha256": sha256 or _state_hash(model),
            "layer": layer,
            "normalisation": "waveform mean and variance" if normalize else "none",
        }

    def _features(self, waveform):
        layer = self.identity["layer"]
        states, _ = self._model.extract_features(waveform[None], num_layers=layer)
        return states[-1][0]


class S3prlTeacher(Teacher):
    """Hidden state ``layer`` (0 is the transformer's input) of an S3PRL upstream.

    S3PRL computes all layers, and repeats the last frame to have one for every 320
    samples begun; only the frames that HuBERT has are kept.
    """

    def __init__(self, source: str, layer: int | None):
        from espnet2_lamer.compat import patch_torchaudio_for_s3prl, quiet_nltk

        quiet_nltk()
        patch_torchaudio_for_s3prl()
        from s3prl.nn import S3PRLUpstream

        # s3prl:NAME, or s3prl:NAME:PATH_OR_URL for the upstreams named *_custom.
        _, name, *checkpoint = source.split(":", 2)
        if name not in S3PRLUpstream.available_names():
            raise RecipeError(f"{source}: S3PRL has no upstream {name!r}")
        try:
            self._model = S3PRLUpstream(name, *checkpoint).float().eval()
        except (OSError, TypeError, ValueError) as error:
            raise RecipeError(f"{source}: S3PRL cannot load it ({error})") from error
        last = self._model.num_layers - 1
        if layer is None or not 0 <= layer <= last:
            raise RecipeError(
                f"--layer {layer}: teacher {source} has layers 0 to {last}"
            )
        if self._model.downsample_rates[layer] != STRIDE:
            raise RecipeError(
                f"{source}: a frame every {self._model.downsample_rates[layer]} "
                f"samples, expected {STRIDE}; use a teacher with HuBERT's frames"
            )
        self.dim = self._model.hidden_sizes[layer]
        self.identity = {
            "source": source,
            "sha256": _state_hash(self._model),
            "layer": layer,
            "normalisation": "S3PRL's",
        }

    def _features(self, waveform):
        import torch

        lengths = torch.tensor([len(waveform)])
        states, _ = self._model(waveform[None], lengths)
        return states[self.identity["layer"]][0, : num_frames(len(waveform))]


def _state_hash(model) -> str:
    """SHA-256 over names, shapes and values of a module's state."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


@lru_cache(maxsize=1)
def load_teacher(source: str | Path, layer: int | None = None) -> Teacher:
    """Load the teacher that ``source`` names; the last one is kept in memory.

    Args:
        source: ``mfcc``; ``s3prl:NAME`` (``s3prl:NAME:PATH`` where the upstream wants a
            checkpoint); an experiment directory or packed zip of this package; or what
            :func:`espnet2_lamer.convert.load_hubert` takes, such as a Hugging Face
            HuBERT directory or id.
        layer: Transformer block whose output is the feature, from 1. None or 0 for
            ``mfcc``.

    Raises:
        RecipeError: The source or the layer does not exist.
    """
    source = str(source)
    if source == "mfcc":
        if layer not in (None, 0):
            raise RecipeError(f"--layer {layer}: teacher mfcc has no layers, give 0")
        return MfccTeacher()
    if source.startswith("s3prl:"):
        return S3prlTeacher(source, layer)
    if (Path(source) / "config.yaml").is_file() or source.endswith(".zip"):
        from espnet2_lamer.upstream import load_model

        return HubertTeacher(source, layer, load_model(source).wav2vec2, None)
    from espnet2_lamer.convert.load import load_hubert, source_sha256

    return HubertTeacher(source, layer, load_hubert(source), source_sha256(source))
