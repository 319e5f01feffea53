#!/usr/bin/env bash
# From a fresh clone to an annealed model: builds, scores fixtures/corpus with the built-in demo pair,
# anneals on it, and shows what came out.
#
#   scripts/quickstart.sh [DIR]     # about 12 minutes on 2 cores, all but 2 of them compilation
#
# Everything goes to DIR (quickstart/ by default). Running it again goes on where it stopped.
set -euo pipefail
cd "$(dirname "$0")/.."

out="${1:-quickstart}"
bin="${CARGO_TARGET_DIR:-target}/release"
say() { printf '\n== %s\n' "$*"; }

command -v cargo >/dev/null || {
    echo "quickstart.sh: cargo is not on the PATH; remit needs Rust 1.95 or later" >&2
    exit 1
}

say "1. Build the three commands"
cargo build --release --locked --bins

say "2. Score the corpus: one log-probability a token, in $out/weights"
mkdir -p "$out"
"$bin/remit-score" fixtures/corpus -o "$out/weights"

say "3. Verify what was written, down to the last value"
"$bin/remit-inspect" verify "$out/weights"

say "4. Anneal the base model on it, into $out/annealed"
"$bin/remit-anneal" --weights "$out/weights" -o "$out/annealed" --lr 5e-4 --holdout 0.05

say "5. What changed"
awk -F'"ntp_loss":' '{ split($2, field, ","); loss[NR] = field[1] }
    END {
        n = NR < 20 ? int(NR / 2) : 10
        for (i = 1; i <= n; i++) { first += loss[i]; last += loss[NR - i + 1] }
        if (n) printf "plain loss, mean of %d steps: first %.4f, last %.4f nats a target (each step has other rows)\n", n, first / n, last / n
    }' "$out/annealed/metrics.jsonl"
echo "every step: $out/annealed/metrics.jsonl; losses on documents that were held out: $out/annealed/eval.jsonl"
"$bin/remit-inspect" compare fixtures/models/demo-base "$out/annealed" --weights "$out/weights"

cat <<END

Look at the shards with any tool that reads Parquet:
  duckdb -c "SELECT source, count(*) AS n, avg(list_avg(weight)) AS w FROM '$out/weights/*.parquet' GROUP BY source ORDER BY source"
  python -c "import pandas; print(pandas.read_parquet('$out/weights/part-000000.parquet'))"
Load the annealed model:
  python -c "from transformers import AutoModelForCausalLM as M; print(M.from_pretrained('$out/annealed'))"
Next: your own models and corpus, in README.md.
END
