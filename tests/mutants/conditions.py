"""Wrong changes of the conditions: what each kind gives to a sampling run."""

from . import Table

MUTANTS: Table = {
    ("conditions/images.py", "conditions"): [
        ("spread(job.frames, images.first, images.every)", "spread(job.frames, 0, 1)"),
        (
            "permute(3, 0, 1, 2).unsqueeze(0).float() / 255",
            "permute(3, 0, 1, 2).unsqueeze(0).float()",
        ),
        ("permute(3, 0, 1, 2)", "permute(3, 0, 2, 1)"),
        ("(job.width, job.height), images.fit)", "(job.height, job.width), images.fit)"),
    ],
    ("conditions/ip_adapters.py", "conditions"): [
        ("tuple(without for _, without in pairs)", "tuple(embedding for embedding, _ in pairs)"),
        ("mask = mask * torch.tensor(", "mask = torch.ones_like(mask) * torch.tensor("),
        ("if adapter.weights is not None:", "if False:"),
        ("if adapter.mask is not None:\n        mask", "if False:\n        mask"),
        ('yield WeightSource("image_encoder", adapter.encoder, "image encoder")', "pass"),
    ],
    ("conditions/controlnets.py", "conditions"): [
        ("strength=net.strength,", ""),
        ("start=net.start,", ""),
        ("end=net.end,", ""),
        ("weights=numbers_by_frame(net.weights, job.frames),", ""),
        ("canny(one, net.canny.low, net.canny.high)", "canny(one, net.canny.high, net.canny.high)"),
    ],
    ("conditions/keyframes.py", "conditions"): [
        (
            "torch.where(known.mask == 0, known.latents, video.latents)",
            "torch.where(known.mask == 0, video.latents, known.latents)",
        ),
        ("mask=known.mask * video.mask", "mask=known.mask"),
        ("if source is None and keyframes.strength < 1:", "if keyframes.strength < 1:"),
        ("if source is None and keyframes.strength < 1:", "if source is None:"),
    ],
    ("conditions/start.py", "conditions"): [
        ("source=video, known=known", "source=video, known=None"),
        ("source=video, known=known", "source=None, known=known"),
    ],
    ("conditions/motion.py", "conditions"): [
        ("motion_strength=strength.scale,", ""),
        ("motion_frames=frames,", ""),
        ("stretch=positions.stretch, offset=positions.offset", "stretch=positions.stretch"),
    ],
    ("conditions/animate.py", "conditions"): [
        ("torch.cat([mask, latents], dim=1)", "torch.cat([latents, mask], dim=1)"),
        ("pia_mask(job.animate.motion, job.frames)", 'pia_mask("small", job.frames)'),
    ],
    ("conditions/sparse_controls.py", "conditions"): [
        ("_normalized(image) if net.normalize else image", "image"),
        ('if encoder.reads == "latents"', 'if encoder.reads == "images"'),
        ("inputs[frame] = read", "inputs[0] = read"),
        ("/ span * 255", "/ 2"),
    ],
    ("diffusion/image_embeddings.py", "conditions ip_adapter"): [
        ("without = torch.zeros_like(embeddings[:1])", "without = embeddings[:1]"),
        (
            "interpolate(embeddings, list(images), range(frames))",
            "interpolate(embeddings, list(images), range(1, frames + 1))",
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
