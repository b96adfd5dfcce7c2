"""Data, configs, devices and files that are not what a run needs."""

import hashlib
import io
import json
import random
import shutil
import struct
import zipfile
import zlib
from pathlib import Path

from hotplate.bench.faults.arena import PACKED, Arena, checkpoints, ended, expect, expect_same, invented_text
from hotplate.bench.faults.scenario import Scenario
from hotplate.train import checkpoint
from hotplate.train.data.prepare import PrepareConfig, prepare
from hotplate.train.data.shards import HEADER


def _copy(arena: Arena) -> tuple[Path, Path]:
    """A data set that may be damaged, and its training shard."""
    own = Path(shutil.copytree(arena.data, arena.place("set")))
    manifest = json.loads((own / "dataset.json").read_text())
    return own, own / manifest["splits"]["train"][0]["file"]


def _refused(arena: Arena, data: Path, *flags: str) -> str:
    """What a run says that must not start: one message, exit code 2, nothing trained."""
    run = arena.place("run")
    text = arena.finish(run, 5, *flags, f"--data.source={data}", tiny=PACKED, code=2)
    expect("Traceback" not in text and not checkpoints(run), f"not refused cleanly:\n{text[-2000:]}")
    return text


def foreign_ids(arena: Arena, times: int) -> str:
    """Ids outside the vocabulary under a header that is whole: found at the start, and by `hotplate data check`."""
    drawn = random.Random(3)
    for _ in range(times):
        own, shard = _copy(arena)
        raw = bytearray(shard.read_bytes())
        count = HEADER.unpack(raw[: HEADER.size])[4]
        at, value = drawn.randrange(1, count - 1), drawn.randrange(2048, 65536)
        struct.pack_into("<H", raw, HEADER.size + 2 * at, value)
        shard.write_bytes(raw)
        _resealed(own, shard)
        words = f"{shard}: id {value} at offset {at} is outside the vocabulary of 2,048"
        text = _refused(arena, own)
        expect(words in text, f"want {words!r}, got {text}")
        text = ended(arena.nursery.start(["data", "check", str(own)]), 2)
        expect(words in text, f"data check: want {words!r}, got {text}")
        # With --data.verify header the ids are looked at only as they are read: still before the step.
        text = arena.finish(
            arena.place("run"), 400, f"--data.source={own}", "--data.verify=header", tiny=PACKED, code=2
        )
        expect(words in text, f"while reading: want {words!r}, got {text[-1500:]}")
    return f"{times} ids: refused with shard, offset, id and vocabulary, at the start, by data check and while reading"


def _resealed(own: Path, shard: Path) -> None:
    """Hashes and checksum as the changed body wants them: only the ids are wrong."""
    raw = shard.read_bytes()
    fields = list(HEADER.unpack(raw[: HEADER.size]))
    width, tokens = fields[2], fields[4]
    body_end = HEADER.size + -(-tokens * width // 8) * 8
    fields[9] = hashlib.sha256(raw[HEADER.size : body_end]).digest()
    header = HEADER.pack(*fields[:-1], 0)[:-4]
    header += struct.pack("<I", zlib.crc32(header))
    shard.write_bytes(header + raw[HEADER.size :])
    manifest = json.loads((own / "dataset.json").read_text())
    manifest["splits"]["train"][0]["header_sha256"] = hashlib.sha256(header).hexdigest()
    (own / "dataset.json").write_text(json.dumps(manifest))


def damaged_shard(arena: Arena, times: int) -> str:
    """The shapes of damage a copied file has."""
    kinds = {
        "truncated": lambda raw: raw[: len(raw) // 2],
        "odd bytes": lambda raw: raw[:-3],
        "zero length": lambda raw: b"",
        "wrong magic": lambda raw: b"NUMPY!!!" + raw[8:],
        "big-endian": lambda raw: raw[:8] + raw[8:12][::-1] + raw[12:],
        "count": lambda raw: raw[:24] + struct.pack("<Q", struct.unpack("<Q", raw[24:32])[0] + 1) + raw[32:],
        "too long": lambda raw: raw + b"\0" * 8,
        "a bit of the body": lambda raw: (
            raw[: len(raw) // 2] + bytes([raw[len(raw) // 2] ^ 4]) + raw[len(raw) // 2 + 1 :]
        ),
    }
    for name, damage in list(kinds.items())[:times]:
        own, shard = _copy(arena)
        shard.write_bytes(damage(shard.read_bytes()))
        expect(str(shard) in _refused(arena, own), f"{name}: the file is not named")
    return f"{min(times, len(kinds))} kinds: refused at open, file named with what was expected and found"


def replaced_data(arena: Arena, times: int) -> str:
    """Another data set of the same tokeniser under the same name, between two runs."""
    own, _ = _copy(arena)
    run = arena.place("run")
    flags = (f"--data.source={own}", "--run.checkpoint-every=0.5")
    arena.finish(run, 4, *flags, tiny=PACKED)
    texts, tokenizer = arena.place("texts"), json.loads((own / "dataset.json").read_text())["tokenizer_file"]
    texts.mkdir()
    for number in range(40):
        (texts / f"{number}.txt").write_text(invented_text(150, 1000 + number))
    other = arena.place("other")
    prepare(
        PrepareConfig(
            source=str(texts), out=str(other), tokenizer=str(own / tokenizer), validation=0.1, test=0.1, workers=1
        )
    )
    shutil.rmtree(own)
    shutil.copytree(other, own)
    text = arena.finish(run, 4, *flags, tiny=PACKED, code=2)
    expect("the data set changed" in text and "--data.allow-change" in text, text)
    arena.finish(run, 4, *flags, "--data.allow-change", tiny=PACKED)
    return "refused with both fingerprints; allowed by --data.allow-change"


def other_tokenizer(arena: Arena, times: int) -> str:
    """The tokeniser's file replaced by another; a vocabulary larger than the model's."""
    from hotplate.train.data.tokenizer import train_tokenizer

    own, _ = _copy(arena)
    name = json.loads((own / "dataset.json").read_text())["tokenizer_file"]
    train_tokenizer([invented_text(9000, seed) for seed in range(70, 74)], 2048, arena.folder / "other.model")
    shutil.copy(arena.folder / "other.model", own / name)
    text = _refused(arena, own)
    expect(text.count("SHA-256") >= 1 and "shards want" in text, f"not all hashes are said: {text}")
    text = _refused(arena, arena.data, "--model.vocab=1000")
    expect("2048 ids, the model 1000" in text, text)
    return "refused; the hashes of tokeniser, data set and shards are printed; a larger vocabulary is refused"


def too_little(arena: Arena, times: int) -> str:
    text = _refused(arena, arena.data, "--batch=4096")
    expect("4,096 rows x 16 = 65,536" in text and "tokens" in text, text)
    return "refused with the arithmetic"


def exhausted(arena: Arena, times: int) -> str:
    """Three epochs of the data, killed in the second and third."""
    whole, broken = arena.place("whole"), arena.place("broken")
    flags = (f"--run.checkpoint-every={10 / 450}", "--run.log-steps=10")  # reports are means over whole tens
    arena.finish(whole, 450, *flags, tiny=PACKED)
    for at in (200, 180):
        child = arena.start(broken, 450, *flags, tiny=PACKED, faults=[f"kill_at_step:{at}"])
        expect(child.wait() == -9, f"exit code {child.code}")
    arena.finish(broken, 450, *flags, tiny=PACKED)
    expect_same(whole, broken)
    return "450 updates over 9,000 tokens of 28,800 read: a new permutation per epoch, bit-identical over two kills"


def broken_loader(arena: Arena, times: int) -> str:
    for _ in range(times):
        text = arena.finish(arena.place("run"), 20, tiny=PACKED, faults=["break_loader:7"], code=1)
        expect("the disk of the data went away" in text and "while loading step 7 in the background" in text, text)
    return f"{times} times: raised in the main thread with its origin, no hang"


def changed_config(arena: Arena, times: int) -> str:
    run = arena.place("run")
    arena.finish(run, 4, "--run.checkpoint-every=0.5", tiny=PACKED)
    for flags, words, code in (
        (["--model.layers=2"], "model.layers: checkpoint 1, now 2", 2),
        (["--optimizer.lr=0.1"], "optimizer.lr", 2),
        (["--optimizer.lr=0.1", "--run.allow-config-change"], "resumed", 0),
        (["--run.log-steps=2", "--run.keep=3"], "resumed", 0),
    ):
        text = arena.finish(run, 4, "--run.checkpoint-every=0.5", *flags, tiny=PACKED, code=code)
        expect(words in text, f"{flags}: want {words!r}:\n{text[-1500:]}")
    return "structural refused, course-changing refused without a flag, harmless allowed; a table of differences"


def _payloads(mark: Path) -> list[bytes]:
    """A pickle that makes a folder where it is loaded; the same inside a torch.save archive and a NumPy object array.
    Written by hand: nothing in this repository pickles."""
    plain = f"cos\nmkdir\n(V{mark}\ntR.".encode()
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("archive/data.pkl", plain)
        file.writestr("archive/version", b"3\n")
        file.writestr("archive/byteorder", b"little")
    header = b"{'descr': '|O', 'fortran_order': False, 'shape': (1,), }"
    header += b" " * (64 - (10 + len(header) + 1) % 64) + b"\n"
    array = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + plain
    return [plain, archive.getvalue(), array]


def malicious(arena: Arena, times: int) -> str:
    """A pickle, a torch.save file and a NumPy object array in place of every file that a run reads."""
    run = arena.place("run")
    arena.finish(run, 4, "--run.checkpoint-every=0.25", "--run.keep=3", tiny=PACKED)
    mark, tried = arena.folder / "executed", 0
    payloads = _payloads(mark)
    own, shard = _copy(arena)
    data = [path for path in own.iterdir() if path.is_file()]
    saved = [path for path in checkpoints(run)[-1].rglob("*") if path.is_file()]
    metrics = [run / "metrics.jsonl"]
    for path in [*data, *saved, *metrics][: None if times > 1 else 6]:
        kept = path.read_bytes()
        for payload in payloads:
            path.write_bytes(payload)
            command = (
                arena.flags(arena.place("fresh"), 4, f"--data.source={own}", tiny=PACKED)
                if path in data
                else ["evaluate", str(path.parent)]
                if path in saved and path.parent.name.startswith("step-")
                else arena.flags(run, 4, "--run.checkpoint-every=0.25", "--run.keep=3", tiny=PACKED)
            )
            child = arena.nursery.start(command, ["watch_pickle"])
            child.wait()
            expect("unpickled" not in child.text, f"{path.name}: {child.text[-800:]}")
            expect(not mark.exists(), f"{path.name}: the payload was executed")
            refused = path in metrics or child.code == 2
            expect(refused, f"{path.name}: exit code {child.code}:\n{child.text[-1500:]}")
            tried += 1
        path.write_bytes(kept)
    config = arena.folder / "payload.toml"
    for payload in payloads:
        config.write_bytes(payload)
        child = arena.nursery.start(["train", str(config)], ["watch_pickle"])
        expect(child.wait() == 2 and not mark.exists(), f"config: {child.text[-800:]}")
        tried += 1
    return (
        f"{tried} pickles in place of shards, manifests, tokeniser, checkpoint files, log and config: none was loaded"
    )


def missing_device(arena: Arena, times: int) -> str:
    text = arena.finish(arena.place("run"), 4, "--device=cuda", tiny=[f for f in PACKED if "device" not in f], code=2)
    expect("no CUDA device" in text and "--device cpu" in text and "parameters" not in text, text)
    return text.strip().splitlines()[-1].removeprefix("error: ")


def exported(arena: Arena, times: int) -> str:
    """A decoder to the Hugging Face layout and back, compared weight by weight and by its loss on the test split."""
    run, there, back = arena.place("run"), arena.place("there"), arena.place("back")
    arena.finish(run, 6, tiny=["decoder-nano", *PACKED[1:]])
    ended(arena.nursery.start(["hf", "export", str(run), "-o", str(there), "--family=llama"]))
    ended(arena.nursery.start(["hf", "import", str(there), "-o", str(back)]))
    before, after = checkpoint.find(run), checkpoint.find(back)
    expect(before.model.keys() == after.model.keys(), f"names differ: {before.model.keys() ^ after.model.keys()}")
    expect(all(x.equal(after.model[name]) for name, x in before.model.items()), "weights differ")
    found = []
    for folder in (run, back):
        file = arena.place("loss.json")
        data = [] if folder == run else ["--data", str(arena.data)]
        ended(
            arena.nursery.start(["evaluate", str(folder), *data, "--window=16", "--documents=True", f"--json={file}"])
        )
        found.append(json.loads(file.read_text())["sets"][0]["splits"]["test"]["nats"])
    expect(found[0] == found[1], f"losses differ: {found}")
    return f"{len(before.model)} tensors and the loss ({found[0]:.4f} nats) equal"


SCENARIOS = [
    Scenario(
        "R13",
        "token ids outside the vocabulary",
        "random ids in a shard whose hashes are right",
        "refused before the step with shard, offset, id and vocabulary; found by hotplate data check",
        foreign_ids,
        times=5,
        quick=1,
    ),
    Scenario(
        "R14",
        "damaged shard",
        "cut, odd, empty, foreign, big-endian, wrong count, too long, a flipped bit",
        "refused at open with the file, what was expected and found",
        damaged_shard,
        times=8,
        quick=2,
    ),
    Scenario(
        "R15",
        "data replaced between runs",
        "another data set of the same tokeniser under the same name",
        "refused unless --data.allow-change",
        replaced_data,
        quick=1,
    ),
    Scenario(
        "R16",
        "tokeniser of another data set",
        "its file replaced; a vocabulary larger than the model's",
        "refused with all hashes",
        other_tokenizer,
    ),
    Scenario("R17", "too little data", "a batch larger than the split", "refused with the arithmetic", too_little),
    Scenario(
        "R18",
        "the data runs out",
        "three epochs, killed twice",
        "a new epoch with a new permutation; state exact",
        exhausted,
    ),
    Scenario(
        "R19",
        "the loading thread dies",
        "it raises while making a batch",
        "raised in the main thread with its origin; no hang",
        broken_loader,
        times=3,
        quick=1,
    ),
    Scenario(
        "R20",
        "resume with a changed config",
        "a structural, a course-changing and a harmless change",
        "a table of differences; refused, refused without a flag, allowed",
        changed_config,
    ),
    Scenario(
        "R26",
        "malicious pickles",
        "a pickle, a torch.save file, a NumPy object array in place of each file that a run reads",
        "refused, not executed (audited: nothing is unpickled)",
        malicious,
        times=100,
        quick=1,
    ),
    Scenario(
        "R28",
        "no CUDA device",
        "--device cuda on a machine without one",
        "one line with cause and fix before the model is built",
        missing_device,
    ),
    Scenario(
        "R32",
        "export and import",
        "a trained decoder to the Hugging Face layout and back",
        "the same weights and the same loss, to the last bit",
        exported,
    ),
]
