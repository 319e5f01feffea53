"""Reads sets that `remit-score` made, and gives a trainer of your own the rows, weights and loss of `remit-anneal`.

    import remit

    ws = remit.open("weights/")        # every digest is compared; what is damaged is refused
    row = ws[0]                        # numpy arrays: row.input_ids, row.rl_logprob, row.weight
    ws.to_pandas()

`remit.order` has the order of training; it needs numpy alone. `remit.torch`, `remit.weights` and `remit.loss` need
PyTorch: datasets of micro-batches, the weights, and the loss. `remit.adapters` has a file for each trainer.
"""

import os

from ._errors import DamagedError, Error, MissingError, NoRowError, UsageError
from ._group import RowGroup
from ._manifest import Manifest, ShardEntry
from ._set import Row, WeightSet

__all__ = [
    "DamagedError",
    "Error",
    "Manifest",
    "MissingError",
    "NoRowError",
    "Row",
    "RowGroup",
    "ShardEntry",
    "UsageError",
    "WeightSet",
    "open",
]


def open(folder: str | os.PathLike[str], *, verify: bool = True) -> WeightSet:
    """Opens a finished set: its manifest, then size, BLAKE3, footer and columns of every shard.

    Args:
        folder: What `remit-score -o` made.
        verify: Compare the digests of shards, which reads all of their bytes. Without it, sizes are compared alone;
            for further processes of a run whose first one has compared them.

    Raises:
        MissingError: There is no set, or one of its files is not there.
        DamagedError: A file is not what the manifest says.
    """
    return WeightSet(folder, verify=verify)
