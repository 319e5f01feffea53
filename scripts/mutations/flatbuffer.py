"""Arrow files: numbers of their messages and footers, which are aligned, become others."""

import struct

from .plain import BOUNDARIES


def ranges(data):
    """Where messages and the footer are, as far as their lengths are still right."""
    found, at = [], 8
    for _ in range(50):
        if data[at : at + 4] != b"\xff\xff\xff\xff" or at + 8 > len(data):
            break
        (length,) = struct.unpack("<i", data[at + 4 : at + 8])
        if length <= 0 or at + 8 + length > len(data):
            break
        found.append((at + 8, at + 8 + length))
        nxt = data.find(b"\xff\xff\xff\xff", at + 8 + length)
        if nxt < 0:
            break
        at = nxt
    if data[-6:] == b"ARROW1":
        (length,) = struct.unpack("<i", data[-10:-6])
        if 0 < length <= len(data) - 10:
            found.append((len(data) - 10 - length, len(data) - 10))
    return found


def metadata(data, random, others):
    """An aligned number of a message or the footer: an offset, a length, a type, a count."""
    places = ranges(data)
    if not places:
        return data
    data = bytearray(data)
    for _ in range(random.choice([1, 1, 2, 3])):
        start, end = random.choice(places)
        width = random.choice([1, 2, 2, 4, 4, 8])
        if end - start < width:
            continue
        at = start + random.randrange((end - start) // width) * width
        old = int.from_bytes(data[at : at + width], "little")
        new = random.choice([*BOUNDARIES, old + 1, old - 1, old + 4, old - 4, old * 2, old ^ 1 << random.randrange(8 * width), -1])
        data[at : at + width] = (new % (1 << 8 * width)).to_bytes(width, "little")
    return bytes(data)


KINDS = [metadata, metadata, metadata]
