"""Forward passes written out step by step from the papers, sharing nothing with the models but weights by name."""

import math

import torch
import torch.nn.functional as F

from hotplate.model.config import ModelConfig
from hotplate.model.lm import LanguageModel


def plain_gpt(model: LanguageModel, tokens: torch.Tensor) -> torch.Tensor:
    """Languini Kitchen's GPT (section 3.1), written out: separate heads, explicit scores and mask."""
    config, weights = model.config, dict(model.named_parameters())
    heads, width = config.mixer.heads, config.mixer.head_width

    def norm(x, name):
        centred = x - x.mean(-1, keepdim=True)
        scaled = centred / torch.sqrt(centred.pow(2).mean(-1, keepdim=True) + 1e-5)
        return scaled * weights[f"{name}.weight"] + weights[f"{name}.bias"]

    def linear(x, name):
        return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    steps = tokens.shape[1]
    x = weights["embedding.weight"][tokens] * math.sqrt(config.width) + weights["position.weight"][:steps]
    allowed = torch.tril(torch.ones(steps, steps, dtype=torch.bool))
    for layer in range(config.layers):
        name = f"blocks.{layer}"
        q, k, v = linear(norm(x, f"{name}.mixer_norm"), f"{name}.mixer.qkv").chunk(3, dim=-1)
        heard = []
        for head in range(heads):
            part = slice(head * width, (head + 1) * width)
            scores = torch.einsum("btk,bsk->bts", q[..., part], k[..., part]) * width**-0.5
            heard.append(scores.masked_fill(~allowed, -torch.inf).softmax(-1) @ v[..., part])
        x = x + linear(torch.cat(heard, -1), f"{name}.mixer.out")
        hidden = linear(norm(x, f"{name}.mlp_norm"), f"{name}.mlp.up")
        hidden = 0.5 * hidden * (1 + torch.tanh(math.sqrt(2 / math.pi) * (hidden + 0.044715 * hidden**3)))
        x = x + linear(hidden, f"{name}.mlp.down")
    return norm(x, "norm") @ weights["head.weight"].T


def seen(h: list[torch.Tensor], head: int, recurrent: torch.Tensor, config: ModelConfig) -> torch.Tensor:
    """What one gate of one head sees of the previous step: h of every head [B, K], and that gate's weights."""
    mixer = config.mixer
    own = slice(head * mixer.head_width, (head + 1) * mixer.head_width)
    if mixer.kind == "lstm":
        return h[head] @ recurrent[0 if mixer.shared_recurrent else head]
    if mixer.kind == "lstm_dense":
        return torch.cat(h, -1) @ recurrent[:, own]
    return h[head] * recurrent[own]


def plain_recurrent(model: LanguageModel, tokens: torch.Tensor) -> torch.Tensor:
    """The LSTM family, one step and one head at a time (sections 3.2, 3.3)."""
    config, weights = model.config, dict(model.named_parameters())
    mixer = config.mixer
    heads, width = mixer.heads, mixer.head_width
    x = weights["embedding.weight"][tokens] * math.sqrt(config.width)
    for layer in range(config.layers):
        name = f"blocks.{layer}"
        u = F.layer_norm(x, (config.width,), weights[f"{name}.mixer_norm.weight"], weights[f"{name}.mixer_norm.bias"])
        gates = u @ weights[f"{name}.mixer.gates.weight"].T + weights[f"{name}.mixer.gates.bias"]
        gates = gates.unflatten(-1, (-1, heads, width))
        rows, steps = tokens.shape
        c = [torch.zeros(rows, width, dtype=x.dtype) for _ in range(heads)]
        h = [torch.zeros(rows, width, dtype=x.dtype) for _ in range(heads)]
        outputs = []
        for t in range(steps):
            previous = list(h)
            for head in range(heads):
                pre = [gates[:, t, g, head] for g in range(gates.shape[2])]
                if mixer.kind != "qlstm":
                    recurrent = weights[f"{name}.mixer.recurrent"]
                    pre = [p + seen(previous, head, recurrent[g], config) for g, p in enumerate(pre)]
                if mixer.coupled:
                    f, z, o = (
                        torch.sigmoid(pre[0] + mixer.forget_offset),
                        torch.tanh(pre[1]),
                        torch.sigmoid(pre[2]),
                    )
                    i = 1 - f
                else:
                    i, f = torch.sigmoid(pre[0]), torch.sigmoid(pre[1] + mixer.forget_offset)
                    z, o = torch.tanh(pre[2]), torch.sigmoid(pre[3])
                c[head] = f * c[head] + i * z
                h[head] = o * torch.tanh(c[head])
            outputs.append(torch.cat(h, -1))
        update = torch.stack(outputs, 1) @ weights[f"{name}.mixer.out.weight"].T + weights[f"{name}.mixer.out.bias"]
        x = x + update
        u = F.layer_norm(x, (config.width,), weights[f"{name}.mlp_norm.weight"], weights[f"{name}.mlp_norm.bias"])
        hidden = F.gelu(u @ weights[f"{name}.mlp.up.weight"].T + weights[f"{name}.mlp.up.bias"], approximate="tanh")
        x = x + hidden @ weights[f"{name}.mlp.down.weight"].T + weights[f"{name}.mlp.down.bias"]
    x = F.layer_norm(x, (config.width,), weights["norm.weight"], weights["norm.bias"])
    return x @ weights["head.weight"].T


def plain_decoder(model: LanguageModel, tokens: torch.Tensor) -> torch.Tensor:
    """Llama/Qwen-style decoder written out: rotation as complex numbers, key heads repeated by hand."""
    config, weights = model.config, dict(model.named_parameters())
    mixer, eps = config.mixer, config.norm_eps
    heads, groups, width = mixer.heads, mixer.groups, mixer.head_width

    def norm(x, weight):
        return x / torch.sqrt(x.pow(2).mean(-1, keepdim=True) + eps) * weight

    def turn(x):
        half = width // 2
        pairs = torch.complex(x[..., :half], x[..., half:])
        angle = torch.arange(x.shape[1], dtype=x.dtype)[:, None] * mixer.rope_theta ** (
            -torch.arange(half, dtype=x.dtype) * 2 / width
        )
        turned = pairs * torch.polar(torch.ones_like(angle), angle)[None, :, None]
        return torch.cat([turned.real, turned.imag], -1)

    steps = tokens.shape[1]
    x = weights["embedding.weight"][tokens]
    allowed = torch.tril(torch.ones(steps, steps, dtype=torch.bool))
    for layer in range(config.layers):
        name = f"blocks.{layer}"
        u = norm(x, weights[f"{name}.mixer_norm.weight"]) @ weights[f"{name}.mixer.qkv.weight"].T
        if config.bias == "qkv":
            u = u + weights[f"{name}.mixer.qkv.bias"]
        u = u.unflatten(-1, (heads + 2 * groups, width))
        q, k, v = u[:, :, :heads], u[:, :, heads : heads + groups], u[:, :, heads + groups :]
        q, k = (
            norm(q, weights[f"{name}.mixer.q_norm.weight"]),
            norm(k, weights[f"{name}.mixer.k_norm.weight"]),
        )
        q, k = turn(q), turn(k)
        heard = []
        for head in range(heads):
            group = head // (heads // groups)
            scores = torch.einsum("btk,bsk->bts", q[:, :, head], k[:, :, group]) * width**-0.5
            heard.append(scores.masked_fill(~allowed, -torch.inf).softmax(-1) @ v[:, :, group])
        x = x + torch.cat(heard, -1) @ weights[f"{name}.mixer.out.weight"].T
        hidden = norm(x, weights[f"{name}.mlp_norm.weight"]) @ weights[f"{name}.mlp.up.weight"].T
        if config.mlp == "swiglu":
            hidden = F.silu(hidden[..., : config.ffn]) * hidden[..., config.ffn :]
        else:
            hidden = hidden.clamp(min=0) ** 2
        x = x + hidden @ weights[f"{name}.mlp.down.weight"].T
    head = weights["embedding.weight"] if config.tied else weights["head.weight"]
    return norm(x, weights["norm.weight"]) @ head.T
