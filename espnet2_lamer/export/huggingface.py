"""A directory for transformers: ``LamerHubertModel``, or a plain model's own class."""

from pathlib import Path
from typing import Any

from torch import Tensor

from espnet2_lamer.asr.upstream import Upstream
from espnet2_lamer.convert.families import FAMILIES, LIKE_HUBERT, family_of
from espnet2_lamer.convert.huggingface import (
    MASK_EMBEDDING,
    hugging_face_name,
    model_config,
    preprocessor_config,
    write_directory,
)
from espnet2_lamer.errors import RecipeError
from espnet2_lamer.export.card import Origin, hugging_face_card
from espnet2_lamer.layers import LamerConfig, Router, parse_allocation, parse_ranks

CODE = Path(__file__).parent / "hf_code"
# As there: a plain HubertModel, as S3PRL's hf_hubert_custom builds, refuses it.
HIDDEN_ACT = "gelu: use AutoModel.from_pretrained(..., trust_remote_code=True)"


def write_huggingface(
    upstream: Upstream, directory: str | Path, origin: Origin | None = None
) -> None:
    """Write what ``AutoModel.from_pretrained(..., trust_remote_code=True)`` loads.

    The directory holds configuration, feature extractor, weights, the code of
    ``LamerHubertModel`` (it needs transformers and torch only) and a model card. A
    model without experts becomes a plain ``HubertModel``, or what its family has in
    its place, without code. It appears whole, and replaces an older export.

    Raises:
        RecipeError: The model is not ours, or ``directory`` holds something else.
    """
    config, state = describe(upstream)
    config["languages"] = list((origin and origin.languages) or upstream.languages)
    family = family_of(upstream.wav2vec2.architecture)
    if upstream.lamer is not None and family not in LIKE_HUBERT:
        raise RecipeError(
            f"--kind hf: found experts in a {FAMILIES[family].title} network, expected "
            f"one of {', '.join(FAMILIES[name].title for name in LIKE_HUBERT)}: the "
            "class of transformers that has experts is a HubertModel. Write it with "
            "--kind zoo, s3prl or adapter, or for one language as a plain "
            f"{FAMILIES[family].model} with --kind dense"
        )
    preprocessor = preprocessor_config(upstream.wav2vec2.architecture)
    lamer = None if upstream.lamer is None else LamerConfig(**upstream.lamer)
    files = {"README.md": hugging_face_card(directory, origin, lamer, family)}
    if lamer is not None:
        config |= {
            "num_experts": parse_allocation(lamer.allocation, upstream.num_layers),
            "num_experts_per_tok": lamer.top_k,
            **_ranks(lamer, upstream.num_layers),
            "lora_dropout": lamer.dropout,
            "lora_targets": list(lamer.targets),
            "lora_router": lamer.router,
            "lora_merge": lamer.merge,
            "use_selection_bias": lamer.balance == "bias",
            "final_norm": upstream.final_norm,
            "dtype": str(next(upstream.parameters()).dtype).removeprefix("torch."),
            "hidden_act": HIDDEN_ACT,
            "architectures": ["LamerHubertModel"],
            "model_type": "lamer_hubert",
            "auto_map": {
                "AutoConfig": "configuration_lamer_hubert.LamerHubertConfig",
                "AutoModel": "modeling_lamer_hubert.LamerHubertModel",
            },
        }
        preprocessor |= {
            "feature_extractor_type": "LamerHubertFeatureExtractor",
            "auto_map": {
                "AutoFeatureExtractor": "feature_extraction_lamer_hubert."
                "LamerHubertFeatureExtractor"
            },
            # The model runs a padded batch right in both families.
            "return_attention_mask": True,
        }
        for source in sorted(CODE.glob("*_lamer_hubert.py")):
            files[source.name] = source.read_text(encoding="utf-8")
    directory = Path(directory)
    refuse_other_content(directory, "preprocessor_config.json")
    write_directory(directory, config, preprocessor, state, files)


def _ranks(lamer: LamerConfig, num_layers: int) -> dict[str, Any]:
    """One rank and alpha; or a rank per layer, with which no alpha is a scale of 1."""
    ranks = parse_ranks(lamer.rank, num_layers)
    several = len({*ranks}) > 1
    one = None if several else float(ranks[0])
    alpha = one if lamer.alpha is None else float(lamer.alpha)
    return {"lora_rank": ranks if several else ranks[0], "lora_alpha": alpha}


def describe(upstream: Upstream) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return ``config.json`` of the backbone and all tensors by transformers' names."""
    if not isinstance(upstream, Upstream):
        raise RecipeError(
            f"{type(upstream).__name__}: expected a HuBERT with or without experts, as "
            "espnet2_lamer.load_model gives for an experiment or a packed model"
        )
    wav2vec2 = upstream.wav2vec2
    config = model_config(wav2vec2.architecture)
    # Loads of the last training batch: of no use to anyone else.
    loads = {id(m.load) for m in wav2vec2.modules() if isinstance(m, Router)}
    state = {
        hugging_face_name(key): value.detach().clone().contiguous()
        for key, value in wav2vec2.state_dict(keep_vars=True).items()
        if id(value) not in loads
    }
    if wav2vec2.mask_embedding is None:
        # transformers would make a random one otherwise, and warn.
        config["mask_time_prob"] = 0.0
    else:
        state[MASK_EMBEDDING] = wav2vec2.mask_embedding.detach().clone()
    return config, state


def refuse_other_content(directory: Path, marker: str) -> None:
    """Refuse to replace a file, or a directory that has content but no ``marker``."""
    if directory.is_dir():
        if (directory / marker).exists() or not any(directory.iterdir()):
            return
        found = "a directory that no export wrote"
    elif directory.exists():
        found = "a file"
    else:
        return
    raise RecipeError(
        f"--output {directory}: found {found}, expected a new or empty directory, or "
        "an earlier export to replace"
    )
