"""Keys and values of the text: computed once for each prompt, not for each frame and step.

Legend: b batch, f frames, n tokens, d features, c channels.
"""

from collections import OrderedDict
from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

_PROMPTS = 4
"""How many texts are remembered: prompt and negative prompt of a clip, and of the next one."""

_Pair = tuple[Tensor, Tensor]


class TextMemory:
    """What all cross-attentions of one UNet know of the texts in use."""

    def __init__(self) -> None:
        self.frames: int | None = None
        """Frames of each clip in the call in progress."""
        self.text: Tensor | None = None
        """The call's text, b n d, where all frames of a clip share it."""
        self.states: object = None
        """What the UNet was given for it: (b f) n d."""
        self.remembers = True
        """Whether a later call finds what this one computes; not in a CUDA graph."""
        self.known: OrderedDict[Any, tuple[Tensor, dict[int, _Pair]]] = OrderedDict()

    def begin(self, text: Tensor, frames: int) -> None:
        """A call of the animated model begins."""
        self.frames = frames
        self.text = text if text.ndim == 3 else None

    def end(self) -> None:
        """The call is over; what is known of its text stays."""
        self.frames = self.text = self.states = None

    def see_states(self, unet: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
        """A hook before the UNet's forward: takes note of the text that it is given."""
        given = inputs[2] if len(inputs) > 2 else named.get("encoder_hidden_states")
        expected = self.frames is not None and isinstance(given, Tensor)
        self.states = given if expected and self.text is not None else None

    def forget(self) -> None:
        """Let go of all texts."""
        self.known.clear()
        self.end()

    def chunks(self, rows: int, most: int) -> Iterator[slice]:
        """Rows of (b f) in parts of `most` at most, none across two clips."""
        length = self.frames if self.frames and rows % self.frames == 0 else rows
        for clip in range(0, rows, length):
            for first in range(clip, clip + length, most):
                yield slice(first, min(first + most, clip + length))

    def keys_values(self, attention: Any, states: Tensor, rows: slice) -> _Pair:
        """For some rows of (b f): k n c of their clips, which share a text, or of each frame."""
        shared = self._shared(attention, states)
        if shared is None or self.frames is None:
            some = states[rows]
            return attention.to_k(some), attention.to_v(some)
        clips = slice(rows.start // self.frames, -(-rows.stop // self.frames))
        return shared[0][clips], shared[1][clips]

    def _shared(self, attention: Any, states: Tensor) -> _Pair | None:
        """Keys and values of the call's text, b n c, where the states repeat it."""
        if states is not self.states or self.text is None:
            return None
        known = self._of_text(self.text) if self.remembers else {}
        if id(attention) not in known:
            known[id(attention)] = attention.to_k(self.text), attention.to_v(self.text)
        return known[id(attention)]

    def _of_text(self, text: Tensor) -> dict[int, _Pair]:
        """By attention; a text that was changed in place is another text."""
        version = None if text.is_inference() else text._version
        key: tuple[Any, ...] = (
            text.data_ptr(), tuple(text.shape), text.stride(), text.dtype, version,
        )  # fmt: skip
        if version is None:  # changes of an inference tensor cannot be seen: this call only
            key = (id(self.states), *key)
        if key not in self.known:
            # the text is kept with its keys, so that no other can come to lie at its place
            self.known[key] = (text if version is not None else self.states, {})  # type: ignore[assignment]
            while len(self.known) > _PROMPTS:
                self.known.popitem(last=False)
        self.known.move_to_end(key)
        return self.known[key][1]
