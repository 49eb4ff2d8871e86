"""Closed choices that settings and the code that acts on them share."""

from typing import Literal

Fit = Literal["exact", "crop", "stretch"]
Dither = Literal["floyd_steinberg", "bayer", "none"]
Format = Literal["gif", "mp4", "webm", "webp", "apng", "png"]
Codec = Literal["h264", "h265", "av1", "vp9"]
PredictionType = Literal["epsilon", "v_prediction", "sample"]
BetaSchedule = Literal["linear", "scaled_linear", "squaredcos_cap_v2"]
TimestepSpacing = Literal["leading", "trailing"]
Travel = Literal["linear", "slerp"]

CODECS: dict[str, tuple[Codec, ...]] = {"mp4": ("h264", "h265", "av1"), "webm": ("vp9", "av1")}
"""The codecs of the formats that have several; the first is the default."""
