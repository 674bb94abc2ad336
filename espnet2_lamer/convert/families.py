"""Families of networks that share HuBERT's frame rate, and what others call them.

All are a convolution stack, a position embedding and transformer blocks; where one
differs from HuBERT, :data:`ADDED` names it in an architecture.
"""

from dataclasses import dataclass
from typing import Any

#: What an architecture may say beside torchaudio's arguments, and HuBERT's values;
#: an entry is there only where it differs, so that a HuBERT's stays what it was.
ADDED: dict[str, Any] = {
    # Whose class of transformers a plain export is.
    "family": "hubert",
    # Convolutions of the position embedding, each with a LayerNorm; 1: one without.
    "encoder_pos_conv_depth": 1,
    # Buckets of a relative position bias (0: none) and the distance of the last.
    "encoder_num_buckets": 0,
    "encoder_max_distance": 0,
}


@dataclass(frozen=True)
class Family:
    """One family, by its ``model_type`` in transformers.

    Attributes:
        model: Its class in transformers.
        prefix: Under which models with a head keep the network.
        fairseq: ``_name`` or ``arch`` of fairseq's model; empty where it has none.
        title: As people call it.
    """

    model: str
    prefix: str
    fairseq: str
    title: str


FAMILIES = {
    "hubert": Family("HubertModel", "hubert", "hubert", "HuBERT"),
    "wav2vec2": Family("Wav2Vec2Model", "wav2vec2", "wav2vec2", "wav2vec 2.0"),
    "data2vec-audio": Family(
        "Data2VecAudioModel", "data2vec_audio", "data2vec_audio", "data2vec-audio"
    ),
    "wavlm": Family("WavLMModel", "wavlm", "", "WavLM"),
}
#: Families whose network is HuBERT's: what is written for one loads as the other.
LIKE_HUBERT = ("hubert", "wav2vec2")


def family_of(architecture: dict[str, Any]) -> str:
    """Name of an architecture's family."""
    return architecture.get("family", ADDED["family"])


def check_family(architecture: dict[str, Any]) -> None:
    """Refuse a family that does not exist, or whose parts do not fit.

    Raises:
        ValueError: With the key, what was found and what is expected.
    """
    full = ADDED | architecture
    if full["family"] not in FAMILIES:
        raise ValueError(
            f"family: found {full['family']!r}, expected one of {', '.join(FAMILIES)}"
        )
    buckets, distance = full["encoder_num_buckets"], full["encoder_max_distance"]
    if buckets and (buckets < 4 or distance <= buckets // 4):
        raise ValueError(
            f"encoder_num_buckets, encoder_max_distance: found {buckets}, {distance}; "
            "expected at least 4 buckets and a distance above a quarter of them"
        )
    owners = (
        ("encoder_num_buckets", buckets > 0, "wavlm"),
        (
            "encoder_pos_conv_depth",
            full["encoder_pos_conv_depth"] > 1,
            "data2vec-audio",
        ),
    )
    for key, found, owner in owners:
        if found != (full["family"] == owner):
            raise ValueError(
                f"{key}: found {full[key]} in a network of family {full['family']!r}; "
                f"{owner!r} has it, and no other"
            )
