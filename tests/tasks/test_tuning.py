"""What trains with a head: the right weights, from the right update on."""

import copy

import pytest
import torch

from espnet2_lamer.asr.upstream import Upstream
from espnet2_lamer.errors import RecipeError
from espnet2_lamer.tasks.asr import LamerASRTask
from espnet2_lamer.tasks.tuning import tuned_weights
from tests.evaluation.tiny_head import CONFIG, TINY

EXPERTS = {"allocation": "2,4", "rank": 2}
TOKENS = ["<blank>", "<unk>", "A", "B", "<sos/eos>"]
BLOCKS = "wav2vec2.encoder.transformer.layers."


def upstream_of(lamer=EXPERTS, seed=0, **changes):
    torch.manual_seed(seed)
    hubert = TINY["hubert"] | changes
    return Upstream.from_architecture({**TINY, "hubert": hubert, "lamer": lamer})


@pytest.fixture
def make(monkeypatch):
    """Build a whole model over an upstream, and its optimizer."""

    def build(upstream=None, **conf):
        upstream = upstream or upstream_of()
        monkeypatch.setattr(
            "espnet2_lamer.upstream.load_model", lambda *_: copy.deepcopy(upstream)
        )
        values = {
            "frontend": "lamer_upstream",
            "frontend_conf": {"upstream": "x", "layer": 2} | conf.pop("front", {}),
            "preencoder_conf": {"input_size": 16, "output_size": 16},
            "token_list": TOKENS,
            "amp_dtype": "none",
        }
        args, _ = LamerASRTask.get_parser().parse_known_args([])
        vars(args).update(copy.deepcopy(CONFIG) | values | conf)
        torch.manual_seed(1)
        model = LamerASRTask.build_model(args).train()
        (optimizer,) = LamerASRTask.build_optimizers(args, model)
        return model, optimizer, args

    return build


def batch(seed):
    torch.manual_seed(seed)
    text = torch.tensor([[2, 3, 2], [3, 2, -1]])
    return torch.randn(2, 9600), torch.tensor([9600, 8000]), text, torch.tensor([3, 2])


def update(model, optimizer, seed):
    loss = model(*batch(seed))[0]
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def weights(model):
    return {k: v.clone() for k, v in model.frontend.upstream.named_parameters()}


def changed(model, before):
    now = model.frontend.upstream.named_parameters()
    return {k for k, v in now if not torch.equal(v, before[k])}


def test_experts_are_loras_and_routers_and_all_is_the_transformer_too():
    upstream = upstream_of()
    experts = {n for n in dict(upstream.named_parameters()) if "lora_" in n}
    experts |= {n for n in dict(upstream.named_parameters()) if "routers" in n}
    assert tuned_weights(upstream, "experts", True, 2).keys() == experts
    every = set(tuned_weights(upstream, "all", True, 2))
    assert experts < every
    assert not [n for n in every if "feature_extractor" in n]
    assert [n for n in every if n.endswith("attention.k_proj.weight")]
    more = tuned_weights(upstream, "all", False, 2).keys() - every
    assert more and all("feature_extractor" in n for n in more)


def test_what_the_head_does_not_read_does_not_train():
    found = tuned_weights(upstream_of(), "all", True, 1)
    assert [n for n in found if n.startswith(f"{BLOCKS}0.")]
    assert not [n for n in found if n.startswith(f"{BLOCKS}1.")]
    # The norm behind the last block of a pre-norm stack; others have it before.
    last = "wav2vec2.encoder.transformer.layer_norm.weight"
    assert last not in found
    assert last in tuned_weights(upstream_of(), "all", True, 2)
    post = upstream_of(encoder_layer_norm_first=False)
    assert last in tuned_weights(post, "all", True, 1)


@pytest.mark.parametrize("tune", ["head", "experts", "all"])
def test_gradients_are_where_they_belong_and_nowhere_else(make, tune):
    model, _, _ = make(front={"tune": tune})
    model(*batch(0))[0].backward()
    upstream = model.frontend.upstream
    expected = set(tuned_weights(upstream, tune, True, 2))
    grads = {n: p.grad for n, p in upstream.named_parameters()}
    assert {n for n, grad in grads.items() if grad is not None} == expected
    head = [p for n, p in model.named_parameters() if "upstream" not in n]
    assert head and all(p.grad is not None for p in head)
    assert not upstream.training


@pytest.mark.parametrize("tune", ["experts", "all"])
@pytest.mark.parametrize("steps", [0, 1, 3])
def test_the_upstream_is_frozen_for_so_many_updates_and_then_trains(make, tune, steps):
    model, optimizer, _ = make(front={"tune": tune, "freeze_encoder_steps": steps})
    for number in range(steps + 1):
        before = weights(model)
        update(model, optimizer, number)
        moved = changed(model, before)
        assert bool(moved) == (number == steps), number
    # At once: lora_A moves from its second update on, as lora_B is no longer zero.
    update(model, optimizer, 99)
    allowed = set(tuned_weights(copy.deepcopy(model.frontend.upstream), tune, True, 2))
    assert changed(model, before) <= allowed and moved <= allowed


def test_micro_batches_of_one_update_are_frozen_or_not_together(make):
    model, optimizer, _ = make(front={"tune": "all", "freeze_encoder_steps": 1})
    for _ in range(3):
        model(*batch(0))[0].backward()
    grads = [p.grad for p in model.frontend.tuned.values()]
    assert all(grad is None for grad in grads)
    optimizer.step()
    model(*batch(0))[0].backward()
    assert all(p.grad is not None for p in model.frontend.tuned.values())


def test_a_resumed_training_is_released_at_the_same_update_and_goes_on_exactly(make):
    front = {"tune": "experts", "freeze_encoder_steps": 3}
    straight, optimizer, _ = make(front=front)
    saved = None
    for number in range(6):
        if number == 2:
            saved = copy.deepcopy((straight.state_dict(), optimizer.state_dict()))
        torch.manual_seed(number)
        update(straight, optimizer, number)
    # Only what trains is in the checkpoint.
    keys = [k for k in saved[0] if "upstream" in k]
    assert keys and all("lora_" in k or "routers" in k for k in keys)
    resumed, optimizer, _ = make(front=front)
    resumed.load_state_dict(saved[0])
    optimizer.load_state_dict(saved[1])
    for number in range(2, 6):
        torch.manual_seed(number)
        update(resumed, optimizer, number)
    assert int(resumed.frontend.updates) == 6
    for key, value in straight.state_dict().items():
        assert torch.equal(resumed.state_dict()[key], value), key


def test_a_frozen_head_has_the_same_keys_optimizer_and_features_as_ever(make):
    model, optimizer, _ = make()
    assert len(optimizer.param_groups) == 1
    everything = [id(p) for p in model.parameters()]
    assert [id(p) for p in optimizer.param_groups[0]["params"]] == everything
    assert not [k for k in model.state_dict() if "upstream" in k or "updates" in k]
    wavs, lengths, _, _ = batch(5)
    states, _ = upstream_of().extract_features(wavs, lengths, 2)
    found, _ = model.frontend(wavs, lengths)
    frames = states[2].shape[1]
    assert torch.equal(found[:1, :frames], states[2][:1])
    assert not found.requires_grad


def test_each_group_has_its_rate_and_its_own_peak_of_the_schedule(make):
    conf = {"experts": {"lr": 0.002}, "backbone": {"lr": 0.0001, "weight_decay": 0.0}}
    _, optimizer, args = make(
        front={"tune": "all"},
        upstream_optim_conf=conf,
        scheduler_conf={"max_lr": 0.01, "total_steps": 10},
    )
    assert [g["lr"] for g in optimizer.param_groups] == [0.01, 0.002, 0.0001]
    assert args.scheduler_conf["max_lr"] == pytest.approx([0.01, 0.002, 0.0001])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"front": {"tune": "some"}}, "tune: found 'some', expected one of head, "),
        ({"front": {"tune": "all", "freeze_encoder_steps": -1}}, "0 or more"),
        ({"upstream": upstream_of(None), "front": {"tune": "experts"}}, "no LoRA expe"),
        (
            {"front": {"tune": "all"}, "upstream_optim_conf": {"lora": {}}},
            "upstream_optim_conf: found 'lora', expected experts and backbone",
        ),
        ({"front": {"tune": "all"}, "exclude_weight_decay": True}, "exclude_weight_de"),
    ],
)
def test_what_cannot_be_tuned_is_refused_by_key(make, changes, message):
    with pytest.raises(RecipeError, match=message):
        make(**changes)


def test_a_checkpoint_of_another_tune_is_refused(make):
    saved = make(front={"tune": "experts"})[0].state_dict()
    model = make(front={"tune": "all"})[0]
    with pytest.raises(RecipeError, match="tuned weights of the upstream are missing"):
        model.load_state_dict(saved, strict=False)
