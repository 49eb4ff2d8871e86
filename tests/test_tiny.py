"""The tiny world and its judge, and the bundled model's promise in one clip."""

import random
from dataclasses import replace

import pytest
import torch
from conftest import TINY

from animatediff_core.errors import AnimateDiffError
from animatediff_core.tiny.measure import Verdict, judge, look_of, observe
from animatediff_core.tiny.members import MEMBERS, member_named, write_images
from animatediff_core.tiny.renderer import render
from animatediff_core.tiny.report import change_between, drawn_change, held_out_scenes, prove
from animatediff_core.tiny.world import MOTIONS, Scene, combinations, draw_scene, poses


def test_held_out_combinations_never_meet_training():
    seen, unseen = set(combinations(held_out=False)), set(combinations(held_out=True))
    assert not seen & unseen
    assert (len(seen), len(unseen)) == (120, 30)
    rng = random.Random(0)
    drawn = [draw_scene(rng) for _ in range(200)]
    assert all((s.color, s.shape, s.background) in seen for s in drawn)
    assert all((s.color, s.shape, s.background) in unseen for s in held_out_scenes(40))


@pytest.mark.parametrize("motion", MOTIONS)
def test_things_stay_in_view_and_step_gently(motion):
    rng = random.Random(1)
    for _ in range(30):
        path = poses(draw_scene(rng, motion=motion), rng)
        assert all(p.radius < min(p.x, p.y, 1 - p.x, 1 - p.y) for p in path)
        steps = [abs(a.x - b.x) + abs(a.y - b.y) for a, b in zip(path, path[1:], strict=False)]
        assert max(steps) <= 0.1


def told(verdict: Verdict) -> tuple[bool, ...]:
    return verdict.background, verdict.color, verdict.shape, verdict.place, verdict.motion


def test_judge_sees_what_is_drawn():
    drawn = {"color": "red", "shape": "ring", "background": "white"}
    scene = Scene(**drawn, place="on the left", motion="growing")
    clip = render(scene, poses(scene, random.Random(2), 6))
    assert told(judge(scene, clip)) == (True,) * 5
    other = {"color": "blue", "shape": "star", "background": "black"}
    wrong = Scene(**other, place="on the right", motion="shrinking")
    assert told(judge(wrong, clip)) == (False,) * 5


def test_an_empty_picture_shows_nothing():
    assert observe(torch.full((3, 64, 64), 0.88)).shape == "none"


@pytest.mark.parametrize("member", MEMBERS, ids=lambda member: member.name)
def test_judge_tells_the_looks_apart(member):
    scene = Scene(color="red", shape="square", background="white", motion="moving up")
    clip = member.draw(scene, random.Random(4))
    assert look_of(clip[0]) == member.look.name
    verdict = judge(scene, clip[::5], member.look)
    assert verdict.look
    assert verdict.motion
    assert not judge(replace(scene, motion="moving down"), clip[::5], member.look).motion


def test_members_learn_from_captioned_pictures_of_seen_combinations(tmp_path):
    member = MEMBERS[-1]
    write_images(member, tmp_path)
    captions = [path.read_text() for path in sorted(tmp_path.glob("*.txt"))]
    assert len(captions) == len(list(tmp_path.glob("*.png"))) == 60
    assert all(member.size_word in caption for caption in captions)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    write_images(member, tmp_path)
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}


def test_a_perfect_clip_changes_by_a_share_that_the_look_decides():
    black, white = torch.zeros(3, 2, 2), torch.ones(3, 2, 2)
    assert change_between(torch.stack([black, white, white])) == pytest.approx(2 / 3)
    shares = {one.look.name: drawn_change(one, held_out_scenes(8, one.motions)) for one in MEMBERS}
    assert all(0.1 < share < 0.25 for share in shares.values())
    assert shares["giant"] > shares["plain"]


def test_an_unknown_member_is_named_with_the_others():
    with pytest.raises(AnimateDiffError, match="no member 'x'.*tiny-slanted"):
        member_named("x")


@pytest.mark.slow
def test_judge_is_right_on_the_renderer_and_at_chance_on_shuffled_captions():
    right = {row.name: row.right for row in prove(48)}
    assert min(right.values()) >= 0.98
    shuffled = {row.name: row.right for row in prove(48, shuffled=True)}
    assert shuffled["shape"] < 0.45
    assert shuffled["direction"] < 0.5


def test_bundled_model_is_small():
    assert sum(p.stat().st_size for p in TINY.rglob("*") if p.is_file()) < 40e6
