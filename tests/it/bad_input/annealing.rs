//! Options and config files that remit-anneal refuses.

use super::{BAD_DATA, Case, IO, MISSING, USAGE, check, nothing, scored};

const OPTIONS: &[Case] = &[
    Case {
        input: "a learning rate that ends above the peak",
        prepare: nothing,
        command: "remit-anneal --weights set -o out --lr 1e-4 --min-lr 1e-3",
        exit: USAGE,
        stderr: &["error: --min-lr 0.001 is above the peak, --lr 0.0001\nhint: "],
    },
    Case {
        input: "a floor of a schedule that does not fall",
        prepare: nothing,
        command: "remit-anneal --weights set -o out --schedule constant --min-lr 1e-6",
        exit: USAGE,
        stderr: &[
            "error: --min-lr 0.000001 says where the learning rate falls to, but with --schedule constant it does not",
        ],
    },
    Case {
        input: "an output inside the set",
        prepare: nothing,
        command: "remit-anneal --weights set -o set/annealed",
        exit: USAGE,
        stderr: &[
            "error: set/annealed lies in ",
            "/set, the folder of a set, whose readers would take it for shards\n",
        ],
    },
    Case {
        input: "an output inside the set that losses are measured on",
        prepare: nothing,
        command: "remit-anneal --weights set --eval-weights without-base -o without-base/annealed",
        exit: USAGE,
        stderr: &[
            "error: without-base/annealed lies in ",
            "/without-base, the folder of a set, ",
        ],
    },
    Case {
        input: "a temperature of 0",
        prepare: nothing,
        command: "remit-anneal --weights set -o out --temperature 0",
        exit: USAGE,
        stderr: &["'--temperature <TEMPERATURE>': temperature is 0; it must be a positive number"],
    },
    Case {
        input: "an unknown schedule",
        prepare: nothing,
        command: "remit-anneal --weights set -o out --schedule wsd",
        exit: USAGE,
        stderr: &["[possible values: linear, cosine, 1-sqrt, constant]"],
    },
    Case {
        input: "two lengths",
        prepare: nothing,
        command: "remit-anneal --weights set -o out --steps 3 --tokens 1000",
        exit: USAGE,
        stderr: &["error: the argument '--steps <N>' cannot be used with '--tokens <N>'"],
    },
    Case {
        input: "a length of no tokens",
        prepare: nothing,
        command: "remit-anneal --weights set -o out --tokens 0",
        exit: USAGE,
        stderr: &["error: invalid value '0' for '--tokens <N>'"],
    },
    Case {
        input: "a batch of no tokens",
        prepare: nothing,
        command: "remit-anneal --weights set -o out --batch-tokens 0",
        exit: USAGE,
        stderr: &["error: invalid value '0' for '--batch-tokens <TOKENS>': it must be at least 1"],
    },
    Case {
        input: "a share of targets above all of them",
        prepare: nothing,
        command: "remit-anneal --weights set -o out --weighting excess-top-k --top-k-fraction 1.5",
        exit: USAGE,
        stderr: &["'--top-k-fraction <FRACTION>': 1.5 is more than 1, which is all"],
    },
    Case {
        input: "a decay rate of 1",
        prepare: nothing,
        command: "remit-anneal --weights set -o out --beta2 1",
        exit: USAGE,
        stderr: &["'--beta2 <RATE>': 1 is not less than 1"],
    },
    Case {
        input: "a z-loss below 0",
        prepare: nothing,
        command: "remit-anneal --weights set -o out --z-loss=-1e-4",
        exit: USAGE,
        stderr: &["'--z-loss <COEFFICIENT>': -0.0001 is not a finite number of at least 0"],
    },
    Case {
        input: "static weights that are to be centred anew",
        prepare: nothing,
        command: "remit-anneal --weights set -o out --weighting static --center none",
        exit: USAGE,
        stderr: &[
            "error: static weights were centred on the mean of their row when they were made",
            "\nhint: --weighting dynamic computes them anew\n",
        ],
    },
    Case {
        input: "everything held out",
        prepare: nothing,
        command: "remit-anneal --weights set -o out --holdout 1",
        exit: USAGE,
        stderr: &["'--holdout <FRACTION>': it must leave something, so be less than 1"],
    },
    Case {
        input: "a share of documents that holds out none",
        prepare: nothing,
        command: "remit-anneal --weights set -o out --holdout 0.000001",
        exit: USAGE,
        stderr: &["error: --holdout 0.000001 holds out none of the documents of set\nhint: "],
    },
    Case {
        input: "held-out documents and another set at once",
        prepare: nothing,
        command: "remit-anneal --weights set -o out --holdout 0.5 --eval-weights set",
        exit: USAGE,
        stderr: &[
            "'--holdout <FRACTION>'",
            "cannot be used with",
            "'--eval-weights <DIR>'",
        ],
    },
    Case {
        input: "evaluations on nothing",
        prepare: nothing,
        command: "remit-anneal --weights set -o out --eval-every 5",
        exit: USAGE,
        stderr: &["error: --eval-every has nothing to measure losses on\nhint: "],
    },
    Case {
        input: "a set to evaluate on that is not there",
        prepare: nothing,
        command: "remit-anneal --weights set -o out --eval-weights nowhere",
        exit: MISSING,
        stderr: &["nowhere"],
    },
    Case {
        input: "a set to evaluate on without static weights",
        prepare: nothing,
        command: "remit-anneal --weights set -o out --eval-weights without-base --weighting static",
        exit: USAGE,
        stderr: &[
            "--weighting static needs stored weights, but the set in without-base was scored without",
        ],
    },
    Case {
        input: "an output that is a file",
        prepare: |w| w.write("out", "mine"),
        command: "remit-anneal --weights set -o out",
        exit: IO,
        stderr: &["out"],
    },
    Case {
        input: "a folder of somebody's own",
        prepare: |w| w.write("out/README.md", "my notes"),
        command: "remit-anneal --weights set -o out",
        exit: USAGE,
        stderr: &[
            "error: out holds README.md, but no run.json that says it is of a run of remit-anneal\nhint: ",
        ],
    },
    Case {
        input: "the set's own folder",
        prepare: nothing,
        command: "remit-anneal --weights set -o set",
        exit: USAGE,
        stderr: &["error: set holds _remit, but no run.json"],
    },
    Case {
        input: "more times over the set than can be meant",
        prepare: nothing,
        command: "remit-anneal --weights set -o out --tokens 1000000000000000",
        exit: USAGE,
        stderr: &[
            "error: --tokens 1000000000000000 comes to ",
            " times over the set",
            "\nhint: --steps takes any number",
        ],
    },
    Case {
        input: "a row to evaluate on that is longer than the learner's positions",
        prepare: |w| {
            w.edit_json("base/config.json", |config| {
                config["max_position_embeddings"] = 8.into();
            });
        },
        command: "remit-anneal --weights set --model base -o out --eval-weights without-base",
        exit: BAD_DATA,
        stderr: &["but base was made for 8 positions"],
    },
    Case {
        input: "a config that is not there",
        prepare: nothing,
        command: "remit-anneal --config run.toml",
        exit: MISSING,
        stderr: &["error: cannot open run.toml: No such file"],
    },
    Case {
        input: "a config that is no TOML",
        prepare: |w| w.write("run.toml", "lr = = 3\n"),
        command: "remit-anneal --config run.toml",
        exit: BAD_DATA,
        stderr: &["error: run.toml is not TOML: TOML parse error at line 1"],
    },
    Case {
        input: "a config with an unknown key",
        prepare: |w| w.write("run.toml", "weights = \"set\"\nlearning-rate = 1e-3\n"),
        command: "remit-anneal --config run.toml",
        exit: USAGE,
        stderr: &[
            "error: run.toml: learning-rate is no option of remit-anneal\nhint: here it is lr\n",
        ],
    },
    Case {
        input: "a config with a key that nothing is like",
        prepare: |w| w.write("run.toml", "weights = \"set\"\nwhatever = 1e-3\n"),
        command: "remit-anneal --config run.toml",
        exit: USAGE,
        stderr: &["hint: keys are the names of the flags, without the dashes before them"],
    },
    Case {
        input: "a config with a key in another spelling",
        prepare: |w| w.write("run.toml", "weights = \"set\"\nbatch_tokens = 100\n"),
        command: "remit-anneal --config run.toml",
        exit: USAGE,
        stderr: &[
            "error: run.toml: batch_tokens is no option of remit-anneal\nhint: it is spelled batch-tokens\n",
        ],
    },
    Case {
        input: "a config with a value of another kind",
        prepare: |w| {
            w.write(
                "run.toml",
                "weights = \"set\"\nactivation-checkpointing = 1\n",
            )
        },
        command: "remit-anneal --config run.toml",
        exit: USAGE,
        stderr: &["error: run.toml: activation-checkpointing is 1; it takes true or false\n"],
    },
    Case {
        input: "a config with a list",
        prepare: |w| w.write("run.toml", "weights = [\"set\", \"without-base\"]\n"),
        command: "remit-anneal --config run.toml",
        exit: USAGE,
        stderr: &[
            "run.toml: weights is [",
            "]; it takes a string or a number\n",
        ],
    },
    Case {
        input: "a config with a value that makes no sense",
        prepare: |w| w.write("run.toml", "weights = \"set\"\nlr = -1\n"),
        command: "remit-anneal --config run.toml",
        exit: USAGE,
        stderr: &["error: run.toml: invalid value '-1' for '--lr <LR>'"],
    },
    Case {
        input: "models to compare of which one is not there",
        prepare: nothing,
        command: "remit-inspect compare base nowhere --weights set",
        exit: MISSING,
        stderr: &["nowhere"],
    },
    Case {
        input: "models to compare on a set of another tokenizer",
        prepare: |w| {
            w.edit_json("base/tokenizer.json", |json| {
                json["added_tokens"][0]["content"] = "<|end|>".into();
            });
        },
        command: "remit-inspect compare rl base --weights set",
        exit: BAD_DATA,
        stderr: &["their ids do not mean the same: ", "\nhint: "],
    },
    Case {
        input: "an order of a set that is damaged",
        prepare: |w| w.damage("set/part-000000.parquet", |bytes| bytes[100] ^= 1),
        command: "remit-inspect order set",
        exit: BAD_DATA,
        stderr: &["set/part-000000.parquet"],
    },
];

#[test]
fn training_options_that_make_no_sense_are_named_with_their_values() {
    check(&scored(), OPTIONS);
}
