"""Every pretraining config builds at real size and differs where it says it does."""

from pathlib import Path

import pytest
import yaml

CONF = Path(__file__).parents[2] / "conf"
MAIN = CONF / "train_ssl_lamer.yaml"
VARIANTS = sorted((CONF / "tuning").glob("train_ssl_*.yaml"))
LARGE = "tuning/train_ssl_lamer_large_updates.yaml"
DIM, FFN, LAYERS, UNITS = 1024, 4096, 24, 1000
# facts of HuBERT-Large: 315,438,720 in transformers, 1,024 of them mask embedding.
BACKBONE = 315_438_720 - DIM
HEAD = UNITS * 768 + (DIM * 768 + 768) + DIM

LAMER = "encoder_conf.lamer"
ALLOCATION = f"{LAMER}.allocation"
# What each variant changes in conf/train_ssl_lamer.yaml; None: the key is absent.
CHANGES = {
    "milore": {
        ALLOCATION: 5,
        f"{LAMER}.top_k": None,
        f"{LAMER}.balance": "none",
    },
    "lamer_uniform": {ALLOCATION: 5},
    "lamer_no_balance": {f"{LAMER}.balance": "none"},
    "lamer_bias": {f"{LAMER}.balance": "bias"},
    "lamer_merged": {
        f"{LAMER}.top_k": None,
        f"{LAMER}.balance": "none",
        f"{LAMER}.merge": "utterance",
    },
    "lamer_distill": {"model_conf.distill_weight": 1.0},
    "lamer_large_updates": {
        "update_bins": 14_400_000,
        "num_iters_per_epoch": 500,
        "scheduler_conf.total_steps": 100_000,
        "scheduler_conf.warmup_steps": 8_000,
        "optim_conf.lr": 0.00053,
    },
    "lamer_no_replay": {"exclude_langs": ["eng"]},
    "lamer_8642": {ALLOCATION: "8,6,4,2"},
    "lamer_8228": {ALLOCATION: "8,2,2,8"},
    "lamer_2882": {ALLOCATION: "2,8,8,2"},
    "lamer_2288": {ALLOCATION: "2,2,8,8"},
    "lamer_projection_router": {f"{LAMER}.router": "projection"},
    "lamer_beside_ffn": {f"{LAMER}.targets": ["ffn"]},
    "hubert_lora": {
        ALLOCATION: 1,
        f"{LAMER}.rank": 24,
        f"{LAMER}.top_k": 1,
        f"{LAMER}.balance": "none",
    },
    "full_finetuning": {LAMER: "absent"},
    "head_only": {ALLOCATION: 0},
}
# LoRA, router, LoRA that one frame uses (facts: B1, B3, C1, D1 and their like).
EXPERTS, RANK = 120, 12
BOTH = 2 * (DIM + FFN) * RANK  # an expert on both Linears of an FFN
B1, D1, ROUTER = EXPERTS * BOTH, LAYERS * 2 * BOTH, EXPERTS * DIM
COUNTS = {
    "lamer": (B1, ROUTER, D1),
    "milore": (B1, ROUTER, B1),
    "lamer_merged": (B1, ROUTER, B1),
    "lamer_projection_router": (B1, EXPERTS * (DIM + FFN), D1),
    "lamer_beside_ffn": (
        EXPERTS * 2 * DIM * RANK,
        ROUTER,
        LAYERS * 2 * 2 * DIM * RANK,
    ),
    "hubert_lora": (D1, 0, D1),
    "full_finetuning": (0, 0, 0),
    "head_only": (0, 0, 0),
}


def name_of(path):
    return path.stem.removeprefix("train_ssl_")


def flatten(value, prefix=""):
    if not isinstance(value, dict):
        return {prefix: value}
    flat = {}
    for key, part in value.items():
        flat |= flatten(part, f"{prefix}.{key}" if prefix else key)
    return flat


def read(path):
    return flatten(yaml.safe_load(path.read_text(encoding="utf-8")))


def report(path, **changes):
    from espnet2_lamer.tasks.dry_run import dry_run
    from espnet2_lamer.tasks.hubert import LamerHubertTask
    from espnet2_lamer.tasks.option_check import check_options

    parser = LamerHubertTask.get_parser()
    cmd = ["--config", str(path), "--dry_run", "true"]
    for key, value in {"num_classes": UNITS, **changes}.items():
        cmd += [f"--{key}", str(value)]
    args = parser.parse_args(cmd)
    check_options(parser, args)
    return dry_run(LamerHubertTask, args)


def test_the_numbers_of_the_formulas_are_those_of_the_facts():
    assert (B1, D1, ROUTER) == (14_745_600, 5_898_240, 122_880)
    assert COUNTS["lamer_projection_router"][1] == 614_400
    assert sum(COUNTS["lamer_beside_ffn"][:2]) == 3_072_000  # C1
    assert BACKBONE == 315_437_696


def test_every_variant_is_listed_here():
    assert [name_of(path) for path in VARIANTS] == sorted(CHANGES)


@pytest.mark.parametrize("path", VARIANTS, ids=name_of)
def test_a_variant_differs_from_the_main_config_only_where_it_says(path):
    expected = read(MAIN)
    for key, value in CHANGES[name_of(path)].items():
        if value == "absent":
            for other in [k for k in expected if k.startswith(f"{key}.")]:
                del expected[other]
        else:
            expected[key] = value
    assert read(path) == expected


@pytest.mark.parametrize("path", VARIANTS, ids=name_of)
def test_a_header_names_its_command_every_difference_and_what_is_left_open(path):
    lines = path.read_text(encoding="utf-8").splitlines()
    header = "\n".join(line for line in lines if line.startswith("#"))
    assert f"--ssl_config conf/tuning/{path.name}" in header
    assert "leaves open" in header and "conf/train_ssl_lamer.yaml" in header
    for key, value in CHANGES[name_of(path)].items():
        last = key.split(".")[-1]
        (line,) = (x for x in lines if x.startswith(f"#   {last} "))
        shown = "null" if value is None else str(value).replace("'", "")
        assert shown in line, key


def test_the_main_header_gives_the_source_of_what_matters():
    text = MAIN.read_text(encoding="utf-8")
    for phrase in ("Stated by the paper", "Left open by the paper", "--dry_run true"):
        assert phrase in text


@pytest.mark.parametrize("path", [MAIN, *VARIANTS], ids=name_of)
def test_a_config_builds_hubert_large_with_exactly_these_parameters(path):
    found = report(path)
    lora, router, active = COUNTS.get(name_of(path), COUNTS["lamer"])
    counts = found.parameters
    assert counts["backbone"] == BACKBONE
    assert counts["head"] == HEAD
    assert (counts["lora"], counts["router"], counts["active"]) == (
        lora,
        router,
        active,
    )
    frozen = 0 if name_of(path) == "full_finetuning" else BACKBONE
    assert counts["trainable"] == counts["total"] - frozen
    assert counts["total"] == BACKBONE + HEAD + lora + router
    # The optimizer holds all that trains, and nothing else.
    assert sum(values for _, values in found.groups) == counts["trainable"]


@pytest.mark.parametrize(
    ("name", "groups"),
    [
        ("lamer", [2, 4, 6, 8]),
        ("lamer_8642", [8, 6, 4, 2]),
        ("lamer_8228", [8, 2, 2, 8]),
        ("lamer_2882", [2, 8, 8, 2]),
        ("lamer_2288", [2, 2, 8, 8]),
        ("lamer_uniform", [5] * 4),
        ("milore", [5] * 4),
    ],
)
def test_tables_2_and_3_share_120_experts_in_groups_of_six_layers(name, groups):
    (path,) = (p for p in [MAIN, *VARIANTS] if name_of(p) == name)
    found = report(path).allocation
    assert found == [count for count in groups for _ in range(6)]
    assert sum(found) == 120


@pytest.mark.parametrize("path", [MAIN, *VARIANTS], ids=name_of)
def test_the_schedule_is_the_audio_of_400k_updates_of_225_seconds(path):
    found = report(path)
    fewer = 4 if name_of(path) == "lamer_large_updates" else 1
    assert found.updates == 400_000 / fewer == read(path)["scheduler_conf.total_steps"]
    assert found.seconds_per_update == 225 * fewer == 3_600_000 * fewer / 16_000
    hours = found.updates * found.seconds_per_update / 3600
    assert round(hours / 547.494) == 46


def test_fairseqs_two_hours_per_update_are_another_update_bins():
    text = MAIN.read_text(encoding="utf-8")
    assert "2 h per update is update_bins 115200000" in text
    found = report(MAIN, update_bins=115_200_000)
    assert found.seconds_per_update == 128 * 56.25 == 7200
    assert found.updates == 400_000


def test_the_second_schedule_follows_the_square_root_rule_from_fairseqs_update():
    one, two = (read(CONF / f) for f in ("train_ssl_lamer.yaml", LARGE))
    rate = one["optim_conf.lr"] * (two["update_bins"] / 115_200_000) ** 0.5
    assert two["optim_conf.lr"] == pytest.approx(rate, rel=2e-3)
    shares = [
        c["scheduler_conf.warmup_steps"] / c["scheduler_conf.total_steps"]
        for c in (one, two)
    ]
    assert shares[0] == shares[1] == 0.08
    # What its header says of rates that are added up: a triangle each.
    sums = [
        c["optim_conf.lr"] * c["scheduler_conf.total_steps"] / 2 for c in (one, two)
    ]
    assert sums == pytest.approx([300, 26.5])
    assert "26.5 instead of 300" in (CONF / LARGE).read_text(encoding="utf-8")


def test_the_papers_settings_and_fairseqs_stand_in_the_main_config():
    found = read(MAIN)
    expected = {
        ALLOCATION: "2,4,6,8",
        f"{LAMER}.rank": 12,
        f"{LAMER}.top_k": 2,
        "model_conf.balance_weight": 0.001,
        "optim": "adamw",
        "optim_conf.lr": 1.5e-3,
        "optim_conf.betas": [0.9, 0.98],
        "optim_conf.eps": 1e-6,
        "optim_conf.weight_decay": 0.01,
        "scheduler_conf.warmup_steps": 32_000,
        "scheduler_conf.total_steps": 400_000,
        "grad_clip": 1.0,
        "encoder_conf.mask_prob": 0.8,
        "encoder_conf.mask_length": 10,
        "encoder_conf.final_dim": 768,
        "model_conf.logit_temp": 0.1,
        "collate_fn_conf.max_sample_size": 250_000,
    }
    assert {key: found[key] for key in expected} == expected


def test_the_mini_configs_build_too():
    mini = report(CONF / "train_ssl_lamer_mini.yaml", num_classes=100)
    # Its base comes from run.sh; without one the architecture is HuBERT-Large's.
    assert (mini.parameters["lora"], mini.updates) == (B1, 400)
    base = report(CONF / "train_ssl_mini_base.yaml", num_classes=100)
    assert base.parameters["backbone"] == 2_007_680
    assert base.parameters["trainable"] == base.parameters["total"]
