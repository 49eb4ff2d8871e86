"""Wrong changes of reading and writing models: motion modules, single files, adapters, weights."""

from . import Table

MUTANTS: Table = {
    ("checkpoints/motion_config.py", "motion_config"): [
        ('and positions > 32 else "v2"', 'and positions >= 32 else "v2"'),
        ('return "hotshot-xl" if positions == 24 else "sdxl-beta"', 'return "sdxl-beta"'),
        ('return "v1" if positions == 24 else "v3"', 'return "v3"'),
    ],
    ("checkpoints/single_file.py", "single_file"): [
        (
            'return [encoder, second], [clip_tokenizer(), clip_tokenizer(pad_token="!")]',
            "return [encoder, second], [clip_tokenizer(), clip_tokenizer()]",
        ),
    ],
    ("checkpoints/sd_names.py", "single_file"): [
        ('tensor.T if name == "text_projection" else tensor', "tensor"),
        ('for one in "qkv"', 'for one in "kqv"'),
        ('f"up.{last - int(m[1])}.block"', 'f"up.{int(m[1])}.block"'),
        ('f"mid.block_{int(m[1]) + 1}"', 'f"mid.block_{2 - int(m[1])}"'),
    ],
    ("adapters/textual_inversion.py", "embeddings"): [
        ("sorted(words, key=len, reverse=True)", "sorted(words, key=len)"),
    ],
}
