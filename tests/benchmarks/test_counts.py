"""Counting without a GPU: exact counts of known graphs, and what training may cost."""

from collections import Counter

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.counts import Options, count_update, graph_breaks, total
from benchmarks.fake_backward import run_backward
from benchmarks.fake_gpu import fake_gpu, on_fake_gpu, to_fake_gpu
from benchmarks.launches import CHUNK, Count, Counting, launches_of_list

# What an update may ask of a GPU: so much per transformer layer, and so much beside.
# The rows are (per layer, constant); one may be lowered whenever the code gets better.
LIMITS = {
    "micro-batch": {"kernels": (70, 290), "casts": (1, 18), "waits": (0, 0)},
    "update": {"kernels": (1, 24), "casts": (0, 0), "waits": (0, 0)},
}
MOST_GRAPH_BREAKS = 0


def count(run):
    """Count what ``run`` asks of the GPU; it is called inside of the fake one."""
    counting = Counting()
    with fake_gpu(counting.note, lambda: counting.during("backward")):
        run()
    return counting


def parts(counting):
    return {part: (c.kernels, c.casts) for part, c in counting.parts.items()}


def empty(*shape, **options):
    return torch.empty(shape, device="cuda", **options)


def test_a_linear_is_one_kernel_and_views_are_none():
    def run():
        x = empty(5, 4, 8).transpose(0, 1).transpose(0, 1)[:, :4].detach()
        F.linear(x.view(20, 8), empty(3, 8), empty(3)).view(5, 4, 3).expand(2, 5, 4, 3)

    counting = count(run)
    assert counting.operations == {"addmm": 1}
    found = total(counting)
    weight, bias, rows = 3 * 8, 3, 5 * 4
    assert found.bytes == 4 * (rows * 8 + weight + bias + rows * 3)
    assert found.flops == 2 * rows * 8 * 3
    assert (found.casts, found.waits) == (0, 0)


def test_a_cast_is_a_copy_on_the_gpu_to_another_dtype():
    def run():
        x = empty(5, 4)
        x.to(torch.bfloat16)
        x.half().copy_(x)
        x.to(torch.float32)
        x.clone()

    counting = count(run)
    assert counting.operations == {"_to_copy": 2, "copy_": 1, "clone": 1}
    assert total(counting).casts == 3
    assert total(counting).bytes == 20 * (3 * (4 + 2) + 2 * 4 + 2)


def test_autocast_casts_inputs_and_weights_as_cuda_does():
    layer = nn.Linear(8, 3, device="meta")

    def run():
        to_fake_gpu(layer)
        with torch.autocast("cuda", torch.bfloat16):
            y = layer(empty(4, 8))
            assert y.dtype == torch.bfloat16
            # Of the float32 list: computed, and returned, in float32.
            z = F.layer_norm(y, (3,))
            assert z.dtype == torch.float32
        (z * z).sum().backward()

    counting = count(run)
    # x, weight and bias become bf16, y becomes float32 again; then addmm, layer_norm,
    # product and sum.
    assert parts(counting)["forward"] == (4 + 4, 4)
    # Casts of the gradients of y, the weight and the bias; and one at the beginning,
    # twice the product and their sum, layer_norm's, the weight's and the bias's.
    assert parts(counting)["backward"] == (3 + 7, 3)


def test_gradients_of_a_float32_linear_cost_one_product_each():
    layer = nn.Linear(8, 3, device="meta")

    def run():
        to_fake_gpu(layer)
        x = empty(4, 8, requires_grad=True)
        layer(x).sum().backward()
        assert x.grad.shape == x.shape and layer.weight.grad.shape == (3, 8)

    # ones_like; mm for x and for the weight; the bias's sum.
    assert parts(count(run)) == {"forward": (2, 0), "backward": (4, 0)}


@pytest.mark.parametrize("rows", [[True, False, True], [False] * 3])
def test_a_mask_as_index_costs_a_search_and_a_wait(rows):
    def run():
        mask = on_fake_gpu(torch.tensor(rows))
        found = empty(3, 5)[mask & (mask | ~mask)]
        assert found.shape == (sum(rows), 5)

    counting = count(run)
    # Three kernels make the mask; nothing is gathered where nothing is chosen.
    assert total(counting).kernels == 3 + 2 * any(rows)
    assert (total(counting).reads, total(counting).writes) == (1, 0)
    (place,) = counting.waits
    assert place.startswith("forward: test_counts.py:") and place.endswith(" run")


def test_a_number_under_a_mask_is_a_fill_without_a_wait():
    def run():
        x, mask = empty(3, 5), on_fake_gpu(torch.tensor([True, False, True]))
        x[mask] = 0.0

    assert total(count(run)).waits == 0


def test_every_way_to_the_host_is_a_wait():
    def run():
        x = empty(3)
        assert x.sum().item() == 1.0
        assert len(x.tolist()) == 3
        x.cpu()
        bool((x > 0).any())
        on_fake_gpu(torch.tensor([1, 0])).nonzero()
        torch.rand(()).item()  # of the host itself

    found = total(count(run))
    assert (found.reads, found.writes) == (5, 0)


def test_a_number_of_the_host_waits_unless_it_is_told_not_to():
    def run():
        x = empty(3)
        x.new_tensor(1.0)
        torch.tensor([1, 2], device="cuda")
        torch.ones(2).to("cuda", non_blocking=True)
        x + 1.0
        x + torch.ones(())

    found = total(count(run))
    assert (found.reads, found.writes, found.kernels) == (0, 2, 2)


def test_shapes_that_follow_from_whole_numbers_are_exact():
    def run():
        lengths = on_fake_gpu(torch.tensor([3, 5]))
        real = torch.arange(5, device="cuda") < lengths[:, None]
        assert empty(2, 5, 7)[real].shape == (8, 7)
        assert int(lengths.max()) == 5 and lengths.tolist() == [3, 5]
        # What comes from numbers that are not there is taken as all true.
        assert empty(2, 5)[empty(2, 5) > 0].shape == (10,)
        real[empty(2, 5) > 0] = False
        assert empty(2, 5, 7)[real].shape == (10, 7)

    count(run)


@pytest.mark.parametrize(
    ("mask", "kernel"),
    [(False, "flash"), (True, "efficient")],
)
def test_attention_takes_the_kernel_that_its_mask_allows(mask, kernel):
    def run():
        q = empty(2, 4, 19, 8, dtype=torch.bfloat16, requires_grad=True)
        bias = empty(2, 1, 19, 19, dtype=torch.bfloat16) if mask else None
        y = F.scaled_dot_product_attention(q, q, q, attn_mask=bias)
        assert y.shape == q.shape
        y.sum().backward()

    names = count(run).operations
    assert names[f"_scaled_dot_product_{kernel}_attention"] == 1
    assert names[f"_scaled_dot_product_{kernel}_attention_backward"] == 1
    # 19 columns are padded to 32.
    assert names["constant_pad_nd"] == mask


def launches_one_by_one(sizes, room):
    """Reference: fill blocks and tensors of a launch as the CUDA loop does."""
    launches, in_launch, blocks = 0, [], 0
    for number, size in enumerate(sizes):
        for chunk in range(-(-size // CHUNK)):
            if number not in in_launch:
                in_launch.append(number)
            blocks += 1
            ends = chunk == -(-size // CHUNK) - 1
            if (len(in_launch) == room and ends) or blocks == 320:
                launches, in_launch, blocks = launches + 1, [], 0
    return launches + (blocks > 0)


@pytest.mark.parametrize("seed", range(5))
def test_lists_of_tensors_are_launched_in_chunks(seed):
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.randint(0, 40, (200,), generator=generator).square() * 1000
    for lists, room in ((1, 110), (2, 64), (3, 48), (4, 36)):
        expected = launches_one_by_one(sizes.tolist(), room)
        assert launches_of_list(sizes.tolist(), lists) == expected
    assert launches_of_list([10] * 111, 1) == 2
    assert launches_of_list([320 * CHUNK + 1], 1) == 2
    assert launches_of_list([0, 0], 2) == 0


def test_adamw_is_the_fused_or_the_listwise_one_of_a_gpu():
    def update(**options):
        layer = nn.Linear(8, 8, device="meta")

        def run():
            for p in to_fake_gpu(layer).parameters():
                p.grad = torch.empty_like(p)
            optimizer = torch.optim.AdamW(layer.parameters(), **options)
            optimizer.step()
            counting.operations.clear()
            optimizer.step()

        counting = Counting()
        with fake_gpu(counting.note):
            run()
        return counting.operations

    # The numbers of the updates are on the GPU, too.
    assert update(fused=True) == {"_fused_adamw_": 1, "_foreach_add_": 1}
    listwise = update()
    assert listwise["_foreach_addcdiv_"] == 1 and sum(listwise.values()) < 15


class Twice(torch.autograd.Function):
    """A backward pass in Python, with an argument that is no tensor."""

    @staticmethod
    def forward(ctx, factor, x, y):
        ctx.factor = factor
        return x * factor, y + x

    @staticmethod
    def backward(ctx, one, other):
        return None, one * ctx.factor + other, other


def network(seed):
    torch.manual_seed(seed)
    layer = nn.Linear(6, 6)
    frozen = torch.randn(6)
    x = torch.randn(5, 6, requires_grad=True)

    def loss():
        h = layer(x)
        a, b = Twice.apply(3.0, h, frozen)
        left, _ = torch.chunk(layer(a * b), 2, -1)
        half = left.to(torch.bfloat16).float() + h.mean()
        rows = torch.tensor([True, False, True, True, False])
        scores = F.layer_norm(half, (3,))[rows].softmax(-1)
        return scores.amax(-1).sum() + x.expand(2, 5, 6).norm()

    return loss, [x, *layer.parameters()]


def test_the_backward_pass_gives_autograds_gradients():
    loss, leaves = network(0)
    expected = torch.autograd.grad(loss(), leaves)
    run_backward(loss())
    for leaf, gradient in zip(leaves, expected, strict=True):
        torch.testing.assert_close(leaf.grad, gradient, rtol=1e-6, atol=1e-6)
    run_backward(loss())
    for leaf, gradient in zip(leaves, expected, strict=True):
        torch.testing.assert_close(leaf.grad, 2 * gradient, rtol=1e-6, atol=1e-6)


def test_recomputed_layers_are_computed_twice_not_more():
    layer = nn.Linear(8, 8, device="meta")

    def run():
        to_fake_gpu(layer)
        y = torch.utils.checkpoint.checkpoint(
            lambda h: layer(h).tanh().exp(), empty(4, 8), use_reentrant=False
        )
        y.sum().backward()

    found = count(run).operations
    assert (found["addmm"], found["tanh"], found["mm"]) == (2, 2, 1)


class Names(TorchDispatchMode):
    """Counts operations of a CPU that would be kernels on a GPU."""

    def __init__(self):
        super().__init__()
        self.found = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        output = func(*args, **(kwargs or {}))
        tensors = [x for x in (output,) if isinstance(x, torch.Tensor)]
        if not func.is_view and (not tensors or tensors[0].numel()):
            self.found[func._overloadpacket.__name__] += 1
        return output


def test_the_fake_gpu_runs_the_operations_that_the_cpu_runs():
    def build(device):
        return nn.Sequential(
            nn.Linear(8, 16, device=device),
            nn.GELU(),
            nn.LayerNorm(16, device=device),
            nn.Linear(16, 4, device=device),
        )

    def run(model, x, labels, mask):
        logits = model(x)[mask]
        F.cross_entropy(logits, labels[mask]).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0, foreach=False)

    labels, mask = torch.arange(6) % 4, torch.arange(6) % 2 == 0
    names = Names()
    with names:
        run(build("cpu"), torch.randn(6, 8), labels, mask)
    model = build("meta")
    counting = count(
        lambda: run(
            to_fake_gpu(model),
            empty(6, 8),
            on_fake_gpu(labels),
            on_fake_gpu(mask),
        )
    )
    # Made on the CPU before the model runs.
    made = {"uniform_", "empty", "randn", "arange", "remainder", "eq", "detach"}
    on_cpu = {name: n for name, n in names.found.items() if name not in made}
    on_gpu = dict(counting.operations)
    # Searches for the masks' true elements: two of them forward, one backward.
    on_gpu["index"] -= 2
    on_gpu["index_put"] -= 1
    assert {k: v for k, v in on_gpu.items() if v} == {
        k: v for k, v in on_cpu.items() if k in on_gpu
    }
    missing = set(on_cpu) - set(on_gpu)
    # Of the host, or inside of what a GPU does in one.
    assert missing <= {"_local_scalar_dense", "empty_like", "fill_", "zero_"}


@pytest.fixture(scope="module")
def updates():
    """Counts of the paper preset with 4 and 8 narrow layers."""
    return {
        layers: count_update(Options(layers=layers, width=32, units=10, seconds=4.0))
        for layers in (4, 8)
    }


@pytest.mark.parametrize(
    ("part", "figure"), [(p, f) for p, limits in LIMITS.items() for f in limits]
)
def test_an_update_asks_no_more_of_a_gpu_than_it_may(updates, part, figure):
    per_layer, constant = LIMITS[part][figure]
    for layers, counts in updates.items():
        counting = counts.later if part == "micro-batch" else counts.step
        found = getattr(total(counting), figure)
        limit = layers * per_layer + constant
        assert found <= limit, (
            f"{figure} of a {part} with {layers} layers: {found}, at most {limit}; "
            f"{counting.operations.most_common(8)}, {dict(counting.waits)}"
        )


def test_an_update_is_the_sum_of_its_parts(updates):
    counts = updates[4]
    whole = counts.update()
    later = counts.micro_batches - 1
    assert counts.micro_batches == round(225 / 4.0) and later > 1
    for figure in Count.__dataclass_fields__:
        first, other, step = (
            getattr(total(c), figure) for c in (counts.first, counts.later, counts.step)
        )
        assert getattr(whole, figure) == first + later * other + step


def test_the_encoder_splits_into_no_more_graphs_than_it_may():
    number, reasons = graph_breaks(Options())
    assert number <= MOST_GRAPH_BREAKS, reasons
