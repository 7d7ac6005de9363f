"""Keys and cards: the forms that Flower and OpenSSH take, private halves that are private, and stay."""

from __future__ import annotations

import json
import shutil
import stat
import subprocess
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_ssh_public_key,
)
from typer.testing import CliRunner

from fedlora_priv.cli import app
from fedlora_priv.deploy.keys import (
    FLOWER_KEY,
    Card,
    card_of,
    load_flower_private,
    new_keys,
    require_owner_only,
    roster_of,
    write_private,
)
from fedlora_priv.errors import ConfigError, RunFolderError
from protocols.secagg.identity import verify


def openssh(key: ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption())


def test_a_card_has_the_public_halves_of_what_stays_at_home(tmp_path: Path) -> None:
    home = tmp_path / "home"
    card = new_keys(home, "client-3")
    private = load_flower_private(home / FLOWER_KEY)
    public = load_ssh_public_key(card.flower.encode())
    assert isinstance(public, ec.EllipticCurvePublicKey)
    assert public.public_numbers() == private.public_key().public_numbers()
    assert isinstance(public.curve, ec.SECP384R1)
    from fedlora_priv.federation.home import ClientHome

    verify(card.identity, b"label", b"text", ClientHome(home).identity().sign(b"label", b"text"))
    path = tmp_path / "card.json"
    path.write_text(card.to_text())
    assert Card.load(path) == card == card_of(home, "client-3")
    assert Card.load(path).fingerprint == card.fingerprint
    for secret in (home / FLOWER_KEY, home / "identity.key"):
        assert stat.S_IMODE(secret.stat().st_mode) == 0o600
        assert secret.read_bytes().hex()[:64] not in card.to_text()
    assert stat.S_IMODE(home.stat().st_mode) == 0o700


@pytest.mark.parametrize("name", ["", "hospital-a", "client-0", "client-1\n", "../client-1", "client-1/x"])
def test_a_name_that_no_experiment_has_makes_no_keys(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="client-1 to client-N"):
        new_keys(tmp_path / "home", name)
    assert not (tmp_path / "home").exists()


def test_a_card_is_not_written_over_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert CliRunner().invoke(app, ["keys", "new", "home", "client-1"]).exit_code == 0
    card = (tmp_path / "client-1.card.json").read_bytes()
    again = CliRunner().invoke(app, ["keys", "new", "elsewhere", "client-1"])
    assert (again.exit_code, again.stderr.count("\n")) == (2, 1)
    assert "client-1.card.json is there already" in again.stderr
    assert (tmp_path / "client-1.card.json").read_bytes() == card
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.skipif(shutil.which("ssh-keygen") is None, reason="ssh-keygen is not on this machine")
def test_openssh_reads_the_key_and_finds_the_same_public_half(tmp_path: Path) -> None:
    card = new_keys(tmp_path / "home", "client-1")
    shown = subprocess.run(
        ["ssh-keygen", "-y", "-f", str(tmp_path / "home" / FLOWER_KEY)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert shown.stdout.split()[:2] == card.flower.split()[:2]


def test_every_field_changes_the_fingerprint(tmp_path: Path) -> None:
    one, other = new_keys(tmp_path / "a", "client-1"), new_keys(tmp_path / "b", "client-2")
    mixed = [
        one,
        other,
        Card("client-2", one.identity, one.flower),
        Card("client-1", other.identity, one.flower),
        Card("client-1", one.identity, other.flower),
    ]
    assert len({card.fingerprint for card in mixed}) == len(mixed)
    assert all(len(card.fingerprint.replace(" ", "")) == 32 for card in mixed)


@pytest.mark.parametrize("there", ["identity.key", FLOWER_KEY])
def test_a_private_key_is_never_overwritten(tmp_path: Path, there: str) -> None:
    (tmp_path / there).write_bytes(b"whatever it is")
    with pytest.raises(RunFolderError, match="never overwritten"):
        new_keys(tmp_path, "client-1")
    assert (tmp_path / there).read_bytes() == b"whatever it is"
    assert {path.name for path in tmp_path.iterdir()} == {there}
    with pytest.raises(RunFolderError, match="never overwritten"):
        write_private(tmp_path / there, b"another")
    assert (tmp_path / there).read_bytes() == b"whatever it is"


def test_a_key_that_others_may_read_is_refused(tmp_path: Path) -> None:
    write_private(tmp_path / "key", b"secret")
    require_owner_only(tmp_path / "key")
    for mode in (0o640, 0o604, 0o660):
        (tmp_path / "key").chmod(mode)
        with pytest.raises(RunFolderError, match="chmod 600"):
            require_owner_only(tmp_path / "key")
    with pytest.raises(RunFolderError, match="there is no private key"):
        require_owner_only(tmp_path / "none")


@pytest.mark.parametrize("kind", ["ed25519", "p256", "pem", "nothing"])
def test_a_key_of_another_form_is_refused(tmp_path: Path, kind: str) -> None:
    p384 = ec.generate_private_key(ec.SECP384R1())
    data = {
        "ed25519": openssh(ed25519.Ed25519PrivateKey.generate()),
        "p256": openssh(ec.generate_private_key(ec.SECP256R1())),
        "pem": p384.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
        "nothing": b"",
    }[kind]
    write_private(tmp_path / "key", data)
    with pytest.raises(ConfigError, match="P-384"):
        load_flower_private(tmp_path / "key")


def test_a_card_of_another_form_is_refused(tmp_path: Path) -> None:
    card = new_keys(tmp_path / "home", "client-1")
    fields = json.loads(card.to_text())
    p256 = (
        ec.generate_private_key(ec.SECP256R1())
        .public_key()
        .public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
    )
    bad = [
        {**fields, "flower": p256.decode()},
        {**fields, "flower": "ssh-ed25519 AAAA"},
        {**fields, "flower": 3},
        {**fields, "identity": "00" * 32},  # a point of small order: anybody could sign
        {**fields, "identity": "zz"},
        {**fields, "client_id": ""},
        {**fields, "format": 2},
        {**fields, "home": "/somewhere"},
        [],
    ]
    for value in bad:
        (tmp_path / "bad.json").write_text(json.dumps(value))
        with pytest.raises(ConfigError):
            Card.load(tmp_path / "bad.json")
    with pytest.raises(ConfigError, match="cannot be read"):
        Card.load(tmp_path / "none.json")


def test_a_roster_is_of_different_clients_with_different_keys(tmp_path: Path) -> None:
    cards = [new_keys(tmp_path / str(number), f"client-{number}") for number in (10, 2, 1)]
    roster = roster_of(cards)
    assert list(roster) == ["client-1", "client-2", "client-10"]
    assert all(roster[card.client_id] == card.identity for card in cards)
    for twice in (
        Card("client-2", cards[0].identity, cards[0].flower),
        Card("client-3", cards[0].identity, cards[1].flower),
        Card("client-3", cards[1].identity, cards[0].flower),
    ):
        with pytest.raises(ConfigError):
            roster_of([*cards, twice])
