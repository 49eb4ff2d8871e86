"""Draws clips of world 2 with signed distances, a whole batch in one call on any device.

Coordinates: x to the right and y down, -1 to 1 over the image. Every named motion has a cue in
each single image, because a motion module reads no text and follows what the image model's
features say: a tail behind what moves, a halo round what changes size or blinks, arcs round what
turns, a shadow under what bounces, a path under what orbits, a bent outline for what waves, and
darkness at the edges for the camera.

Legend: n images (scenes times frames), b scenes, f frames, i things (2), h w pixels.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .backdrop import Backdrop, weather
from .painting import cover, over, pixels
from .scenes import Scenes
from .shapes import distance
from .words import CAMERAS, COLORS, DIRECTIONS, MOTIONS

SIZE = 128
_RADII = (0.33, 0.22, 0.44)
_PAIR = 0.25
"""Radius of each of two things."""
_FREEDOM, _ORBIT = 0.36, 0.42
"""How far from the middle one thing may be, and the radius of an orbit."""
_EDGES = {"pan left": (1, 0), "pan right": (-1, 0), "tilt up": (0, 1), "tilt down": (0, -1)}
"""Where the image is dark, for the moves of the camera that have a direction."""


@dataclass(frozen=True)
class Poses:
    """Positions of everything that moves in each image: n i, or n."""

    x: Tensor
    y: Tensor
    radius: Tensor
    angle: Tensor
    bend: Tensor
    """Phase of the bent outline."""
    pulse: Tensor
    """n; brightness of what blinks, 0 to 1."""
    zoom: Tensor
    pan_x: Tensor
    pan_y: Tensor
    roll: Tensor
    time: Tensor
    """n; 0 at the first frame, 1 at the last."""


class Renderer(nn.Module):
    """Holds the tables of the world on a device; `draw` makes the images."""

    ways: Tensor
    palette: Tensor
    radii: Tensor
    edges: Tensor
    axis: Tensor

    def __init__(self, size: int = SIZE) -> None:
        super().__init__()
        moves = [(0, 0), *DIRECTIONS.values(), *((0, 0) for _ in range(7))]
        ways = torch.tensor(moves, dtype=torch.float32)
        tables = {
            "ways": ways / ways.norm(dim=1, keepdim=True).clamp(min=1),
            "palette": torch.tensor(list(COLORS.values())) / 255,
            "radii": torch.tensor(_RADII),
            "edges": torch.tensor([_EDGES.get(c, (0, 0)) for c in CAMERAS], dtype=torch.float32),
            "axis": (torch.arange(size) + 0.5) / size * 2 - 1,
        }
        for name, table in tables.items():
            self.register_buffer(name, table)
        self.size = size
        self.backdrop = Backdrop()

    def clips(self, scenes: Scenes, frames: int = 16, cues: Scenes | None = None) -> Tensor:
        """b f 3 h w in [0, 1], the whole course of every scene."""
        time = torch.linspace(0, 1, frames, device=scenes.color.device)
        drawn = self.draw(scenes, time.expand(len(scenes.color), frames), cues)
        clips: Tensor = drawn.unflatten(0, (-1, frames))
        return clips

    def draw(self, scenes: Scenes, time: Tensor, cues: Scenes | None = None) -> Tensor:
        """Images at some times: n 3 h w in [0, 1]. time: b f in [0, 1].

        `cues` are scenes whose still cues are drawn instead of the scenes' own.
        """
        poses = self.poses(scenes, time)
        cues = (cues or scenes).repeat(time.shape[1])
        scenes = scenes.repeat(time.shape[1])
        screen_x = self.axis.view(1, 1, -1).expand(1, self.size, -1)
        screen_y = self.axis.view(1, -1, 1).expand(1, -1, self.size)
        cos, sin = pixels(poses.roll.cos()), pixels(poses.roll.sin())
        zoom = pixels(poses.zoom)
        x = (screen_x * cos - screen_y * sin) * zoom + pixels(poses.pan_x)
        y = (screen_x * sin + screen_y * cos) * zoom + pixels(poses.pan_y)
        image = self.backdrop(scenes, poses.time, x, y)
        image = self._marks(image, scenes, cues.motion, poses, x, y)
        for i in range(2):
            image = self._thing(i, image, scenes, cues.motion, poses, x, y)
        image = weather(image, scenes, poses.time, screen_x, screen_y)
        image = self._camera_cue(image, cues.camera, screen_x, screen_y)
        return image.clamp(0, 1)

    def poses(self, scenes: Scenes, time: Tensor) -> Poses:
        """Where everything is: n = b f. time: b f."""
        chance = scenes.chances.unsqueeze(1)  # b 1 CHANCES
        is_ = {name: (scenes.motion == i).float().unsqueeze(1) for i, name in enumerate(MOTIONS)}
        two = (scenes.relation > 0).float().unsqueeze(1)
        radius = self.radii[scenes.size].unsqueeze(1) * (1 - two) + _PAIR * two
        radius = radius * (0.93 + 0.14 * chance[..., 0])
        grown = torch.lerp(time, 1 - time, is_["shrinking"])
        resized = is_["growing"] + is_["shrinking"]
        bigger = (0.20 + 0.28 * grown) * (1 - two) + (0.15 + 0.19 * grown) * two
        radius = torch.lerp(radius.expand_as(time), bigger, resized)
        radius = torch.lerp(radius, torch.full_like(radius, 0.22), is_["orbiting"])
        moving = (scenes.motion > 0) & (scenes.motion <= len(DIRECTIONS))
        freedom = _FREEDOM * (1 - two) * (1 - 0.5 * moving.float().unsqueeze(1))
        x = (chance[..., 1] * 2 - 1) * freedom
        y = (chance[..., 2] * 2 - 1) * freedom
        way = self.ways[scenes.motion].unsqueeze(1)  # b 1 2
        length = (0.75 + 0.25 * chance[..., 3]) * (1 - 0.35 * two)
        x = x + way[..., 0] * length * (time - 0.5)
        y = y + way[..., 1] * length * (time - 0.5)
        hop = (math.pi * (1.6 * time + chance[..., 4])).sin().abs()
        y = y + is_["bouncing"] * (0.22 - y * 0.7 - 0.6 * hop)
        turn = 2 * math.pi * (chance[..., 5] + 0.7 * time)
        x = x + is_["orbiting"] * (_ORBIT * turn.cos() - 0.6 * x)
        y = y + is_["orbiting"] * (_ORBIT * turn.sin() - 0.6 * y)
        angle = is_["turning"] * math.pi * (2 * chance[..., 6] + time)
        side = (scenes.relation == 2).float().unsqueeze(1) * 2 - 1  # -1: the first is at the left
        apart = 0.42 * two * side
        bend = 2 * math.pi * (chance[..., 7] + 1.5 * time)
        pulse = 0.5 + 0.5 * (2 * math.pi * (chance[..., 8] + 1.6 * time)).cos()
        both = [torch.stack([x + apart, x - apart], -1)]
        both += [torch.stack([v, v], -1) for v in (y, radius, angle, bend)]
        zoom, pan_x, pan_y, roll = self._camera(scenes, time)
        return Poses(*(v.flatten(0, 1) for v in (*both, pulse, zoom, pan_x, pan_y, roll, time)))

    def _camera(self, scenes: Scenes, time: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Zoom, shifts and roll of the window: b f each."""
        is_ = {name: (scenes.camera == i).float().unsqueeze(1) for i, name in enumerate(CAMERAS)}
        course = time - 0.5
        zoom = 1 + 0.6 * course * (is_["zoom out"] - is_["zoom in"])
        pan_x = 0.7 * course * (is_["pan right"] - is_["pan left"])
        pan_y = 0.6 * course * (is_["tilt down"] - is_["tilt up"])
        roll = 0.7 * course * (is_["roll right"] - is_["roll left"])
        return zoom, pan_x, pan_y, roll

    def _thing(
        self,
        i: int,
        image: Tensor,
        scenes: Scenes,
        cue: Tensor,
        poses: Poses,
        x: Tensor,
        y: Tensor,
    ) -> Tensor:
        """One of the things, its tail and its halo over the image."""
        on = pixels(scenes.relation > 0) if i else torch.ones_like(pixels(poses.time))
        color = self.palette[scenes.color2 if i else scenes.color]
        shape = scenes.shape2 if i else scenes.shape
        r = pixels(poses.radius[:, i])
        dx = (x - pixels(poses.x[:, i])) / r
        dy = (y - pixels(poses.y[:, i])) / r
        image = over(image, 0.5 + 0.5 * color, on * self._tail(dx, dy, r, self.ways[cue]))
        angle = pixels(poses.angle[:, i])
        bend = 0.25 * _of(scenes.motion, "waving") * (2.6 * dy + pixels(poses.bend[:, i])).sin()
        tx, ty = dx + bend, dy
        tx, ty = tx * angle.cos() + ty * angle.sin(), ty * angle.cos() - tx * angle.sin()
        d = distance(tx, ty, shape)
        halo = 0.75 * (-(d.clamp(min=0) * 3.5)).exp() * on
        pulse = pixels(poses.pulse)
        glowing = _of(cue, "growing") + _of(cue, "blinking") * pulse
        image = over(image, torch.ones_like(color), halo * glowing)
        image = over(image, torch.zeros_like(color), halo * _of(cue, "shrinking"))
        light = 1 - _of(scenes.motion, "blinking") * 0.6 * (1 - pulse)
        shade = self._shade(0 if i else scenes.pattern, dx, dy, tx, ty, d) * light
        inside = color.view(-1, 3, 1, 1) * shade.unsqueeze(1)
        gleam = 0.45 * (-9 * ((dx + 0.32).square() + (dy + 0.38).square())).exp() * light
        inside = inside + (1 - inside) * gleam.unsqueeze(1)
        return torch.lerp(image, inside, (cover(d * r, self.size) * on).unsqueeze(1))

    def _tail(self, dx: Tensor, dy: Tensor, r: Tensor, way: Tensor) -> Tensor:
        """The fading tail behind a moving thing. way: n 2."""
        way_x, way_y = pixels(way[:, 0]), pixels(way[:, 1])
        along = -(dx * way_x + dy * way_y)
        across = (dx * way_y - dy * way_x).abs()
        tail = cover((across - 0.75 + 0.22 * along) * r, self.size) * (along > 0)
        moving = pixels(way.abs().sum(1) > 0)
        return tail * (0.9 * (1.2 - along / 2.6)).clamp(0, 1) * moving

    def _shade(
        self, pattern: Tensor | int, dx: Tensor, dy: Tensor, tx: Tensor, ty: Tensor, d: Tensor
    ) -> Tensor:
        """Brightness of a thing's colour: light from above left, the outline, the pattern."""
        shade = (1 - 0.18 * dx * 0.6 - 0.18 * dy).clamp(0.6, 1.15)
        shade = shade * (1 - 0.6 * ((d + 0.14) * 14).clamp(0, 1))
        if isinstance(pattern, int):
            return shade
        stripes = ((7 * (tx + 0.35 * ty)).sin() * 3).clamp(0, 1) * pixels(pattern == 1)
        spots = ((6.5 * tx).sin() * (6.5 * ty).sin() * 5 - 1.2).clamp(0, 1) * pixels(pattern == 2)
        return shade * (1 - 0.42 * (stripes + spots))

    def _marks(
        self, image: Tensor, scenes: Scenes, cue: Tensor, poses: Poses, x: Tensor, y: Tensor
    ) -> Tensor:
        """Arcs round what turns, the path of what orbits, the shadow of what bounces."""
        white, black = image.new_ones(1, 3), image.new_zeros(1, 3)
        middle = [pixels((v * 2 - 1) * 0.4 * _FREEDOM) for v in scenes.chances[:, 1:3].unbind(1)]
        path = (torch.hypot(x - middle[0], y - middle[1]) - _ORBIT).abs() - 0.02
        image = over(image, white, 0.7 * _of(cue, "orbiting") * cover(path, self.size))
        for i in range(2):
            on = pixels(scenes.relation > 0) if i else 1
            r = pixels(poses.radius[:, i])
            dx, dy = x - pixels(poses.x[:, i]), y - pixels(poses.y[:, i])
            around = torch.atan2(dy, dx) - pixels(poses.angle[:, i])
            arcs = cover((torch.hypot(dx, dy) - 1.5 * r).abs() - 0.035, self.size)
            arcs = arcs * (2 * around).cos().clamp(0, 1) * _of(cue, "turning") * on
            image = over(image, white, 0.9 * arcs)
            shadow = 2 - 1.6 * torch.hypot(dx / (1.1 * r), (y - 0.62) / 0.12)
            shadow = shadow.clamp(0, 1) * _of(cue, "bouncing") * on
            image = over(image, black, 0.5 * shadow)
        return image

    def _camera_cue(self, image: Tensor, camera: Tensor, x: Tensor, y: Tensor) -> Tensor:
        """Darkness where the camera comes from; at the rim for zoom in, light for zoom out."""
        is_ = {name: pixels((camera == i).float()) for i, name in enumerate(CAMERAS)}
        edges = self.edges[camera]
        dark = (x * pixels(edges[:, 0]) + y * pixels(edges[:, 1]) - 0.1).clamp(0, 1)
        rim = ((x.square() + y.square()) * 0.75 - 0.3).clamp(0, 1)
        corner = (x * y * (is_["roll left"] - is_["roll right"]) * 1.6 - 0.1).clamp(0, 1)
        dark = 0.55 * (dark + corner + rim * is_["zoom in"])
        image = image * (1 - dark).unsqueeze(1)
        return image + (1 - image) * (0.6 * rim * is_["zoom out"]).unsqueeze(1)


def _of(motions: Tensor, name: str) -> Tensor:
    """1 where an image has this motion: n 1 1."""
    return pixels((motions == MOTIONS.index(name)).float())
