"""Wrong changes of reading and writing models: motion modules, single files, weights."""

from . import Table

MUTANTS: Table = {
    ("checkpoints/motion_config.py", "motion_config"): [
        ('and positions > 32 else "v2"', 'and positions >= 32 else "v2"'),
        ('return "hotshot-xl" if positions == 24 else "sdxl-beta"', 'return "sdxl-beta"'),
        ('return "v1" if positions == 24 else "v3"', 'return "v3"'),
    ],
    ("checkpoints/single_file.py", "single_file"): [
        ('else clip_tokenizer("!")', "else clip_tokenizer()"),
        ("UNetLayout(EMA if kind.averaged else UNET,", "UNetLayout(UNET,"),
    ],
    ("checkpoints/sd_names.py", "single_file"): [
        ('first.T if self.form == "transposed" else first', "first"),
        ("tensor = tensor.T.contiguous()", "tensor = tensor.contiguous()"),
        ('for letter in "qkv"', 'for letter in "kqv"'),
        ('f"up.{last - int(m[1])}.block"', 'f"up.{int(m[1])}.block"'),
        ('f"mid.block_{int(m[1]) + 1}"', 'f"mid.block_{2 - int(m[1])}"'),
    ],
    ("checkpoints/empty_model.py", "mapped"): [
        ("copy = isinstance(model, CLIPPreTrainedModel)", "copy = False"),
        ("if not tensor.is_floating_point():", "if False:"),
    ],
    ("weights/weight_file.py", "weight_file"): [
        ("self._mapped.pop(name)", "self._mapped[name]"),
        ("entry.st_size, entry.st_mtime_ns, entry.st_ino)", "0, 0, 0)"),
        ("if is_archive(path) else {}", ""),
    ],
    ("weights/match.py", "weight_file"): [
        ("tuple(found[name]) != tuple(expected[name])", "len(found[name]) != len(expected[name])"),
        ("[] if others_allowed else", "[] if True else"),
        ("if name not in found]", "if name not in found][1:]"),
    ],
    ("weights/pickles.py", "files"): [
        ("_MAX_DEPTH = 50", "_MAX_DEPTH = 200_000"),
        ("_check_tensors(tensors, path)\n    entries", "entries"),
        ("if wanted > storage.nbytes():", "if False:"),
        ("if sum(storages.values()) > size or total > 4 * size:", "if False:"),
    ],
    ("weights/folder.py", "parts"): [
        ("if missing := sorted(set(named.values()) - set(weights.files)):", "if missing := []:"),
    ],
    ("weights/places.py", "hub"): [
        ('"base" if (path / "base" / "unet").is_dir() else path', '"base" if False else path'),
        ("or not _reads(role, wanted.path)", ""),
    ],
}
