"""What every section of the experiment file is made of: strict, immutable tables of described values."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Names = Annotated[tuple[str, ...], Field(strict=False)]
"""An array of names: TOML has arrays, not tuples."""


class Section(BaseModel):
    """A table of the experiment file: immutable, no unknown keys, no silent conversions, no NaN."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


def demo_must_exist(source: str, demos: tuple[str, ...]) -> str:
    """Return the source, unless it names a demo that there is not."""
    if source.startswith("demo:") and source not in demos:
        raise ValueError(f"there is no {source!r}; the demos are {', '.join(demos)}")
    return source
