"""One file for each trainer: how rows, weights and loss get into it. docs/trainers.md has the table of them."""
