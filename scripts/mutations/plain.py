"""Damage to bytes that knows nothing of what they mean: one function per kind, mutate(bytes, random, others) -> bytes.

`others` are the bytes of other files of the same target.
"""

import struct

BOUNDARIES = [0, 1, 2, 3, 7, 8, 16, 63, 64, 65, 127, 128, 255, 256, 1023, 1024, 4096, 65535, 65536, 10**6, 2**24 - 1, 2**24, 2**31 - 8]
BOUNDARIES += [2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**40, 2**52, 2**53, 2**62, 2**63 - 1, 2**63, 2**64 - 1]


def span(data, random, most=None):
    """Start and end of a range, more often a short one."""
    if not data:
        return 0, 0
    length = min(len(data), 1 + int(random.paretovariate(0.7)), most or len(data))
    start = random.randrange(len(data) - length + 1)
    return start, start + length


def flipped_bits(data, random, others):
    data = bytearray(data)
    for _ in range(random.choice([1, 1, 1, 2, 3, 8])):
        if data:
            data[random.randrange(len(data))] ^= 1 << random.randrange(8)
    return bytes(data)


def other_bytes(data, random, others):
    data = bytearray(data)
    for _ in range(random.choice([1, 1, 2, 4])):
        if data:
            data[random.randrange(len(data))] = random.choice([0, 1, 0x7F, 0x80, 0xFF, random.randrange(256)])
    return bytes(data)


def truncated(data, random, others):
    return data[: random.randrange(len(data) + 1)] if random.random() < 0.8 else data[random.randrange(len(data) + 1) :]


def zeroed_range(data, random, others):
    start, end = span(data, random)
    return data[:start] + bytes([random.choice([0, 0, 0xFF, 0x20])]) * (end - start) + data[end:]


def repeated_range(data, random, others):
    start, end = span(data, random)
    times = random.choice([1, 1, 2, 10, 100])
    return data[:end] + data[start:end] * min(times, 1 + 20_000 // (end - start + 1)) + data[end:]


def removed_range(data, random, others):
    start, end = span(data, random)
    return data[:start] + data[end:]


def inserted_bytes(data, random, others):
    at = random.randrange(len(data) + 1)
    new = random.choice([random.randbytes(random.choice([1, 2, 4, 16, 300])), bytes(random.choice([1, 8, 4096])), b"\xff" * 8])
    return data[:at] + new + data[at:]


def swapped_ranges(data, random, others):
    a, b = span(data, random)
    c, d = span(data, random)
    if b > c:
        a, b, c, d = c, d, a, b
    return data if b > c else data[:a] + data[c:d] + data[b:c] + data[a:b] + data[d:]


def length_fields(data, random, others):
    """A number of 1 to 8 bytes at a random place becomes one at a boundary."""
    width = random.choice([1, 2, 4, 4, 4, 8, 8])
    if len(data) < width:
        return data
    at = random.randrange(len(data) - width + 1)
    if random.random() < 0.7:
        at -= at % width
    order = "little" if random.random() < 0.9 else "big"
    if random.random() < 0.3:  # close to what it was
        value = int.from_bytes(data[at : at + width], order) + random.choice([-1, 1, 8, -8, 1 << 20])
    else:
        value = random.choice(BOUNDARIES)
    return data[:at] + (value % (1 << 8 * width)).to_bytes(width, order) + data[at + width :]


def last_length(data, random, others):
    """Footers have their length before the last four or six bytes, headers after the first few."""
    at = random.choice([0, 4, 8, max(0, len(data) - 8), max(0, len(data) - 10)])
    new = struct.pack("<q", random.choice(BOUNDARIES) % 2**63)[: random.choice([4, 8])]
    return data[:at] + new + data[at + len(new) :]


def spliced(data, random, others):
    """The beginning of one file and the end of another."""
    other = random.choice(others or [data])
    return data[: random.randrange(len(data) + 1)] + other[random.randrange(len(other) + 1) :]


def swapped_files(data, random, others):
    return random.choice(others or [b""])


def garbage(data, random, others):
    return random.randbytes(random.choice([0, 1, 7, 64, 3000]))


KINDS = [
    flipped_bits, other_bytes, truncated, zeroed_range, repeated_range, removed_range, inserted_bytes, swapped_ranges,
    length_fields, last_length, spliced, swapped_files, garbage,
]
