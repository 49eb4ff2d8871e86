"""Wrong changes of the conditions: what each kind gives to a sampling run."""

from . import Table

MUTANTS: Table = {
    ("conditions/images.py", "conditions readers"): [
        ("job, size, mask=True)", "job, size)"),
        ("spread(job.frames, images.first, images.every)", "spread(job.frames, 0, 1)"),
        (
            "permute(3, 0, 1, 2).unsqueeze(0).float() / 255",
            "permute(3, 0, 1, 2).unsqueeze(0).float()",
        ),
        ("permute(3, 0, 1, 2)", "permute(3, 0, 2, 1)"),
        (
            "(job.width, job.height), images.fit, mask)",
            "(job.height, job.width), images.fit, mask)",
        ),
    ],
    ("adapters/fit.py", "conditions"): [
        ("if {report.family, base.family} <= FOLDERS.keys() and", "if False and"),
        ("_LOADERS[key](base, path)\n    return", "return"),
    ],
    ("conditions/ip_adapters.py", "conditions"): [
        ("(_adapter(one, model), one.scale)", "(_adapter(one, model), 1.0)"),
        (
            "    return attach_ip_adapters(model.base.unet, weights)",
            "    attach_ip_adapters(model.base.unet, weights)\n    return lambda: None",
        ),
        ('yield f"{_KEY}[{i}].encoder", partial(_encoder_config, adapter, offline)', "pass"),
        ("if width != encoder_width(weights):", "if False:"),
        ("tuple(without for _, without in pairs)", "tuple(embedding for embedding, _ in pairs)"),
        ("mask = mask * torch.tensor(", "mask = torch.ones_like(mask) * torch.tensor("),
        ("if adapter.weights is not None:", "if False:"),
        ("if adapter.mask is not None:\n        mask", "if False:\n        mask"),
        ('yield WeightSource("image_encoder", adapter.encoder, "image encoder")', "pass"),
    ],
    ("conditions/loras.py", "conditions"): [
        ("lora.scale * by_frame", "by_frame"),
        ("in _by_frame(job):\n        by_frame", "in job.loras[:2]:\n        by_frame"),
        (
            "conditioning.in_both(lambda one: replace(one, lora_weights=tuple(weights)))",
            "replace(conditioning, conditions=replace(conditioning.conditions, lora_weights=tuple(weights)))",
        ),
        ("for i, lora in enumerate(job.loras):", "for i, lora in enumerate(_by_frame(job)):"),
        ("undo = [model.run_plainly()]", "undo = []"),
        ("path, number))", "path, 0))"),
        ("    except BaseException:\n        detach()\n", "    except BaseException:\n"),
    ],
    ("conditions/kind.py", "conditions"): [
        ("if (role, source) not in self.shared:", "if True:"),
        ("self.shared[role, source] = load()", 'self.shared["", source] = load()'),
    ],
    ("conditions/__init__.py", "conditions"): [
        (
            "    IP_ADAPTERS,\n    START,\n    KEYFRAMES,\n    ANIMATE,\n    MOTION,\n    REGIONS,\n)",
            "    REGIONS,\n    IP_ADAPTERS,\n    START,\n    KEYFRAMES,\n    ANIMATE,\n    MOTION,\n)",
        ),
        ("    START,\n    KEYFRAMES,\n    ANIMATE,", "    KEYFRAMES,\n    START,\n    ANIMATE,"),
    ],
    ("conditions/regions.py", "conditions"): [
        ("pooled_text=text.pooled", "pooled_text=conditions.pooled_text"),
        ("divided=is_divided(job.window, job.frames)", "divided=False"),
        (
            "if conditions.pooled_text is not None:",
            "if True:\n            conditions = type(conditions)()",
        ),
    ],
    ("conditions/t2i_adapters.py", "conditions"): [
        (
            "if width % form.downscale_factor or height % form.downscale_factor:",
            "if width % form.downscale_factor:",
        ),
        (
            "if width % form.downscale_factor or height % form.downscale_factor:",
            "if height % form.downscale_factor:",
        ),
        ("for scale in (1.0, job.upscale.scale if job.upscale else 1.0):", "for scale in (1.0,):"),
        ('check_fit("t2i_adapters", source', 'check_fit("controlnets", source'),
        ("adapter.to(model.device, model.dtype)", "adapter.to(model.device)"),
    ],
    ("conditions/controlnets.py", "conditions"): [
        (
            "load_controlnet(path, model.base.unet, None).to(model.device, model.dtype)",
            "load_controlnet(path, model.base.unet, None).to(model.device)",
        ),
        ('torch.device("cpu") if is_divided', "model.device if is_divided"),
        ('key = f"controlnets[{i}].path"', 'key = "controlnets[0].path"'),
        ("strength=net.strength,", ""),
        ("start=net.start,", ""),
        ("end=net.end,", ""),
        ("weights=numbers_by_frame(net.weights, job.frames),", ""),
        ("canny(one, net.canny.low, net.canny.high)", "canny(one, net.canny.high, net.canny.high)"),
    ],
    ("conditions/keyframes.py", "conditions"): [
        ("job.keyframes.strength < 1)", "job.keyframes.strength <= 1)"),
        ("begins = job.start is not None or", "begins = False or"),
        (
            "torch.where(known.mask == 0, known.latents, video.latents)",
            "torch.where(known.mask == 0, video.latents, known.latents)",
        ),
        ("mask=known.mask * video.mask", "mask=known.mask"),
        ("if source is None and keyframes.strength < 1:", "if keyframes.strength < 1:"),
        ("if source is None and keyframes.strength < 1:", "if source is None:"),
    ],
    ("conditions/start.py", "conditions readers"): [
        ("images_source(job.start.mask, job, mask=True)", "images_source(job.start.mask, job)"),
        ("source=video, known=known", "source=video, known=None"),
        ("source=video, known=known", "source=None, known=known"),
    ],
    ("conditions/motion.py", "conditions"): [
        ("if model.motion_config.mid_block else []", "if True else []"),
        (
            "range(len(model.motion_config.block_out_channels))",
            "range(len(model.motion_config.block_out_channels) + 1)",
        ),
        ("motion_strength=strength.scale,", ""),
        ("motion_frames=frames,", ""),
        ("stretch=positions.stretch, offset=positions.offset", "stretch=positions.stretch"),
    ],
    ("conditions/animate.py", "conditions"): [
        ("if pia and job.animate is None:", "if False:"),
        ("if job.animate is not None and not pia:", "if False:"),
        ("torch.cat([mask, latents], dim=1)", "torch.cat([latents, mask], dim=1)"),
        ("pia_mask(job.animate.motion, job.frames)", 'pia_mask("small", job.frames)'),
    ],
    ("conditions/sparse_controls.py", "conditions"): [
        ("if together > longest:", "if together >= longest:"),
        ("if together > longest:", "if job.frames > longest:"),
        ("control.to(model.device, model.dtype)", "control.to(model.device)"),
        ("_normalized(image) if net.normalize else image", "image"),
        ('if encoder.reads == "latents"', 'if encoder.reads == "images"'),
        ("inputs[frame] = read", "inputs[0] = read"),
        ("/ span * 255", "/ 2"),
    ],
    ("diffusion/image_embeddings.py", "conditions ip_adapter"): [
        ("without = torch.zeros_like(embeddings[:1])", "without = embeddings[:1]"),
        (
            "interpolate(embeddings, list(images), range(frames),",
            "interpolate(embeddings, list(images), range(1, frames + 1),",
        ),
        ("float() / 255\n", "float()\n"),
    ],
    ("diffusion/residuals.py", "controlnet t2i_adapter"): [
        ("time.repeat_interleave(frames),", "time.repeat(frames + 0)[: frames * batch] * 0,"),
        ("torch.tensor(weights) * control.strength", "torch.tensor(weights)"),
        ("control.weights[i] for i in numbers", "control.weights[0] for i in numbers"),
        ("index_select(2, numbers)", "index_select(2, torch.arange(len(numbers)))"),
        ("mid = new_mid if mid is None else mid + new_mid", "mid = new_mid"),
        ("_LUMA = (0.299, 0.587, 0.114)", "_LUMA = (0.114, 0.587, 0.299)"),
    ],
}
