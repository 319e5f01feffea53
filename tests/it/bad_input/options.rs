//! Options that make no sense, alone or with the inputs.

use std::path::Path;

use remit::shard::layout::Description;

use super::{Case, IO, MISSING, OTHER, USAGE, check, nothing, scored, unscored};

const ALONE: &[Case] = &[
    Case {
        input: "an unknown flag",
        prepare: nothing,
        command: "remit-score corpus -o out --no-such-flag",
        exit: USAGE,
        stderr: &["error: unexpected argument '--no-such-flag' found"],
    },
    Case {
        input: "a device that does not exist",
        prepare: nothing,
        command: "remit-score corpus -o out --device tpu",
        exit: USAGE,
        stderr: &[
            "error: invalid value 'tpu' for '--device <DEVICE>': expected auto, cpu, cuda, cuda:N, cuda:N,N or cuda:all",
        ],
    },
    Case {
        input: "a GPU where there is none",
        prepare: nothing,
        command: "remit-score corpus -o out --device cuda:7",
        exit: OTHER,
        stderr: &[
            "error: the GPU cuda:7 can't be used: ",
            "; --device cpu computes without one\n",
        ],
    },
    Case {
        input: "no input",
        prepare: nothing,
        command: "remit-score -o out",
        exit: USAGE,
        stderr: &["error: the following required arguments were not provided:\n  <INPUT>..."],
    },
    Case {
        input: "a base without an RL model",
        prepare: nothing,
        command: "remit-score corpus -o out --base-model base",
        exit: USAGE,
        stderr: &["--rl-model <DIR>"],
    },
    Case {
        input: "rows of one token",
        prepare: nothing,
        command: "remit-score corpus -o out --rl-model rl --seq-len 1",
        exit: USAGE,
        stderr: &[
            "error: invalid value '1' for '--seq-len <TOKENS>': a row length of 1 tokens is too short; the least is 2\n",
        ],
    },
    Case {
        input: "rows that are longer than the model's positions",
        prepare: nothing,
        command: "remit-score corpus -o out --rl-model rl --seq-len 2049",
        exit: USAGE,
        stderr: &[
            "error: --seq-len 2049 exceeds the 2048 positions that the models were made for\n",
        ],
    },
    Case {
        input: "rows that are longer than the base's positions",
        prepare: |w| {
            w.edit_json("base/config.json", |config| {
                config["max_position_embeddings"] = 100.into();
            });
        },
        command: "remit-score corpus -o out --rl-model rl --base-model base --seq-len 101",
        exit: USAGE,
        stderr: &["error: --seq-len 101 exceeds the 100 positions that the models were made for\n"],
    },
    Case {
        input: "an epsilon above 1",
        prepare: nothing,
        command: "remit-score corpus -o out --rl-model rl --epsilon 1.5",
        exit: USAGE,
        stderr: &[
            "error: invalid value '1.5' for '--epsilon <EPSILON>': epsilon is 1.5; it must be at least 0 and less than 1\n",
        ],
    },
    Case {
        input: "an epsilon that is not a number",
        prepare: nothing,
        command: "remit-score corpus -o out --rl-model rl --epsilon nan",
        exit: USAGE,
        stderr: &[
            "error: invalid value 'nan' for '--epsilon <EPSILON>': epsilon is NaN; it must be at least 0 and less than 1\n",
        ],
    },
    Case {
        input: "a temperature of 0",
        prepare: nothing,
        command: "remit-score corpus -o out --rl-model rl --temperature 0",
        exit: USAGE,
        stderr: &[
            "error: invalid value '0' for '--temperature <TEMPERATURE>': temperature is 0; it must be a positive number\n",
        ],
    },
    Case {
        input: "a worker that there is not",
        prepare: nothing,
        command: "remit-score corpus -o out --rl-model rl --num-workers 3 --worker-index 3",
        exit: USAGE,
        stderr: &["error: --worker-index 3 is not below --num-workers 3\n"],
    },
    Case {
        input: "a number of workers without this one's",
        prepare: nothing,
        command: "remit-score corpus -o out --rl-model rl --num-workers 3",
        exit: USAGE,
        stderr: &["error: --num-workers 3 needs --worker-index, 0 to 2\n"],
    },
    Case {
        input: "a limit of no documents",
        prepare: nothing,
        command: "remit-score corpus -o out --rl-model rl --limit-docs 0",
        exit: USAGE,
        stderr: &["error: invalid value '0' for '--limit-docs <N>': 0 is not in 1.."],
    },
    Case {
        input: "records of no bytes",
        prepare: nothing,
        command: "remit-score corpus -o out --rl-model rl --max-record-bytes 0",
        exit: USAGE,
        stderr: &[
            "error: invalid value '0' for '--max-record-bytes <BYTES>': it must be at least 1",
        ],
    },
    Case {
        input: "a size in a unit that there is not",
        prepare: nothing,
        command: "remit-score corpus -o out --rl-model rl --part-bytes 3X",
        exit: USAGE,
        stderr: &["error: invalid value '3X' for '--part-bytes <BYTES>': "],
    },
    Case {
        input: "a zstd window of no use",
        prepare: nothing,
        command: "remit-score corpus -o out --rl-model rl --zstd-window-log 40",
        exit: USAGE,
        stderr: &["error: invalid value '40' for '--zstd-window-log <LOG2>': 40 is not in 10..=31"],
    },
    Case {
        input: "an unknown dtype of ids",
        prepare: nothing,
        command: "remit-score corpus -o out --rl-model rl --token-dtype int4",
        exit: USAGE,
        stderr: &[
            "error: invalid value 'int4' for '--token-dtype <DTYPE>'",
            "uint16, uint32",
        ],
    },
    Case {
        input: "a dry run with inputs that don't exist",
        prepare: nothing,
        command: "remit-score nowhere -o out --rl-model rl --dry-run",
        exit: MISSING,
        stderr: &["error: no such file or folder: nowhere\n"],
    },
    Case {
        input: "a pattern that takes the output's shards for text",
        prepare: |w| {
            w.write("sets/a/lines.jsonl", "{\"text\": \"1\"}\n");
        },
        command: "remit-score sets/**/*.[jp]* -o sets/out --rl-model rl",
        exit: USAGE,
        stderr: &["error: -o sets/out lies among the inputs: sets/**/*.[jp]* matches its shards, "],
    },
    Case {
        input: "no workers",
        prepare: nothing,
        command: "remit-score corpus -o out --rl-model rl --num-workers 0",
        exit: USAGE,
        stderr: &["error: invalid value '0' for '--num-workers <N>': 0 is not in 1.."],
    },
    Case {
        input: "batches of no tokens",
        prepare: nothing,
        command: "remit-score corpus -o out --rl-model rl --batch-tokens 0",
        exit: USAGE,
        stderr: &["error: invalid value '0' for '--batch-tokens <TOKENS>': it must be at least 1"],
    },
    Case {
        input: "parts of no bytes",
        prepare: nothing,
        command: "remit-score corpus -o out --rl-model rl --part-bytes 0",
        exit: USAGE,
        stderr: &["error: invalid value '0' for '--part-bytes <BYTES>': it must be at least 1"],
    },
    Case {
        input: "an output that is a file",
        prepare: |w| w.write("out", "a file"),
        command: "remit-score corpus -o out --rl-model rl",
        exit: IO,
        stderr: &["error: cannot create the folder out: a file is there\n"],
    },
    Case {
        input: "a dry run with an output that is a file",
        prepare: |w| w.write("out", "a file"),
        command: "remit-score corpus -o out --rl-model rl --dry-run",
        exit: IO,
        stderr: &["error: cannot create the folder out: a file is there\n"],
    },
    Case {
        input: "an output in no bucket",
        prepare: nothing,
        command: "remit-score corpus -o s3:// --rl-model rl",
        exit: USAGE,
        stderr: &["error: s3:// names no bucket\nhint: a URL is like s3://BUCKET/PREFIX\n"],
    },
    Case {
        input: "an input in no bucket",
        prepare: nothing,
        command: "remit-score gs:///texts -o out --rl-model rl",
        exit: USAGE,
        stderr: &["error: gs:///texts names no bucket\nhint: a URL is like gs://BUCKET/PREFIX\n"],
    },
    Case {
        input: "more threads than a machine can run, for scoring",
        prepare: nothing,
        command: "remit-score corpus -o out --rl-model rl --threads 100000",
        exit: USAGE,
        stderr: &[
            "error: --threads 100000 is more than ",
            "\nhint: without it there is one per core, ",
        ],
    },
    Case {
        input: "more threads than a machine can run, for annealing",
        prepare: nothing,
        command: "remit-anneal --weights set -o out --threads 100000",
        exit: USAGE,
        stderr: &["error: --threads 100000 is more than "],
    },
    Case {
        input: "more threads than a machine can run, for verifying",
        prepare: nothing,
        command: "remit-inspect verify set --threads 100000",
        exit: USAGE,
        stderr: &["error: --threads 100000 is more than "],
    },
    Case {
        input: "an unknown packing",
        prepare: nothing,
        command: "remit-score corpus -o out --rl-model rl --packing stack",
        exit: USAGE,
        stderr: &[
            "error: invalid value 'stack' for '--packing <PACKING>'",
            "[possible values: document, window]",
        ],
    },
];

/// A set is what its plan says, or an error.
const CHANGED: &[Case] = &[
    Case {
        input: "another row length for the set that is there",
        prepare: nothing,
        command: "remit-score corpus -o set --rl-model rl --base-model base --part-bytes 1000 --seq-len 64",
        exit: USAGE,
        stderr: &[
            "error: set was started with other inputs or options:\n  seq_len was 2048, is now 64\n",
            "hint: give another -o, or the options and inputs it was started with\n",
        ],
    },
    Case {
        input: "several other options for the set that is there",
        prepare: |w| w.remove("set/_remit/manifest.parquet"),
        command: "remit-score corpus -o set --rl-model rl --base-model base --part-bytes 1000 --epsilon 0.5 --exact --packing window",
        exit: USAGE,
        stderr: &[
            "\n  packing was \"document\", is now \"window\"\n",
            "\n  exact was false, is now true\n",
            "\n  formula.epsilon was 0.2",
            ", is now 0.5\n",
        ],
    },
    Case {
        input: "no base for the set that has one",
        prepare: nothing,
        command: "remit-score corpus -o set --rl-model rl --part-bytes 1000",
        exit: USAGE,
        stderr: &["\n  base was {", "}, is now null\n"],
    },
    Case {
        input: "a corpus that has changed since",
        prepare: |w| w.damage("corpus/good.jsonl", |text| text[40] ^= 1),
        command: "remit-score corpus -o set --rl-model rl --base-model base --part-bytes 1000",
        exit: USAGE,
        stderr: &["\n  the corpus file good.jsonl has changed\n"],
    },
    Case {
        input: "a corpus that has grown and shrunk since",
        prepare: |w| {
            w.remove("corpus/good.jsonl");
            w.write_corpus("corpus/other.jsonl", 8);
        },
        command: "remit-score corpus -o set --rl-model rl --base-model base --part-bytes 1000",
        exit: USAGE,
        stderr: &[
            "\n  the corpus file good.jsonl is gone\n",
            "\n  the corpus file other.jsonl is new\n",
        ],
    },
    Case {
        input: "a model that has changed since",
        prepare: |w| {
            w.damage("rl/model.safetensors", |bytes| {
                let last = bytes.len() - 4;
                bytes[last] ^= 1;
            });
        },
        command: "remit-score corpus -o set --rl-model rl --base-model base --part-bytes 1000",
        exit: USAGE,
        stderr: &["\n  rl.fingerprint was \""],
    },
    Case {
        input: "a dry run with the output of another plan",
        prepare: nothing,
        command: "remit-score corpus -o set --rl-model rl --base-model base --part-bytes 1000 --dry-run --min-tokens 3",
        exit: USAGE,
        stderr: &["\n  min_tokens was 0, is now 3\n"],
    },
    Case {
        input: "another limit than the set was begun with",
        prepare: nothing,
        command: "remit-score corpus -o set --rl-model rl --base-model base --part-bytes 1000 --limit-docs 2",
        exit: USAGE,
        stderr: &["\n  limit_docs "],
    },
    Case {
        input: "other options for a set of which nothing is made yet",
        prepare: |w| {
            for name in w.snapshot("set").keys() {
                if *name != Path::new("_remit/plan.parquet") {
                    w.remove(&format!("set/{}", name.display()));
                }
            }
        },
        command: "remit-score corpus -o set --rl-model rl --base-model base --part-bytes 1000 --on-bad-record skip",
        exit: USAGE,
        stderr: &[
            "\n  on_bad_record was \"fail\", is now \"skip\"\n",
            "hint: no shard was made under that plan yet: if no worker runs with it any more, remove \
             set/_remit/plan.parquet and run this command again; else give another -o\n",
        ],
    },
    Case {
        input: "the default text field by its name",
        prepare: nothing,
        command: "remit-score corpus -o set --rl-model rl --base-model base --part-bytes 1000 --text-field text",
        exit: USAGE,
        stderr: &["\n  text_field was null, is now \"text\"\n"],
    },
    Case {
        input: "a plan that can't be parsed",
        prepare: |w| w.edit_description("set", Description::Plan, |text| text.truncate(100)),
        command: "remit-score corpus -o set --rl-model rl --base-model base --part-bytes 1000",
        exit: super::BAD_DATA,
        stderr: &["error: set/_remit/plan.parquet is not what remit writes: EOF while parsing"],
    },
];

#[test]
fn an_option_that_makes_no_sense_is_named_with_its_value() {
    check(&unscored(), ALONE);
}

#[test]
fn a_set_is_never_mixed_with_another_and_the_difference_is_spelled_out() {
    check(&scored(), CHANGED);
}
