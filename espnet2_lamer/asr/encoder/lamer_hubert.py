"""ESPnet encoder ``lamer_hubert``: a HuBERT with LoRA experts and a unit head."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from espnet2.asr.encoder.abs_encoder import AbsEncoder
from espnet2.asr.encoder.hubert_encoder import TorchAudioHuBERTPretrainEncoder
from torch import Tensor, nn
from torchaudio.models import HuBERTPretrainModel

from espnet2_lamer.asr.masked_prediction import MaskedPredictionHead, MaskEmbedding
from espnet2_lamer.convert import load_hubert
from espnet2_lamer.convert.architecture import LARGE, build_hubert
from espnet2_lamer.convert.load import source_sha256
from espnet2_lamer.errors import RecipeError
from espnet2_lamer.layers import LamerConfig, add_lamer

BASE_HASH = "base_sha256"
# A tensor of every HuBERT's backbone. Where a checkpoint leaves the base out, it holds
# an empty one under this name: loaders that know nothing of bases, ESPnet's with
# ``strict=False`` included, fail on its shape instead of keeping random weights.
GUARD = "hubert_pretrain_model.wav2vec2.encoder.transformer.layer_norm.weight"


@dataclass
class MaskedPrediction:
    """What one masked forward pass yields.

    ``real [B, T]`` marks frames that are not padding, ``hidden [B, T, D]`` is the
    transformer's output, ``logits [M, K]`` belong to the
    masked frames in row-major order, ``unmasked_logits [U, K]`` to the real frames
    that are not masked (``None`` unless asked for), ``squared_features`` is the mean
    square of the convolution stack's channels, summed over real frames, or ``None``
    when the stack is frozen.
    """

    real: Tensor
    hidden: Tensor
    logits: Tensor
    unmasked_logits: Tensor | None
    squared_features: Tensor | None


class LamerHubertEncoder(TorchAudioHuBERTPretrainEncoder):
    """HuBERT backbone, LoRA experts, mask embedding and masked-prediction head.

    With ``lamer`` the backbone is frozen and only experts, routers and head train;
    ``lamer.allocation: 0`` leaves the head alone to train (the control). Without
    ``lamer`` everything trains (full fine-tuning, or training from nothing).

    A frozen base is not written into checkpoints: they hold what trains, our
    persistent buffers and the base's SHA-256. Loading such a checkpoint into an
    encoder built without that base raises an error, whatever the loader, as does one
    with tensors that are missing or not of this encoder.

    Args:
        num_classes: K, the number of units.
        input_size: Unused; the input is a waveform.
        base: Any checkpoint that :func:`espnet2_lamer.convert.load_hubert` reads.
            ``None`` builds random weights from the architecture arguments below.
        lamer: Fields of :class:`LamerConfig`, or ``None``.
        mask_prob: Recorded for the collate function, which draws the masks.
        mask_length: As ``mask_prob``; frames per span.
        final_dim: Size of the unit embeddings.
        final_norm: Whether the last layer's features get the final LayerNorm when
            features are extracted.
        gradient_checkpointing: Recompute layers in the backward pass.
        normalize_waveform: Used without ``base``.
        extractor_mode: As torchaudio; used without ``base``, like all below.
        extractor_conv_layer_config: ``[[channels, kernel, stride], ...]``.
        extractor_conv_bias: Bias in the convolutions.
        encoder_embed_dim: Width D.
        encoder_projection_dropout: Dropout after the input projection.
        encoder_pos_conv_kernel: Kernel of the positional convolution.
        encoder_pos_conv_groups: Its groups.
        encoder_num_layers: L.
        encoder_num_heads: Attention heads.
        encoder_attention_dropout: Dropout on attention weights.
        encoder_ff_interm_features: Width of the FFN.
        encoder_ff_interm_dropout: Dropout inside the FFN.
        encoder_dropout: Dropout after attention and FFN.
        encoder_layer_norm_first: Pre-norm (Large) or post-norm (Base).
        encoder_layer_drop: Probability of skipping a layer.
    """

    def __init__(
        self,
        num_classes: int,
        input_size: int | None = None,
        base: str | None = None,
        lamer: dict[str, Any] | None = None,
        mask_prob: float = 0.8,
        mask_length: int = 10,
        final_dim: int = 768,
        final_norm: bool = True,
        gradient_checkpointing: bool = False,
        normalize_waveform: bool = True,
        extractor_mode: str = LARGE["extractor_mode"],
        extractor_conv_layer_config: Sequence[Sequence[int]] | None = None,
        extractor_conv_bias: bool = True,
        encoder_embed_dim: int = 1024,
        encoder_projection_dropout: float = 0.0,
        encoder_pos_conv_kernel: int = 128,
        encoder_pos_conv_groups: int = 16,
        encoder_num_layers: int = 24,
        encoder_num_heads: int = 16,
        encoder_attention_dropout: float = 0.0,
        encoder_ff_interm_features: int = 4096,
        encoder_ff_interm_dropout: float = 0.0,
        encoder_dropout: float = 0.0,
        encoder_layer_norm_first: bool = True,
        encoder_layer_drop: float = 0.0,
    ) -> None:
        AbsEncoder.__init__(self)
        if num_classes is None:
            raise RecipeError("num_classes: found null, expected the number of units")
        if base is None:
            given = locals()
            shapes = extractor_conv_layer_config or LARGE["extractor_conv_layer_config"]
            wav2vec2 = build_hubert(
                {key: given[key] for key in ("normalize_waveform", *LARGE)}
                | {"extractor_conv_layer_config": [list(shape) for shape in shapes]}
            )
            base_sha256 = None
        else:
            try:
                wav2vec2 = load_hubert(base)
            except RecipeError as error:
                raise RecipeError(
                    f"encoder_conf.base: {error}. Where the base of a trained model "
                    "moved, name its new place: encoder_conf.base in the config.yaml, "
                    "or the argument base of espnet2_lamer.load_model"
                ) from error
            base_sha256 = source_sha256(base)
        self.architecture = wav2vec2.architecture
        self.lamer = None if lamer is None else LamerConfig(**lamer)
        self.mask_prob = mask_prob
        self.mask_length = mask_length
        self.final_norm = final_norm
        self.gradient_checkpointing = gradient_checkpointing
        self._output_size = self.architecture["encoder_embed_dim"]
        # Where the base comes from a file and stays frozen, checkpoints leave it out.
        self.base_is_external = base_sha256 is not None and self.lamer is not None
        self.write_base = False
        self.register_buffer(
            BASE_HASH,
            torch.tensor(list(bytes.fromhex(base_sha256)), dtype=torch.uint8)
            if self.base_is_external
            else None,
        )
        if self.lamer is not None:
            add_lamer(wav2vec2, self.lamer)
        self.hubert_pretrain_model = HuBERTPretrainModel(
            wav2vec2,
            MaskEmbedding(
                self._output_size,
                wav2vec2.mask_embedding,
                frozen=self.lamer is not None,
            ),
            MaskedPredictionHead(self._output_size, num_classes, final_dim),
            None,
        )
        self.num_classes = num_classes
        self.register_state_dict_post_hook(_drop_base)
        self.register_load_state_dict_pre_hook(_fill_base)

    @property
    def wav2vec2(self) -> nn.Module:
        """The backbone with its experts."""
        return self.hubert_pretrain_model.wav2vec2

    def output_size(self) -> int:
        """Width D of a hidden state."""
        return self._output_size

    def reload_pretrained_parameters(self) -> None:
        """Do nothing: the base is loaded when the encoder is built."""

    def base_keys(self) -> set[str]:
        """State keys (relative to the encoder) that the external base provides."""
        if not self.base_is_external:
            return set()
        trained = {n for n, p in self.named_parameters() if p.requires_grad}
        prefix = "hubert_pretrain_model."
        ours = (".selection_bias", ".load")
        names = [n for n, _ in self.named_parameters()]
        names += [n for n, _ in self.named_buffers() if not n.endswith(ours)]
        return {n for n in names if n.startswith(prefix) and n not in trained}

    def forward(
        self,
        waveforms: Tensor,
        lengths: Tensor,
        mask: Tensor,
        with_unmasked: bool = False,
    ) -> MaskedPrediction:
        """Encode, replacing masked frames, and score the units of masked frames.

        Args:
            waveforms: ``[B, n]``, 16 kHz.
            lengths: Valid samples ``[B]``.
            mask: Masked frames ``[B, T]`` bool.
            with_unmasked: Whether to score the frames that are not masked, too.

        Returns:
            A :class:`MaskedPrediction`.
        """
        model = self.hubert_pretrain_model
        wav2vec2 = model.wav2vec2
        features, frames = wav2vec2.feature_extractor(waveforms, lengths)
        x, attention_mask = wav2vec2.encoder._preprocess(features, frames)
        mask = mask[:, : x.shape[1]]
        x = self._transform(model.mask_generator(x, mask), attention_mask)
        head = model.logit_generator
        real = torch.arange(x.shape[1], device=x.device) < frames[:, None]
        squares = None
        if features.requires_grad:
            squares = features.float().pow(2).mean(-1).masked_fill(~real, 0.0).sum()
        unmasked = head(x[real & ~mask]) if with_unmasked else None
        return MaskedPrediction(real, x, head(x[mask]), unmasked, squares)

    def _transform(self, x: Tensor, attention_mask: Tensor | None) -> Tensor:
        transformer = self.wav2vec2.encoder.transformer
        if not (self.gradient_checkpointing and self.training):
            return transformer(x, attention_mask=attention_mask)
        x = transformer._preprocess(x)
        for layer in transformer.layers:
            if torch.rand(()) <= transformer.layer_drop:
                continue
            x, _ = torch.utils.checkpoint.checkpoint(
                layer, x, attention_mask, use_reentrant=False
            )
        if not transformer.layer_norm_first:
            # torchaudio stores the negation: this is the pre-norm stack.
            x = transformer.layer_norm(x)
        return x


def _drop_base(
    module: LamerHubertEncoder, state: dict, prefix: str, metadata: Any
) -> None:
    if module.base_is_external and not module.write_base:
        for key in module.base_keys():
            state.pop(prefix + key, None)
        state[prefix + GUARD] = torch.empty(0)


def _fill_base(
    module: LamerHubertEncoder,
    state: dict,
    prefix: str,
    metadata: Any,
    strict: bool,
    missing: list,
    unexpected: list,
    errors: list,
) -> None:
    """Check the base's identity and supply its keys, or fail loudly.

    ESPnet loads with ``strict=False``; without this, a checkpoint that lacks the
    backbone would silently evaluate random weights.
    """
    own = dict(module.named_parameters()) | dict(module.named_buffers())
    found = state.get(prefix + BASE_HASH)
    if module.base_is_external and found is not None:
        expected = getattr(module, BASE_HASH)
        if bytes(found.tolist()) != bytes(expected.tolist()):
            raise RecipeError(
                "encoder_conf.base: the checkpoint was trained on a base with SHA-256 "
                f"{bytes(found.tolist()).hex()}, found one with "
                f"{bytes(expected.tolist()).hex()}; give the base it was trained on"
            )
    guard = state.get(prefix + GUARD)
    if guard is not None and not guard.numel():
        del state[prefix + GUARD]
    if module.base_is_external:
        for key in module.base_keys():
            state.setdefault(prefix + key, own[key].detach())
    elif found is not None:
        # A full export: it carries the backbone, the hash is information only.
        state.pop(prefix + BASE_HASH)
    known = {prefix + key for key in own if own[key] is not None}
    missing_keys = sorted(known - state.keys())
    if missing_keys:
        raise RecipeError(
            f"the checkpoint lacks {len(missing_keys)} tensors of the encoder, e.g. "
            f"{missing_keys[0]}; it needs the base it was trained on: set "
            "encoder_conf.base, or use an exported (full) model"
        )
    others = sorted(key for key in state if key.startswith(prefix) and key not in known)
    if others:
        raise RecipeError(
            f"the checkpoint has {len(others)} tensors that the encoder lacks, e.g. "
            f"{others[0]}; encoder_conf is not the one it was trained with"
        )
