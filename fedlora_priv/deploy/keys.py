"""A node's own keys, and the card with their public halves that it sends to the others.

    identity.key   Ed25519; signs every message of secure aggregation and the ledger's anchors
    flower.key     ECDSA on P-384 in OpenSSH's format; lets the node in at the SuperLink, and proves nothing more

The private halves are made where they are used and are never overwritten. The card is public, but it must be the
right one: whoever collects cards compares each card's fingerprint with its node by another way, as by telephone.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_ssh_private_key,
    load_ssh_public_key,
)

from fedlora_priv.errors import ConfigError, RunFolderError
from fedlora_priv.federation.agreement import FINGERPRINT_HEX, grouped
from fedlora_priv.federation.home import ClientHome
from protocols.errors import ProtocolError
from protocols.secagg.identity import Roster, check_client_id

CARD_FORMAT = 1
FLOWER_KEY = "flower.key"
OWNER_ONLY = 0o600
_CLIENT_ID = re.compile(r"client-[1-9][0-9]{0,5}")


@dataclass(frozen=True)
class Card:
    """The public halves of a node's keys.

    Args:
        client_id: whose.
        identity: its Ed25519 public key, 32 bytes.
        flower: its P-384 public key as one line of OpenSSH's format.

    Raises:
        ConfigError: a key has the wrong form.
    """

    client_id: str
    identity: bytes
    flower: str

    def __post_init__(self) -> None:
        try:
            check_client_id(self.client_id)
            Roster({self.client_id: self.identity})
        except ProtocolError as error:
            raise ConfigError(f"the card of {self.client_id!r} cannot be used: {error}") from None
        require_flower_public(self.flower, f"the card of {self.client_id}")

    @property
    def fingerprint(self) -> str:
        """32 hex digits in groups of four over all of the card."""
        digest = hashlib.sha256(b"fedlora-priv card v1\0" + self.to_text().encode()).hexdigest()
        return grouped(digest[:FINGERPRINT_HEX])

    def to_text(self) -> str:
        """Return the file's content."""
        fields = {"format": CARD_FORMAT, "client_id": self.client_id, "identity": self.identity.hex()}
        return json.dumps({**fields, "flower": self.flower}, indent=2) + "\n"

    @staticmethod
    def load(path: Path) -> Card:
        """Return the card in a file.

        Raises:
            ConfigError: there is none, or it is damaged.
        """
        try:
            fields = json.loads(path.read_text(encoding="utf-8"))
            if (
                set(fields) != {"format", "client_id", "identity", "flower"}
                or fields["format"] != CARD_FORMAT
            ):
                raise ValueError("it has other fields than a card")
            return Card(fields["client_id"], bytes.fromhex(fields["identity"]), fields["flower"])
        except OSError as error:
            raise ConfigError(
                f"the card {path} cannot be read ({error.strerror})", "check the path"
            ) from None
        except (ValueError, TypeError) as error:
            raise ConfigError(
                f"{path} is not a node's card: {error}", "make it with 'fedlora keys new'"
            ) from None


def new_keys(home: Path, client_id: str) -> Card:
    """Make a node's keys in its home, and return their card.

    Raises:
        ConfigError: no client may be called that.
        RunFolderError: the home holds a key already: others may have pinned it.
    """
    if not _CLIENT_ID.fullmatch(client_id):  # so are an experiment's; it also names files, here and elsewhere
        raise ConfigError(
            f"no client of a federation is called {client_id!r}", "they are client-1 to client-N"
        )
    own = ClientHome(home)
    for path in (own.identity_path, home / FLOWER_KEY):
        _refuse_overwriting(path)
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    private = ec.generate_private_key(ec.SECP384R1())
    write_private(
        home / FLOWER_KEY, private.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption())
    )
    own.identity()
    return card_of(home, client_id)


def card_of(home: Path, client_id: str) -> Card:
    """Return the card of the keys in a home.

    Raises:
        RunFolderError: a key is missing.
        ConfigError: a key has the wrong form.
    """
    own = ClientHome(home)
    if not own.identity_path.exists():
        raise RunFolderError(f"{home} holds no identity key", "make one with 'fedlora keys new'")
    public = load_flower_private(home / FLOWER_KEY).public_key()
    line = public.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()
    return Card(client_id, own.identity().public_bytes, line)


def load_flower_private(path: Path) -> ec.EllipticCurvePrivateKey:
    """Return a node's key for Flower.

    Raises:
        RunFolderError: it is missing, or others could read it.
        ConfigError: it is not an unencrypted P-384 key in OpenSSH's format.
    """
    require_owner_only(path)
    try:
        key = load_ssh_private_key(path.read_bytes(), None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP384R1):
        raise ConfigError(
            f"{path} is not an unencrypted P-384 private key in OpenSSH's format, which Flower asks for",
            "make one with 'fedlora keys new', or 'ssh-keygen -t ecdsa -b 384 -N \"\"'",
        )
    return key


def require_flower_public(line: str, where: str) -> None:
    """Raise unless a text is a P-384 public key in OpenSSH's format.

    Raises:
        ConfigError: it is not.
    """
    try:
        key = load_ssh_public_key(line.encode())
    except (ValueError, AttributeError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP384R1):
        raise ConfigError(
            f"{where} holds no P-384 public key in OpenSSH's format ('ecdsa-sha2-nistp384 ...')",
            "have its node make one with 'fedlora keys new' and send its card again",
        )


def roster_of(cards: Sequence[Card]) -> Roster:
    """Return the roster of some cards, client-1 first.

    Raises:
        ConfigError: two cards are of one client, or share a key.
    """
    by_id = {card.client_id: card for card in cards}
    if len(by_id) != len(cards) or len({card.flower for card in cards}) != len(cards):
        raise ConfigError("two cards are of one client or share a key", "one card of each node")
    ordered = sorted(by_id, key=lambda client_id: (len(client_id), client_id))
    try:
        return Roster({client_id: by_id[client_id].identity for client_id in ordered})
    except ProtocolError as error:
        raise ConfigError(str(error), "have the nodes send their cards again") from None


def write_private(path: Path, data: bytes) -> None:
    """Write a new file that its owner alone may read; never over another.

    Raises:
        RunFolderError: there is one already, or it cannot be written.
    """
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, OWNER_ONLY), "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except FileExistsError:
        _refuse_overwriting(path)
    except OSError as error:
        raise RunFolderError(f"cannot write {path} ({error.strerror})", "choose another folder") from error


def require_owner_only(path: Path) -> None:
    """Raise unless a private key is there and its owner alone may read it.

    Raises:
        RunFolderError: it is missing, or readable by others.
    """
    if not path.is_file():
        raise RunFolderError(f"there is no private key {path}", "restore it, or mend the path")
    if stat.S_IMODE(path.stat().st_mode) & 0o077:
        raise RunFolderError(f"others may read the private key {path}", f"chmod 600 {path}")


def _refuse_overwriting(path: Path) -> None:
    """Raise if there is a file: a private key is not replaced by accident."""
    if path.exists():
        raise RunFolderError(
            f"{path} is there already, and a private key is never overwritten",
            "choose another folder, or move it away knowingly",
        )
