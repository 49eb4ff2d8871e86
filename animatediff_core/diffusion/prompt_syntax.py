r"""Prompt syntax of the community's web UIs: weights in brackets, and BREAK.

`(text:1.3)` weighs its text 1.3, `(text)` 1.1 and `[text]` 1 / 1.1; brackets nest and multiply.
A backslash makes a sign or AND plain: `\(`. BREAK, in capitals, begins a new chunk of tokens.
"""

import re
from dataclasses import dataclass

from ..errors import PromptFileError

ROUND, SQUARE = 1.1, 1 / 1.1
_TOKEN = re.compile(
    r"\\(?P<plain>[()\[\]{}<>|:`\\-]|AND\b)|:\s*(?P<weight>[+-]?(?:\d+\.?\d*|\.\d+))\s*\)|[()\[\]]|[^\\()\[\]:]+|."
    , re.DOTALL,
)  # fmt: skip
_BREAK = re.compile(r"\s*\bBREAK\b\s*")
_FRAMES = "here prompts change by frame: {0: ..., 8: ...}"
_OTHERS = (
    (r"(?i:<(?:lora|lyco|hypernet):[^<>]*>)", "a network; name it under loras"),
    (r"\[[^\[\]()]*(?:\|[^\[\]()]*|:\s*[\d.]+\s*)\]", f"a change during the steps; {_FRAMES}"),
    (r"\bAND\b", "two prompts; give one, or regions with prompts of their own"),
    (r"\{[^{}]*\|[^{}]*\}", "a choice; use a wildcard __name__, or a list of jobs"),
    (r"(?i:\bembedding:\S+)", "a textual inversion; name its file under embeddings"),
    (r"`[^`]*`", f"an expression; {_FRAMES}"),
    (r"(?m:^ *\d+: .*)", f"a text by frame, where no other may stand; {_FRAMES}"),
    (r"\bADD(?:COL|ROW|COMM|BASE)\b", "regions; name them under regions"),
    (r"\)\.(?:swap|blend|and)\([^()]*\)", "two prompts; give one, or texts by frame"),
    (r"(?<=\s)--[a-z]+\b", "an option; use the settings of a job"),
)
"""Syntax of other tools, and what they read it as."""
_OTHER = re.compile("|".join(rf"(?<!\\)({pattern})" for pattern, _ in _OTHERS))


@dataclass(frozen=True)
class Piece:
    """Text of one weight."""

    text: str
    weight: float = 1.0


def parse_prompt(prompt: str) -> list[list[Piece]]:
    """The parts between BREAKs, each in pieces of equal weight; one part at least.

    A bracket that is never closed holds to the end; one that was never opened is plain text.
    """
    texts: list[str] = []
    weights: list[float] = []
    opened: dict[str, list[int]] = {"(": [], "[": []}

    def close(bracket: str, factor: float) -> bool:
        if not opened[bracket]:
            return False
        for i in range(opened[bracket].pop(), len(weights)):
            weights[i] *= factor
        return True

    for token in _TOKEN.finditer(prompt):
        text = token.group()
        if text in opened:
            opened[text].append(len(texts))
            continue
        if token["weight"] and close("(", float(token["weight"])):
            continue
        if (text == ")" and close("(", ROUND)) or (text == "]" and close("[", SQUARE)):
            continue
        texts.append(token["plain"] or text)
        weights.append(1.0)
    for bracket, factor in (("(", ROUND), ("[", SQUARE)):
        while close(bracket, factor):
            pass
    return _parts(texts, weights)


def _parts(texts: list[str], weights: list[float]) -> list[list[Piece]]:
    """Neighbours of equal weight joined, so that a tokenizer sees plain text as it was written."""
    joined: list[Piece] = []
    for text, weight in zip(texts, weights, strict=True):
        if joined and joined[-1].weight == weight:
            text = joined.pop().text + text
        joined.append(Piece(text, weight))
    parts: list[list[Piece]] = [[]]
    for piece in joined:
        first, *later = _BREAK.split(piece.text)
        parts[-1].append(Piece(first, piece.weight))
        parts += [[Piece(text, piece.weight)] for text in later]
    return [[piece for piece in part if piece.text] for part in parts]


def check_prompt(prompt: str) -> None:
    """Reject the syntax of other tools that would only be noise here."""
    if found := _OTHER.search(prompt):
        _, meaning = _OTHERS[(found.lastindex or 1) - 1]
        raise PromptFileError(
            f"the prompt holds {found.group()[:100]!r}, which other tools read as {meaning}. A "
            r"backslash before it makes it plain text"
        )
