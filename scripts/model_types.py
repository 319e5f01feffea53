"""Writes src/tokenize/model_types.txt: the class of tokenizers that transformers has registered for each model_type.

    python scripts/model_types.py [--check]

Types whose class transformers refuses to load from tokenizer.json are left out, as those that it does not know.
A line has a model_type, the class (- where none is registered), and "overruled" where transformers does not believe the
class that the files of a checkpoint name. With --check nothing is written; it fails where the file is not what
the installed transformers says.
"""

import pathlib
import sys

from transformers.utils import import_utils

# The class that those with mistral-common get tells which types are Mistral's; without it, they get the general one.
import_utils.is_mistral_common_available = lambda: True

from transformers.models.auto import tokenization_auto as auto  # noqa: E402

# The tokenizer of these is that of a part.
COMPOSITE = {"encoder-decoder", "rag", "speech-encoder-decoder", "vision-encoder-decoder", "vision-text-dual-encoder"}
FILE = pathlib.Path(__file__).parent.parent / "src/tokenize/model_types.txt"


def lines():
    for model_type in sorted({*auto.CONFIG_MAPPING_NAMES, *auto.TOKENIZER_MAPPING_NAMES}):
        name = auto.TOKENIZER_MAPPING_NAMES.get(model_type, "-")
        if name is None or model_type in COMPOSITE:
            continue
        overruled = model_type in auto.MODELS_WITH_INCORRECT_HUB_TOKENIZER_CLASS
        yield f"{model_type} {name}{' overruled' if overruled else ''}\n"


if __name__ == "__main__":
    text = "".join(lines())
    if sys.argv[1:] != ["--check"]:
        FILE.write_text(text)
    elif FILE.read_text() != text:
        sys.exit(f"{FILE} is not what transformers says; run {sys.argv[0]} to write it anew")
