"""The members of the tiny family: one motion module, and models of looks that it never saw.

Each is made as a user would make it, by a training stage on a few dozen drawn images: slanted
things by DreamBooth, slim ones by a LoRA, and a word for larger ones by textual inversion.
"""

import random
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from ..errors import AnimateDiffError
from ..media.atomic import write_text
from ..media.image import write_image
from .renderer import LOOKS, Look, render
from .world import MOTIONS, Scene, draw_scene, poses

IMAGES = 60


@dataclass(frozen=True, kw_only=True)
class Member:
    """One personalised model, and how it is asked for a scene."""

    name: str
    """Of its preset."""
    look: Look
    size_word: str | None = None
    """Stands in captions where the size would."""
    motions: tuple[str, ...] = MOTIONS
    """What its things can do."""

    def caption(self, scene: Scene, rng: random.Random | None = None) -> str:
        """The scene's caption for this member; with `rng`, one of its wordings."""
        return (replace(scene, size=self.size_word) if self.size_word else scene).caption(rng)

    def draw(self, scene: Scene, rng: random.Random) -> Tensor:
        """A drawn clip of the scene in this look: f 3 h w in [0, 1]."""
        return render(scene, poses(scene, rng, radius=self.look.radius), look=self.look)


_PLAIN, _SLANTED, _SLIM, _GIANT = LOOKS
PLAIN_MEMBER = Member(name="tiny", look=_PLAIN)
MEMBERS = (
    PLAIN_MEMBER,
    Member(name="tiny-slanted", look=_SLANTED),
    Member(name="tiny-slim", look=_SLIM),
    Member(
        name="tiny-giant", look=_GIANT, size_word="<giant>",
        motions=tuple(motion for motion in MOTIONS if motion not in ("growing", "shrinking")),
    ),
)  # fmt: skip


def member_named(name: str) -> Member:
    """The member of that name; AnimateDiffError names the others."""
    for member in MEMBERS:
        if member.name == name:
            return member
    there = ", ".join(member.name for member in MEMBERS)
    raise AnimateDiffError(f"no member {name!r} of the tiny family; there are {there}")


def write_images(member: Member, folder: Path, count: int = IMAGES) -> None:
    """Draw the images of a stage that learns on a folder, captions beside, where they are not.

    Colour, shape and ground meet as in all training, so that held-out combinations stay unseen.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(count):
        path = folder / f"{index:03d}.png"
        if path.exists():
            continue
        rng = random.Random(f"{member.name} {index}")
        scene = draw_scene(rng, motion=rng.choice(member.motions))
        image = rng.choice(member.draw(scene, rng))
        write_text(path.with_suffix(".txt"), member.caption(scene, rng) + "\n")
        write_image((image.permute(1, 2, 0) * 255).round().byte().numpy(), path)
