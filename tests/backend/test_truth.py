"""The truth really is fp64, and agrees with formulas written in numpy from the ops' documentation."""

import math

import numpy as np
import pytest
import torch

from turbort.op import OpSpec
from turbort.ops import OPS
from turbort.testing.case import samples_of
from turbort.testing.truth import truth


def softmax(scores):
    e = np.exp(scores - scores.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def layer_norm(x, eps):
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + eps)


def gelu(x):
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def linear(x, weight, bias=None, activation=None, residual=None, gate=None):
    y = x @ weight.T + (0 if bias is None else bias)
    y = gelu(y) if activation == "gelu_tanh" else y
    return y if residual is None else residual + y * (1 if gate is None else gate)


def attention(q, k, v):
    scores = np.einsum("bqhd,bkhd->bhqk", q, k) / math.sqrt(q.shape[-1])
    return np.einsum("bhqk,bkhd->bqhd", softmax(scores), v)


def sla_attention(q, k, v, proj_weight, proj_bias, topk, block):
    """Block by block, head by head, as slowly as the description reads."""
    out = np.zeros_like(q)
    smooth = k - k.mean(1, keepdims=True)
    starts = range(0, k.shape[1], block[1])
    for b in range(q.shape[0]):
        for h in range(q.shape[2]):
            fq, fk = softmax(q[b, :, h]), softmax(k[b, :, h])
            linear_part = fq @ (fk.T @ v[b, :, h]) / (1e-5 + fq @ fk.sum(0))[:, None]
            for first in range(0, q.shape[1], block[0]):
                rows = slice(first, first + block[0])
                scores = [q[b, rows, h].mean(0) @ smooth[b, s : s + block[1], h].mean(0) for s in starts]
                keep = max(1, int(topk * len(scores)))
                chosen = np.argsort(-np.array(scores), kind="stable")[:keep]
                keys = np.concatenate([np.arange(starts[j], min(starts[j] + block[1], k.shape[1])) for j in sorted(chosen)])
                p = softmax(q[b, rows, h] @ k[b, keys, h].T / math.sqrt(q.shape[-1]))
                out[b, rows, h] = p @ v[b, keys, h] + linear_part[rows] @ proj_weight.T + proj_bias
    return out


def norm_modulate(x, scale, shift, eps=1e-6):
    return layer_norm(x, eps) * (1 + scale) + shift


def qk_norm_rope(x, weight, cos, sin, heads, eps=1e-6):
    y = x / np.sqrt((x**2).mean(-1, keepdims=True) + eps) * weight
    y = y.reshape(*x.shape[:2], heads, -1)
    out = np.empty_like(y)
    for i in range(y.shape[-1] // 2):
        c, s = cos[:, i, None], sin[:, i, None]
        out[..., 2 * i] = y[..., 2 * i] * c - y[..., 2 * i + 1] * s
        out[..., 2 * i + 1] = y[..., 2 * i] * s + y[..., 2 * i + 1] * c
    return out


def vae_norm_silu(x, gamma, eps=1e-12):
    y = x / np.maximum(np.sqrt((x**2).sum(1, keepdims=True)), eps) * math.sqrt(x.shape[1]) * gamma[None]
    return y / (1 + np.exp(-y))


FORMULAS = {
    "linear": linear,
    "attention": attention,
    "sla_attention": sla_attention,
    "norm_modulate": norm_modulate,
    "layer_norm": lambda x, weight, bias: layer_norm(x, 1e-6) * weight + bias,
    "rms_norm": lambda x, weight: x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * weight,
    "gated_residual": lambda x, y, gate: x + y * gate,
    "qk_norm_rope": qk_norm_rope,
    "gelu_quant": gelu,
    "vae_norm_silu": vae_norm_silu,
    "quantize": lambda x, emit: x,
    "quantize_time": lambda x, emit, frames: x,
}


def small(spec):
    return [sample for sample in samples_of(spec) if "large" not in sample.tags]


def arguments(sample):
    return sample.make(torch.Generator().manual_seed(1), torch.float32, torch.device("cpu"))


@pytest.mark.parametrize("name", FORMULAS)
def test_truth_agrees_with_the_formula(name):
    spec = OPS[name]
    for sample in small(spec):
        given = arguments(sample)
        exact = {key: value.double().numpy() if isinstance(value, torch.Tensor) else value for key, value in given.items()}
        want = FORMULAS[name](**exact)
        (got,) = truth(spec, given)
        assert got.dtype == torch.float64
        error = np.square(got.numpy() - want).sum() / max(np.square(want).sum(), 1e-300)
        assert error < 1e-20, f"{name}/{sample.id}: {error:.1e}"


def test_fused_residual_norm_is_its_parts():
    spec = OPS["gated_residual_norm_modulate"]
    for sample in small(spec):
        given = arguments(sample)
        x, y, gate, scale, shift = (given[key].double().numpy() for key in ("x", "y", "gate", "scale", "shift"))
        new, hidden = (part.numpy() for part in truth(spec, given))
        np.testing.assert_allclose(new, x + y * gate, rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(hidden, norm_modulate(x + y * gate, scale, shift), rtol=1e-9, atol=1e-9)


def test_casts_to_fp32_inside_a_reference_stay_exact():
    """A third party's reference may name fp32 for its statistics; the truth still is fp64."""

    def mean(x):
        return x.float().mean(-1).to(torch.float32) + torch.zeros((), dtype=torch.float32)

    x = torch.tensor([[1.0, 1e-9]])
    (got,) = truth(OpSpec("mean", mean, tuple), {"x": x})
    assert got.item() == x.double().mean().item()
