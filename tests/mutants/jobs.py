"""Wrong changes of prompt files, presets, names and planning."""

from . import Table

MUTANTS: Table = {
    ("jobs/native.py", "jobs presets"): [
        ('for key in ("motion", "variant") if', 'for key in ("motion",) if'),
        ('for key in ("motion", "variant") if', 'for key in ("variant",) if'),
    ],
    ("jobs/prompt_travel.py", "other_programs"): [
        ("if frames > window else", "if frames >= window else"),
        ("seeds[index % len(seeds)]", "seeds[0]"),
    ],
    ("jobs/prompt_travel_control.py", "other_programs"): [
        ("* self.prompt_fixed_ratio), end - 1)", "* self.prompt_fixed_ratio), end)"),
        ("held[last] = texts[start]", "held[last] = texts[end]"),
        ("if len(starts) > 1 else []", "if starts else []"),
        ("[*starts[1:], frames]", "starts[1:]"),
    ],
    ("jobs/travel_text.py", "travel_text"): [
        ("if last - first >= len(found):", "if False:"),
        ('[line.strip(" ,") for line', "[line for line"),
        ("(*head, match[2], *tail)", "(*head, match[2])"),
        ("(shared, *map(_bare, later))", "map(_bare, later)"),
        ("if len(negative) > 1:", "if False:"),
        ("if match[1] in texts:", "if False:"),
    ],
    ("jobs/official.py", "other_programs"): [
        ("model.random_seed or model.seed", "model.seed or model.random_seed"),
        ('(model.path if model.base else "", model.lora_alpha)', '("", model.lora_alpha)'),
        ("for motion in model.motion_module or", "for motion in model.motion_module[:1] or"),
        ("model.ckpt_path or model.base_model_path", "model.base_model_path or model.ckpt_path"),
        ("**(_SDXL if sdxl else {})", "**_SDXL"),
    ],
    ("jobs/documents.py", "messages"): [
        ('where.endswith(".json") or _JSON.match(text)', "False"),
        ('startswith(("//", "/*"))', "startswith('#')"),
        ("if isinstance(one, str) and _NO_TEXT.search(one):", "if False:"),
    ],
    ("jobs/reading.py", "messages"): [
        ("if job and key in job:", "if False:"),
        ("return key if key in known else other", "return other"),
    ],
    ("jobs/extending.py", "messages many_jobs"): [
        ('and place.partition(".")[0] not in FILE_KEYS', ""),
        ("if len(chain) > _LONGEST_CHAIN:", "if False:"),
    ],
    ("jobs/building.py", "jobs"): [
        ('if one in (None, "none") else one', "if one is None else one"),
        ("if first == -1 else first", "if first == 0 else first"),
    ],
    ("jobs/record.py", "jobs"): [
        ("both[key] = inner.merged(below, above)", "pass"),
        ("if value is False and allows_none(kind):", "if value is False:"),
    ],
    ("jobs/kinds.py", "jobs"): [
        ("if frame in counted:", "if False:"),
        ("if not -frames <= key < frames:", "if not -frames <= key <= frames:"),
    ],
    ("jobs/presets.py", "jobs"): [
        ("if all(s.get(k) == first[k] for s in others)", "if True"),
        ('2 ** (len(vae["block_out_channels"]) - 1)', '2 ** len(vae["block_out_channels"])'),
    ],
    ("jobs/naming.py", "jobs many_jobs"): [
        ("name[:60]", "name[:600]"),
        ("text.lower()", "text"),
        ('part[0] != "."', "True"),
    ],
    ("sampling/output.py", "output"): [
        ("loops=output.ping_pong", "loops=False"),
        ("if output.ping_pong:", "if False:"),
        ("raise ClipError(", "log.error("),
    ],
    ("sampling/clip_checks.py", "output"): [],
}
