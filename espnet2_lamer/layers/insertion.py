"""Insert LoRA experts into a HuBERT and freeze everything else."""

from torch import nn

from espnet2_lamer.layers.allocation import parse_allocation
from espnet2_lamer.layers.config import LamerConfig
from espnet2_lamer.layers.feed_forward import LamerFeedForward


def add_lamer(wav2vec2: nn.Module, config: LamerConfig) -> nn.Module:
    """Replace the FFN of every layer with experts, in place, and freeze the backbone.

    Args:
        wav2vec2: ``torchaudio.models.Wav2Vec2Model`` (or anything with
            ``encoder.transformer.layers[i].feed_forward``).
        config: What to insert where.

    Returns:
        The same object; only experts and routers require gradients.

    Raises:
        ValueError: The allocation does not fit, or experts are there already.
    """
    layers = wav2vec2.encoder.transformer.layers
    counts = parse_allocation(config.allocation, len(layers))
    if any(isinstance(layer.feed_forward, LamerFeedForward) for layer in layers):
        raise ValueError("the model has LoRA experts already; start from its base")
    wav2vec2.requires_grad_(False)
    for index, (layer, count) in enumerate(zip(layers, counts, strict=True)):
        if count:
            layer.feed_forward = LamerFeedForward(
                layer.feed_forward, count, config, layer=index
            )
    return wav2vec2
