"""Wrong changes of training: its data, its loss, the loop, and what is saved."""

from . import Table

MUTANTS: Table = {
    ("training/pixels.py", "training_data"): [
        ("permute(0, 3, 1, 2).float() / 127.5 - 1", "permute(0, 3, 1, 2).float() / 255"),
        ("permute(0, 3, 1, 2).float() / 127.5 - 1", "permute(0, 3, 2, 1).float() / 127.5 - 1"),
        (
            "scale = max(size[0] / height, size[1] / width)",
            "scale = min(size[0] / height, size[1] / width)",
        ),
        (
            "scale = max(size[0] / height, size[1] / width)",
            "scale = max(size[0] / width, size[1] / height)",
        ),
        (
            "top, left = (pixels.shape[2] - size[0]) // 2, (pixels.shape[3] - size[1]) // 2",
            "top, left = 0, 0",
        ),
    ],
    ("training/camera_clips.py", "motion_lora"): [
        ('between if move == "pan-right" else -between', "between"),
        ('way if move == "roll-anticlockwise" else -way', "way"),
        ("-sine * height / width", "-sine * width / height"),
        ("2 * way - 1", "way"),
        ("full + (_ZOOM - 1) * way", "_ZOOM + (1 - _ZOOM) * way"),
    ],
    ("training/stages/motion_lora.py", "motion_lora"): [
        ('r"\\1.processor.\\2"', 'r"\\1.\\2"'),
        ("elif feed_forward and", "elif"),
        ("config.lora_rank or 64", "64"),
    ],
    ("training/clips.py", "training_data"): [
        ("start = rng.randint(0, total - length)", "start = 0"),
        (
            "start = rng.randint(0, total - length)",
            "start = rng.randint(0, max(total - length - 1, 0))",
        ),
        ("length = min(total, (count - 1) * stride + 1)", "length = min(total, count * stride)"),
        ("[start + i * (length - 1) // (count - 1) for", "[start + i * length // count for"),
        ("self.config.seed * 1_000_003 + number // count)", "self.config.seed * 1_000_003)"),
        ("self.config.seed * 1_000_003 + number // count)", "number // count)"),
        (
            "index = int(torch.randperm(count, generator=generator)[number % count])",
            "index = number % count",
        ),
        ("number //= 2", "pass"),
        (
            "frames = pixels.flip(3) if flip else pixels",
            "frames = pixels.flip(2) if flip else pixels",
        ),
        ("condition.flip(-1) if flip else condition", "condition"),
        ("self.cache.read(file.path, flip=flip)", "self.cache.read(file.path, flip=False)"),
        ("data.horizontal_flip and rng.random() < 0.5", "data.horizontal_flip"),
        ('random.Random(f"{self.config.seed} {number}")', 'random.Random(f"{self.config.seed}")'),
        (
            "rng.random() < self.config.caption_dropout",
            "rng.random() < 2 * self.config.caption_dropout",
        ),
        ('"" if dropped else file.caption', "file.caption"),
        ('if self.config.stage != "ip-adapter":', 'if self.config.stage == "motion":'),
        ("return 0.1 if share is None else share", "return share or 0.1"),
        (
            "torch.cat([sample.frames for sample in samples])",
            "torch.cat([sample.frames for sample in samples[::-1]])",
        ),
    ],
    ("training/cache.py", "training_data"): [
        ("* noise) * scaling_factor", "* noise)"),
        (".mul(0.5).exp()", ".exp()"),
        (".clamp(-30, 20)", ""),
        (
            "mean, log_variance = moments.contiguous().chunk(2, dim=1)",
            "log_variance, mean = moments.contiguous().chunk(2, dim=1)",
        ),
        ('["flipped" if flip else "moments"]', '["moments"]'),
        (
            'self.key = f"{_digest_of(vae)} {size[0]}x{size[1]}"',
            'self.key = f"{_digest_of(vae)} {size[0] * size[1]}"',
        ),
        ("pixels.split(16)", "[pixels[:16]]"),
    ],
    ("training/loop.py", "train::test_resumed_run_gives_the_weights_of_an_uninterrupted_one"): [
        ("average.copy_(saved)", "pass"),
        ('self.optimizer.load_state_dict(state["optimizer"])', "pass"),
        (
            'self.step, self.skipped = state["step"], state["skipped"]',
            "self.step, self.skipped = 0, {}",
        ),
        ("micro = self.loop.step * config.gradient_accumulation_steps", "micro = 0"),
    ],
    (
        "training/loop.py",
        "train::test_four_micro_steps_of_one_equal_one_step_of_four train::test_learning_rate_warms_up_and_falls",
    ): [
        (
            "accelerator.backward(loss / self.config.gradient_accumulation_steps)",
            "accelerator.backward(loss)",
        ),
        (
            "return config.learning_rate * (step + 1) / config.lr_warmup_steps",
            "return config.learning_rate * step / config.lr_warmup_steps",
        ),
        ("(1 + math.cos(math.pi * done)) / 2", "1 + math.cos(math.pi * done)"),
    ],
}
