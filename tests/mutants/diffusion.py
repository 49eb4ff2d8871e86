"""Wrong changes of diffusion: noise, windows, schedules, guidance, text, the loop."""

from . import Table

MUTANTS: Table = {
    ("diffusion/size_conditions.py", "text::test_sdxls_sizes_are_height_before_width"): [
        ("[height, width, 0, 0, height, width]", "[width, height, 0, 0, width, height]"),
    ],
    ("diffusion/noise.py", "noise"): [
        ("if seed >= 2**32:", "if seed >= 2**33:"),
        ("if seed >= 2**32:", "if False:"),
        ("[seed % 2**32, seed // 2**32]", "[seed // 2**32, seed % 2**32]"),
        ("[seed % 2**32, seed // 2**32]", "[seed % 2**32 + seed // 2**32]"),
        ("slice(24, 24 + 624 * 8)", "slice(24, 24 + 312 * 8)"),
        ("return alpha / length, 1 / length", "return 1 / length, alpha / length"),
        ("length = math.sqrt(1 + alpha**2)", "length = 1 + alpha"),
        ("return shared * common + new * own", "return shared * common - new * own + 0.1"),
        (
            "frames.append(shared * frames[-1] + new * frame)",
            "frames.append(shared * frames[0] + new * frame)",
        ),
        (
            "seeded(one)) for one in settings.frame_seeds",
            "seeded(settings.frame_seeds[0])) for one in settings.frame_seeds",
        ),
        (
            "return _mixed(own, _one_frame(shape, generator), settings.alpha)",
            "return _mixed(own, _one_frame(shape, seeded(0)), 1.0)",
        ),
        ("latents, generator.initial_seed())", "latents, 0)"),
    ],
    ("diffusion/windows.py", "windows"): [
        ("hop = length * scale - window.overlap", "hop = length - window.overlap"),
        ("int(shift * scale)", "0"),
        (
            "range(first, first + frames, window.length * scale - window.overlap)",
            "range(first, first + frames, window.length - window.overlap)",
        ),
        ("range(int(hop * shift), last, hop)", "range(0, last, hop)"),
        ("{min(int(scale * shift), last), last,", "{0, last,"),
        ("shift = reversed_bits(step)", "shift = 0.0"),
        ("value += half * (step & 1)", "value += half * (step & 1) / 2"),
        ("(weights / total[own]).float()", "(weights / total[own] ** 2).float()"),
        ('if window.fuse == "flat":', 'if window.fuse != "pyramid":'),
        ("edge = torch.minimum(near, near.flip(0))", "edge = near"),
        ("near / (window.overlap + 1)", "near / window.overlap"),
        (
            "before = ramp if looped or numbers[0] > 0 else",
            "before = ramp if looped or numbers[0] > 1 else",
        ),
        ("return frames > window.length or", "return frames >= window.length or"),
        (
            'return frames > window.length or window.schedule == "looped_uniform"',
            "return frames > window.length",
        ),
        ("while (length - 1) * 2**scales < frames:", "while length * 2**scales < frames:"),
        ("predicted * weights", "predicted * weights.mean()"),
        ("else min(window.length, frames)", "else window.length"),
        ("for i in range(window.stride)", "for i in range(1)"),
    ],
    (
        "diffusion/denoise.py",
        "kept::test_what_is_kept_is_as_noisy_as_the_next_step_expects "
        "windows::test_the_loop_takes_the_windows_of_each_step "
        "windows::test_frames_of_a_model_without_motion_do_not_feel_the_windows "
        "windows::test_longer_than_the_module_and_each_window_reads_its_own_text "
        "windows::test_the_model_first_sees_the_noise_alone_or_the_clip_with_the_noise_of_that_step "
        "windows::test_each_window_has_its_own_frames_conditions "
        "windows::test_steps_begin_from_a_clip_with_noise_upon_it guidance "
        "controlnet::test_a_pooling_controlnet_applies_to_the_conditional_branch_only",
    ): [
        (
            "next_timestep = on_device[index + 1] if index + 1 < count else None",
            "next_timestep = on_device[index] if index + 1 < count else None",
        ),
        (
            "context_windows(windows, noise.shape[2], index)",
            "context_windows(windows, noise.shape[2], 0)",
        ),
        ("latents = known.blend(latents, noise, scheduler, on_device[0])", "pass"),
        ("latents: Tensor = noise * scheduler.init_noise_sigma", "latents: Tensor = noise"),
        ("first = start * scheduler.order", "first = start"),
        (
            "latents = scheduler.add_noise(source, noise, timesteps[:1])",
            "latents = scheduler.add_noise(source, noise, timesteps[-1:])",
        ),
        ("conditions = conditions.at(frames, total)", "pass"),
        ("if scale <= 1:", "if scale <= 2:"),
        ("StepInfo(step=index, steps=count, skipped=skipped,", "StepInfo(step=index, steps=count,"),
        ("window.add_to(noise_pred, part)", "windows[0].add_to(noise_pred, part)"),
        ("model_input.index_select(2, frames)", "model_input[:, :, : len(frames)]"),
    ],
    ("diffusion/conditioning.py", "windows"): [
        (
            "return text.index_select(1, frames",
            "return text[:, :len(frames)].index_select(1, 0 * frames",
        ),
    ],
    ("diffusion/encoders.py", "text"): [
        ("pooled[::count]", "pooled[: len(prompts)]"),
        ("layers[-clip_skip]", "layers[-clip_skip - 1]"),
        ("out.hidden_states[-1 - clip_skip]", "out.hidden_states[-clip_skip]"),
        ("plain.abs().mean() / scaled.abs().mean()", "1"),
        ("weights[1 : 1 + len(chunk.weights)]", "weights[: len(chunk.weights)]"),
        ("ids == tokenizer.eos_token_id", "ids >= tokenizer.bos_token_id"),
        ("first = ends.int().argmax(dim=-1)", "first = ends.int().argmax(dim=-1) - 1"),
        (
            "unflatten(0, (-1, count)).flatten(1, 2)",
            "unflatten(0, (count, -1)).transpose(0, 1).flatten(1, 2)",
        ),
        ("return min(layers) - (len(layers) > 1)", "return min(layers)"),
    ],
    ("diffusion/schedules.py", "presets schedules"): [
        ("steps > (most := sampler.most_steps)", "steps >= (most := sampler.most_steps)"),
        ("steps < 2 and", "steps < 3 and"),
        ('"steps_offset": 1}', '"steps_offset": 0}'),
        ("prediction_type=prediction_type, **settings)", 'prediction_type="epsilon", **settings)'),
        ('"timestep_spacing": config.timestep_spacing', '"timestep_spacing": "leading"'),
        ('["rescale_betas_zero_snr"] = True', '["rescale_betas_zero_snr"] = False'),
        ("(zero_snr or steps == 1)", "zero_snr"),
        ("first < 1000 and", "True and"),
        ("or steps < _FEW)", "or steps < _FEW - 1)"),
        ('"beta_end": end,', '"beta_end": 0.012,'),
    ],
    ("diffusion/samplers.py", "schedules"): [
        ('"original_inference_steps": 100}', '"original_inference_steps": 50}'),
        ('"original_inference_steps": 50}', '"original_inference_steps": 100}'),
        ("most_steps=50,", "most_steps=100,"),
        ('_multistep("dpmsolver++", 3)', '_multistep("dpmsolver++", 2)'),
        ('_multistep("sde-dpmsolver++", 2)', '_multistep("dpmsolver++", 2)'),
        (
            'settings={"skip_prk_steps": True, "set_alpha_to_one": True}',
            'settings={"skip_prk_steps": True}',
        ),
        ('scheduler="EulerAncestralDiscreteScheduler"', 'scheduler="EulerDiscreteScheduler"'),
        ('"lower_order_final": True}', '"lower_order_final": False}'),
        ('"plms": "pndm"', '"plms": "lms"'),
        (
            'settings={"clip_sample": False, "set_alpha_to_one": True}',
            'settings={"clip_sample": False, "set_alpha_to_one": False}',
        ),
        (
            'scheduler="DDPMScheduler", settings={"clip_sample": False}',
            'scheduler="DDPMScheduler", settings={}',
        ),
    ],
    ("diffusion/known_region.py", "kept"): [
        ("mask * x + (1 - mask) * known", "(1 - mask) * x + mask * known"),
        ("/ 127.5) - 1", "/ 255)"),
        ("return F.max_pool2d(bright", "return F.avg_pool2d(bright"),
    ],
    ("diffusion/known_region.py", "conditions"): [
        ("mask[:, :, number] = 0", "mask[:, :, 0] = 0"),
    ],
    ("jobs/sampling.py", "second_pass"): [
        ("steps - max(1, round(steps * strength))", "steps - round(steps * strength)"),
        ("steps - max(1, round(steps * strength))", "steps - max(1, int(steps * strength))"),
    ],
    ("diffusion/known_region.py", "training_data"): [
        ("torch.cat(parts) * vae.config.scaling_factor", "torch.cat(parts)"),
        (".mode().float())", ".sample(torch.Generator().manual_seed(0)).float())"),
    ],
    ("diffusion/guidance.py", "guidance"): [
        ("share = step / (steps - 1) if steps > 1 else 0.0", "share = step / steps"),
        ("if not start - _ROUNDING <= share <= end + _ROUNDING:", "if not start <= share <= end:"),
        ("return 1.0\n", "return self.scale\n"),
        ("interpolate_number(self.schedule, share)", "self.schedule[max(self.schedule)]"),
        ("uncond + scale * (cond - uncond)", "cond + scale * (cond - uncond)"),
        ("axes = tuple(range(1, guided.ndim))", "axes = tuple(range(guided.ndim))"),
        ("rescale * ratio + (1 - rescale)", "(1 - rescale) * ratio + rescale"),
    ],
    ("diffusion/free_init.py", "free_init"): [
        ("(1 - alpha) ** 0.5 * first.float()", "(1 - alpha) * first.float()"),
        ("* (1 - low_pass)", "* low_pass"),
        (
            "settings.spatial_stop / settings.temporal_stop",
            "settings.temporal_stop / settings.spatial_stop",
        ),
        (
            "_frequencies(height)[:, None] ** 2 + _frequencies(width) ** 2",
            "_frequencies(width)[:, None] ** 2 + _frequencies(height) ** 2",
        ),
        ("square / stop**2) ** settings.order", "square / stop**2) ** 2"),
        ("torch.exp(-square / (2 * stop**2))", "torch.exp(-square / stop**2)"),
        ("(square <= 2 * stop)", "(square <= stop)"),
        ("steps * (i + 1) // settings.iterations", "steps * i // settings.iterations"),
    ],
    ("diffusion/free_noise.py", "free_noise"): [
        ("hop = window.length - window.overlap", "hop = window.length"),
        ("[stretch[i] for i in torch.randperm(hop, generator=generator).tolist()]", "stretch"),
        ("generator = seeded(seed)", "generator = seeded(0)"),
        ("min(window.length, frames)", "1"),
    ],
    ("diffusion/interpolation.py", "guidance text"): [
        ("np.interp(at, keys", "np.interp(0.5, keys"),
        ("keys = sorted(values)", "keys = list(values)"),
        ("(frame - keys[before]) / (keys[after] - keys[before])", "frame / keys[after]"),
        (
            "(1 - fraction) * start.float() + fraction * end.float()",
            "fraction * start.float() + (1 - fraction) * end.float()",
        ),
        ("(fraction * angle).sin() * b", "fraction * angle.sin() * b"),
        ("_NO_ARC = 1e-3", "_NO_ARC = 0.0"),
        ("(keys[-1] - loop, *keys, keys[0] + loop)", "(-loop, *keys, keys[0] + loop)"),
        ("(values[-1:], values, values[:1])", "(values[:1], values, values[:1])"),
        ('slerp if way == "slerp" else _lerp', "slerp"),
    ],
    ("diffusion/chunks.py", "text"): [
        ("limit = tokenizer.model_max_length - 2", "limit = tokenizer.model_max_length - 3"),
        ("(piece.weight,) * len(word)", "(1.0,) * len(word)"),
        (
            'ended = name.endswith("</w>") or following in added or following == ""',
            "ended = True",
        ),
        ("ended = not (following in added and _follows(following, name))", "ended = True"),
        ("if ended or end - start == limit:", "if ended:"),
    ],
}
