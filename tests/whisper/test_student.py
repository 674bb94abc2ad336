import math

import pytest
import torch

from espnet2_lamer.whisper.lora import expert_linears, save_expert
from espnet2_lamer.whisper.student import cosine_loss, jensen_shannon, truncated_mean
from tests.whisper.small_whisper import LANGUAGES, batch, make_model, stir


@pytest.fixture(scope="module")
def experts(whisper_file, tmp_path_factory):
    model = stir(make_model(whisper_file, alpha=6))
    folder = tmp_path_factory.mktemp("experts")
    files = {name: str(folder / f"{name}.safetensors") for name in LANGUAGES}
    for name, path in files.items():
        save_expert(model, name, path)
    return files


def _student(whisper_file, experts, **conf):
    lora = conf.pop("lora", {})
    return make_model(
        whisper_file,
        "student",
        alpha=6,
        model_conf={"experts": experts, **conf},
        **lora,
    )


@pytest.mark.parametrize(("d_out", "d_in"), [(640, 512), (512, 2048)])
def test_the_start_is_the_truncated_svd_of_eight_experts_of_rank_64(d_out, d_in):
    generator = torch.Generator().manual_seed(0)
    pairs = [
        (
            torch.randn(d_out, 64, generator=generator),
            torch.randn(64, d_in, generator=generator),
        )
        for _ in range(8)
    ]
    mean = sum(b.double() @ a.double() for b, a in pairs) / 8
    b, a = truncated_mean(pairs, 256)
    assert b.shape == (d_out, 256) and a.shape == (256, d_in)
    u, s, vh = torch.linalg.svd(mean, full_matrices=False)
    expected = (u[:, :256] * s[:256]) @ vh[:256]
    torch.testing.assert_close(b.double() @ a.double(), expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(b.norm(dim=0), a.norm(dim=1), atol=1e-3, rtol=1e-4)
    torch.testing.assert_close(
        b.double().norm(dim=0) ** 2, s[:256], atol=1e-3, rtol=1e-4
    )


def test_a_student_of_enough_rank_starts_as_the_mean_and_keeps_spare_rank(
    whisper_file, experts
):
    model = _student(whisper_file, experts, lora={"student_rank": 15})
    for name, linear in expert_linears(model.encoder).items():
        update = {
            key: expert.scale * expert.lora_B @ expert.lora_A[0]
            for key, expert in linear.experts.items()
        }
        mean = sum(update[language] for language in LANGUAGES) / 3
        torch.testing.assert_close(
            update["student"], mean, atol=1e-4, rtol=1e-4, msg=name
        )
        student = linear.experts["student"]
        assert not student.lora_B[:, 12:].any()
        assert student.lora_A[0, 12:].any(-1).all()


def test_the_cosine_loss_is_the_mean_of_real_frames_then_of_layers():
    torch.manual_seed(0)
    student, teacher = torch.randn(2, 3, 4, 5), torch.randn(2, 3, 4, 5)
    real = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1], [1, 0, 0, 0]]).bool()
    expected = 0.0
    for layer in range(2):
        values = [
            1
            - (student[layer, i, j] @ teacher[layer, i, j])
            / (student[layer, i, j].norm() * teacher[layer, i, j].norm())
            for i in range(3)
            for j in range(4)
            if real[i, j]
        ]
        expected += sum(values) / len(values) / 2
    student[:, ~real] = torch.nan
    found = cosine_loss(list(student), list(teacher), real)
    torch.testing.assert_close(found, expected)
    assert cosine_loss(list(teacher), list(2 * teacher), real).abs() < 1e-6


def test_the_jensen_shannon_divergence_is_its_formula():
    torch.manual_seed(0)
    student, teacher = 3 * torch.randn(2, 2, 3, 7).unbind(0)[0], torch.randn(2, 3, 7)
    real = torch.tensor([[1, 1, 0], [1, 0, 0]]).bool()
    values = []
    for i, j in real.nonzero().tolist():
        s, t = (student[i, j] / 2).softmax(-1), (teacher[i, j] / 2).softmax(-1)
        m = (s + t) / 2
        values.append(0.5 * ((t * (t / m).log()).sum() + (s * (s / m).log()).sum()))
    student[~real] = torch.nan
    found = jensen_shannon(student, teacher, real, temperature=2.0)
    torch.testing.assert_close(found, sum(values) / len(values))


def test_the_divergence_is_zero_for_equals_and_ln_2_for_opposites():
    one = torch.tensor([[[100.0, -100.0]]])
    real = torch.ones(1, 1).bool()
    assert jensen_shannon(one, one, real) == 0.0
    assert jensen_shannon(one, -one, real).item() == pytest.approx(math.log(2))


@pytest.mark.parametrize("distillation", ["layerwise", "output", "none"])
def test_the_loss_is_the_weighted_sum_of_its_parts(whisper_file, experts, distillation):
    conf = {"asr_weight": 0.5, "hidden_weight": 3.0, "logit_weight": 0.25}
    model = _student(whisper_file, experts, distillation=distillation, **conf)
    stir(model, seed=9)
    loss, stats, _ = model.train()(**batch())
    expected = stats["loss_asr"] * (1.0 if distillation == "none" else 0.5)
    parts = {"loss_asr", "acc", "loss"}
    if distillation != "none":
        expected = expected + 0.25 * stats["loss_logit"]
        parts |= {"loss_logit"}
    if distillation == "layerwise":
        expected = expected + 3.0 * stats["loss_hidden"]
        parts |= {"loss_hidden"}
    assert set(stats) == parts
    torch.testing.assert_close(loss.detach(), expected.view_as(loss))


def test_the_teacher_is_the_utterances_own_expert(whisper_file, experts):
    model = _student(whisper_file, experts)
    data = batch((2, 0, 2))
    losses = []
    for language in ("yue", "cmn"):
        changed = _student(whisper_file, experts)
        with torch.no_grad():
            for linear in expert_linears(changed).values():
                linear.experts[language].lora_B.mul_(3.0)
        losses.append(changed(**data)[1]["loss_hidden"])
    expected = model(**data)[1]["loss_hidden"]
    assert torch.equal(losses[1], expected)  # no cmn in the batch
    assert not torch.equal(losses[0], expected)


def test_the_student_does_not_see_the_language(whisper_file, experts):
    model = _student(whisper_file, experts, distillation="none")
    losses = [model(**batch(languages))[0] for languages in ((0, 0, 0), (2, 1, 2))]
    assert torch.equal(*losses)


def test_only_the_student_trains_and_all_of_it_does(whisper_file, experts):
    model = stir(_student(whisper_file, experts, lora={"targets": "q,v"}), seed=4)
    loss, _, _ = model.train()(**batch())
    loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad == (".student." in name), name
        if parameter.requires_grad:
            assert parameter.grad.abs().sum() > 0, name


def test_padding_of_frames_and_tokens_does_not_change_the_loss(whisper_file, experts):
    model = stir(_student(whisper_file, experts), seed=4)
    data = batch()
    rows = []
    # ASR and divergence are means over tokens, the cosine one over frames: compare
    # what is the same per token.
    model.hidden_weight = 0.0
    for i in range(3):
        row = {key: value[i : i + 1] for key, value in data.items()}
        row["speech"] = row["speech"][:, : row["speech_lengths"]]
        loss, _, weight = model(**row)
        rows.append((loss.item(), weight.item()))
    together, _, weight = model(**data)
    assert weight.item() == sum(n for _, n in rows)
    mean = sum(loss * n for loss, n in rows) / weight.item()
    assert together.item() == pytest.approx(mean, abs=1e-4)


@pytest.mark.parametrize("distillation", ["layerwise", "output"])
def test_a_stored_teacher_gives_the_same_loss(
    whisper_file, experts, tmp_path, monkeypatch, distillation
):
    plain = _student(whisper_file, experts, distillation=distillation)
    model = _student(
        whisper_file, experts, distillation=distillation, teacher_cache=str(tmp_path)
    )
    expected = plain(**batch())[0]
    torch.testing.assert_close(model(**batch())[0], expected)
    assert len(list(tmp_path.rglob("*.safetensors"))) == 3
    again = _student(
        whisper_file, experts, distillation=distillation, teacher_cache=str(tmp_path)
    )
    encode = again.encoder.encode
    calls = []
    monkeypatch.setattr(
        again.encoder, "encode", lambda *a: calls.append(1) or encode(*a)
    )
    # Another order of the batch, other padding.
    data = batch()
    shuffled = {
        key: [v[i] for i in (2, 0, 1)] if isinstance(v, list) else v[[2, 0, 1]]
        for key, v in data.items()
    }
    found = again(**shuffled)[0]
    assert len(calls) == 1  # the student's
    torch.testing.assert_close(found, expected, atol=5e-3, rtol=5e-3)


def test_another_text_or_teacher_is_not_read_from_the_store(
    whisper_file, experts, tmp_path
):
    model = _student(whisper_file, experts, teacher_cache=str(tmp_path))
    model(**batch())
    changed = batch()
    changed["text"][0, 0] += 1
    model(**changed)
    assert len(list(tmp_path.rglob("*.safetensors"))) == 4
    other = make_model(
        whisper_file,
        "student",
        alpha=6,
        model_conf={"teacher_cache": str(tmp_path)},
    )
    other(**batch())
    assert len(list(tmp_path.rglob("*.safetensors"))) == 7
