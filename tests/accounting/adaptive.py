"""A rule of adaptive clipping that the tests of it share."""

from __future__ import annotations

from dataclasses import replace

from accounting.adaptive_clip import AdaptiveClip

# Deviations so large that twelve counts of a client suffice for check 7.
RULE = AdaptiveClip(
    target_quantile=0.5,
    learning_rate=0.2,
    count_noise_stddev=50.0,
    smallest_clip_norm=0.01,
    largest_clip_norm=100.0,
)


def rule(**changes: float) -> AdaptiveClip:
    return replace(RULE, **changes)
