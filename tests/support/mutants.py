"""Damaged PNGs, the same ones each time, read beside Pillow."""

import io
import random
import struct
import zlib
from collections import Counter
from collections.abc import Callable

import numpy as np
from PIL import Image

from flows.scenes import draw_scene
from images import png
from images.masks import read_mask
from runtime.errors import RejectError
from schemas.classes import Taxonomy, load_taxonomy

Mutation = Callable[[random.Random, bytearray], bytes]


def chunks_of(data: bytes) -> list[tuple[bytes, bytes]]:
    found, offset = [], 8
    while offset < len(data):
        (length,) = struct.unpack_from(">I", data, offset)
        found.append((data[offset + 4 : offset + 8], data[offset + 8 : offset + 8 + length]))
        offset += 12 + length
    return found


def join(chunks: list[tuple[bytes, bytes]]) -> bytes:
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in chunks
    )


def flip_bits(r: random.Random, data: bytearray) -> bytes:
    for _ in range(r.randint(1, 8)):
        data[r.randrange(len(data))] ^= 1 << r.randrange(8)
    return bytes(data)


def truncate(r: random.Random, data: bytearray) -> bytes:
    return bytes(data[: r.randrange(len(data))])


def splice(r: random.Random, data: bytearray) -> bytes:
    chunks = chunks_of(bytes(data))
    for _ in range(r.randint(1, 3)):
        move = r.choice(["drop", "copy", "swap", "foreign"])
        at = r.randrange(len(chunks))
        if move == "drop" and len(chunks) > 1:
            del chunks[at]
        elif move == "copy":
            chunks.insert(r.randrange(len(chunks) + 1), chunks[at])
        elif move == "swap":
            other = r.randrange(len(chunks))
            chunks[at], chunks[other] = chunks[other], chunks[at]
        else:
            kind = r.choice(
                [b"tRNS", b"PLTE", b"acTL", b"tEXt", b"sBIT", b"gAMA", b"IDAT", b"zzZZ"]
            )
            chunks.insert(r.randrange(len(chunks) + 1), (kind, r.randbytes(r.randrange(40))))
    return join(chunks)


def lie_in_header(r: random.Random, data: bytearray) -> bytes:
    chunks = chunks_of(bytes(data))
    header = bytearray(chunks[0][1])
    field = r.choice(["width", "height", "depth", "colour", "method", "interlace"])
    if field in ("width", "height"):
        at = 0 if field == "width" else 4
        value = r.choice([0, 1, 47, 48, 49, 1000, 2**16, 2**31 - 1, 2**32 - 1])
        header[at : at + 4] = struct.pack(">I", value)
    else:
        at = {"depth": 8, "colour": 9, "method": r.choice([10, 11]), "interlace": 12}[field]
        header[at] = r.choice([0, 1, 2, 3, 4, 6, 8, 16, 255])
    chunks[0] = (b"IHDR", bytes(header))
    return join(chunks)


def lie_in_pixels(r: random.Random, data: bytearray) -> bytes:
    """Damages the compressed stream or its scan lines, but leaves the checksums right."""
    chunks = chunks_of(bytes(data))
    at = next(i for i, (kind, _) in enumerate(chunks) if kind == b"IDAT")
    body = bytearray(chunks[at][1])
    if r.random() < 0.5:
        lines = bytearray(zlib.decompress(bytes(body)))
        for _ in range(r.randint(1, 20)):
            lines[r.randrange(len(lines))] = r.randrange(256)
        body = bytearray(zlib.compress(bytes(lines[: r.randrange(1, len(lines) + 1)])))
    else:
        body[r.randrange(len(body))] ^= 1 << r.randrange(8)
    chunks[at] = (b"IDAT", bytes(body))
    return join(chunks)


MUTATIONS: list[Mutation] = [flip_bits, truncate, splice, lie_in_header, lie_in_pixels]


def _seeds() -> list[bytes]:
    image, mask = (Image.fromarray(pixels) for pixels in draw_scene(3, 48, 36))
    opaque = image.copy()
    opaque.putalpha(255)
    pictures = [image, mask, opaque, image.convert("L"), image.convert("P"), image.convert("1")]
    buffers = []
    for picture in pictures:
        buffer = io.BytesIO()
        picture.save(buffer, "PNG")
        buffers.append(buffer.getvalue())
    return buffers


def mutants(count: int) -> list[tuple[str, bytes]]:
    """``count`` damaged files, the same ones each time."""
    r = random.Random(0)
    seeds = _seeds()
    made = []
    for _ in range(count):
        mutation = r.choice(MUTATIONS)
        made.append((mutation.__name__, mutation(r, bytearray(r.choice(seeds)))))
    return made


LIMIT = 1_000_000


def _pillow(data: bytes) -> Image.Image | None:
    try:
        image = Image.open(io.BytesIO(data), formats=("PNG",))
        image.load()
    except Exception:  # noqa: BLE001 - Pillow raises many types
        return None
    return image


def _mended(data: bytes) -> bytes:
    """The file as kornia-rs sees it: without what it passes over, if the pixels are whole.

    That is zlib's checksum, and chunks such as gAMA, whatever is in them.
    """
    chunks = chunks_of(data)
    stream = b"".join(body for kind, body in chunks if kind == b"IDAT")
    lines = zlib.decompressobj(-15).decompress(stream[2:])
    first = next(i for i, (kind, _) in enumerate(chunks) if kind == b"IDAT")
    kept = (b"IHDR", b"PLTE", b"tRNS", b"IEND")
    before, after = (
        [chunk for chunk in part if chunk[0] in kept] for part in (chunks[:first], chunks[first:])
    )
    return join([*before, (b"IDAT", zlib.compress(lines)), *after])


def _classes(image: Image.Image, taxonomy: Taxonomy) -> np.ndarray:
    """Class ids of the pixels that Pillow shows: numbers in red or grey, or class colours."""
    shown = np.asarray(image.convert("RGB"))
    red, others = shown[..., 0], shown[..., 1:]
    if (not others.any() or (others == red[..., None]).all()) and red.max() < len(taxonomy):
        return red
    meanings = taxonomy.id_by_colour
    return np.array([[meanings[tuple(map(int, one))] for one in row] for row in shown])


def read_beside_pillow(count: int) -> Counter[str]:
    """Reads ``count`` mutants as image and as mask: as Pillow does, or with a reason why not.

    Returns:
        How often each mutation was read, or rejected with each code, such as ``splice: read``.
    """
    taxonomy = load_taxonomy("carla-0.8")
    outcomes: Counter[str] = Counter()
    reasons: list[str] = []
    for name, data in mutants(count):
        try:
            image = png.decode_image(data, LIMIT)
        except RejectError as error:
            reasons.append(error.message)
            outcomes[f"{name}: {error.code}"] += 1
        else:
            theirs = _pillow(data) or _pillow(_mended(data))
            assert theirs is not None, "read what Pillow refuses for its pixels"
            assert image.dtype == np.uint8
            assert image.shape == (theirs.height, theirs.width, 3)
            assert np.array_equal(image, np.asarray(theirs.convert("RGB")))
            outcomes[f"{name}: read"] += 1
        try:
            mask = read_mask(data, LIMIT, taxonomy)
        except RejectError as error:
            reasons.append(error.message)
        else:
            theirs = _pillow(data) or _pillow(_mended(data))
            assert theirs is not None
            assert np.array_equal(mask, _classes(theirs, taxonomy))
    assert all(reasons)
    assert sum(outcomes.values()) == count
    assert {name.split(": ")[0] for name in outcomes} == {m.__name__ for m in MUTATIONS}
    return outcomes
