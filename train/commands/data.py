"""`hotplate data`: prepare, check, describe and import datasets."""

from dataclasses import dataclass
from typing import Annotated, Literal

import tyro
from rich.console import Console
from rich.table import Table

from hotplate.train.data.books.curate import REPORT, BooksConfig, curate
from hotplate.train.data.books.out_of_distribution import OodConfig, fetch_ood
from hotplate.train.data.dataset import Dataset, unigram_nats
from hotplate.train.data.importers import (
    GPT2_END_OF_TEXT,
    ImportConfig,
    import_languini,
    import_llmc,
    import_nanogpt,
)
from hotplate.train.data.prepare import PrepareConfig, open_data, prepare


@dataclass(frozen=True)
class Check:
    """Verify every hash, index and id of a dataset; exit code 2 if anything is wrong."""

    folder: tyro.conf.Positional[str]
    """A prepared folder, or a built-in corpus (prepared if need be)."""
    vocab: int = 16_384
    """Ids, for a built-in corpus."""


@dataclass(frozen=True)
class Info:
    """Print what a dataset holds, trusting its hashes."""

    folder: tyro.conf.Positional[str]
    """A prepared folder, or a built-in corpus (prepared if need be)."""
    vocab: int = 16_384
    """Ids, for a built-in corpus."""


@dataclass(frozen=True, kw_only=True)
class Import(ImportConfig):
    """Import the token files of another trainer."""

    format: Literal["languini", "nanogpt", "llmc"]
    """Languini's folder of .npy books, nanoGPT's .bin files, or llm.c's."""
    separator: int = GPT2_END_OF_TEXT
    """The id between documents in .bin files."""
    file_lists: dict[str, str] | None = None
    """Languini's file lists: train PATH test PATH ...; without it, all .npy files."""


Command = (
    Annotated[
        BooksConfig,
        tyro.conf.subcommand("books", description="Filter books, drop duplicates and split: lists for `prepare`."),
    ]
    | Annotated[
        OodConfig,
        tyro.conf.subcommand("fetch-ood", description="Fetch held-out text of other kinds: French, code, statistics."),
    ]
    | Annotated[PrepareConfig, tyro.conf.subcommand("prepare", description="Prepare text: tokenise and write shards.")]
    | Annotated[Check, tyro.conf.subcommand("check")]
    | Annotated[Info, tyro.conf.subcommand("info")]
    | Annotated[Import, tyro.conf.subcommand("import")]
)


def main(arguments: list[str]) -> int:
    """Run one subcommand; an InputError is for the caller to print."""
    command = tyro.cli(Command, prog="hotplate data", args=arguments)
    match command:
        case BooksConfig():
            describe_books(curate(command), command)
        case OodConfig():
            describe_ood(fetch_ood(command), command)
        case PrepareConfig():
            describe(prepare(command))
        case Check():
            describe(open_data(command.folder, command.vocab, "full"))
            print("every hash, index and id is right")
        case Info():
            describe(open_data(command.folder, command.vocab, "header"))
        case Import():
            describe(_import(command))
    return 0


def describe(dataset: Dataset) -> None:
    """Print the splits of a dataset, its vocabulary and its fingerprint."""
    table = Table("split", "documents", "tokens", "bytes", "bytes per token", "shards")
    for name in dataset.splits:
        split = dataset.split(name)
        text_tokens = split.tokens - split.documents
        counts = (f"{count:,}" for count in (split.documents, split.tokens, split.bytes))
        table.add_row(name, *counts, f"{split.bytes / max(1, text_tokens):.3f}", str(len(split.shards)))
    Console().print(table)
    print(f"folder       {dataset.folder}")
    print(f"vocabulary   {dataset.vocab:,} ids, end of document {dataset.eod}, tokenizer {dataset.tokenizer.path.name}")
    print(f"fingerprint  {dataset.fingerprint}")
    skipped = dataset.manifest.source.get("skipped", {})
    print(f"skipped      {skipped.get('empty', 0)} empty and {skipped.get('invalid', 0)} invalid documents")
    if {"train", "test"} <= set(dataset.splits):
        nats = unigram_nats(dataset.split("train"), dataset.split("test"))
        print(f"unigram loss {nats:.3f} nats per token on test, which a trained model must beat")


def describe_books(report: dict, config: BooksConfig) -> None:
    """Print what became of the books: kept by split, dropped by filter."""
    columns = ("documents", "bytes")
    table = Table("", *columns, "failed at all")
    table.add_row("read", *(f"{report[name]:,}" for name in columns), end_section=True)
    for reason, amount in report["dropped_first_by"].items():
        failed = report["failed_at_all"][reason]["documents"]
        table.add_row(f"dropped by {reason}", *(f"{amount[name]:,}" for name in columns), f"{failed:,}")
    table.add_section()
    for split, amount in report["splits"].items():
        table.add_row(split, *(f"{amount[name]:,}" for name in columns))
    Console().print(table)
    print(f"file lists   {config.out}, with {REPORT}")
    print(f"fingerprint  {report['fingerprint']}")
    print(f"next         hotplate data prepare --source {config.source} --file-lists {config.out} --out ...")


def describe_ood(sources: dict[str, dict], config: OodConfig) -> None:
    """Print what was fetched, from where."""
    table = Table("split", "documents", "bytes", "from", "licence")
    for name, found in sources.items():
        amounts = (f"{found[field]:,}" for field in ("documents", "bytes"))
        table.add_row(name, *amounts, f"{found['name']} {found['version']} ({found['registry']})", found["licence"])
    Console().print(table)
    lists = f"--source {config.out} --file-lists {config.out}"
    print(f"next         hotplate data prepare {lists} --tokenizer .../tokenizer.model --out ...")


def _import(command: Import) -> Dataset:
    if command.format == "languini":
        return import_languini(command, command.file_lists)
    return {"nanogpt": import_nanogpt, "llmc": import_llmc}[command.format](command, command.separator)
