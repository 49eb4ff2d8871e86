"""Wrong changes of the motion module and of inflation."""

from . import Table

MUTANTS: Table = {
    ("motion/conditions.py", "windows::test_conditions_with_a_frame_axis_are_cut_to_the_window"): [
        ("motion_frames=None if moved is None else moved.index_select(0, frames),", ""),
        ("adapter_residuals=tuple(map(folded, self.adapter_residuals)),", ""),
        ("tuple(one.index_select(0, frames) for one in self.image_weights)", "self.image_weights"),
        (
            "unflatten(0, (-1, total)).index_select(1, frames)",
            "unflatten(0, (total, -1)).index_select(0, frames)",
        ),
        ("image.index_select(2, frames)", "image[:, :, : len(frames)]"),
        ("pooled = pooled.index_select(1, frames)", "pooled = pooled[:, : len(frames)]"),
    ],
    ("motion/conditions.py", "text"): [
        ("else pooled.repeat_interleave(frames, 0)", "else pooled.repeat(frames, 1)"),
    ],
    ("motion/module.py", "motion official_numbers"): [
        ("features + (x if strength == 1.0 else x * strength)", "features + x"),
        ("x if strength == 1.0 else x * strength", "x if strength == 1.0 else x * strength**2"),
        (
            "x = self._normalize(features, frames)\n        x = x.flatten(2)",
            "x = features.flatten(2)",
        ),
        (
            "value, gate = self.proj(x).chunk(2, dim=-1)",
            "gate, value = self.proj(x).chunk(2, dim=-1)",
        ),
        (
            "torch.stack((angle.sin(), angle.cos()), dim=2)",
            "torch.stack((angle.cos(), angle.sin()), dim=2)",
        ),
        ("-math.log(10000.0) / channels", "-math.log(1000.0) / channels"),
        ("attention(norm(x) + positions)", "attention(norm(x + positions))"),
        ("x = x + attention(norm(x) + positions)", "x = attention(norm(x) + positions)"),
        ("x + self.ff(self.ff_norm(x))", "x + self.ff(x)"),
        ("* query.shape[-1] ** -0.5", "* query.shape[-1] ** -1"),
        ("eps=1e-6", "eps=1e-2"),
        ('if self.frame_norm == "frame":', 'if self.frame_norm == "clip":'),
        (
            "x.permute(0, 3, 1, 2).flatten(0, 1)  # s f c",
            "x.permute(0, 1, 3, 2).flatten(0, 1).unflatten(0, (-1, frames)).transpose(0, 1).flatten(0, 1).unflatten(0, (-1, frames)).flatten(1, 2)[:, :frames]  # s f c",
        ),
        (
            "return self.offset + self.stretch * (frames - 1)",
            "return self.offset + self.stretch * frames",
        ),
        ("<= max_frames - 1 + 1e-6", "<= max_frames"),
        ("torch.lerp(table[rows], table[rows + 1], shares.unsqueeze(1))", "table[rows]"),
        ("nn.init.zeros_(self.proj_out.weight)", "pass"),
        (
            "_Block(c, layers + 1, config) for c in reversed(channels)",
            "_Block(c, layers, config) for c in reversed(channels)",
        ),
    ],
    ("motion/hooks.py", "motion official_numbers"): [
        ("self.clip.strength * self.clip.blocks.get(self.block, 1.0)", "self.clip.strength"),
        ("torch.lerp(features, moved, weights", "torch.lerp(moved, features, weights"),
        (
            "self.clip.weights.to(moved).repeat(len(moved) // frames)",
            "self.clip.weights.to(moved).repeat_interleave(len(moved) // frames)",
        ),
        ("return (clips.flatten(2, 3),)", "return (clips.flatten(2, 3).flip(0),)"),
    ],
    ("motion/inflation.py", "motion official_numbers"): [
        ("time.repeat_interleave(frames)", "time.repeat(frames)"),
        ("else text.repeat_interleave(frames, 0)", "else text.repeat(frames, 1, 1)"),
        ("yield resnet.norm2", "pass"),
        ("if unet.conv_norm_out is not None:", "if False:"),
        ("self._clip.positions = given.motion_positions", "pass"),
        ('getattr(block, "attentions", None) or block.resnets', "block.resnets"),
        ("self._handles.pop().remove()", "self._handles.pop()"),
        ('named += [(f"{side}.{i}"', 'named += [(f"{side}.{i + 1}"'),
    ],
    ("motion/inflation.py", "ip_adapter sparse_control controlnet t2i_adapter"): [
        ("given.down_residuals or None", "None"),
        ("mid_block_additional_residual=given.mid_residual", "mid_block_additional_residual=None"),
        ("list(given.adapter_residuals) or None", "None"),
    ],
}
