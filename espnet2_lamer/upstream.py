"""``load_model``: a trained model as a frozen feature extractor with L + 1 states."""

import argparse
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from espnet2_lamer.convert import load_hubert
from espnet2_lamer.convert.architecture import build_hubert
from espnet2_lamer.convert.espnet_experiment import (
    CONFIG,
    STOCK,
    model_file,
    read_config,
)
from espnet2_lamer.convert.load import local_source
from espnet2_lamer.convert.state import read_state
from espnet2_lamer.errors import RecipeError
from espnet2_lamer.fileio.foreign import clear_errors, parse_yaml
from espnet2_lamer.fileio.trust import (
    S3PRL_PREFIX,
    protect,
    trusting_s3prl_files,
)
from espnet2_lamer.layers import LamerConfig, add_lamer


def hidden_states(
    wav2vec2: nn.Module, wavs: Tensor, lengths: Tensor | None, final_norm: bool
) -> tuple[list[Tensor], Tensor | None]:
    """Compute every state of a HuBERT, with or without experts, nothing masked.

    Args:
        wav2vec2: In eval mode.
        wavs: Waveforms ``[B, n]``, 16 kHz, not normalised.
        lengths: Valid samples ``[B]``; ``None`` means all. Group-norm models see the
            padding.
        final_norm: Whether the last state of a pre-norm model gets its LayerNorm.

    Returns:
        L + 1 tensors ``[B, T, D]`` and the valid frames ``[B]`` (``None`` without
        ``lengths``).
    """
    features, frames = wav2vec2.feature_extractor(wavs, lengths)
    x, attention_mask = wav2vec2.encoder._preprocess(features, frames)
    transformer = wav2vec2.encoder.transformer
    x = transformer._preprocess(x)
    states = [x]
    for layer in transformer.layers:
        x, _ = layer(x, attention_mask)
        states.append(x)
    # torchaudio stores the negation: this is the pre-norm stack.
    if final_norm and not transformer.layer_norm_first:
        states[-1] = transformer.layer_norm(x)
    return states, frames


def one_by_one(
    extract: Callable[[Tensor, None], tuple[list[Tensor], Any]],
    wavs: Tensor,
    samples: Sequence[int],
) -> tuple[list[Tensor], Tensor]:
    """Compute every state of each utterance alone, so that no frame sees padding.

    Args:
        extract: Gives the L + 1 states of waveforms without padding.
        wavs: Waveforms ``[B, n]``.
        samples: Valid samples of each.

    Returns:
        L + 1 tensors ``[B, T, D]``, zero where padded, and the valid frames ``[B]``.
    """
    rows = [
        extract(wav[None, :count], None)[0]
        for wav, count in zip(wavs, samples, strict=True)
    ]
    states = [
        pad_sequence([state[0] for state in same], batch_first=True)
        for same in zip(*rows, strict=True)
    ]
    frames = [row[0].shape[1] for row in rows]
    return states, torch.tensor(frames, device=wavs.device)


class Upstream(nn.Module):
    """HuBERT with or without LoRA experts, waveform in, every layer's state out.

    States: 0 is the transformer's input after the positional convolution, k the output
    of block k (Hugging Face ``hidden_states[k]``, S3PRL index k). With ``final_norm``
    the last state of a pre-norm model is taken after the final LayerNorm, as S3PRL
    does.

    Always in eval mode, whatever ``train()`` says, and without gradients.

    Args:
        wav2vec2: The backbone, with ``architecture`` as attribute.
        lamer: Options of its experts, or ``None``.
        final_norm: See above.
    """

    def __init__(
        self,
        wav2vec2: nn.Module,
        lamer: dict[str, Any] | None = None,
        final_norm: bool = True,
    ) -> None:
        super().__init__()
        self.wav2vec2 = wav2vec2.eval().requires_grad_(False)
        self.lamer = lamer
        self.final_norm = final_norm
        self.num_layers: int = wav2vec2.architecture["encoder_num_layers"]
        self.dim: int = wav2vec2.architecture["encoder_embed_dim"]
        self.eval()

    def train(self, mode: bool = True) -> "Upstream":
        """Stay in eval mode: a frozen upstream must not drop anything."""
        return super().train(False)

    @torch.no_grad()
    def extract_features(
        self, wavs: Tensor, lengths: Tensor | None = None
    ) -> tuple[list[Tensor], Tensor | None]:
        """Compute all states.

        Args:
            wavs: Waveforms ``[B, n]``, 16 kHz, not normalised.
            lengths: Valid samples ``[B]``; ``None`` means all.

        Returns:
            L + 1 tensors ``[B, T, D]`` and the valid frames ``[B]`` (``None`` without
            ``lengths``). Group-norm models run one utterance at a time, since their
            statistics would see the padding.
        """
        mixed = lengths is not None and bool((lengths != wavs.shape[1]).any())
        if self.wav2vec2.extractor_mode == "group_norm" and mixed:
            return one_by_one(self.extract_features, wavs, lengths.tolist())
        return hidden_states(self.wav2vec2, wavs, lengths, self.final_norm)

    def architecture(self) -> dict[str, Any]:
        """Describe the model in plain values; see :meth:`from_architecture`."""
        return {
            "hubert": dict(self.wav2vec2.architecture),
            "lamer": self.lamer,
            "final_norm": self.final_norm,
        }

    @classmethod
    def from_architecture(cls, architecture: dict[str, Any]) -> "Upstream":
        """Build the model with random weights, to be filled by ``load_state_dict``."""
        wav2vec2 = build_hubert(architecture["hubert"])
        if architecture["lamer"] is not None:
            add_lamer(wav2vec2, LamerConfig(**architecture["lamer"]))
        return cls(wav2vec2, architecture["lamer"], architecture["final_norm"])


def load_model(
    source: str | Path,
    base: str | Path | None = None,
    trust_s3prl_files: bool = False,
) -> nn.Module:
    """Load a trained model for feature extraction.

    Args:
        source: An experiment directory of ``hubert_train`` (``config.yaml`` and its
            best model), one of its ``.pth`` files, a packed zip, an adapter file
            (``.safetensors``), a plain HuBERT: anything that
            :func:`espnet2_lamer.convert.load_hubert` takes, or ``s3prl:NAME``
            (``s3prl:NAME:FILE`` where the upstream wants a path or URL).
        base: Where the frozen base is now; default is ``encoder_conf.base``, for an
            adapter file the name in it; a base that is named in a file is looked for
            on this machine only.
        trust_s3prl_files: Let S3PRL read FILE, which runs code that it may hold.

    Returns:
        An :class:`Upstream`, or for ``s3prl:`` an
        :class:`espnet2_lamer.s3prl_upstream.S3prlUpstream` with the same interface.

    Raises:
        RecipeError: Not found, damaged, or not the base it was trained on.
    """
    protect()
    if str(source).startswith(S3PRL_PREFIX):
        from espnet2_lamer.s3prl_upstream import S3prlUpstream

        with trusting_s3prl_files(trust_s3prl_files):
            return S3prlUpstream(str(source))
    path = Path(source)
    if path.is_file() and path.suffix == ".zip":
        return _load_zip(path, base)
    if path.is_file() and path.suffix == ".safetensors":
        from espnet2_lamer.export.adapter import load_adapter

        return load_adapter(path, base)
    if path.suffix == ".pth" and path.is_file() and (path.parent / CONFIG).is_file():
        return load_experiment(path.parent, base, path.name)
    if (path / "config.yaml").is_file() and read_config(path).get("encoder") != STOCK:
        return load_experiment(path, base)
    return Upstream(load_hubert(source))


def _load_zip(path: Path, base: str | Path | None) -> Upstream:
    import tempfile

    from espnet2_lamer.export.zoo import unpack_model

    with tempfile.TemporaryDirectory() as directory:
        try:
            return _load_unpacked(path, unpack_model(path, directory), base)
        except RecipeError as error:
            # Messages name files of a directory that is gone when they are read.
            text = re.sub(rf"{re.escape(directory)}/\w+", str(path), str(error))
            raise RecipeError(text) from error


def _load_unpacked(
    path: Path, members: Mapping[str, str], base: str | Path | None
) -> Upstream:
    if not {"ssl_train_config", "ssl_model_file"} <= members.keys():
        raise RecipeError(
            f"{path}: found a zip with {sorted(members)}, expected a packed "
            "pretraining model (ssl_train_config, ssl_model_file)"
        )
    config = parse_yaml(Path(members["ssl_train_config"]).read_bytes(), path)
    conf = config.get("encoder_conf")
    named = conf.get("base") if isinstance(conf, dict) else None
    if base is None and named is not None:
        # Whoever made the zip must not decide what else is read or fetched here.
        raise RecipeError(
            f"{path}: encoder_conf.base: found {named!r}, expected null: the zip lacks "
            "the base; give it as the argument base, if you trust its name"
        )
    state = read_state(Path(members["ssl_model_file"]))
    return _as_upstream(restore_pretraining_model(config, state, base, path))


def build_upstream(architecture: dict[str, Any]) -> nn.Module:
    """Build what ``architecture()`` of a loaded model described, weights to come."""
    if "s3prl" in architecture:
        return load_model(architecture["s3prl"])
    return Upstream.from_architecture(architecture)


def load_pretraining_model(
    experiment: Path, base: str | Path | None = None, epoch_file: str | None = None
):
    """Rebuild the whole ESPnet model (head included) of a pretraining experiment.

    Args:
        experiment: Directory with ``config.yaml``.
        base: Overrides ``encoder_conf.base``.
        epoch_file: Its weights; default is its best model.

    Returns:
        A ``LamerHubertPretrainModel`` in eval mode.

    Raises:
        RecipeError: The config is not of this kind, or weights do not fit.
    """
    from espnet2_lamer.hubert.config_check import checked_config

    source = experiment / "config.yaml"
    config = checked_config(read_config(experiment), source)
    if epoch_file is None:
        weights = model_file(experiment, config)
    else:
        weights = experiment / epoch_file
    return restore_pretraining_model(config, read_state(weights), base, source)


def _base_here(named: Any, source: Path) -> str:
    """Find the base that a config names; it does not decide that one is fetched."""
    try:
        return local_source(named, fetch=False)
    except RecipeError as error:
        raise RecipeError(
            f"{source}: encoder_conf.base: {error}. Name the base's new place, or its "
            "id to fetch it: the argument base of espnet2_lamer.load_model, --base of "
            "commands; a file does not decide what is fetched"
        ) from error


def restore_pretraining_model(
    config: Mapping[str, Any],
    state: Mapping[str, Tensor],
    base: str | Path | None,
    source: Path,
):
    """Build the ESPnet model that a config describes, and fill it.

    Nothing is allocated before the config's sizes are known to be those of the
    weights.

    Args:
        config: Content of ``config.yaml``; not changed.
        state: State dict of an epoch file.
        base: Overrides ``encoder_conf.base``.
        source: Where both are from, for messages.

    Returns:
        A ``LamerHubertPretrainModel`` in eval mode.

    Raises:
        RecipeError: As :func:`load_pretraining_model`.
    """
    from espnet2_lamer.hubert.config_check import check_sizes, checked_config
    from espnet2_lamer.tasks.hubert import LamerHubertTask

    config = checked_config(config, source)
    conf = config["encoder_conf"]
    with clear_errors(source):
        if base is not None:
            conf["base"] = str(base)
        elif conf.get("base") is not None:
            conf["base"] = _base_here(conf["base"], source)
        check_sizes(config, state, source)
        model = LamerHubertTask.build_model(argparse.Namespace(**config))
        model.load_state_dict(dict(state))
    return model.eval()


def load_experiment(
    experiment: Path, base: str | Path | None = None, epoch_file: str | None = None
) -> Upstream:
    """Load the encoder of a pretraining experiment as an :class:`Upstream`."""
    return _as_upstream(load_pretraining_model(experiment, base, epoch_file))


def _as_upstream(model: nn.Module) -> Upstream:
    from dataclasses import asdict

    encoder = model.encoder
    lamer = None
    if encoder.lamer is not None:
        lamer = asdict(encoder.lamer)
        lamer["targets"] = list(lamer["targets"])
    # transformers keeps it with the backbone.
    mask = encoder.hubert_pretrain_model.mask_generator.mask_embedding
    encoder.wav2vec2.mask_embedding = mask.detach()
    return Upstream(encoder.wav2vec2, lamer, encoder.final_norm)
