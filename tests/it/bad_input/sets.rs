//! Sets, learners and options that remit-anneal and remit-inspect refuse.

use super::{BAD_DATA, Case, IO, MISSING, USAGE, check, nothing, scored};
use crate::harness::{SCORE, Workspace};
use remit::shard::layout::Description;
use serde_json::Value;

const ANNEAL_SET: &str = "remit-anneal --weights set -o out";
const SHARD: &str = "set/part-000001.parquet";

fn flip_a_bit(workspace: &Workspace) {
    workspace.damage(SHARD, |bytes| {
        let middle = bytes.len() / 2;
        bytes[middle] ^= 0x10;
    });
}

const SETS: &[Case] = &[
    Case {
        input: "a set that does not exist",
        prepare: nothing,
        command: "remit-anneal --weights nowhere -o out",
        exit: MISSING,
        stderr: &["error: no such folder: nowhere\nhint: remit-score INPUT -o nowhere makes it\n"],
    },
    Case {
        input: "a folder that is no set",
        prepare: nothing,
        command: "remit-anneal --weights corpus -o out",
        exit: MISSING,
        stderr: &["error: corpus has no _remit/manifest, so it is not a set of shards\nhint: "],
    },
    Case {
        input: "a shard in the place of its set",
        prepare: nothing,
        command: "remit-anneal --weights set/part-000001.parquet -o out",
        exit: BAD_DATA,
        stderr: &[
            "error: set/part-000001.parquet is a file, and a set is a folder\nhint: give the folder of the set: ",
            "/set\n",
        ],
    },
    Case {
        input: "a file of a set in the place of a set, to look at",
        prepare: nothing,
        command: "remit-inspect set/_remit/manifest.parquet",
        exit: BAD_DATA,
        stderr: &[
            "set/_remit/manifest.parquet is a file, and a set is a folder\nhint: give the folder of the set: ",
        ],
    },
    Case {
        input: "a set as a corpus",
        prepare: nothing,
        command: "remit-score set -o out",
        exit: USAGE,
        stderr: &[
            "error: set is a set that was scored, not a corpus: ",
            "/set/_remit holds its description\nhint: give the corpus that it was made from\n",
        ],
    },
    Case {
        input: "a shard as a corpus",
        prepare: nothing,
        command: "remit-score set/part-000001.parquet -o out",
        exit: USAGE,
        stderr: &["error: set/part-000001.parquet is a set that was scored, not a corpus: "],
    },
    Case {
        input: "the folder of a model as output",
        prepare: |w| w.copy_model("tiny-llama", "model"),
        command: "remit-score corpus -o model",
        exit: USAGE,
        stderr: &[
            "error: -o model is the folder of a model: it has a config.json\nhint: give another -o\n",
        ],
    },
    Case {
        input: "a set that is not finished",
        prepare: |w| w.remove("set/_remit/manifest.parquet"),
        command: ANNEAL_SET,
        exit: MISSING,
        stderr: &[
            "error: the set in set is not finished: it has a plan in _remit/, but no manifest yet\n\
             hint: run the same remit-score command again to finish it\n",
        ],
    },
    Case {
        input: "a shard with one flipped bit",
        prepare: flip_a_bit,
        command: ANNEAL_SET,
        exit: BAD_DATA,
        stderr: &[
            "error: the shard set/part-000001.parquet is damaged: its BLAKE3 is ",
            "\nhint: remove this file and run the same remit-score command again; it makes what is missing\n",
        ],
    },
    Case {
        input: "a shard that was cut short",
        prepare: |w| w.damage(SHARD, |bytes| bytes.truncate(1000)),
        command: ANNEAL_SET,
        exit: BAD_DATA,
        stderr: &["error: the shard set/part-000001.parquet has 1000 bytes; the manifest says "],
    },
    Case {
        input: "a shard that is another one of the set",
        prepare: |w| {
            let other = w.read("set/part-000000.parquet");
            w.write(SHARD, other);
        },
        command: ANNEAL_SET,
        exit: BAD_DATA,
        stderr: &["error: the shard set/part-000001.parquet "],
    },
    Case {
        input: "a missing shard",
        prepare: |w| w.remove(SHARD),
        command: ANNEAL_SET,
        exit: MISSING,
        stderr: &["error: the shard set/part-000001.parquet is missing\nhint: "],
    },
    Case {
        input: "a manifest that was cut short",
        prepare: |w| {
            w.damage("set/_remit/manifest.parquet", |bytes| {
                bytes.truncate(bytes.len() / 2)
            })
        },
        command: ANNEAL_SET,
        exit: BAD_DATA,
        stderr: &[
            "error: set/_remit/manifest.parquet is damaged: it is not a readable Parquet file: ",
        ],
    },
    Case {
        input: "a manifest that was edited",
        prepare: |w| {
            w.edit_description("set", Description::Manifest, |text| {
                let old = String::from_utf8(text.clone()).unwrap();
                let new = old.replace("\"seq_len\": 2048", "\"seq_len\": 1024");
                assert_ne!(old, new);
                *text = new.into_bytes();
            });
        },
        command: ANNEAL_SET,
        exit: BAD_DATA,
        stderr: &[
            "error: set/_remit/manifest.parquet is damaged: its content has the digest ",
            "; it was changed after it was written\n",
        ],
    },
    Case {
        input: "a manifest of a later version",
        prepare: |w| {
            w.edit_description("set", Description::Manifest, |text| {
                let mut manifest: Value = serde_json::from_slice(text).unwrap();
                manifest["plan"]["format_version"] = 99.into();
                *text = manifest.to_string().into_bytes();
            });
        },
        command: ANNEAL_SET,
        exit: BAD_DATA,
        stderr: &[
            "error: set/_remit/manifest.parquet has format version 99; this remit reads version ",
        ],
    },
    Case {
        input: "a set without rows",
        prepare: |w| {
            w.write("short/a.txt", "a");
            w.command(SCORE)
                .args("short -o empty --rl-model rl --base-model base --eos never")
                .ok();
        },
        command: "remit-anneal --weights empty -o out --keep-special-tokens",
        exit: BAD_DATA,
        stderr: &["error: the set in empty has no rows\n"],
    },
];

const LEARNERS: &[Case] = &[
    Case {
        input: "a learner that does not exist",
        prepare: nothing,
        command: "remit-anneal --weights set -o out --model nowhere",
        exit: MISSING,
        stderr: &["error: nowhere is not a model folder; give"],
    },
    Case {
        input: "a learner with another tokenizer",
        prepare: |w| {
            w.edit_json("base/tokenizer.json", |t| {
                t["added_tokens"][0]["content"] = "<|end|>".into();
            });
        },
        command: "remit-anneal --weights set -o out --model base",
        exit: BAD_DATA,
        stderr: &[
            "error: the set in set was tokenized with the tokenizer of base (fingerprint ",
            "), but that of base is another (fingerprint ",
            "), and their ids do not mean the same: base no longer has the tokenizer that could be compared id by id",
            "\nhint: score the corpus again with --tokenizer base, and with an RL model to which those ids mean the same\n",
        ],
    },
    Case {
        input: "a learner with fewer positions than a row has tokens",
        prepare: |w| {
            w.edit_json("rl/config.json", |config| {
                config["max_position_embeddings"] = 16.into();
            });
        },
        command: "remit-anneal --weights set -o out --model rl",
        exit: BAD_DATA,
        stderr: &[
            "error: the set has rows of ",
            " tokens, but rl was made for 16 positions\nhint: score the corpus again with --seq-len 16, or ",
        ],
    },
    Case {
        input: "a base that has moved",
        prepare: |w| w.remove("base"),
        command: ANNEAL_SET,
        exit: MISSING,
        stderr: &[
            "error: cannot open the base model base of the manifest; give --model DIR if it has moved: ",
        ],
    },
    Case {
        input: "a base that has changed since",
        prepare: |w| w.copy_model("tiny-llama", "base"),
        command: ANNEAL_SET,
        exit: BAD_DATA,
        stderr: &[
            "error: the base model base has changed since the set was scored: its fingerprint is ",
            "\nhint: give --model DIR to train another model on purpose\n",
        ],
    },
    Case {
        input: "a set without base, and no learner",
        prepare: nothing,
        command: "remit-anneal --weights without-base -o out",
        exit: USAGE,
        stderr: &[
            "error: the set in without-base was scored without a base model, so there is no initial \
             model\nhint: give --model DIR\n",
        ],
    },
    Case {
        input: "static weights of a set that has none",
        prepare: nothing,
        command: "remit-anneal --weights without-base -o out --model base --weighting static",
        exit: USAGE,
        stderr: &[
            "error: --weighting static needs stored weights, but the set in without-base was scored \
             without --base-model\nhint: --weighting dynamic needs none\n",
        ],
    },
    Case {
        input: "static weights with another epsilon",
        prepare: nothing,
        command: "remit-anneal --weights set -o out --weighting static --epsilon 0.1",
        exit: USAGE,
        stderr: &["error: static weights were made with epsilon 0.2 and temperature 1, and can't"],
    },
    Case {
        input: "an output that holds a model",
        prepare: |w| w.copy_model("tiny-llama", "out"),
        command: ANNEAL_SET,
        exit: USAGE,
        stderr: &[
            "error: out holds a model already\nhint: remit never writes over one; give another -o, or remove it\n",
        ],
    },
];

const OPTIONS: &[Case] = &[
    Case {
        input: "no steps",
        prepare: nothing,
        command: "remit-anneal --weights set -o out --steps 0",
        exit: USAGE,
        stderr: &["error: invalid value '0' for '--steps <N>': 0 is not in 1.."],
    },
    Case {
        input: "no epochs",
        prepare: nothing,
        command: "remit-anneal --weights set -o out --epochs 0",
        exit: USAGE,
        stderr: &["error: invalid value '0' for '--epochs <N>': 0 is not in 1.."],
    },
    Case {
        input: "steps and epochs",
        prepare: nothing,
        command: "remit-anneal --weights set -o out --steps 3 --epochs 1",
        exit: USAGE,
        stderr: &["error: the argument '--steps <N>' cannot be used with '--epochs <N>'"],
    },
    Case {
        input: "a learning rate of 0",
        prepare: nothing,
        command: "remit-anneal --weights set -o out --lr 0",
        exit: USAGE,
        stderr: &["error: invalid value '0' for '--lr <LR>': it must be greater than 0"],
    },
    Case {
        input: "a learning rate that is not a number",
        prepare: nothing,
        command: "remit-anneal --weights set -o out --lr nan",
        exit: USAGE,
        stderr: &["error: invalid value 'nan' for '--lr <LR>': NaN is not a finite number"],
    },
    Case {
        input: "a negative clipping norm",
        prepare: nothing,
        command: "remit-anneal --weights set -o out --clip=-1",
        exit: USAGE,
        stderr: &["error: invalid value '-1' for '--clip <NORM>': -1 is not a finite number"],
    },
    Case {
        input: "a decay that wipes out the weights",
        prepare: nothing,
        command: "remit-anneal --weights set -o out --lr 2 --weight-decay 0.5",
        exit: USAGE,
        stderr: &[
            "error: --lr 2 times --weight-decay 0.5 is 1; it must be less than 1, or a step wipes out the weights\nhint: lower either of them\n",
        ],
    },
    Case {
        input: "a warm-up that is longer than the run",
        prepare: nothing,
        command: "remit-anneal --weights set -o out --steps 2 --warmup-steps 2",
        exit: USAGE,
        stderr: &["error: --warmup-steps 2 leaves nothing of the 2 steps\n"],
    },
    Case {
        input: "an epsilon of 1",
        prepare: nothing,
        command: "remit-anneal --weights set -o out --epsilon 1",
        exit: USAGE,
        stderr: &[
            "error: invalid value '1' for '--epsilon <EPSILON>': epsilon is 1; it must be at least 0 and less than 1\n",
        ],
    },
];

const INSPECTED: &[Case] = &[
    Case {
        input: "no folder",
        prepare: nothing,
        command: "remit-inspect",
        exit: USAGE,
        stderr: &["error: the following required arguments were not provided:\n  <DIR>"],
    },
    Case {
        input: "a folder that does not exist",
        prepare: nothing,
        command: "remit-inspect nowhere",
        exit: MISSING,
        stderr: &["error: no such folder: nowhere\n"],
    },
    Case {
        input: "a folder that is no set",
        prepare: nothing,
        command: "remit-inspect corpus",
        exit: MISSING,
        stderr: &["error: corpus has no _remit/manifest, so it is not a set of shards\n"],
    },
    Case {
        input: "a folder to verify that is no set",
        prepare: nothing,
        command: "remit-inspect verify corpus",
        exit: MISSING,
        stderr: &["error: corpus has no _remit/manifest, so it is not a set of shards\n"],
    },
    Case {
        input: "a shard with one flipped bit",
        prepare: flip_a_bit,
        command: "remit-inspect verify set",
        exit: BAD_DATA,
        stderr: &["error: the shard set/part-000001.parquet is damaged: its BLAKE3 is "],
    },
];

const LOOKING: &[Case] = &[
    Case {
        input: "a row that there is not",
        prepare: nothing,
        command: "remit-inspect show set --row 8",
        exit: USAGE,
        stderr: &["error: set has no row 8: rows are counted from 0, and there are 8\n"],
    },
    Case {
        input: "a row_id that there is not",
        prepare: nothing,
        command: "remit-inspect show set --row-id 77777777777",
        exit: USAGE,
        stderr: &["error: set has no row with the row_id 77777777777, and there are 8\n"],
    },
    Case {
        input: "no row",
        prepare: nothing,
        command: "remit-inspect show set",
        exit: USAGE,
        stderr: &["error: the following required arguments were not provided:\n  --row <N>"],
    },
    Case {
        input: "a tokenizer that does not exist",
        prepare: nothing,
        command: "remit-inspect show set --row 0 --tokenizer nowhere",
        exit: MISSING,
        stderr: &["error: ", "nowhere"],
    },
    Case {
        input: "a tokenizer that is not the set's",
        prepare: |w| {
            w.copy_model("tiny-llama", "other");
            w.edit_json("other/tokenizer.json", |tokenizer| {
                tokenizer["normalizer"] = serde_json::json!({"type": "Lowercase"});
            });
        },
        command: "remit-inspect show set --row 0 --tokenizer other",
        exit: BAD_DATA,
        stderr: &[
            "error: the tokenizer of other is not the one that the set was made with, that of base\n",
        ],
    },
    Case {
        input: "an export to a file of another type",
        prepare: nothing,
        command: "remit-inspect export set --tokens tokens.txt",
        exit: USAGE,
        stderr: &["error: tokens.txt: the file to write has to end with .parquet or .csv\n"],
    },
    Case {
        input: "an export into a folder that does not exist",
        prepare: nothing,
        command: "remit-inspect export set --tokens nowhere/tokens.csv",
        exit: IO,
        stderr: &[
            "error: cannot create a temporary file beside nowhere/tokens.csv: No such file or directory",
        ],
    },
    Case {
        input: "an export over a shard",
        prepare: nothing,
        command: "remit-inspect export set --tokens set/part-000000.parquet",
        exit: USAGE,
        stderr: &["error: set/part-000000.parquet lies in the set itself, "],
    },
    Case {
        input: "an export beside the manifest",
        prepare: nothing,
        command: "remit-inspect export set --tokens set/_remit/tokens.csv",
        exit: USAGE,
        stderr: &["error: set/_remit/tokens.csv lies in the set itself, "],
    },
    Case {
        input: "an export into another set",
        prepare: |w| w.copy_folder(&w.path("set"), "other"),
        command: "remit-inspect export set --tokens other/tokens.parquet",
        exit: USAGE,
        stderr: &[
            "error: other/tokens.parquet lies in ",
            "/other, the folder of a set, ",
        ],
    },
    Case {
        input: "a set inside another set",
        prepare: |w| w.write_corpus("more/a.jsonl", 2),
        command: "remit-score more -o set/more",
        exit: USAGE,
        stderr: &["error: set/more lies in ", "/set, the folder of a set, "],
    },
    Case {
        input: "a set inside the description of another",
        prepare: |w| w.write_corpus("more/a.jsonl", 2),
        command: "remit-score more -o set/_remit --dry-run",
        exit: USAGE,
        stderr: &["error: set/_remit lies in ", "/set, the folder of a set, "],
    },
    Case {
        input: "an export over a file",
        prepare: |w| w.write("tokens.csv", "mine"),
        command: "remit-inspect export set --tokens tokens.csv",
        exit: USAGE,
        stderr: &["error: tokens.csv exists already\n"],
    },
    Case {
        input: "an export of a damaged set",
        prepare: |w| w.damage(SHARD, |bytes| bytes[9] ^= 1),
        command: "remit-inspect export set --tokens tokens.csv",
        exit: BAD_DATA,
        stderr: &["error: the shard set/part-000001.parquet is damaged: its BLAKE3 is "],
    },
];

#[test]
fn rows_and_exports_that_cannot_be_are_refused() {
    check(&scored(), LOOKING);
}

#[test]
fn a_set_that_is_not_whole_is_refused_before_it_is_used() {
    check(&scored(), SETS);
}

#[test]
fn a_learner_that_does_not_fit_the_set_is_refused() {
    check(&scored(), LEARNERS);
}

#[test]
fn an_annealing_option_that_makes_no_sense_is_named_with_its_value() {
    check(&scored(), OPTIONS);
}

#[test]
fn inspecting_tells_a_missing_set_from_a_damaged_one() {
    check(&scored(), INSPECTED);
}
