"""Wrong changes of the motion module and of inflation."""

from . import Table

MUTANTS: Table = {
    ("motion/conditions.py", "windows::test_conditions_with_a_frame_axis_are_cut_to_the_window"): [
        (
            "motion_frames: Tensor | None = field(default=None, metadata=_AXIS_0)",
            "motion_frames: Tensor | None = None",
        ),
        (
            "adapter_residuals: tuple[Tensor, ...] = field(default=(), metadata=_FOLDED)",
            "adapter_residuals: tuple[Tensor, ...] = ()",
        ),
        (
            "image_masks: tuple[Tensor, ...] = field(default=(), metadata=_AXIS_0)",
            "image_masks: tuple[Tensor, ...] = ()",
        ),
        (
            "lora_weights: tuple[Tensor, ...] = field(default=(), metadata=_AXIS_0)",
            "lora_weights: tuple[Tensor, ...] = ()",
        ),
        (
            "unflatten(0, (-1, total)).index_select(1, frames)",
            "unflatten(0, (total, -1)).index_select(0, frames)",
        ),
        ("return value.index_select(axis, frames)", "return value.narrow(axis, 0, len(frames))"),
    ],
    ("motion/conditions.py", "text"): [
        ("else pooled.repeat_interleave(frames, 0)", "else pooled.repeat(frames, 1)"),
    ],
    ("motion/conditions.py", "motion official_numbers"): [
        ("else text.repeat_interleave(frames, 0)", "else text.repeat(frames, 1, 1)"),
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
        ("attention(norm(x) + place)", "attention(norm(x + place))"),
        ("x = x + attention(norm(x) + place)", "x = attention(norm(x) + place)"),
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
        ("torch.lerp(table[rows], table[after], shares.unsqueeze(1))", "table[rows]"),
        ("nn.init.zeros_(self.proj_out.weight)", "pass"),
        (
            "_Block(c, layers + 1, config) for c in reversed(channels)",
            "_Block(c, layers, config) for c in reversed(channels)",
        ),
    ],
    ("motion/hooks.py", "motion official_numbers"): [
        (
            "conditions.motion_strength * conditions.motion_blocks.get(self.block, 1.0)",
            "conditions.motion_strength",
        ),
        ("torch.lerp(features, out, weights", "torch.lerp(out, features, weights"),
        (
            "conditions.motion_frames.to(out).repeat(len(out) // frames)",
            "conditions.motion_frames.to(out).repeat_interleave(len(out) // frames)",
        ),
        ("self.call.frames).flatten(2, 3),)", "self.call.frames).flatten(2, 3).flip(0),)"),
    ],
    ("motion/inflation.py", "motion official_numbers"): [
        ("time.repeat_interleave(frames)", "time.repeat(frames)"),
        ("yield resnet.norm2", "pass"),
        ("if unet.conv_norm_out is not None:", "if False:"),
        ("self.call.begin(frames, conditions, text", "self.call.begin(frames, NO_CONDITIONS, text"),
        ('getattr(block, "attentions", None) or block.resnets', "block.resnets"),
        ("self._handles.pop().remove()", "self._handles.pop()"),
        ('named += [(f"{side}.{i}"', 'named += [(f"{side}.{i + 1}"'),
    ],
    (
        "motion/inflation.py",
        "t2i_adapter::test_each_frame_is_the_plain_unets_with_its_residuals "
        "controlnet::test_latents_are_those_of_diffusers",
    ): [
        ("conditions.down_residuals or None", "None"),
        (
            "mid_block_additional_residual=conditions.mid_residual",
            "mid_block_additional_residual=None",
        ),
        ("list(conditions.adapter_residuals) or None", "None"),
    ],
}
