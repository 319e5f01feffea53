"""The text of the demo: worked solutions with a checkable answer, prose, code, one-line notes.

Every generator takes a `random.Random`, so a seed fixes the text. make.py trains the base on one sample of this
distribution; corpus.py writes another sample, under another seed, to fixtures/corpus.
"""

import re
import zlib
from dataclasses import dataclass

# --------------------------------------------------------------------------------------------------------------------
# Worked solutions: a start value and one to three additions or subtractions, one equation a line, then the answer.

NAMES = ["Mia", "Tom", "Ada", "Leo", "Nina", "Omar", "Ines", "Ravi", "Sana", "Jon", "Yuki", "Paul"]
THINGS = ["apples", "books", "coins", "stamps", "shells", "pears", "cards", "eggs", "pens", "seeds", "bricks", "tiles"]
GAIN = ["buys {n} more", "finds {n} more", "gets {n} more", "wins {n} more"]
LOSE = ["loses {n}", "sells {n}", "gives away {n}", "uses {n}"]

WRONG_SHARE = 0.35  # the share of solutions that are wrong on purpose
HELD_OUT_BUCKETS = 10  # one problem in this many is held out: never trained on, never an RL prompt, not in the corpus


@dataclass(frozen=True)
class Problem:
    """`start`, then the signed `changes` one after the other; every intermediate value lies in 0..=199."""

    start: int
    changes: tuple

    @property
    def answer(self):
        return self.start + sum(self.changes)

    @property
    def expression(self):
        return str(self.start) + "".join(f"{c:+d}" for c in self.changes)

    @property
    def held_out(self):
        """By a hash of the numbers, so that a problem is held out in whatever words it is put."""
        return zlib.crc32(self.expression.encode()) % HELD_OUT_BUCKETS == 0


def problem(rng, held_out=False):
    """One random problem on the wanted side of the held-out split."""
    while True:
        start = rng.randint(10, 79)
        value, changes = start, []
        for _ in range(rng.choice([1, 2, 2, 2, 3])):
            change = rng.randint(2, 39)
            if rng.random() < 0.5:
                change = -change
            if not 0 <= value + change <= 199:
                change = -change
            changes.append(change)
            value += change
        made = Problem(start, tuple(changes))
        if made.held_out == held_out:
            return made


def question(rng, p):
    """The problem in words or as an expression; ends with the line after which the solution starts."""
    if rng.random() < 0.4:
        return f"Question: What is {p.expression}?\nSolution:\n"
    thing = rng.choice(THINGS)
    parts = [rng.choice(GAIN if c > 0 else LOSE).format(n=abs(c)) for c in p.changes]
    story = parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " and " + parts[-1]
    return f"Question: {rng.choice(NAMES)} has {p.start} {thing}, then {story}. How many {thing} now?\nSolution:\n"


def _slip(rng, value, change):
    """A wrong result of value + change, wrong in the way people are: the carry, the sign, or one off."""
    kind = rng.random()
    if kind < 0.5:
        return value + change + rng.choice([-10, 10])
    if kind < 0.75:
        return value - change
    return value + change + rng.choice([-1, 1, -2, 2])


def solution(rng, p, correct):
    """The worked chain and `Answer: N`. A wrong one slips in one step and carries the slip to its answer."""
    while True:
        slip_at = None if correct else rng.randrange(len(p.changes) + 1)
        value, lines = p.start, []
        for i, change in enumerate(p.changes):
            result = _slip(rng, value, change) if i == slip_at else value + change
            lines.append(f"{value}{change:+d}={result}")
            value = result
        if slip_at == len(p.changes):
            value += rng.choice([-10, 10, -1, 1])
        if (value == p.answer) == correct and value >= 0 and not any("=-" in line for line in lines):
            return "\n".join(lines) + f"\nAnswer: {value}"


def worked(rng):
    """(text, problem, correct) of one worked solution for training or for the corpus."""
    p = problem(rng)
    correct = rng.random() >= WRONG_SHARE
    return question(rng, p) + solution(rng, p, correct), p, correct


def reward(p, completion):
    """1.0 when the completion ends in the right `Answer: N` line, else 0.0."""
    found = re.search(r"^Answer: (\d+)\s*\Z", completion, re.MULTILINE)
    return float(found is not None and int(found.group(1)) == p.answer)


# --------------------------------------------------------------------------------------------------------------------
# Prose: sentences by topic, with slots; a paragraph keeps to its topic.

SLOTS = {
    "name": NAMES,
    "thing": THINGS,
    "place": ["the harbour", "the mill", "the old library", "the market", "the north field", "the station", "the school",
              "the workshop", "the bridge", "the observatory"],
    "time": ["In the morning", "Toward evening", "After the rain", "On market days", "In late autumn", "Before dawn",
             "During the first week", "Once a month", "At noon", "When the wind turns"],
    "adj": ["quiet", "careful", "long", "bright", "narrow", "patient", "heavy", "honest", "plain", "cold"],
    "part": ["the corpus", "the learner", "the base model", "the reference model", "the tokenizer", "the optimizer",
             "the last checkpoint", "the schedule"],
    "quality": ["correct", "fast", "simple", "reproducible", "cheap", "exact", "readable"],
    "n": [str(i) for i in range(2, 60)],
    "year": [str(y) for y in range(1710, 1990, 7)],
}

TOPICS = {
    "Mid-training": [
        "Mid-training sits between pre-training and post-training, and it is where {part} changes most for its cost.",
        "The learning rate falls to zero, so every token that {part} sees late leaves a clear mark.",
        "A corpus of {n} billion tokens is small beside pre-training, but it is chosen with care.",
        "Some tokens carry a decision and others only spell out what was decided before.",
        "If two models agree on a token, its weight is one and nothing changes.",
        "Where the tuned model is surer than the base, the token counts for more.",
        "Weights stay between {n} and {n} hundredths of a nat apart, which keeps {part} stable.",
        "A run that cannot be repeated is a story, not a measurement, so keep {part} {quality}.",
        "One row is one context, and attention never leaves it.",
        "It took {n} steps before the loss of {part} settled.",
    ],
    "Tokenizers": [
        "A byte-level tokenizer can spell any text, because every byte has a token of its own.",
        "Merges are learned from counts: the most frequent pair of neighbours becomes one new token.",
        "With {n} more merges the same text takes fewer tokens, but each token is seen less often.",
        "Numbers are split digit by digit, so that {part} can line up tens with tens and ones with ones.",
        "A space at the start of a word belongs to the word, which surprises everyone once.",
        "The end-of-text token tells {part} that the next document owes nothing to the last.",
        "Two models can share weights of one shape and still disagree on what token {n} means.",
        "Before you compare two models, compare their tokenizers byte for byte.",
    ],
    "Arithmetic": [
        "To add two numbers, add the ones first and keep the carry in mind.",
        "The carry is where most mistakes are made, in children and in small models alike.",
        "If you add {n} and then take {n} away, the order does not matter, but the bookkeeping does.",
        "A worked chain writes down every step, so that a reader can find the first wrong one.",
        "Checking is cheaper than solving: subtract what you added and see whether you return.",
        "A sum of {n} numbers has one right answer and many that look right.",
        "An answer that is off by ten usually lost a carry, and one that is off by one lost count.",
        "{name} counts {n} {thing}, puts {n} of them aside, and writes the rest in the book.",
    ],
    "Log-probabilities": [
        "A log-probability is never above zero, and it is zero only for a certainty.",
        "The difference of two log-probabilities says how much surer one model is than the other.",
        "An average over {n} tokens hides the one token that went wrong.",
        "Perplexity is the exponential of the mean loss, so small changes of loss look large in it.",
        "Half precision keeps about three digits, which is enough for weights and too little for sums.",
        "Subtract the maximum before you exponentiate, or {part} will overflow on the first hard token.",
        "Numbers that are stored once and read {n} times are worth checking twice.",
        "A missing value is missing; writing zero in its place makes it a lie that looks like data.",
    ],
    "The harbour": [
        "{time} the boats come back to {place} with nets that are {adj} and wet.",
        "{name} keeps the list of {thing} and counts them twice, once aloud.",
        "The keeper of {place} wrote {n} letters in {year}, all of them about the light.",
        "Nobody remembers who built {place}, but everyone knows who repaired it in {year}.",
        "{time} the {adj} water covers the steps up to the third stone.",
        "A {adj} road leads from {place} to {place}, and it is {n} minutes on foot.",
        "{name} sells {thing} at {place} and always gives one more than was asked for.",
        "The clock at {place} is {n} minutes slow, and the town has agreed to be late together.",
    ],
    "The garden": [
        "{time} {name} waters the {adj} beds along the wall.",
        "It takes {n} days for the seeds to show and {n} more before they need thinning.",
        "Beans climb whatever they are given, and a {adj} stick will do.",
        "The soil near {place} is {adj}, so the pears come late and keep well.",
        "{name} planted {n} rows in {year} and wrote down which of them failed.",
        "A garden is a ledger: what you put in is easy to count, what you get is not.",
        "{time} the {thing} are carried to {place} in a {adj} basket.",
        "Of {n} cuttings, {n} took root, and the rest went back to the heap.",
    ],
}

NOTES = [
    "Note: {n} of {n} checks passed.",
    "{name} has {n} {thing}.",
    "Remember that {n} is not the same as {n}.",
    "Zähle bis {n}, dann beginne von vorn.",
    "Il y a {n} pommes sur la table et {n} dans le panier.",
    "El puerto abre a las {n} y cierra cuando cambia el viento.",
    "На столе {n} книг и {n} карт.",
    "Στο λιμάνι υπάρχουν {n} βάρκες.",
    "港には船が{n}そうある。",
    "今天我们数了{n}个苹果。",
    "في السوق {n} كتابا و {n} أقلام.",
    "बाज़ार में {n} सेब हैं।",
    "시장에 사과가 {n}개 있다.",
    "Der Satz „Prüfen ist billiger als lösen“ steht auf Seite {n}.",
    "Temperature: {n} °C ± {n} %, humidity ≤ {n} % 🌦️",
    "∑ of {n} terms ≈ {n}; the mean is ½ of that… or so 🙂",
]


def _fill(rng, template):
    return re.sub(r"\{(\w+)\}", lambda m: rng.choice(SLOTS[m.group(1)]), template)


def note(rng):
    """A one-line document, often not in English."""
    return _fill(rng, rng.choice(NOTES))


def paragraph(rng, topic):
    lines = rng.sample(TOPICS[topic], k=rng.randint(3, 6))
    text = " ".join(_fill(rng, line) for line in lines)
    return text[0].upper() + text[1:]


def article(rng, num_paragraphs):
    """Markdown: a title, then paragraphs with a heading where the topic changes."""
    topics = list(TOPICS)
    topic = rng.choice(topics)
    blocks = [f"# {topic}"]
    for i in range(num_paragraphs):
        if i and rng.random() < 0.3:
            topic = rng.choice(topics)
            blocks.append(f"## {topic}")
        blocks.append(paragraph(rng, topic))
        if rng.random() < 0.1:
            blocks.append("- " + "\n- ".join(note(rng) for _ in range(rng.randint(2, 4))))
    return "\n\n".join(blocks) + "\n"


def story(rng, num_paragraphs):
    """Plain text: paragraphs of the two everyday topics, no headings."""
    return "\n\n".join(paragraph(rng, rng.choice(["The harbour", "The garden"])) for _ in range(num_paragraphs)) + "\n"


# --------------------------------------------------------------------------------------------------------------------
# Code: small programs with their names and constants varied.

CODE_SLOTS = {
    "f": ["total", "count", "tally", "measure", "collect", "reduce_all", "sum_up", "walk"],
    "x": ["value", "item", "row", "step", "entry", "token"],
    "xs": ["values", "items", "rows", "steps", "entries", "tokens"],
    "T": ["Ledger", "Counter", "Window", "Batch", "Record", "Cursor"],
    "n": [str(i) for i in range(2, 100)],
}

PYTHON = [
    'def {f}({xs}):\n    """Sum of {xs}, from the left."""\n    result = 0\n    for {x} in {xs}:\n'
    '        result += {x}\n    return result\n\n\nassert {f}([1, 2, 3]) == 6\n',
    'def {f}({xs}, limit={n}):\n    """The {xs} below the limit, in their order."""\n'
    '    return [{x} for {x} in {xs} if {x} < limit]\n\n\nprint({f}(range({n})))\n',
    'from dataclasses import dataclass\n\n\n@dataclass\nclass {T}:\n    """A named number that only grows."""\n\n'
    '    name: str\n    {x}: int = {n}\n\n    def add(self, amount):\n        if amount < 0:\n'
    '            raise ValueError(f"amount is {{amount}}, expected at least 0")\n        self.{x} += amount\n',
    'import math\n\n\ndef log_sum_exp({xs}):\n    """log(sum(exp(x))), without overflow."""\n'
    '    top = max({xs})\n    return top + math.log(sum(math.exp({x} - top) for {x} in {xs}))\n\n\n'
    'print(round(log_sum_exp([0.0, 1.0, {n}.0]), 4))\n',
    'def carry(a, b):\n    """True when adding the ones of a and b reaches ten."""\n    return a % 10 + b % 10 >= 10\n\n\n'
    'for {x} in range({n}):\n    if carry({x}, {n}):\n        print({x}, "carries")\n',
    'import json\nimport sys\n\n\ndef {f}(path):\n    """How many records of a JSON-lines file have text."""\n    count = 0\n'
    '    with open(path, encoding="utf-8") as lines:\n        for {x} in lines:\n'
    '            if json.loads({x}).get("text"):\n                count += 1\n    return count\n\n\n'
    'if __name__ == "__main__":\n    print({f}(sys.argv[1]))\n',
    'def windows({xs}, size={n}):\n    """Cuts of exactly `size`; the last may be shorter."""\n'
    '    for start in range(0, len({xs}), size):\n        yield {xs}[start:start + size]\n\n\n'
    'assert [len(w) for w in windows(list(range(10)), 4)] == [4, 4, 2]\n',
]

RUST = [
    '/// Sum of the {xs}; `None` when it does not fit.\nfn {f}({xs}: &[u32]) -> Option<u32> {{\n'
    '    {xs}.iter().try_fold(0u32, |sum, {x}| sum.checked_add(*{x}))\n}}\n\nfn main() {{\n'
    '    println!("{{:?}}", {f}(&[{n}, {n}, {n}]));\n}}\n',
    '#[derive(Debug, Default)]\nstruct {T} {{\n    {x}: u64,\n}}\n\nimpl {T} {{\n    fn add(&mut self, amount: u64) {{\n'
    '        self.{x} += amount;\n    }}\n}}\n\nfn main() {{\n    let mut all = {T}::default();\n    all.add({n});\n'
    '    println!("{{all:?}}");\n}}\n',
    '/// Clamps to `[1 - eps, 1 + eps]`.\nfn weight(centred: f32, eps: f32) -> f32 {{\n'
    '    let raw = 2.0 / (1.0 + (-centred).exp());\n    raw.clamp(1.0 - eps, 1.0 + eps)\n}}\n\n'
    '#[test]\nfn agreement_weighs_one() {{\n    assert_eq!(weight(0.0, 0.{n}), 1.0);\n}}\n',
    'use std::collections::BTreeMap;\n\nfn {f}(text: &str) -> BTreeMap<char, usize> {{\n'
    '    let mut {xs} = BTreeMap::new();\n    for {x} in text.chars() {{\n        *{xs}.entry({x}).or_insert(0) += 1;\n'
    '    }}\n    {xs}\n}}\n\nfn main() {{\n    for ({x}, count) in {f}("{n} plus {n}") {{\n'
    '        println!("{{:?}} {{}}", {x}, count);\n    }}\n}}\n',
    'fn {f}({xs}: &[u32], size: usize) -> Vec<Vec<u32>> {{\n    {xs}.chunks(size).map(<[u32]>::to_vec).collect()\n}}\n\n'
    'fn main() {{\n    let {xs}: Vec<u32> = (0..{n}).collect();\n    for {x} in {f}(&{xs}, {n}) {{\n'
    '        println!("{{}}", {x}.len());\n    }}\n}}\n',
]


def _code(rng, templates):
    # One choice per slot name except for the numbers, so that a program is consistent with itself.
    names = {slot: rng.choice(options) for slot, options in CODE_SLOTS.items() if slot != "n"}
    template = rng.choice(templates).replace("{{", "\x00").replace("}}", "\x01")
    text = re.sub(r"\{(\w+)\}", lambda m: names.get(m.group(1)) or rng.choice(CODE_SLOTS["n"]), template)
    return text.replace("\x00", "{").replace("\x01", "}")


def python_program(rng):
    return _code(rng, PYTHON)


def rust_program(rng):
    return _code(rng, RUST)


def document(rng):
    """One document of the training mixture; by tokens about two thirds are worked solutions."""
    kind = rng.random()
    if kind < 0.86:
        return worked(rng)[0]
    if kind < 0.90:
        return note(rng)
    if kind < 0.93:
        return article(rng, rng.randint(1, 4))
    if kind < 0.95:
        return story(rng, rng.randint(1, 3))
    return python_program(rng) if kind < 0.98 else rust_program(rng)
