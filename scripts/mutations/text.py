"""Damage to JSON, TOML and lists that keeps most of their structure."""

import json
import struct

NASTY = [
    "", " ", "\x1b[2J\x1b]0;t\x07", "\u202egpj", "\x00", "\n", "\nerror: fake", "a" * 300, "a" * 5000, "\ufffd\U0010ffff", "../../x", "/dev/zero",
    "-1", "1e999", "NaN", "true", "null", "%s%n", "{{ 1/0 }}", "{% for i in range(99) %}x{% endfor %}", "(a+)+$", "[", "(?<=a*)", "\\p{L}+" * 50,
]
NUMBERS = [
    0, -0.0, 1, -1, 2, 0.5, 1e-320, 1e308, -1e308, 127, 128, 255, 256, 32767, 65536, 2**24, 2**31 - 1, 2**31, 2**32, 2**53 + 1, 2**63 - 1, 2**63,
    2**64 - 1, 2**64, -(2**63), 10**40,
]


def deep(random):
    levels = random.choice([10, 60, 130, 600])
    value = random.choice(NUMBERS)
    for _ in range(levels):
        value = [value] if random.random() < 0.5 else {"a": value}
    return value


def scalar(random):
    return random.choice([lambda: random.choice(NUMBERS), lambda: random.choice(NASTY), lambda: random.choice([None, True, False, [], {}])])()


def paths(value, prefix=()):
    yield prefix
    if isinstance(value, dict):
        for key in value:
            yield from paths(value[key], prefix + (key,))
    elif isinstance(value, list):
        step = max(1, len(value) // 20)
        for at in range(0, len(value), step):
            yield from paths(value[at], prefix + (at,))


def get(value, path):
    for key in path:
        value = value[key]
    return value


def changed_value(value, random):
    """Changes one place of a JSON value, in place if it can; returns the value."""
    places = list(paths(value))
    # Places with few levels above them are as likely as all of the many entries of a vocabulary together.
    shallow = [place for place in places if len(place) <= 2]
    path = random.choice(shallow if random.random() < 0.5 else places)
    if not path:
        return scalar(random) if random.random() < 0.3 else value
    parent, key = get(value, path[:-1]), path[-1]
    what = random.randrange(11)
    if what <= 2:
        parent[key] = scalar(random)
    elif what == 3 and isinstance(parent[key], (int, float)) and not isinstance(parent[key], bool):
        parent[key] += random.choice([-1, 1, 0.5, 1 << 20, -(1 << 20)])
    elif what == 3:
        parent[key] = random.choice(NUMBERS)
    elif what == 4:
        del parent[key]
    elif what == 5:
        parent[key] = get(value, random.choice(places))
        try:
            return json.loads(json.dumps(value))
        except (ValueError, RecursionError):  # it was put into itself
            parent[key] = None
    elif what == 6 and isinstance(parent, dict):
        parent[random.choice([*parent, random.choice(NASTY)])] = parent.pop(key)
    elif what == 6:
        parent.extend(parent[:50] * random.choice([1, 10]))
    elif what == 7:
        parent[key] = deep(random)
    elif what == 8:
        parent[key] = [parent[key]] * random.choice([0, 1, 2, 1000])
    elif what == 9 and isinstance(parent[key], str):
        text = parent[key]
        at = random.randrange(len(text) + 1)
        parent[key] = text[:at] + random.choice(NASTY) + text[at + random.choice([0, 1]) :]
    else:
        parent[key] = {"a": parent[key], random.choice(NASTY): scalar(random)}
    return value


def dumped(value, random):
    # Surrogates, NaN and numbers with 300 digits included: what Python writes.
    return json.dumps(value, ensure_ascii=random.random() < 0.5).encode("utf-8", "surrogatepass")


def changed_json(data, random, others):
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        return data
    for _ in range(random.choice([1, 1, 1, 2, 4])):
        value = changed_value(value, random)
    return dumped(value, random)


def changed_tokens(data, random, others):
    """Another word, number or bracket in the place of one, in text of any kind."""
    words = [b"{", b"}", b"[", b"]", b",", b":", b'"', b"=", b"#", b"\\", b"\n", b"\r", b"\t", b"'''", b"null", b"-", b"1e999", b"\\ud800", b"\\u0000", b"\xff"]
    words += [b"[" * 200, b"{\"a\":" * 200, str(random.choice(NUMBERS)).encode(), random.choice(NASTY).encode("utf-8", "surrogatepass")]
    for _ in range(random.choice([1, 1, 2, 5])):
        at = random.randrange(len(data) + 1)
        data = data[:at] + random.choice(words) + data[at + random.choice([0, 1, 1, 4]) :]
    return data


def duplicated_key(data, random, others):
    at = data.find(b"{")
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        return data
    if at < 0 or not isinstance(value, dict) or not value:
        return data
    key = random.choice(list(value))
    return data[: at + 1] + json.dumps(key).encode() + b":" + dumped(scalar(random), random) + b"," + data[at + 1 :]


def changed_line(data, random, others):
    """One line of JSONL is changed as JSON, or repeated, removed, joined."""
    lines = data.split(b"\n")
    at = random.randrange(len(lines))
    what = random.randrange(5)
    if what <= 1:
        lines[at] = changed_json(lines[at], random, others)
    elif what == 2:
        lines[at : at + 1] = [lines[at]] * random.choice([0, 2, 50])
    elif what == 3:
        lines[at] = changed_tokens(lines[at], random, others)
    else:
        lines[at] = duplicated_key(lines[at], random, others)
    return b"\n".join(lines)


JSON = [changed_json, changed_json, changed_json, changed_tokens, duplicated_key]
LINES = [changed_line, changed_line, changed_tokens]
TEXT = [changed_tokens]


def header_of_safetensors(data, random, others):
    """The header is changed as JSON, and has the right length."""
    if len(data) < 8:
        return data
    (length,) = struct.unpack("<Q", data[:8])
    header = random.choice([changed_json, changed_json, changed_tokens, duplicated_key])(data[8 : 8 + length], random, others)
    return struct.pack("<Q", len(header)) + header + data[8 + length :]


def header_of_npy(data, random, others):
    """The header, a Python literal, gets other numbers and words."""
    if len(data) < 10:
        return data
    (length,) = struct.unpack("<H", data[8:10])
    header = data[10 : 10 + length]
    words = [b"<u2", b">u4", b"|u1", b"<i8", b"<f4", b"|O", b"True", b"False", b"(-1,)", b"()", b"(1,2,3)", b"(18446744073709551616,)", b"(9223372036854775807, 2)", b"(0,)"]
    for _ in range(random.choice([1, 2])):
        old = random.choice([b"<u2", b"<u4", b"<i8", b"False", b"(120,)", b"(12, 10)", b"descr", b"shape", b"'", b","])
        header = header.replace(old, random.choice([*words, b"", b"'", b"("]), 1)
    if random.random() < 0.3:
        header = changed_tokens(header, random, others)
    return data[:8] + struct.pack("<H", len(header) % 65536) + header + data[10 + length :]
