"""The vocabulary of world 2: what scenes can show, and the phrases that say it.

A caption is a row of phrases, one for each slot. Each phrase is a row of word numbers, so that
captions become token ids on the device that trains, a whole batch in one call.
"""

SHAPES = ("circle", "square", "triangle", "star", "heart", "ring")
COLORS = {
    "red": (215, 35, 40),
    "orange": (250, 130, 20),
    "yellow": (250, 220, 50),
    "green": (30, 165, 60),
    "blue": (35, 85, 225),
    "purple": (140, 50, 190),
    "white": (240, 240, 240),
}
BACKGROUNDS = ("meadow", "sea", "night", "sunset", "desert", "studio")
PATTERNS = ("plain", "striped", "spotted")
SIZES = ("", "small", "large")
WEATHERS = ("", "rain", "snow")
DIRECTIONS = {
    "moving right": (1, 0),
    "moving left": (-1, 0),
    "moving up": (0, -1),
    "moving down": (0, 1),
    "moving up and right": (1, -1),
    "moving up and left": (-1, -1),
    "moving down and right": (1, 1),
    "moving down and left": (-1, 1),
}
CHANGES = ("growing", "shrinking", "turning", "bouncing", "orbiting", "waving", "blinking")
MOTIONS = ("", *DIRECTIONS, *CHANGES)
CAMERAS = (
    "", "zoom in", "zoom out", "pan left", "pan right", "tilt up", "tilt down", "roll left",
    "roll right",
)  # fmt: skip

PHRASES: dict[str, list[list[str]]] = {
    "article": [["a", "a", "a", "the", "one"]],
    "size": [[""], ["small", "little", "small"], ["large", "big", "large"]],
    "pattern": [["", "", "plain"], ["striped"], ["spotted", "dotted"]],
    "color": [[color] for color in COLORS],
    "shape": [[shape] for shape in SHAPES],
    "relation": [[""], ["left of", "to the left of"], ["right of", "to the right of"]],
    "motion": [
        [""],
        *([way.replace("moving", v) for v in ("moving", "going", "flying")] for way in DIRECTIONS),
        *([way] for way in CHANGES),
    ],
    "background": [
        ["over a meadow", "in a green meadow", "on the grass"],
        ["over the sea", "on the water", "at sea"],
        ["at night", "in the night", "under the stars"],
        ["at sunset", "in the evening", "at dusk"],
        ["over the desert", "in the desert", "on the sand"],
        ["in a studio", "in a gray studio"],
    ],
    "weather": [[""], ["in the rain", "while it rains"], ["in the snow", "while it snows"]],
    "camera": [
        [""],
        ["camera zooms in", "zoom in"],
        ["camera zooms out", "zoom out"],
        ["camera pans left", "pan left"],
        ["camera pans right", "pan right"],
        ["camera tilts up", "tilt up"],
        ["camera tilts down", "tilt down"],
        ["camera rolls left", "roll left"],
        ["camera rolls right", "roll right"],
    ],
}  # fmt: skip
"""For each attribute, the wordings of each of its values."""

OTHER_WORDS = (
    "an and or of with to is are it at up by from into under near very tiny huge medium bright "
    "dark simple picture photo image animation video clip thing object two slowly quickly fast "
    "still moves grows shrinks turns bounces orbits waves blinks spins water sky ground sun moon "
    "cloud clouds star hill beach ocean winter summer weather"
)
WORDS = sorted(
    {w for group in PHRASES.values() for value in group for p in value for w in p.split()}
    | set(OTHER_WORDS.split())
)
"""Their places are the first token ids, whatever a tokenizer learns besides."""
START, END = len(WORDS), len(WORDS) + 1
TOKENS = 48
