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
