"""Images and videos made here, each unlike every other, so that no cache of the server's answers for its encoder.

An image is a PNG of two colours through a palette: its pixels are the same bytes for every image of a size, made once,
and only the palette changes. A video is the sequence of frames that vLLM takes as data:video/jpeg (vLLM 0.26.0
multimodal/media/video.py:83-105): base64 frames between commas, which it opens whatever image format they have.
"""

from __future__ import annotations

import base64
import random
import struct
import zlib
from functools import lru_cache

_SIGNATURE = b"\x89PNG\r\n\x1a\n"


def image_url(size: tuple[int, int], chance: random.Random) -> str:
    """A PNG of that width and height as a data URL."""
    return "data:image/png;base64," + _picture(size, chance)


def video_url(size: tuple[int, int], frames: int, chance: random.Random) -> str:
    """So many frames of that width and height as a data URL."""
    return "data:video/jpeg;base64," + ",".join(_picture(size, chance) for _ in range(frames))


def _picture(size: tuple[int, int], chance: random.Random) -> str:
    head, pixels = _parts(*size)
    return base64.b64encode(head + _chunk(b"PLTE", chance.randbytes(6)) + pixels).decode("ascii")


@lru_cache(maxsize=64)
def _parts(width: int, height: int) -> tuple[bytes, bytes]:
    """What stands before and after the palette: one bit a pixel, the second colour in every eighth column."""
    header = struct.pack(">IIBBBBB", width, height, 1, 3, 0, 0, 0)
    row = b"\0" + b"\x01" * ((width + 7) // 8)
    squeeze = zlib.compressobj(6)
    data = b"".join(squeeze.compress(row) for _ in range(height)) + squeeze.flush()
    return _SIGNATURE + _chunk(b"IHDR", header), _chunk(b"IDAT", data) + _chunk(b"IEND", b"")


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
