"""Random checkpoints of every family: transformers' own network, and fairseq's form."""

import json
import re

import torch

TINY = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "conv_dim": [8] * 7,
    "conv_kernel": [10, 3, 3, 3, 3, 2, 2],
    "conv_stride": [5, 2, 2, 2, 2, 2, 2],
    "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 2,
}
LAYER = {"feat_extract_norm": "layer", "do_stable_layer_norm": True, "conv_bias": True}
GROUP = {
    "feat_extract_norm": "group",
    "do_stable_layer_norm": False,
    "conv_bias": False,
}
STACK = {"num_conv_pos_embeddings": 3, "conv_pos_kernel_size": 5, "conv_bias": False}
BIAS = {"num_buckets": 16, "max_bucket_distance": 12}
#: Name: family, what it changes, whether its feature extractor normalises.
KINDS = {
    "wav2vec2-base": ("wav2vec2", GROUP, True),
    "wav2vec2-large": ("wav2vec2", LAYER, True),
    "data2vec": ("data2vec-audio", STACK, True),
    "wavlm-base": ("wavlm", GROUP | BIAS, False),
    "wavlm-large": ("wavlm", LAYER | BIAS, True),
    "hubert-base": ("hubert", GROUP, True),
}


def write(directory, kind, head=False, **sizes):
    """Write a random model with transformers; return it in eval mode.

    With ``head`` the directory is what pretraining or recognition leaves.
    """
    import transformers

    family, changes, normalizes = KINDS[kind]
    names = {
        "wav2vec2": ("Wav2Vec2Model", "Wav2Vec2ForPreTraining"),
        "data2vec-audio": ("Data2VecAudioModel", "Data2VecAudioForCTC"),
        "wavlm": ("WavLMModel", "WavLMForCTC"),
        "hubert": ("HubertModel", "HubertForCTC"),
    }
    settings = {"codevector_dim": 8, "proj_codevector_dim": 8, "vocab_size": 5}
    settings |= {"num_codevectors_per_group": 4}
    config = transformers.AutoConfig.for_model(
        family, **(TINY | changes | sizes | settings)
    )
    torch.manual_seed(0)
    model = getattr(transformers, names[family][head])(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1 or "gru_rel" in name or "rel_attn" in name:
                parameter.add_(0.2 * torch.randn_like(parameter))
    model.save_pretrained(directory)
    text = json.dumps({"do_normalize": normalizes, "sampling_rate": 16000})
    (directory / "preprocessor_config.json").write_text(text)
    return getattr(model, names[family][0] and model.base_model_prefix, model)


def reference_states(model, waves, normalizes):
    """transformers' L + 1 states of each utterance ``[n]`` alone, last one raw."""
    found = []
    for wave in waves:
        fed = torch.nn.functional.layer_norm(wave, wave.shape) if normalizes else wave
        raw = []
        hook = model.encoder.layers[-1].register_forward_hook(
            lambda module, args, out, raw=raw: raw.append(
                out[0] if isinstance(out, tuple) else out
            )
        )
        with torch.no_grad():
            out = model(fed[None], output_hidden_states=True)
        hook.remove()
        found.append([*out.hidden_states[:-1], raw[0], out.last_hidden_state])
    return found


_FAIRSEQ = (
    (r"masked_spec_embed$", "mask_emb"),
    (r"feature_projection\.layer_norm", "layer_norm"),
    (r"feature_projection\.projection", "post_extract_proj"),
    (r"(feature_extractor\.conv_layers\.\d+)\.conv", r"\1.0"),
    (r"encoder\.pos_conv_embed\.layers\.(\d+)\.conv", r"encoder.pos_conv.\1.0"),
    (r"encoder\.pos_conv_embed\.conv", "encoder.pos_conv.0"),
    (r"parametrizations\.weight\.original0", "weight_g"),
    (r"parametrizations\.weight\.original1", "weight_v"),
    (r"attention\.gru_rel_pos_linear", "self_attn.grep_linear"),
    (r"attention\.gru_rel_pos_const", "self_attn.grep_a"),
    (r"attention\.rel_attn_embed", "self_attn.relative_attention_bias"),
    (r"(encoder\.layers\.\d+\.)layer_norm", r"\1self_attn_layer_norm"),
    (r"attention\.", "self_attn."),
    (r"feed_forward\.intermediate_dense", "fc1"),
    (r"feed_forward\.output_dense", "fc2"),
)
_FAIRSEQ2 = (
    (r"^mask_emb$", "masker.temporal_mask_embed"),
    (r"^layer_norm", "encoder_frontend.post_extract_layer_norm"),
    (r"^post_extract_proj", "encoder_frontend.model_dim_proj"),
    (r"^encoder\.pos_conv\.0", "encoder_frontend.pos_encoder.conv"),
    (
        r"^feature_extractor\.conv_layers\.(\d+)\.0",
        r"encoder_frontend.feature_extractor.layers.\1.conv",
    ),
    (
        r"^feature_extractor\.conv_layers\.(\d+)\.2\.1",
        r"encoder_frontend.feature_extractor.layers.\1.layer_norm",
    ),
    (
        r"^feature_extractor\.conv_layers\.0\.2",
        "encoder_frontend.feature_extractor.layers.0.group_norm",
    ),
    (r"self_attn\.out_proj", "self_attn.output_proj"),
    (r"fc1", "ffn.inner_proj"),
    (r"fc2", "ffn.output_proj"),
    (r"(encoder\.layers\.\d+\.)final_layer_norm", r"\1ffn_layer_norm"),
)


def _renamed(state, table):
    for pattern, new in table:
        state = {re.sub(pattern, new, key): value for key, value in state.items()}
    return state


def write_fairseq(path, model, kind):
    """Write a model of transformers as fairseq (or WavLM's authors) name it."""
    family, _, normalizes = KINDS[kind]
    config = model.config
    stable = getattr(config, "do_stable_layer_norm", False)
    norm = getattr(config, "feat_extract_norm", "layer")
    inner = "2.1" if norm == "layer" else "2"
    state = {k: v.detach().clone() for k, v in model.state_dict().items()}
    state = _renamed(state, _FAIRSEQ)
    norms = r"(feature_extractor\.conv_layers\.\d+)\.layer_norm"
    state = _renamed(state, ((norms, rf"\1.{inner}"),))
    state["final_proj.weight"] = torch.randn(3, config.hidden_size)
    if family == "wav2vec2":
        state["quantizer.vars"] = torch.randn(1, 8, 4)
        state["project_q.weight"] = torch.randn(3, 4)
    kernels = zip(config.conv_dim, config.conv_kernel, config.conv_stride, strict=True)
    settings = {
        "extractor_mode": "layer_norm" if norm == "layer" else "default",
        "conv_feature_layers": str([*kernels]),
        "conv_bias": config.conv_bias,
        "encoder_embed_dim": config.hidden_size,
        "encoder_layers": config.num_hidden_layers,
        "encoder_attention_heads": config.num_attention_heads,
        "encoder_ffn_embed_dim": config.intermediate_size,
        "conv_pos": config.num_conv_pos_embeddings,
        "conv_pos_groups": config.num_conv_pos_embedding_groups,
        "layer_norm_first": stable,
    }
    task = {"_name": "audio_pretraining", "normalize": normalizes}
    if family == "wavlm":
        cfg = settings | {
            "normalize": normalizes,
            "relative_position_embedding": True,
            "gru_rel_pos": True,
            "num_buckets": config.num_buckets,
            "max_distance": config.max_bucket_distance,
        }
    else:
        settings["_name"] = family.replace("-", "_")
        if family == "data2vec-audio":
            depth = config.num_conv_pos_embeddings
            settings["pos_conv_depth"] = depth
            settings["conv_pos"] = depth * config.conv_pos_kernel_size
            state["_ema"] = {"encoder.layers.0.fc1.bias": torch.zeros(3)}
        cfg = {"model": settings, "task": task}
    torch.save({"args": None, "cfg": cfg, "model": state}, path)
    return path


def write_fairseq2(path, model):
    """Write a wav2vec 2.0 of transformers as fairseq2 names it, as omniASR's are."""
    write_fairseq(path, model, "wav2vec2-large")
    state = torch.load(path, weights_only=True)["model"]
    state = {k: v for k, v in state.items() if not k.startswith("project_q")}
    state = _renamed(state, _FAIRSEQ2)
    state["quantizer.num_updates"] = torch.zeros((), dtype=torch.int64)
    state["final_target_proj.weight"] = torch.randn(3, 4)
    torch.save({"model": state, "fs2": True}, path)
    return path
