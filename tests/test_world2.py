"""World 2: scenes, captions, pictures, and stages that run on whatever device they are on."""

import subprocess
import sys

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from animatediff_core.tiny import parts
from animatediff_core.tiny.world2 import models, stages, state
from animatediff_core.tiny.world2.family import Family
from animatediff_core.tiny.world2.judge import other_cues
from animatediff_core.tiny.world2.pool import Pool
from animatediff_core.tiny.world2.recipes import Recipe
from animatediff_core.tiny.world2.renderer import Renderer
from animatediff_core.tiny.world2.scenes import ATTRIBUTES, Captions, Scenes, draw_scenes
from animatediff_core.tiny.world2.training import Trainer
from animatediff_core.tiny.world2.words import CAMERAS, COLORS, END, MOTIONS, SHAPES, START, TOKENS


def a_scene(**values):
    scenes = draw_scenes(1, generator=torch.Generator().manual_seed(0))
    plain = {name: torch.zeros(1, dtype=torch.long) for name in ATTRIBUTES}
    plain["background"] += 5  # the studio, where nothing else moves
    chosen = {name: torch.tensor([value]) for name, value in values.items()}
    return Scenes(**{**plain, **chosen, "chances": torch.full_like(scenes.chances, 0.5)})


def drawn(scenes, times, **options):
    return Renderer(64).draw(scenes, torch.tensor([times]), **options)


def middle_of(picture, color):
    """Mean x and y of the pixels nearest to a colour, in pixels."""
    wanted = torch.tensor(COLORS[color]).view(3, 1, 1) / 255
    ys, xs = torch.nonzero((picture - wanted).abs().sum(0) < 0.25, as_tuple=True)
    return float(xs.float().mean()), float(ys.float().mean())


def test_a_caption_says_what_its_scene_shows():
    scene = a_scene(color=4, color2=0, shape=3, shape2=0, relation=1, motion=2, camera=3)
    captions = Captions()
    chosen = captions.choose(scene, torch.zeros(1, 16))
    assert captions.text(chosen) == [
        "a blue star left of a red circle in a studio moving left camera pans left"
    ]
    ids = captions.ids(chosen)
    assert ids.shape == (1, TOKENS)
    assert ids[0, 0] == START
    assert (ids[0] == END).nonzero()[0] == 1 + len(captions.text(chosen)[0].split())


def test_held_out_combinations_are_never_drawn_for_training():
    def unseen(scenes):
        return (scenes.color + 2 * scenes.shape + 3 * scenes.background) % 5 == 0

    generator = torch.Generator().manual_seed(1)
    assert not unseen(draw_scenes(500, generator=generator)).any()
    assert unseen(draw_scenes(500, generator=generator, held_out=True)).all()


@pytest.mark.parametrize(
    ("motion", "x", "y"),
    [("moving right", 1, 0), ("moving up", 0, -1), ("moving down and left", -1, 1), ("", 0, 0)],
)
def test_things_move_as_their_caption_says(motion, x, y):
    first, last = drawn(a_scene(color=4, motion=MOTIONS.index(motion)), [0.0, 1.0])
    before, after = middle_of(first, "blue"), middle_of(last, "blue")
    moved = after[0] - before[0], after[1] - before[1]
    for way, wanted in zip(moved, (x, y), strict=True):
        assert way * wanted > 8 if wanted else abs(way) < 2


@pytest.mark.parametrize(
    ("camera", "x", "y"), [("pan left", 1, 0), ("pan right", -1, 0), ("tilt up", 0, 1)]
)
def test_the_world_moves_against_the_camera(camera, x, y):
    scene = a_scene(color=4, camera=CAMERAS.index(camera))
    first, last = drawn(scene, [0.0, 1.0], cues=a_scene())
    before, after = middle_of(first, "blue"), middle_of(last, "blue")
    moved = after[0] - before[0], after[1] - before[1]
    for way, wanted in zip(moved, (x, y), strict=True):
        assert way * wanted > 8 if wanted else abs(way) < 2


@pytest.mark.parametrize("shape", range(len(SHAPES)))
def test_shapes_differ_and_fill_a_part_of_the_picture(shape):
    picture = drawn(a_scene(shape=shape), [0.5])[0]
    other = drawn(a_scene(shape=(shape + 1) % len(SHAPES)), [0.5])[0]
    empty = ((picture - other).abs().sum(0) > 0.3).float().mean()
    assert 0.01 < empty < 0.2


def test_every_motion_and_camera_has_a_cue_in_one_still_picture():
    plain = drawn(a_scene(), [0.5])
    for attribute, values in (("motion", MOTIONS), ("camera", CAMERAS)):
        for value in range(1, len(values)):
            cue = a_scene(**{attribute: value})
            if values[value] not in ("waving", "blinking"):  # seen in how they look themselves
                assert (drawn(a_scene(), [0.5], cues=cue) - plain).abs().max() > 0.1, values[value]


def test_judged_clips_show_the_cues_of_others():
    scenes = draw_scenes(8, generator=torch.Generator().manual_seed(2))
    cues = other_cues(scenes)
    assert torch.equal(cues.motion, scenes.motion.roll(1))
    assert torch.equal(cues.color, scenes.color)


class OneDevice(TorchDispatchMode):
    """Refuses an operation that brings CPU tensors to the device, as a CUDA graph does."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        tensors = [t for t in tree_leaves((args, kwargs or {}, out)) if torch.is_tensor(t)]
        assert all(t.device.type == "meta" for t in tensors if t.dim()), f"{func} leaves the device"
        return out


@pytest.mark.parametrize("stage", stages.STAGES)
def test_a_training_step_stays_on_its_device_and_never_waits_for_values(stage, tmp_path):
    family = Family(
        folder=tmp_path, device=torch.device("meta"), dtype=torch.bfloat16, sizes=models.TOY
    )
    loss_of, names, _ = stages._STAGES[stage](family)
    for name in names:
        family.parts()[name].requires_grad_(True)
    with OneDevice():
        loss_of().backward()
    assert all(p.grad is not None for n in names for p in family.parts()[n].parameters())


def test_unused_latent_channels_become_zero_and_the_others_unit_variance():
    torch.manual_seed(0)
    vae = models.new_vae(models.TOY).eval()
    pictures = torch.randn(6, 3, 64, 64)
    with torch.no_grad():
        latents = vae.encode(pictures).latent_dist.mean
        vae.quant_conv.weight[:4] /= latents.std((0, 2, 3)).view(-1, 1, 1, 1)
        vae.quant_conv.weight[1] *= 0.01
        vae.quant_conv.weight[2] *= 5
        latents = vae.encode(pictures).latent_dist.mean
        unused = latents.clone()
        unused[:, 1] = latents[:, 1].mean()
        before = vae.decode(unused).sample
        parts.normalize_latents(vae, latents)
        after = vae.encode(pictures).latent_dist
        torch.testing.assert_close(after.mean.std((0, 2, 3)), torch.tensor([1.0, 0, 1, 1]))
        assert after.std[:, 1].max() < 1e-3
        torch.testing.assert_close(vae.decode(after.mean).sample, before, atol=1e-3, rtol=1e-3)


def test_weights_are_split_into_files_and_put_together_again(tmp_path, monkeypatch):
    monkeypatch.setattr(state, "LIMIT", 300)
    module = torch.nn.Sequential(torch.nn.Linear(9, 13), torch.nn.Linear(13, 5))
    state.save_part(tmp_path, "part", dict(module.named_parameters()), {"steps": 3})
    assert len(list(tmp_path.glob("part.*.safetensors"))) == 2
    other = torch.nn.Sequential(torch.nn.Linear(9, 13), torch.nn.Linear(13, 5))
    assert state.load_part(tmp_path, "part", other) == {"steps": 3}
    for mine, saved in zip(other.parameters(), module.parameters(), strict=True):
        assert torch.equal(mine, saved.half().float())
    assert state.load_part(tmp_path, "none", other) is None


def test_a_pool_gives_old_and_new_samples_whose_rows_belong_together():
    count = iter(range(1, 100))

    def make(rows):
        number = next(count)
        return torch.full((rows, 2), float(number)), torch.full((rows,), number)

    torch.manual_seed(0)
    pool = Pool(make, size=6, new=2, chunk=3)
    values, numbers = pool.draw(50)
    assert torch.equal(values[:, 0], numbers.float())
    assert set(numbers.tolist()) == {1, 2, 3}


def test_training_lowers_the_loss_and_averages_the_weights():
    torch.manual_seed(0)
    module = torch.nn.Linear(3, 1)
    inputs = torch.randn(64, 3)

    def loss_of():
        return (module(inputs) - inputs.sum(1, keepdim=True)).square().mean()

    recipe = Recipe(batch=64, learning_rate=0.05, warmup=5, average=0.9)
    trainer = Trainer(loss_of, [module], recipe, torch.device("cpu"))
    reports = list(trainer.run(60, max_steps=200))
    assert reports[-1].step == 200
    assert loss_of().item() < 0.01
    (average,) = trainer.weights()
    torch.testing.assert_close(average["weight"], torch.ones(1, 3), atol=0.05, rtol=0)


@pytest.mark.slow
def test_every_stage_and_command_runs_in_small_and_goes_on(tmp_path):
    def command(*arguments):
        program = [sys.executable, "-m", "animatediff_core.tiny.world2"]
        done = subprocess.run([*program, *arguments, "--toy", "--state", str(tmp_path)],
                              capture_output=True, text=True, check=True)  # fmt: skip
        return done.stdout

    out = command("build", "--minutes", "0.8", "--speeds")
    for stage in stages.STAGES:
        assert f"{stage}: gate " in out
        assert f"{stage}: drawing " in out
    command("build", "--minutes", "0.5", "--stage", "base")
    family = Family(folder=tmp_path, device=torch.device("cpu"), sizes=models.TOY)
    assert family.notes["unet"]["steps"] > 1
    assert "two things told apart" in command("measure", "--clips", "2", "--steps", "2")
    command("export", "--output", str(tmp_path / "out"))
    assert (tmp_path / "out" / "base" / "model_index.json").exists()


def test_the_tokenizer_reads_captions_as_training_did():
    from animatediff_core.tiny.world2.export import word_tokenizer

    captions, scenes = Captions(), draw_scenes(64, generator=torch.Generator().manual_seed(3))
    chosen = captions.choose(scenes, torch.rand(64, 16, generator=torch.Generator().manual_seed(4)))
    read = word_tokenizer()(
        captions.text(chosen), padding="max_length", max_length=TOKENS, return_tensors="pt"
    )
    assert torch.equal(read.input_ids, captions.ids(chosen))
