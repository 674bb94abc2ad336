"""Teachers: from samples to the frame features that are clustered into units."""

import logging
import os
import re
from collections.abc import Sequence
from functools import lru_cache
from multiprocessing import current_process
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torchaudio.compliance.kaldi import mfcc
from torchaudio.functional import compute_deltas

from espnet2_lamer.constants import RECEPTIVE_FIELD, SAMPLE_RATE, STRIDE, num_frames
from espnet2_lamer.convert.load import load_s3prl
from espnet2_lamer.convert.state import check_finite
from espnet2_lamer.errors import RecipeError
from espnet2_lamer.fileio.hashing import sha256_tensors, sha256_value
from espnet2_lamer.fileio.trust import (
    S3PRL_PREFIX,
    s3prl_files_trusted,
    trusting_s3prl_files,
)
from espnet2_lamer.precision import exact_float32, single_thread

DEVICES = ("cpu", "cuda")
# A GPU is busy with this much speech, and its attention matrices fit a small one.
GPU_BATCH_SECONDS = 120


class Teacher:
    """Feature extractor at HuBERT's frame rate, in inference mode and float32.

    A teacher is pickled as its source and layer, so that a worker process loads it
    once instead of receiving the weights with every task.
    """

    dim: int  # of the features, D
    device: str = "cpu"  # or cuda
    gpus: int = 1  # of this machine, over which processes spread
    #: Whether features are the same when others of a batch are longer.
    pads: bool = False
    #: What the user said to this process holds in those that it starts.
    trust_s3prl_files: bool = False

    def identify(
        self, source: str, sha256: str, layer: int, normalisation: str
    ) -> None:
        """Say what this is: ``sha256`` is of all that determines the features."""
        self.identity: dict[str, Any] = {
            "source": source,
            "sha256": sha256,
            "layer": layer,
            "normalisation": normalisation,
        }

    def __reduce__(self):
        """Pickle as a call of :func:`load_teacher`."""
        source = absolute_source(self.identity["source"])
        layer, trust = self.identity["layer"], self.trust_s3prl_files
        return load_teacher, (source, layer, self.device, trust, self.gpus)

    @property
    def batch_samples(self) -> int:
        """Samples that may go through together; 0 means one utterance at a time.

        On a GPU utterances of similar or equal length share a batch. On a CPU that is
        no faster, and alone an utterance has the same features to the bit whatever else
        is there.
        """
        return 0 if self.device == "cpu" else GPU_BATCH_SECONDS * SAMPLE_RATE

    def forward(self, samples: np.ndarray) -> np.ndarray:
        """Return features ``[num_frames(n), D]`` of samples ``[n]`` at 16 kHz."""
        return self.forward_batch(samples[None])[0].cpu().numpy()

    def forward_batch(self, samples: np.ndarray, lengths: Sequence[int] | None = None):
        """Return a tensor ``[B, num_frames(n), D]`` for samples ``[B, n]``.

        Where the teacher ``pads``, ``lengths [B]`` may be shorter than n: samples after
        that count for nothing, and frames after ``num_frames(length)`` mean nothing.

        Raises:
            RecipeError: There are fewer samples than one frame needs.
            ValueError: Lengths differ, and the teacher would hear the padding.
        """
        lengths = [samples.shape[1]] * len(samples) if lengths is None else lengths
        shortest, longest = min(lengths), samples.shape[1]
        if not num_frames(shortest):
            raise RecipeError(
                f"{shortest} samples are shorter than one frame of "
                f"{RECEPTIVE_FIELD}; drop the utterance"
            )
        padded = shortest < longest
        if padded and not self.pads:
            raise ValueError(f"teacher {self.identity['source']} hears padding")
        frames = num_frames(longest)
        with single_thread(), exact_float32(), torch.inference_mode():
            waveforms = torch.tensor(samples, dtype=torch.float32, device=self.device)
            if padded:
                features = self._features_of(waveforms, lengths)
            else:
                features = self._features(waveforms)
            features = fit_frames(features, frames)
            if self.device != "cpu":
                torch.cuda.synchronize()  # so that its time is not counted as another's
        if features.shape != (len(samples), frames, self.dim):
            raise RecipeError(
                f"teacher {self.identity['source']}: {tuple(features.shape[1:])} "
                f"features for {longest} samples, expected "
                f"{(frames, self.dim)}; only teachers with 20 ms frames of 25 ms can "
                "label for HuBERT"
            )
        return features

    def _features(self, waveforms):
        """Features ``[B, T, D]`` of waveforms ``[B, n]``, T within one of HuBERT's."""
        raise NotImplementedError

    def _features_of(self, waveforms, lengths: Sequence[int]):
        """The same of padded ones; of a teacher that ``pads``."""
        raise NotImplementedError


def fit_frames(features, frames: int):
    """Give ``[B, T, D]`` the student's number of frames, if it is off by one.

    Some networks have one frame more or one less for the same samples: the last one
    goes, or is repeated. Anything further off is returned as it is.
    """
    found = features.shape[1]
    if found == frames + 1:
        return features[:, :frames]
    if found == frames - 1 and found:
        return torch.cat([features, features[:, -1:]], dim=1)
    return features


class MfccTeacher(Teacher):
    """13 MFCC with first and second differences at HuBERT's frames, 39 dimensions.

    The features of HuBERT's first iteration (arXiv:2106.07447, section IV-A),
    computed every 20 ms instead of 10 so that frame t covers the samples of HuBERT's
    frame t, and normalised to zero mean and unit variance per utterance.
    """

    _conf = {
        "sample_frequency": float(SAMPLE_RATE),
        "frame_length": 25.0,
        "frame_shift": 20.0,
        "snip_edges": True,
        "num_ceps": 13,
        "use_energy": False,
        "dither": 0.0,
    }

    def __init__(self):
        self.dim = 39
        sha256 = sha256_value({**self._conf, "differences": 2})
        self.identify("mfcc", sha256, 0, "utterance mean and variance")

    def _features(self, waveforms):
        return torch.stack([self._of_one(waveform) for waveform in waveforms])

    def _of_one(self, waveform):
        static = mfcc(waveform[None], **self._conf).T  # [13, T]
        delta = compute_deltas(static)
        features = torch.cat([static, delta, compute_deltas(delta)]).T  # [T, 39]
        centred = features - features.mean(0)
        # Digital silence has no variance; the floor keeps it at zero.
        scale = centred.square().mean(0).sqrt().clamp(min=1e-5)
        return (centred / scale).contiguous()


class HubertTeacher(Teacher):
    """Output of transformer block ``layer`` (from 1) of a HuBERT; stops there.

    Group norm in the feature extractor would mix padding into the statistics of a
    padded batch: only a model whose convolutions each have a LayerNorm ``pads``.
    Without ``sha256`` the weights that are used are hashed.
    """

    def __init__(
        self, source: str, layer: int | None, device: str, model, sha256: str | None
    ):
        blocks = model.encoder.transformer.layers
        if layer is None or not 1 <= layer <= len(blocks):
            raise RecipeError(
                f"--layer {layer}: teacher {source} has layers 1 to {len(blocks)}"
            )
        del blocks[layer:]  # never run, and a Large model's are a gigabyte
        self.device = device
        self._model = model.float().eval().to(device)
        self.pads = not model.hears_padding
        self.dim = model.encoder.feature_projection.projection.out_features
        sha256 = sha256 or sha256_tensors(model.state_dict())
        normal = "waveform mean and variance" if model.normalize_waveform else "none"
        self.identify(source, sha256, layer, normal)

    def _features(self, waveforms):
        layer = self.identity["layer"]
        states, _ = self._model.extract_features(waveforms, num_layers=layer)
        return states[-1]

    def _features_of(self, waveforms, lengths):
        layer = self.identity["layer"]
        lengths = torch.tensor(lengths, device=self.device)
        states, _ = self._model.extract_features(waveforms, lengths, num_layers=layer)
        return states[-1]


class S3prlTeacher(Teacher):
    """Hidden state ``layer`` (0 is the transformer's input) of an S3PRL upstream.

    S3PRL's own wrapper repeats the last frame to have one for every 320 samples begun;
    here the upstream itself is called, for the frames it really has.
    """

    def __init__(self, source: str, layer: int | None, device: str):
        model = load_s3prl(source).float().eval()
        check_finite(dict(model.named_parameters()), source)
        last = model.num_layers - 1
        if layer is None or not 0 <= layer <= last:
            raise RecipeError(
                f"--layer {layer}: teacher {source} has layers 0 to {last}"
            )
        if model.downsample_rates[layer] != STRIDE:
            raise RecipeError(
                f"{source}: a frame every {model.downsample_rates[layer]} "
                f"samples, expected {STRIDE}; use a teacher with HuBERT's frames"
            )
        self.dim = model.hidden_sizes[layer]
        sha256 = sha256_tensors(model.state_dict())
        self.identify(source, sha256, layer, "S3PRL's")
        self.device = device
        self.trust_s3prl_files = s3prl_files_trusted()
        self._upstream = model.upstream
        blocks = stop_at(self._upstream, layer, model.num_layers)
        logging.info("%s: %d of %d blocks run", source, blocks, last)
        self._upstream.to(device)

    def _features(self, waveforms):
        states = self._upstream(list(waveforms))["hidden_states"]
        return states[self.identity["layer"]]


def stop_at(upstream: nn.Module, layer: int, states: int) -> int:
    """Drop the blocks above ``layer`` where this leaves its state as it is, to the bit.

    S3PRL computes every layer. Upstreams, here one on the CPU with so many hidden
    ``states``, differ in how they collect them and in what follows the last block, so
    the shorter network is tried on noise, with ``layer`` blocks and with one more, and
    kept only when the state is the same. Returns how many blocks run from now on.
    """
    stacks = [
        (module, name, child)
        for module in upstream.modules()
        for name, child in module.named_children()
        if isinstance(child, nn.ModuleList) and len(child) == states - 1
    ]
    if len(stacks) != 1:
        return states - 1
    parent, name, blocks = stacks[0]
    noise = torch.randn(SAMPLE_RATE, generator=torch.Generator().manual_seed(0))

    def state() -> torch.Tensor:
        with exact_float32(), torch.inference_mode():
            return upstream([noise])["hidden_states"][layer]

    expected = state()
    for keep in range(layer, min(layer + 2, states - 1)):
        setattr(parent, name, nn.ModuleList(list(blocks)[:keep]))
        try:
            if torch.equal(state(), expected):
                return keep
        except Exception:  # each upstream misses a block in its own way
            pass
    setattr(parent, name, blocks)
    return states - 1


def absolute_source(source: str) -> str:
    """The same teacher by a name that holds in another working directory."""
    kind, name, path = "", "", source
    if source.startswith(S3PRL_PREFIX):
        kind, name, path = [*source.split(":", 2), ""][:3]
    if path and Path(path).exists():
        path = os.path.abspath(path)
    return ":".join(part for part in (kind, name, path) if part)


def check_device(device: str, gpus: int = 1) -> None:
    """Raise RecipeError unless torch can compute there, on so many GPUs."""
    if device not in DEVICES:
        raise RecipeError(f"--device {device}: expected one of {', '.join(DEVICES)}")
    if device == "cuda" and not torch.cuda.is_available():
        raise RecipeError(
            "--device cuda: torch finds no GPU; use --device cpu, or install a torch "
            "that fits the driver"
        )
    if device == "cuda" and not 1 <= gpus <= torch.cuda.device_count():
        raise RecipeError(
            f"--gpus {gpus}: torch finds {torch.cuda.device_count()} GPUs; name as "
            "many or fewer"
        )


def gpu_of_process(name: str, gpus: int) -> int:
    """Number of the GPU, below ``gpus``, that a process of this name takes.

    Processes of joblib are numbered as they start: as many as there are GPUs, or a
    multiple, have as many on each. Any other process takes the first.
    """
    number = re.search(r"-(\d+)$", name) if name.startswith("LokyProcess") else None
    return (int(number[1]) - 1) % gpus if number else 0


@lru_cache(maxsize=1)
def load_teacher(
    source: str | Path,
    layer: int | None = None,
    device: str = "cpu",
    trust_s3prl_files: bool = False,
    gpus: int = 1,
) -> Teacher:
    """Load the teacher that ``source`` names; the last one is kept in memory.

    Args:
        source: ``mfcc``; ``s3prl:NAME`` (``s3prl:NAME:PATH`` where the upstream wants a
            checkpoint); an experiment directory or packed zip of this package; or what
            :func:`espnet2_lamer.convert.load_hubert` takes.
        layer: Transformer block whose output is the feature, from 1; none of ``mfcc``.
        device: ``cpu``, or ``cuda`` for the forward pass of a network.
        trust_s3prl_files: Let S3PRL read PATH, which runs code that it may hold.
        gpus: With ``cuda``, GPUs of this machine over which processes spread.

    Raises:
        RecipeError: The source, the layer or the device does not exist.
    """
    source = str(source)
    check_device(device, gpus)
    if device == "cuda" and gpus > 1:
        torch.cuda.set_device(gpu_of_process(current_process().name, gpus))
    teacher = _load(source, layer, device, trust_s3prl_files)
    teacher.gpus = gpus
    return teacher


def _load(
    source: str, layer: int | None, device: str, trust_s3prl_files: bool
) -> Teacher:
    if source == "mfcc":
        if layer not in (None, 0):
            raise RecipeError(f"--layer {layer}: teacher mfcc has no layers, give 0")
        return MfccTeacher()
    if source.startswith(S3PRL_PREFIX):
        with trusting_s3prl_files(trust_s3prl_files):
            return S3prlTeacher(source, layer, device)
    if (Path(source) / "config.yaml").is_file() or source.endswith(".zip"):
        from espnet2_lamer.upstream import load_model

        model, sha256 = load_model(source).wav2vec2, None
    else:
        from espnet2_lamer.convert.load import load_hubert, source_sha256

        model, sha256 = load_hubert(source), source_sha256(source)
    return HubertTeacher(source, layer, device, model, sha256)
