"""Everything a training run is told, as frozen dataclasses: the command line and the TOML files mirror them."""

from dataclasses import dataclass, field
from typing import Annotated, Literal

import tyro

from hotplate.model.config import ModelConfig
from hotplate.model.growth.depth import Depth
from hotplate.model.growth.factors import Factors
from hotplate.model.growth.strategies import Strategy
from hotplate.train.preference import PreferenceConfig


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Where tokens come from and how they are laid into rows."""

    source: str = "sotu"
    """built-in corpus (sotu, python-stdlib) or the folder of a prepared data set"""
    mode: Literal["packed", "stream"] = "packed"
    """packed: documents bin-packed into rows, none sees another. stream: contiguous rows, recurrent state carried on"""
    mix: tuple[str, ...] = ()
    """packed: splits and their shares of the rows, as in train=0.5 text=0.2 speech=0.3; none = train alone"""
    window: int = 512
    """tokens of a row (and of truncated back-propagation)"""
    document_resets: bool = False
    """stream: forget at document starts (the published protocol does not)"""
    verify: Literal["full", "header"] = "full"
    """full: hash and range-check every shard at start; header: sizes and headers only (for very large sets)"""
    allow_change: bool = False
    """resume although the data set's fingerprint differs from the checkpoint's"""


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """How gradients become updates."""

    kind: Literal["adamw", "muon"] = "adamw"
    """muon: orthogonalised momentum for hidden matrices, AdamW for the rest"""
    lr: float = 6e-4
    """peak learning rate"""
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-8
    weight_decay: float = 0.0
    """decoupled, on matrices only"""
    momentum: float = 0.95
    """muon's momentum"""
    clip: float = 1.0
    """largest gradient norm; 0 = no clipping"""
    max_skipped: int = 20
    """stop after this many non-finite updates in a row"""
    impl: Literal["auto", "eager", "native", "triton", "reference", "apex", "deepspeed"] = "auto"
    """adamw's kernel: eager = torch's fused form; auto = the fastest that this device and machine have; apex, deepspeed
    = those packages' fused Adam"""
    muon_impl: Literal["auto", "eager", "triton", "reference"] = "auto"
    """muon's kernel: eager = torch's products; auto = eager until triton has been measured on a GPU"""


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """Learning rate as a function of the fraction of the budget spent."""

    kind: Literal["cosine", "wsd", "constant", "inverse_sqrt"] = "cosine"
    """cosine to the minimum; wsd = constant, then a linear decay to the minimum over the last part; inverse_sqrt = the
    square root of warm-up over spent budget, after the warm-up"""
    warmup: float = 0.01
    """fraction of the budget with a rising rate"""
    warmup_steps: int | None = None
    """the same in steps (overrides the fraction)"""
    decay: float = 0.2
    """wsd: fraction of the budget that decays"""
    minimum: float = 0.01
    """final rate as a fraction of the peak"""


@dataclass(frozen=True, kw_only=True)
class GrowthConfig:
    """A run that begins with `model` and ends with a larger one: both parts are paid from one budget."""

    at: Annotated[float, tyro.conf.arg(aliases=["--grow-at"])] = 0.0
    """fraction of the budget after which the model grows; 0 = never"""
    to: Annotated[str | None, tyro.conf.arg(aliases=["--to"])] = None
    """model size (a preset) to grow to; none = by the factors"""
    factors: Factors = field(default_factory=Factors)
    strategy: Strategy = field(default_factory=Strategy)
    depth: Depth = "identity"
    """added blocks: identity (copies that change nothing at first), stack or interleave"""
    moments: Literal["keep", "fresh"] = "keep"
    """keep: the optimiser's state grows with the weights; fresh: it starts anew"""
    rates: Literal["plain", "scaled"] = "plain"
    """scaled: hidden matrices of the grown model learn at muP's smaller rate, as the small model did"""
    schedule: Literal["continue", "rewarm", "restart", "reuse"] = "continue"
    """learning rate afterwards: continue = as if nothing had happened; rewarm = that, times a new warm-up; restart =
    the whole schedule over the rest; reuse = a cosine from the current rate to a hundredth, no warm-up"""
    warmup: float = 0.02
    """rewarm, restart: fraction of the budget with a rising rate"""
    data: str | None = None
    """reuse: another data set of the same tokeniser from where the rate has fallen to a fifth; none = stay"""

    def __post_init__(self) -> None:
        if not 0 <= self.at < 1:
            raise ValueError(f"growth.at: want a fraction of the budget in 0..1, got {self.at}")
        if self.data is not None and self.schedule != "reuse":
            raise ValueError("growth.data: the switch of data belongs to growth.schedule reuse; set it, or drop data")


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """How progress is measured on held-out documents."""

    every: float = 0.1
    """fraction of the budget between validations; 0 = only at the end"""
    tokens: int = 65_536
    """validation tokens during training (the final evaluation reads whole splits)"""
    rows: int = 16
    """rows per evaluation batch"""
    splits: tuple[str, ...] = ("validation", "test")
    """splits of the final evaluation"""
    sample_tokens: int = 120
    """length of the text sample at the end; 0 = none"""


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """How ranks share the work: the result is the same, memory and traffic are not."""

    kind: Annotated[Literal["ddp", "fsdp", "deepspeed"], tyro.conf.arg(aliases=["--engine"])] = "ddp"
    """ddp: every rank holds everything; fsdp: every rank holds a share of weights, gradients and optimiser state;
    deepspeed: ZeRO (package deepspeed)"""
    replicas: int = 1
    """fsdp: copies of the sharded model (hybrid sharding): each is sharded over ranks / replicas"""
    reshard: bool = True
    """fsdp: free a block's gathered weights after its forward pass and gather them again for the backward pass"""
    zero: Literal[1, 2, 3] = 2
    """deepspeed: what is sharded: 1 = optimiser state, 2 = and gradients, 3 = and weights"""
    deepspeed: str | None = None
    """deepspeed: a JSON file whose entries replace those of hotplate's DeepSpeed config"""

    def __post_init__(self) -> None:
        if self.replicas < 1:
            raise ValueError(f"engine.replicas: want at least 1, got {self.replicas}")


@dataclass(frozen=True, kw_only=True)
class ExecutionConfig:
    """How a rank computes its blocks: speed and memory differ, results do not (compiled: up to rounding)."""

    compile: Annotated[bool, tyro.conf.arg(aliases=["--compile"])] = False
    """run every block through torch.compile as one graph, tried before the first update (see --guard.failed-compile)"""
    recompute: Annotated[bool, tyro.conf.arg(aliases=["--recompute"])] = False
    """keep only the inputs of blocks and compute the rest again in the backward pass: less memory, a third more work"""
    tune: Annotated[bool, tyro.conf.arg(aliases=["--tune"])] = False
    """choose micro_batch and these by measuring: the fastest on this machine, kept in the cache"""
    threads: Annotated[int | None, tyro.conf.arg(aliases=["--threads"])] = None
    """cpu threads per rank; none = cores / ranks on this machine"""


@dataclass(frozen=True, kw_only=True)
class GuardConfig:
    """What is done about jumping losses, hanging ranks, failing disks, blocks that do not compile, and full devices."""

    spike: Literal["warn", "skip"] = "warn"
    """a loss far above its recent mean: warn = say so and keep its batch; skip = do not apply the update either"""
    spike_sigmas: float = 6.0
    """how far: standard deviations of the recent losses"""
    spike_window: int = 128
    """updates that the mean and deviation remember; the first so many are never spikes"""
    hang_seconds: float = 1800.0
    """a rank without progress for so long ends the run with the stacks of all ranks (exit code 75); 0 = never. More
    than the longest validation or checkpoint takes"""
    save_attempts: int = 3
    """tries of writing a checkpoint, with growing pauses (1 s, 2 s, ...); a full disk is not tried again"""
    save_failures: int = 3
    """stop after this many checkpoints in a row that could not be written (exit code 74)"""
    failed_compile: Literal["warn", "stop"] = "warn"
    """blocks that --compile fails on: warn = say why and train uncompiled; stop = end before the first update"""
    out_of_memory: Literal["stop", "halve"] = "stop"
    """a full device: stop = what fills it, a smaller micro-batch, exit code 2; halve = the same update again from half
    the micro-batch, twice the accumulation (engine ddp, whose ranks then exchange gradients after backward passes)"""


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """The run folder: what is written, when, and how a run goes on."""

    folder: str | None = None
    """run folder; none = runs/<preset>-<date>-<time>"""
    start: str | None = None
    """run or checkpoint folder (also of `hotplate grow`) whose weights training starts from"""
    start_optimizer: bool = False
    """start also from its optimiser state"""
    resume: Literal["no", "auto"] = "no"
    """auto: go on from the newest complete checkpoint in the folder, or start when there is none"""
    allow_config_change: bool = False
    """resume although the budget, schedule or optimiser settings differ"""
    checkpoint_every: float = 0.25
    """fraction of the budget between checkpoints (one is always written at the end and on SIGTERM/SIGINT)"""
    checkpoint_seconds: float = 1800.0
    """and at the latest after this many seconds"""
    keep: int = 2
    """complete checkpoints kept"""
    log_steps: int = 10
    """steps between reports; each report is one host synchronisation"""
    sinks: tuple[Literal["tensorboard", "wandb"], ...] = ()
    """besides metrics.jsonl, which is always written"""


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """One training run at a fixed compute budget."""

    budget: str = "6h"
    """compute: accelerator time (90s, 20m, 6h, 1d), tokens (1.2e9tok) or updates (500steps)"""
    tokens_per_second: float | None = None
    """tokens/s per accelerator that turns hours into tokens; none = the reference's, or measured at the start"""
    reference: str | None = None
    """accelerator whose hours are spent, when it is not this one: its published throughput, or tokens_per_second"""
    batch: int = 128
    """rows per update, over all ranks and micro-batches"""
    micro_batch: int | None = None
    """rows per forward pass on one rank; none = all of the rank's rows at once"""
    seed: int = 0
    """initial weights and data order"""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto = cuda where there is one"""
    precision: Literal["auto", "fp32", "bf16-autocast", "bf16"] = "auto"
    """bf16: bf16 weights with an fp32 master copy in the optimiser; auto = bf16 on cuda and on
    processors that multiply bf16 twice as fast as fp32 (AVX512_BF16), else fp32"""
    dry_run: bool = False
    """print shapes, parameters, memory, FLOPs, tokens and steps that the budget buys, and stop"""
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    growth: GrowthConfig = field(default_factory=GrowthConfig)
    preference: PreferenceConfig = field(default_factory=PreferenceConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    run: RunConfig = field(default_factory=RunConfig)
    guard: GuardConfig = field(default_factory=GuardConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)
    execution: ExecutionConfig = field(default_factory=ExecutionConfig)
