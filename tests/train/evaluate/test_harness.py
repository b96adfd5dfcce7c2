"""lm-eval-harness through the package's own model: against log-probabilities from logits, and on a task of one file."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from tiny import TINY

from hotplate.model.batch import Batch
from hotplate.model.lm import LanguageModel
from hotplate.model.presets import PRESETS
from hotplate.train.commands import evaluate, train
from hotplate.train.data.dataset import Dataset
from hotplate.train.evaluate.harness import HarnessModel

SHAPE = {"layers": 1, "width": 32, "ffn": 32, "vocab": 2048}
MODELS = {name: replace(PRESETS[name], **SHAPE) for name in ("gpt-nano", "qlstm-nano")}
TEXT = "the first words of a text, which goes on for a while until it ends: naïve 🙂"


@pytest.fixture(scope="module")
def tokenizer(prepared: Path):
    return Dataset.open(prepared, "header").tokenizer


@pytest.fixture(params=MODELS)
def model(request: pytest.FixtureRequest) -> LanguageModel:
    return LanguageModel.build(MODELS[request.param], seed=3)


def log_probabilities(model: LanguageModel, tokens: list[int]) -> torch.Tensor:
    """float64 [N, V] of the token after each of the N `tokens`, read at once."""
    row = torch.tensor([tokens])
    batch = Batch(row, row, torch.ones(row.shape), torch.arange(len(tokens))[None], torch.zeros_like(row).int())
    with torch.no_grad():
        x, _ = model.hidden(batch)
        return model.logits(x)[0].double().log_softmax(-1)


def expected(model: LanguageModel, tokens: list[int], count: int) -> tuple[float, bool]:
    table = log_probabilities(model, tokens[:-1])[-count:]
    wanted = torch.tensor(tokens[-count:])
    return table.gather(1, wanted[:, None]).sum().item(), bool((table.argmax(1) == wanted).all())


def asked(*arguments) -> SimpleNamespace:
    return SimpleNamespace(args=arguments)


def test_likelihoods_are_those_of_the_logits(model: LanguageModel, tokenizer) -> None:
    adapter = HarnessModel(model, tokenizer, window=64, rows=2)
    pairs = [
        ("the first", " words"),
        ("", "the"),
        ("a text, which goes on", " for a while until it"),
        ("of ", "a text"),
    ]
    for (context, continuation), found in zip(pairs, adapter.loglikelihood([asked(*p) for p in pairs]), strict=True):
        whole = tokenizer.encode(context + continuation).tolist()
        head, tail = adapter._encode_pair(context, continuation)
        assert head + tail == whole and context.startswith(tokenizer.decode(head)) and tail
        likelihood, greedy = expected(model, [tokenizer.eod, *whole], len(tail))
        assert found[0] == pytest.approx(likelihood, rel=1e-5) and found[1] == greedy
    best = log_probabilities(model, [tokenizer.eod, *tokenizer.encode("the").tolist()])[-1].argmax().item()
    assert adapter.score([([tokenizer.eod, *tokenizer.encode("the").tolist(), best], 1)])[0][1]


def test_a_token_across_the_border_is_scored(tokenizer) -> None:
    adapter = HarnessModel(LanguageModel.build(MODELS["gpt-nano"], 0), tokenizer, window=64, rows=1)
    (token,) = [i for i in tokenizer.encode(TEXT).tolist() if tokenizer.byte_lengths()[i] > 2][:1]
    word = tokenizer.decode([token])
    assert adapter._encode_pair(word[:-1], word[-1]) == ([], tokenizer.encode(word).tolist())
    head, tail = adapter._encode_pair("naïve 🙂", "!")  # characters of several bytes
    assert tokenizer.decode(head) == "naïve 🙂" and tokenizer.decode(tail) == "!"


def test_long_contexts_keep_their_end_or_their_state(model: LanguageModel, tokenizer) -> None:
    window = 8
    adapter = HarnessModel(model, tokenizer, window, rows=3)
    head, tail = adapter._encode_pair(TEXT, " end")
    tokens = [tokenizer.eod, *head, *tail]
    assert len(tokens) > 2 * window
    seen = tokens if model.config.recurrent else tokens[-window - 1 :]
    ((likelihood, _),) = adapter.loglikelihood([asked(TEXT, " end")])
    assert likelihood == pytest.approx(expected(model, seen, len(tail))[0], rel=1e-5)
    if not model.config.recurrent:
        with pytest.raises(ValueError, match=r"exceeds the window of 8; raise --window"):
            adapter.loglikelihood([asked("a", TEXT)])


def test_rolling_scores_every_token_once(model: LanguageModel, tokenizer) -> None:
    window, ids = 8, tokenizer.encode(TEXT).tolist()
    (found,) = HarnessModel(model, tokenizer, window, rows=2).loglikelihood_rolling([asked(TEXT)])
    tokens = [tokenizer.eod, *ids]
    if model.config.recurrent:
        assert found == pytest.approx(expected(model, tokens, len(ids))[0], rel=1e-5)
        return
    total, scored = 0.0, 0
    while scored < len(ids):
        stop = min(len(ids), scored + window)
        start = max(0, stop - window) if scored else 0  # the last window reaches back to be full
        total += expected(model, tokens[start : stop + 1], stop - scored)[0]
        scored = stop
    assert found == pytest.approx(total, rel=1e-5)


def test_generation_stops_at_the_first_stop_text(model: LanguageModel, tokenizer) -> None:
    adapter = HarnessModel(model, tokenizer, window=64, rows=1)
    prompt = [tokenizer.eod, *tokenizer.encode("the").tolist()]
    drawn: list[int] = []
    for _ in range(12):
        drawn.append(log_probabilities(model, prompt + drawn)[-1].argmax().item())
    kept = drawn[: drawn.index(tokenizer.eod)] if tokenizer.eod in drawn else drawn
    whole = tokenizer.decode(kept)
    assert adapter.generate_until([asked("the", {"max_gen_toks": 12})]) == [whole] and whole
    stop = whole[len(whole) // 2 :][:3]
    cut = {"until": ["never in it", stop], "max_gen_toks": 12, "do_sample": False, "temperature": 0.0}
    assert adapter.generate_until([asked("the", cut)]) == [whole[: whole.index(stop)]]
    sampled = {"until": "\n\n\n", "max_gen_toks": 5, "do_sample": True, "temperature": 0.7}
    assert adapter.generate_until([asked("", sampled)]) == adapter.generate_until([asked("", sampled)])
    with pytest.raises(ValueError, match="top_p"):
        adapter.generate_until([asked("the", {"top_p": 0.9})])


TASKS = {
    "choose": """
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_target: "{{answer}}"
doc_to_choice: "{{choices}}"
metric_list: [{metric: acc}]
""",
    "read": """
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{question}}"
metric_list: [{metric: bits_per_byte}]
""",
    "write": """
output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: "x"
generation_kwargs: {until: ["."], max_gen_toks: 4}
metric_list: [{metric: exact_match}]
""",
}


@pytest.fixture
def tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Three task files over one JSON file, read without a network."""
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    documents = [{"question": f"{TEXT} {n}", "choices": [" the", " of", " which"], "answer": n % 3} for n in range(4)]
    (tmp_path / "documents.json").write_text("\n".join(map(json.dumps, documents)))
    source = f"dataset_path: json\ndataset_kwargs: {{data_files: {{test: {tmp_path / 'documents.json'}}}}}\n"
    for name, content in TASKS.items():
        (tmp_path / f"{name}.yaml").write_text(f"task: {name}\ntest_split: test\n{source}{content}")
    return [str(tmp_path / f"{name}.yaml") for name in TASKS]


def test_the_command_runs_tasks_of_ones_own(prepared: Path, tasks: list[str], tmp_path: Path, refused, capsys) -> None:
    run = tmp_path / "run"
    assert train.main([*TINY, f"--data.source={prepared}", f"--run.folder={run}", "--budget=2steps"]) == 0
    result = tmp_path / "result.json"
    assert evaluate.main([str(run), "--tasks", *tasks, f"--json={result}"]) == 0
    assert "bits_per_byte" in capsys.readouterr().out
    found = json.loads(result.read_text())["tasks"]
    assert set(found) == {"choose", "read", "write"}
    assert found["write"]["exact_match,none"] == 0.0 and found["choose"]["acc,none"] in (0, 0.25, 0.5, 0.75, 1)

    from hotplate.train.trained import load_trained

    tokenizer = Dataset.open(prepared, "header").tokenizer
    adapter = HarnessModel(load_trained(run, torch.device("cpu")).model, tokenizer, window=32, rows=1)
    texts = [f"{TEXT} {n}" for n in range(4)]
    nats = -sum(adapter.loglikelihood_rolling([asked(text) for text in texts]))
    bits = nats / sum(len(text.encode()) for text in texts) / torch.log(torch.tensor(2.0)).item()
    assert found["read"]["bits_per_byte,none"] == pytest.approx(bits, rel=1e-5)
    capsys.readouterr()
    assert "nowhere.yaml" in refused(evaluate, str(run), "--tasks", "nowhere.yaml")
    assert "give one" in refused(evaluate, str(run), "--tasks", tasks[0], "--by-position", "x")
