"""Files that crash the decoders of processes that start with a certain folder in PYTHONPATH."""

from pathlib import Path

from PIL import Image, PngImagePlugin

POISON = """
import ctypes, os, sys
from importlib.abc import MetaPathFinder
from importlib.util import find_spec

class Poisoned(MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name != "images.png":
            return None
        sys.meta_path.remove(self)
        spec = find_spec(name)
        load = spec.loader.exec_module

        def exec_module(module):
            load(module)
            for name in ("decode_image", "decode_pixels"):
                setattr(module, name, fragile(getattr(module, name)))

        spec.loader.exec_module = exec_module
        return spec

def fragile(decode):
    def decoded(data, *others):
        if b"POISON" in data and not os.path.exists(%(once)r):
            if %(once)r:
                open(%(once)r, "w").close()
            ctypes.string_at(0)  # As a decoder's fault, it stops the thread where it is.
        return decode(data, *others)
    return decoded

sys.meta_path.insert(0, Poisoned())
"""
"""A sitecustomize module: its decoders end the process on files with a certain comment."""


def site(folder: Path, once: str = "") -> Path:
    """A folder for PYTHONPATH; with ``once``, decoders crash as long as that file is missing."""
    made = folder / "site"
    made.mkdir(exist_ok=True)
    (made / "sitecustomize.py").write_text(POISON % {"once": once})
    return made


def add_to(raw: Path, *names: str) -> None:
    """Writes the comment into PNGs below ``raw``."""
    comment = PngImagePlugin.PngInfo()
    comment.add_text("Comment", "POISON")
    for name in names:
        image = Image.open(raw / name)
        image.save(raw / name, pnginfo=comment)
