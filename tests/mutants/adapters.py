"""Wrong changes of adapters: recognising, reading and applying them."""

from . import Table

MUTANTS: Table = {
    ("adapters/textual_inversion.py", "embeddings"): [
        ("sorted(tokens, key=len, reverse=True)", "sorted(tokens, key=len)"),
        (
            'f"{token}_{number}" for number in range(1, count)',
            'f"{token}_{number}" for number in range(count - 1)',
        ),
    ],
    ("adapters/textual_inversion.py", "recognisers embeddings"): [
        ("token = stem if names[0] in _NAMELESS else names[0]", "token = names[0]"),
    ],
    ("adapters/lora/math.py", "lora_math lora"): [
        ("return self.alpha / rank if", "return self.alpha if"),
        ("return old + scale * change", "return old + change"),
        (
            "old + scale * (_with_length(old + change, delta) - old)",
            "_with_length(old + change, delta)",
        ),
        ("axis = 1 if by_input else 0", "axis = 0"),
        ("torch.kron(small, large.contiguous())", "torch.kron(large.contiguous(), small)"),
    ],
    ("adapters/lora/peft.py", "lora lora_math lora_peft"): [
        ("math.sqrt(delta.factor_rank or 1)", "1.0"),
        ("(.*\\.)?({pattern})$", ".*({pattern})$"),
    ],
    ("adapters/lora/files.py", "lora lora_math"): [
        ("return small[1] * large[1] if", "return large[1] if"),
        ("return None if widths else _noted_family(metadata)", "return None"),
    ],
    ("adapters/lora/merge.py", "lora_math loading"): [
        ("(weight, delta, scale)", "(layer.weight, delta, scale)"),
        ("bias.float() + scale * change", "bias.float() + change"),
    ],
    ("adapters/lora/layers.py", "lora motion_lora"): [
        ("names.get(name, name): delta", "name: delta"),
        ("if name not in middle}", "if name in middle}"),
    ],
    ("adapters/ip_adapter.py", "ip_adapter recognisers"): [
        ("        undo.callback(detach)\n", ""),
        (
            "processor.scale = [scale for _, scale in adapters]",
            "processor.scale = [1.0 for _ in adapters]",
        ),
        ("{2 * number + 1}.to_{kind}_ip", "{number + 1}.to_{kind}_ip"),
        ("(2 * heads, wide)", "(heads, wide)"),
        ('"plus": "proj_in.weight"', '"plus": "proj_out.weight"'),
    ],
    ("adapters/control_files.py", "controlnet sparse_control recognisers"): [
        ("min(downs) - 1", "min(downs)"),
        ("inner or bare", "bare"),
        ("if family not in info.families:", "if False:"),
        ("return lengths.pop()", "return lengths.pop() - 1"),
    ],
    ("adapters/t2i_adapter.py", "t2i_adapter"): [
        ("in (3, 1)", "in (3,)"),
        ("2 * vae_scale_factor", "vae_scale_factor"),
        ("divmod(int(number[1]), each)", "divmod(int(number[1]), 1)"),
    ],
    ("adapters/identify.py", "identify recognisers"): [
        (
            "    recognise_ip_adapter,\n    recognise_control,",
            "    recognise_lora,\n    recognise_control,",
        ),
        ("return check_class(report)", "return report"),
    ],
    ("checkpoints/file_report.py", "recognisers"): [
        ("if report.goes_in != key:", "if False:"),
        ("if option else report.goes_in", "if False else report.goes_in"),
    ],
}
