"""What a type that holds secrets does by default: it shows nothing of them and is not written anywhere."""

from __future__ import annotations

from typing import NoReturn, SupportsIndex

from protocols.errors import LocalProtocolError


class Redacted:
    """A base class whose `repr` shows no field, and that can be neither copied nor pickled.

    A copy of a keystream would repeat it, and a pickle ends up in a log, a cache or another process unseen.
    """

    __slots__ = ()

    def __repr__(self) -> str:
        return f"{type(self).__name__}(<secret>)"

    def __reduce_ex__(self, protocol: SupportsIndex) -> NoReturn:
        raise LocalProtocolError(f"a {type(self).__name__} holds secrets: it is neither copied nor pickled")
