"""Bytes in and out of Flower's records: one name, one `bytes` value, and a refusal of anything else."""

from __future__ import annotations

from flwr.app import ConfigRecord, RecordDict

from fedlora_priv.errors import FederationError

RECORD = "fedlora-priv"
"""The name of the one record in a message, and of the one that a node keeps between two messages."""

HELLO = "query.hello"
"""Message type: who is at this node."""

MESSAGE = "train.message"
"""Message type: one message of a federation (`fedlora_priv.federation.wire`)."""


def to_record(**values: bytes) -> RecordDict:
    """Return a record that holds these values.

    >>> from_record(to_record(message=b"abc"), "message")
    b'abc'
    """
    return RecordDict({RECORD: ConfigRecord(dict(values))})


def from_record(content: RecordDict, name: str) -> bytes:
    """Return the bytes of that name.

    Raises:
        FederationError: there are none; nothing else in the record was looked at.
    """
    record = content.get(RECORD)
    value = record.get(name) if isinstance(record, ConfigRecord) else None
    if not isinstance(value, bytes):
        raise FederationError(
            f"a Flower message holds no {name}: another application, or another version of it"
        )
    return value
