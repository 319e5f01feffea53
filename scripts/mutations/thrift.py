"""Parquet files taken apart (Thrift's compact protocol), changed in one place, and put together with right lengths."""

import struct

from .plain import BOUNDARIES

TRUE, FALSE, BYTE, I16, I32, I64, DOUBLE, BINARY, LIST, SET, MAP, STRUCT = range(1, 13)


class Reader:
    def __init__(self, data, at=0):
        self.data, self.at = data, at

    def byte(self):
        self.at += 1
        return self.data[self.at - 1]

    def varint(self):
        n = shift = 0
        while True:
            b = self.byte()
            n |= (b & 0x7F) << shift
            shift += 7
            if b < 0x80:
                return n

    def take(self, n):
        self.at += n
        return self.data[self.at - n : self.at]

    def value(self, kind):
        if kind in (TRUE, FALSE):
            return kind
        if kind == BYTE:
            return self.byte()
        if kind in (I16, I32, I64):
            n = self.varint()
            return n >> 1 ^ -(n & 1)
        if kind == DOUBLE:
            return self.take(8)
        if kind == BINARY:
            return self.take(self.varint())
        if kind in (LIST, SET):
            head = self.byte()
            count = head >> 4 if head >> 4 != 15 else self.varint()
            element = head & 15
            items = [self.byte() if element in (TRUE, FALSE) else self.value(element) for _ in range(count)]
            return [element, items]
        if kind == STRUCT:
            return self.struct()
        raise ValueError(f"type {kind}")

    def struct(self):
        fields, last = [], 0
        while head := self.byte():
            last = last + (head >> 4) if head >> 4 else (lambda n: n >> 1 ^ -(n & 1))(self.varint())
            fields.append([last, head & 15, self.value(head & 15)])
        return fields


def varint(n):
    n %= 1 << 64
    out = bytearray()
    while n >= 0x80:
        out.append(n & 0x7F | 0x80)
        n >>= 7
    out.append(n)
    return bytes(out)


def zigzag(n):
    return varint((n << 1) ^ (n >> 63))


def written(kind, value):
    if kind in (TRUE, FALSE):
        return b""
    if kind == BYTE:
        return bytes([value & 255])
    if kind in (I16, I32, I64):
        return zigzag(value)
    if kind == DOUBLE:
        return value
    if kind == BINARY:
        return varint(len(value)) + value
    if kind in (LIST, SET):
        element, items = value
        head = bytes([len(items) << 4 | element]) if len(items) < 15 else bytes([0xF0 | element]) + varint(len(items))
        return head + b"".join(bytes([item & 255]) if element in (TRUE, FALSE) else written(element, item) for item in items)
    out, last = b"", 0
    for number, kind, inner in value:
        delta = number - last
        out += bytes([delta << 4 | kind]) if 0 < delta < 16 else bytes([kind]) + zigzag(number)
        out += written(kind, inner)
        last = number
    return out + b"\0"


def numbers(struct_, path=()):
    """Paths to all fields and elements."""
    for at, (_, kind, value) in enumerate(struct_):
        yield path + ((at, 2),)
        if kind == STRUCT:
            yield from numbers(value, path + ((at, 2),))
        elif kind in (LIST, SET):
            for i, item in enumerate(value[1]):
                if value[0] == STRUCT:
                    yield from numbers(item, path + ((at, 2), (1, i)))


def change(tree, random):
    places = list(numbers(tree))
    if not places:
        return
    path = random.choice(places)
    holder = tree
    for a, b in path[:-1]:
        holder = holder[a][b]
    at = path[-1][0]
    number, kind, value = holder[at]
    what = random.randrange(8)
    if what == 0:
        del holder[at]
    elif what == 1:
        holder.insert(at, list(holder[at]))
    elif what == 2:
        holder[at][0] = max(1, number + random.choice([-1, 1, 5, 1000]))
    elif kind in (I16, I32, I64):
        holder[at][2] = random.choice([*BOUNDARIES, -1, -(2**31), -(2**63), value + 1, value - 1, value * 2, -value])
    elif kind == BINARY:
        holder[at][2] = random.choice([b"", value * 2, value[:-1], b"\xff\xfe", b"a" * 5000, b"\x1b[2J", value[:1] + b"\x00" + value[1:]])
    elif kind in (LIST, SET):
        items = value[1]
        what = random.randrange(5)
        if what == 0 or not items:
            holder[at][2] = [value[0], []]
        elif what == 1:
            holder[at][2] = [value[0], items * random.choice([2, 20, 300])]
        elif what == 2:
            items.pop(random.randrange(len(items)))
        elif what == 3:
            random.shuffle(items)
        else:
            items.insert(0, items[-1])
    elif kind == STRUCT:
        holder[at][2] = random.choice([[], value * 2, [[1, STRUCT, value]]])
    else:
        holder[at][1] = random.choice([TRUE, FALSE])


def footer(data, random, others):
    """The footer has another number, name, list or field."""
    if len(data) < 12 or data[-4:] != b"PAR1":
        return data
    (length,) = struct.unpack("<I", data[-8:-4])
    body = data[: len(data) - 8 - length]
    try:
        tree = Reader(data, len(body)).struct()
    except (IndexError, ValueError, RecursionError):
        return data
    for _ in range(random.choice([1, 1, 1, 2, 3])):
        change(tree, random)
    new = written(STRUCT, tree)
    return body + new + struct.pack("<I", len(new)) + b"PAR1"


def page_header(data, random, others):
    """A page's header has another number. What comes after it moves, unless the new one is as long."""
    if len(data) < 12 or data[:4] != b"PAR1":
        return data
    starts = [4]
    # Further pages are wherever a header can be read: type, two sizes, and a struct of data or dictionary pages.
    for _ in range(8):
        try:
            reader = Reader(data, starts[-1])
            tree = reader.struct()
            size = next(value for number, _, value in tree if number == 3)
            starts.append(reader.at + size)
        except (IndexError, ValueError, StopIteration, RecursionError):
            starts.pop()
            break
    start = random.choice(starts or [4])
    try:
        reader = Reader(data, start)
        tree = reader.struct()
    except (IndexError, ValueError, RecursionError):
        return data
    old = reader.at
    change(tree, random)
    new = written(STRUCT, tree)
    rest = data[old:]
    if random.random() < 0.7 and len(new) != old - start:
        # Places of the footer stay right: the page gives up, or gets, some bytes.
        gap = len(new) - (old - start)
        rest = rest[gap:] if gap > 0 else bytes(-gap) + rest
    return data[:start] + new + rest


KINDS = [footer, footer, footer, page_header, page_header]
