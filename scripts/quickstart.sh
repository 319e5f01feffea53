#!/usr/bin/env bash
# The README's demo from a fresh clone: builds, scores fixtures/corpus with the built-in demo pair, looks at a row,
# anneals, and shows what came out.
#
#   scripts/quickstart.sh [DIR]     # about 12 minutes on 2 cores, all but 1 of them compilation
#
# Everything goes to DIR (quickstart/ by default). Running it again resumes where it stopped.
set -euo pipefail
cd "$(dirname "$0")/.."

out="${1:-quickstart}"
bin="${CARGO_TARGET_DIR:-target}/release"
say() { printf '\n== %s\n' "$*"; }

command -v cargo >/dev/null || {
    echo "quickstart.sh: cargo is not on the PATH; remit needs Rust 1.95 or later" >&2
    exit 1
}

say "1. Build the three programs"
cargo build --release --locked --bins

say "2. Score the corpus: one log-probability per token and model, in $out/weights"
mkdir -p "$out"
"$bin/remit-score" fixtures/corpus -o "$out/weights"

say "3. Verify what was written, down to the last value, and look at a row"
"$bin/remit-inspect" verify "$out/weights"
"$bin/remit-inspect" show "$out/weights" --row-id 17179869393 --color always

say "4. Anneal the base model on it, into $out/annealed"
"$bin/remit-anneal" --weights "$out/weights" -o "$out/annealed" --lr 5e-4 --holdout 0.05

say "5. Compare base and annealed model, by source"
"$bin/remit-inspect" compare fixtures/models/demo-base "$out/annealed" --weights "$out/weights"

cat <<END

Look at the shards with any tool that reads Parquet:
  duckdb -c "SELECT source, exp(-sum(list_sum(rl_logprob)) / sum(list_count(rl_logprob))) AS perplexity FROM '$out/weights/*.parquet' GROUP BY source ORDER BY source"
  python -c "import pandas; print(pandas.read_parquet('$out/weights/'))"
Load the annealed model:
  python -c "from transformers import AutoModelForCausalLM as M; print(M.from_pretrained('$out/annealed'))"
Every step is in $out/annealed/metrics.jsonl; losses on held-out documents are in $out/annealed/eval.jsonl.
Next: your own models and corpus, in README.md.
END
