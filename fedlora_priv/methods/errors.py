"""What a method refuses, before anything is released.

::

    FederationError                      (fedlora_priv.errors)
    └── MethodError
        ├── AssumptionError              the method cannot work with this model, client or schedule
        │   └── PrivateInitialisation    an initialisation that nobody has declared public
        ├── UploadError                  a client's arrays do not fit the contract, or are not finite
        └── SumError                     a sum does not fit the contract, is not finite, or is over nobody

A client that meets one refuses the round and names the class alone: a text could say what its data are like.
"""

from __future__ import annotations

from fedlora_priv.errors import FederationError


class MethodError(FederationError):
    """A method's assumption does not hold, or arrays do not fit its contract."""


class AssumptionError(MethodError):
    """The method cannot work with this model, this client or this schedule."""


class PrivateInitialisation(AssumptionError):  # noqa: N818 - it names what was met
    """An initialisation made from data that nobody has declared public."""


class UploadError(MethodError):
    """A client's trained arrays or upload do not fit the contract, or are not finite."""


class SumError(MethodError):
    """A sum does not fit the contract, is not finite, or is over no client."""
