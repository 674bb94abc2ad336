"""Router: which experts a frame uses, and with which weight (Lamer-SSL, Eq. 3-4)."""

import torch
from torch import Tensor, nn


class _Float32Product(torch.autograd.Function):
    """``x @ weight.T`` in float32 that keeps ``x`` as it came.

    Autograd would keep the float32 copy of a half-precision ``x``: two to four times
    what the experts themselves keep.
    """

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return x.float() @ weight.float().t()

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor]:
        x, weight = ctx.saved_tensors
        grad_x = (grad @ weight.float()).to(x.dtype)
        rows = grad.reshape(-1, grad.shape[-1])
        grad_weight = rows.t() @ x.reshape(-1, x.shape[-1]).float()
        return grad_x, grad_weight.to(weight.dtype)


class Router(nn.Module):
    r"""Softmax router with Top-K selection.

    .. math::
        p = \mathrm{softmax}(W_r h), \qquad
        R(h)_k = p_k / \sum_{j \in \mathcal{T}(h)} p_j
        \;\text{for}\; k \in \mathcal{T}(h),\; 0 \;\text{otherwise}

    For ``top_k = 1`` the raw probability is kept: Eq. 4 would make the gate 1 and the
    router would get no gradient (a stated departure). ``top_k = None`` or ``top_k =
    num_experts`` uses all experts, so the gates are ``p`` itself (soft routing).

    With ``use_selection_bias`` a persistent per-expert bias is added to ``p`` for the
    selection only (loss-free balancing, arXiv 2408.15664); it is updated from the load
    of the last training batch, which is kept, too.

    Raises:
        ValueError: ``num_experts`` below 2, or ``top_k`` not in 1 .. ``num_experts``.
    """

    def __init__(
        self,
        dim: int,
        num_experts: int,
        top_k: int | None = 2,
        use_selection_bias: bool = False,
    ) -> None:
        super().__init__()
        if num_experts < 2:
            raise ValueError(
                f"a router needs at least 2 experts to choose from, found {num_experts}"
            )
        if top_k is not None and not 1 <= top_k <= num_experts:
            raise ValueError(
                f"top_k: found {top_k}, expected at most {num_experts}, the number "
                "of experts in the layer, at least 1, or None for all of them"
            )
        self.num_experts = num_experts
        self.top_k = top_k
        self.weight = nn.Parameter(torch.empty(num_experts, dim))
        nn.init.kaiming_uniform_(self.weight, a=5**0.5)
        self.selection_bias: Tensor | None
        self.load: Tensor | None
        for name, start in (("selection_bias", 0.0), ("load", 1.0 / num_experts)):
            value = torch.full((num_experts,), start) if use_selection_bias else None
            self.register_buffer(name, value)

    def adapter_parameters(self) -> dict[str, nn.Parameter]:
        """What is trained beside a frozen base, by kind."""
        return {"routers": self.weight}

    @property
    def is_sparse(self) -> bool:
        """Whether some expert is left out for every frame."""
        return self.top_k is not None and self.top_k < self.num_experts

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Route every frame of ``x [..., dim]``.

        Returns:
            gates (zero outside the Top-K) and probs, both ``[..., N]`` float32.
        """
        with torch.autocast(x.device.type, enabled=False):
            if x.dtype == torch.float32:
                scores = x @ self.weight.float().t()
            else:
                scores = _Float32Product.apply(x, self.weight)
            probs = torch.softmax(scores, dim=-1)
        if not self.is_sparse:
            return probs, probs
        scores = probs.detach()
        if self.selection_bias is not None:
            scores = scores + self.selection_bias
        chosen = scores.topk(self.top_k, dim=-1).indices
        kept = probs.gather(-1, chosen)
        if self.top_k > 1:
            kept = kept / kept.sum(-1, keepdim=True)
        gates = torch.zeros_like(probs).scatter(-1, chosen, kept)
        return gates, probs

    @torch.no_grad()
    def update_selection_bias(self, rate: float = 1e-3) -> None:
        """Raise the bias of experts below their share of ``load``, lower the others'.

        To be called before a training batch, with ``load [N]`` (shares of dispatched
        frames, summing to 1) of the batch before: between a forward pass and its
        backward pass the bias must stay, or recomputed layers would route otherwise.
        """
        if self.selection_bias is not None:
            self.selection_bias += rate * torch.sign(1.0 / self.num_experts - self.load)
