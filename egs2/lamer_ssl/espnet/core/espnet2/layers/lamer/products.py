"""Products of experts and routers."""

from torch.nn import functional as F


def gated(z, gates, scale):
    """Multiply ``z [..., N * r]`` by ``gates [..., N]``, if any, and the scale."""
    if gates is None:
        return scale * z
    z = z.unflatten(-1, (gates.shape[-1], -1))
    return (z * (scale * gates).to(z.dtype).unsqueeze(-1)).flatten(-2)


def adapted_linear(x, dropped, weight, bias, a, b, gates, scale):
    """Return ``W x + bias + B (gates * A dropped)`` for rows ``x [R, d_in]``."""
    experts = F.linear(gated(F.linear(dropped, a), gates, scale), b)
    return F.linear(x, weight, bias) + experts


def float32_product(x, weight):
    """Return ``x @ weight.T`` in float32."""
    return x.float() @ weight.float().t()
