"""Models against independent forward passes, published sizes, and their own promises about state and documents."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from hotplate.model.axes import parameter_axes
from hotplate.model.batch import Batch
from hotplate.model.config import MixerConfig, ModelConfig
from hotplate.model.cost import cost
from hotplate.model.generate import generate
from hotplate.model.lm import LanguageModel
from hotplate.model.presets import PRESETS
from hotplate.model.state import State

# Languini Kitchen, parameter counts of its released models at vocabulary 16,384 and 512 positions.
PUBLISHED = {
    "gpt-mini": 27_549_696,
    "gpt-tiny": 53_912_064,
    "gpt-small": 110_615_040,
    "gpt-medium": 336_390_144,
    "gpt-large": 731_077_632,
    "gpt-xl": 1_478_160_384,
    "qlstm-mini": 27_812_864,
    "qlstm-tiny": 55_881_216,
    "qlstm-small": 117_308_928,
    "qlstm-medium": 361_056_256,
    "qlstm-large": 786_951_168,
    "qlstm-xl": 1_628_180_480,
}
COUPLED = {"mini": 27_287_552, "tiny": 53_518_848, "small": 110_221_824, "large": 730_291_200}
FORWARD_GFLOPS = {  # its profiler, one window of 512 tokens, full attention square
    "gpt-mini": 20.42,
    "gpt-small": 109.61,
    "gpt-xl": 1555.2,
    "qlstm-mini": 19.89,
    "qlstm-small": 107.32,
    "qlstm-xl": 1633.63,
}
TINY = {
    "gpt": ModelConfig(layers=2, width=24, ffn=40, vocab=37, context=32, mixer=MixerConfig(heads=2, head_width=8)),
    "qlstm": ModelConfig(
        layers=2,
        width=24,
        ffn=40,
        vocab=37,
        positions="none",
        mixer=MixerConfig(kind="qlstm", heads=2, head_width=8),
    ),
    "lstm": ModelConfig(
        layers=2,
        width=24,
        ffn=40,
        vocab=37,
        positions="none",
        mixer=MixerConfig(kind="lstm", heads=2, head_width=8),
    ),
    "decoder": ModelConfig(
        layers=2,
        width=24,
        ffn=40,
        vocab=37,
        context=32,
        mlp="swiglu",
        norm="rmsnorm",
        positions="rotary",
        bias="qkv",
        tied=True,
        embedding_scale=False,
        mixer=MixerConfig(heads=4, head_width=8, kv_heads=2, qk_norm=True),
    ),
}
SHARED = replace(TINY["lstm"], mixer=replace(TINY["lstm"].mixer, shared_recurrent=True))
COUPLED_TINY = replace(TINY["qlstm"], mixer=replace(TINY["qlstm"].mixer, coupled=True))
RELU2 = replace(TINY["decoder"], mlp="relu2", bias="none", tied=False)


def build(config: ModelConfig, dtype: torch.dtype = torch.float64) -> LanguageModel:
    """A model whose biases and norms are not at their special initial values."""
    model = LanguageModel.build(config, seed=1, dtype=dtype)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.add_(0.1 * noise.to(dtype))
    return model


def rows_of(tokens: torch.Tensor, **changes) -> Batch:
    """A batch that predicts each next token; the last column's target is arbitrary."""
    positions = torch.arange(tokens.shape[1]).expand(tokens.shape)
    made = Batch(
        tokens=tokens,
        targets=tokens.roll(-1, 1),
        weights=torch.ones(tokens.shape, dtype=torch.float64),
        positions=positions,
        target_bytes=torch.zeros(tokens.shape, dtype=torch.int32),
    )
    return replace(made, **changes)


def random_tokens(rows: int = 3, steps: int = 11, vocab: int = 37, seed: int = 3) -> torch.Tensor:
    return torch.randint(vocab, (rows, steps), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameter_counts_are_the_published_ones(name: str) -> None:
    assert cost(PRESETS[name], 512).parameters == PUBLISHED[name]


@pytest.mark.parametrize("size", COUPLED)
def test_coupled_parameter_counts_are_the_published_ones(size: str) -> None:
    preset = PRESETS[f"qlstm-{size}"]
    assert cost(replace(preset, mixer=replace(preset.mixer, coupled=True)), 512).parameters == COUPLED[size]


@pytest.mark.parametrize("name", FORWARD_GFLOPS)
def test_flops_agree_with_the_published_profile(name: str) -> None:
    counted = cost(PRESETS[name], 512, causal=False).forward_flops * 512 / 1e9
    assert counted == pytest.approx(FORWARD_GFLOPS[name], rel=3e-3)


def test_decoder_holds_published_shapes() -> None:
    assert cost(PRESETS["decoder-135m"], 512).parameters == 134_515_008  # SmolLM2-135M
    speech = replace(PRESETS["decoder-0.5b"], vocab=502)  # Qwen2.5-0.5B with a unit vocabulary
    assert cost(speech, 512).parameters == 358_347_904


@pytest.mark.parametrize("size", ["mini", "small"])
def test_lstm_adds_one_matrix_per_gate_and_head(size: str) -> None:
    config = PRESETS[f"lstm-{size}"]
    heads, width = config.mixer.heads, config.mixer.head_width
    extra = config.layers * 4 * heads * width * width
    assert cost(config, 512).parameters == PUBLISHED[f"qlstm-{size}"] + extra


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
            for head in range(heads):
                pre = [gates[:, t, g, head] for g in range(gates.shape[2])]
                if mixer.kind == "lstm":
                    recurrent = weights[f"{name}.mixer.recurrent"]
                    matrix = 0 if mixer.shared_recurrent else head
                    pre = [p + h[head] @ recurrent[g, matrix] for g, p in enumerate(pre)]
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


FORWARDS = [
    ("gpt", TINY["gpt"], plain_gpt),
    ("qlstm", TINY["qlstm"], plain_recurrent),
    ("qlstm-coupled", COUPLED_TINY, plain_recurrent),
    ("lstm", TINY["lstm"], plain_recurrent),
    ("lstm-shared", SHARED, plain_recurrent),
    ("decoder", TINY["decoder"], plain_decoder),
    ("decoder-relu2", RELU2, plain_decoder),
]


@pytest.mark.parametrize(("name", "config", "plain"), FORWARDS, ids=[name for name, _, _ in FORWARDS])
@pytest.mark.parametrize("impl", ["auto", "reference"])
def test_logits_and_loss_equal_an_independent_forward(impl, name, config, plain) -> None:
    model, tokens = build(replace(config, mixer=replace(config.mixer, impl=impl))), random_tokens()
    expected = plain(model, tokens)
    batch = rows_of(tokens)
    x, _ = model.hidden(batch)
    tolerance = 2e-6 if config.positions == "rotary" else 1e-12  # rotation angles are fp32 by design
    torch.testing.assert_close(model.logits(x), expected, rtol=tolerance, atol=tolerance)
    nll = F.cross_entropy(expected.flatten(0, 1), batch.targets.flatten(), reduction="sum")
    output = model(batch)
    torch.testing.assert_close(output.loss_sum.double(), nll, rtol=1e-6, atol=1e-6)
    assert output.weight_sum == tokens.numel()


@pytest.mark.parametrize("name", TINY)
def test_every_parameter_gets_a_gradient_and_declares_axes(name: str) -> None:
    model = build(TINY[name])
    model(rows_of(random_tokens())).loss_sum.backward()
    for full, (parameter, axes) in parameter_axes(model).items():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, full
        assert len(axes.names) == parameter.dim(), full
        assert not axes.blocks or sum(axes.blocks) == parameter.shape[0], full


@pytest.mark.parametrize("name", TINY)
def test_packed_documents_do_not_see_each_other(name: str) -> None:
    model = build(TINY[name])
    tokens = random_tokens(2, 12)
    starts = [(0, 0), (0, 5), (0, 6), (1, 0), (1, 9)]
    resets = torch.zeros(2, 12, dtype=torch.bool)
    for row, column in starts:
        resets[row, column] = True
    flat = [row * 12 + column for row, column in starts]
    cu_seqlens = torch.tensor([*flat, 24, 24], dtype=torch.int32)
    positions = torch.cat([torch.arange(b - a) for a, b in zip(flat, [*flat[1:], 24], strict=True)]).view(2, 12)
    packed = rows_of(tokens, resets=resets, cu_seqlens=cu_seqlens, positions=positions)
    x, _ = model.hidden(packed)
    together = x.flatten(0, 1)
    for start, stop in zip(flat, [*flat[1:], 24], strict=True):
        alone, _ = model.hidden(rows_of(tokens.flatten()[None, start:stop]))
        torch.testing.assert_close(together[start:stop], alone[0], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", ["qlstm", "lstm"])
def test_state_carried_over_windows_equals_one_long_window(name: str) -> None:
    model, tokens = build(TINY[name]), random_tokens(2, 14)
    whole, final = model.hidden(rows_of(tokens))
    first, state = model.hidden(rows_of(tokens[:, :5]))
    second, state = model.hidden(rows_of(tokens[:, 5:]), state)
    torch.testing.assert_close(torch.cat([first, second], 1), whole, rtol=1e-12, atol=1e-12)
    for mine, other in zip(state.layers, final.layers, strict=True):
        for key in mine:
            torch.testing.assert_close(mine[key], other[key], rtol=1e-12, atol=1e-12)


def test_state_selects_resets_and_survives_a_dictionary() -> None:
    model = build(TINY["lstm"])
    _, state = model.hidden(rows_of(random_tokens(4, 6)))
    picked = state.select(torch.tensor([2, 0]))
    assert torch.equal(picked.layers[1]["c"], state.layers[1]["c"][[2, 0]])
    cleared = state.reset(torch.tensor([False, True, False, False]))
    assert not cleared.layers[0]["h"][1].any() and torch.equal(cleared.layers[0]["h"][2], state.layers[0]["h"][2])
    again = State.from_dict(state.to_dict(), 2)
    assert torch.equal(again.layers[1]["h"], state.layers[1]["h"])
    halves = [state.select(torch.tensor(rows)) for rows in ([0, 1], [2, 3])]
    assert torch.equal(State.concatenate(halves).layers[0]["c"], state.layers[0]["c"])


@pytest.mark.parametrize("name", TINY)
def test_greedy_generation_equals_rereading_everything(name: str) -> None:
    model, prompt = build(TINY[name]), random_tokens(2, 4)
    drawn = generate(model, prompt, 12, temperature=0)
    tokens = prompt
    for _ in range(12):
        x, _ = model.hidden(rows_of(tokens))
        tokens = torch.cat([tokens, model.logits(x[:, -1]).argmax(-1, keepdim=True)], 1)
    assert torch.equal(drawn, tokens[:, 4:])


@pytest.mark.parametrize("name", TINY)
def test_generation_runs_past_the_context(name: str) -> None:
    model = build(TINY[name])
    drawn = generate(
        model, random_tokens(1, 40), 50, temperature=0.9, top_k=5, generator=torch.Generator().manual_seed(0)
    )
    again = generate(
        model, random_tokens(1, 40), 50, temperature=0.9, top_k=5, generator=torch.Generator().manual_seed(0)
    )
    assert drawn.shape == (1, 50) and torch.equal(drawn, again)


def test_sampling_respects_top_k_and_temperature() -> None:
    model, prompt = build(TINY["gpt"]), random_tokens(1, 3)
    x, _ = model.hidden(rows_of(prompt))
    best = set(model.logits(x[:, -1]).topk(3).indices[0].tolist())
    drawn = {int(generate(model, prompt, 1, top_k=3, generator=torch.Generator().manual_seed(s))) for s in range(60)}
    assert drawn <= best and len(drawn) > 1
    cold = {
        int(generate(model, prompt, 1, temperature=1e-4, generator=torch.Generator().manual_seed(s))) for s in range(9)
    }
    assert cold == {int(model.logits(x[:, -1]).argmax())}


def test_initial_weights_depend_on_the_seed_alone() -> None:
    config = replace(PRESETS["gpt-nano"], vocab=512)
    first, second, other = (LanguageModel.build(config, seed) for seed in (7, 7, 8))
    for a, b, c in zip(first.parameters(), second.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)
        assert a.dim() < 2 or not torch.equal(a, c)
    assert first.blocks[0].mlp.up.weight.std().item() == pytest.approx(0.02, rel=0.02)
    assert first.blocks[0].mlp.down.weight.std().item() == pytest.approx(0.02 / math.sqrt(8), rel=0.02)
    assert not first.blocks[0].mlp.up.bias.any() and (first.norm.weight == 1).all()


def test_bad_configs_and_windows_say_what_to_change() -> None:
    with pytest.raises(ValueError, match="divides heads 8"):
        MixerConfig(heads=8, kv_heads=3)
    with pytest.raises(ValueError, match="sizes >= 1"):
        ModelConfig(layers=0)
    with pytest.raises(ValueError, match="even head_width"):
        ModelConfig(positions="rotary", mixer=MixerConfig(head_width=7))
    with pytest.raises(ValueError, match="rotary positions need"):
        ModelConfig(positions="rotary", mixer=MixerConfig(kind="qlstm"))
    with pytest.raises(ValueError, match="context = 32"):
        build(TINY["gpt"])(rows_of(random_tokens(1, 33)))
    with pytest.raises(ValueError, match="start from the document symbol"):
        generate(build(TINY["gpt"]), torch.empty(1, 0, dtype=torch.long), 3)
