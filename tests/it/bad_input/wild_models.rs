//! Folders that hold something else than a model in safetensors: each is told by what it is, with the way out.

use std::os::unix::fs::symlink;

use safetensors::tensor::TensorView;
use safetensors::{SafeTensors, serialize};

use super::{BAD_DATA, Case, MISSING, USAGE, check, nothing, scored, unscored};
use crate::harness::Workspace;

const SCORE: &str = "remit-score corpus -o out --rl-model rl";
const WEIGHTS: &str = "rl/model.safetensors";
const LFS: &str = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 1234\n";

fn rename(workspace: &Workspace, to: &str) {
    let bytes = workspace.read(WEIGHTS);
    workspace.remove(WEIGHTS);
    workspace.write(&format!("rl/{to}"), bytes);
}

fn rename_tensors(workspace: &Workspace, name_of: fn(&str) -> String) {
    let bytes = workspace.read(WEIGHTS);
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let views: Vec<(String, TensorView<'_>)> = tensors
        .iter()
        .map(|(name, view)| (name_of(name), view))
        .collect();
    let renamed = serialize(views, None).unwrap();
    workspace.write(WEIGHTS, renamed);
}

const FOLDERS: &[Case] = &[
    Case {
        input: "weights that are a pointer of Git LFS",
        prepare: |w| w.write(WEIGHTS, LFS),
        command: SCORE,
        exit: BAD_DATA,
        stderr: &[
            "error: model.safetensors of the model rl is a pointer of Git LFS, which stands for a file (size 1234)\n",
            "hint: run git lfs pull in rl, or download it with hf download\n",
        ],
    },
    Case {
        input: "a config that is a pointer of Git LFS",
        prepare: |w| w.write("rl/config.json", LFS),
        command: SCORE,
        exit: BAD_DATA,
        stderr: &["error: config.json of the model rl is a pointer of Git LFS"],
    },
    Case {
        input: "a tokenizer that is a pointer of Git LFS",
        prepare: |w| w.write("rl/tokenizer.json", LFS),
        command: SCORE,
        exit: BAD_DATA,
        stderr: &["error: tokenizer.json of the model rl is a pointer of Git LFS"],
    },
    Case {
        input: "a page to log in instead of weights",
        prepare: |w| w.write(WEIGHTS, "\n<!DOCTYPE HTML><html><body>Log in"),
        command: SCORE,
        exit: BAD_DATA,
        stderr: &[
            "error: model.safetensors of the model rl is a page of a web site",
            "\nhint: ",
        ],
    },
    Case {
        input: "an adapter alone",
        prepare: |w| {
            w.remove("rl/config.json");
            rename(w, "adapter_model.safetensors");
            w.write(
                "rl/adapter_config.json",
                r#"{"base_model_name_or_path": "org/base"}"#,
            );
        },
        command: SCORE,
        exit: MISSING,
        stderr: &[
            "error: the model rl has no config.json;",
            "\nhint: it holds an adapter to org/base, such as LoRA, and not a model; merge them in Python: ",
        ],
    },
    Case {
        input: "an adapter with the config of its base",
        prepare: |w| {
            rename(w, "adapter_model.safetensors");
            w.write("rl/adapter_config.json", "{}");
        },
        command: SCORE,
        exit: MISSING,
        stderr: &[
            "error: the model rl has no model.safetensors;",
            "\nhint: it holds an adapter, such as LoRA",
        ],
    },
    Case {
        input: "an adapter beside weights",
        prepare: |w| w.write("rl/adapter_config.json", "{}"),
        command: SCORE,
        exit: BAD_DATA,
        stderr: &[
            "error: the tensors of the model rl stand beside an adapter, adapter_config.json, ",
            "\nhint: merge",
        ],
    },
    Case {
        input: "the original format of Mistral",
        prepare: |w| rename(w, "consolidated.safetensors"),
        command: SCORE,
        exit: MISSING,
        stderr: &[
            "\nhint: consolidated.* and params.json are the original format of Mistral and Meta",
        ],
    },
    Case {
        input: "GGUF",
        prepare: |w| rename(w, "model-Q4_K_M.gguf"),
        command: SCORE,
        exit: MISSING,
        stderr: &["\nhint: GGUF files are for llama.cpp"],
    },
    Case {
        input: "a file of GGUF",
        prepare: |w| rename(w, "model.gguf"),
        command: "remit-score corpus -o out --rl-model rl/model.gguf",
        exit: MISSING,
        stderr: &[
            "error: rl/model.gguf is not a model folder;",
            "\nhint: GGUF files are for llama.cpp",
        ],
    },
    Case {
        input: "a file of weights",
        prepare: nothing,
        command: "remit-score corpus -o out --rl-model rl/model.safetensors",
        exit: MISSING,
        stderr: &["\nhint: it is a file; give the folder that it lies in\n"],
    },
    Case {
        input: "pickles in shards",
        prepare: |w| rename(w, "pytorch_model-00001-of-00002.bin"),
        command: SCORE,
        exit: MISSING,
        stderr: &[
            "\nhint: .bin and .pt files are Python pickles",
            ".save_pretrained(NEW)\n",
        ],
    },
    Case {
        input: "shards without their index",
        prepare: |w| rename(w, "model-00001-of-00002.safetensors"),
        command: SCORE,
        exit: MISSING,
        stderr: &[
            "\nhint: model-00001-of-00002.safetensors is one of several shards, which model.safetensors.index.json lists",
        ],
    },
    Case {
        input: "a download that was not finished",
        prepare: |w| rename(w, "model.safetensors.incomplete"),
        command: SCORE,
        exit: MISSING,
        stderr: &["\nhint: model.safetensors.incomplete is a download that was not finished"],
    },
    Case {
        input: "the root of a model in the hub's cache",
        prepare: |w| {
            w.copy_model("tiny-llama", "models--org--name/snapshots/older");
            w.copy_model("tiny-llama", "models--org--name/snapshots/newer");
            w.write("models--org--name/refs/main", "newer\n");
        },
        command: "remit-score corpus -o out --rl-model models--org--name",
        exit: MISSING,
        stderr: &[
            "\nhint: it is a model's place in the cache of the hub; give the snapshot in it: models--org--name/snapshots/newer\n",
        ],
    },
    Case {
        input: "the hub's cache",
        prepare: |w| w.copy_model("tiny-llama", "hub/models--org--name/snapshots/abc"),
        command: "remit-score corpus -o out --rl-model hub",
        exit: MISSING,
        stderr: &["\nhint: there are models further down: hub/models--org--name/snapshots/abc\n"],
    },
    Case {
        input: "a folder of checkpoints",
        prepare: |w| w.copy_model("tiny-llama", "run/checkpoint-500"),
        command: "remit-score corpus -o out --rl-model run",
        exit: MISSING,
        stderr: &["\nhint: there are models further down: run/checkpoint-500\n"],
    },
    Case {
        input: "the name of a model of the hub",
        prepare: nothing,
        command: "remit-score corpus -o out --rl-model Qwen/Qwen3-0.6B",
        exit: MISSING,
        stderr: &["hf download Qwen/Qwen3-0.6B --local-dir Qwen3-0.6B\n"],
    },
    Case {
        input: "quantized weights",
        prepare: |w| {
            w.edit_json("rl/config.json", |c| {
                c["quantization_config"] = serde_json::json!({"quant_method": "gptq"});
            });
        },
        command: SCORE,
        exit: BAD_DATA,
        stderr: &[
            "error: config.json of the model rl: the weights are quantized (gptq), which is not implemented\nhint: ",
        ],
    },
];

const NAMES: &[Case] = &[
    Case {
        input: "a prefix on every tensor",
        prepare: |w| rename_tensors(w, |name| format!("language_model.{name}")),
        command: SCORE,
        exit: BAD_DATA,
        stderr: &[
            "error: the tensors of the model rl all have language_model. before the names that config.json asks for, as in \
             language_model.model.embed_tokens.weight\nhint: rename them in Python, in every file: ",
            "{k.removeprefix(\"language_model.\"): v ",
        ],
    },
    Case {
        input: "what a compiled module left in the names",
        prepare: |w| {
            rename_tensors(w, |name| {
                format!("module.{}", name.replace("layers.", "layers._orig_mod."))
            });
        },
        command: SCORE,
        exit: BAD_DATA,
        stderr: &[
            "asks for, with _orig_mod. and module. in them, which a wrapper left behind\nhint: ",
        ],
    },
    Case {
        input: "names without their prefix",
        prepare: |w| {
            rename_tensors(w, |name| {
                name.strip_prefix("model.").unwrap_or(name).to_owned()
            });
        },
        command: SCORE,
        exit: BAD_DATA,
        stderr: &[
            "error: the tensors of the model rl all lack the model. before their names",
            "\nhint: ",
        ],
    },
    Case {
        input: "an adapter that was not merged",
        prepare: |w| rename_tensors(w, |name| format!("base_model.model.{name}.lora_A.x")),
        command: SCORE,
        exit: BAD_DATA,
        stderr: &[
            "error: the tensors of the model rl are those of an adapter and of the model it is for",
        ],
    },
    Case {
        input: "names that nobody knows",
        prepare: |w| rename_tensors(w, |name| format!("{name}.x")),
        command: SCORE,
        exit: BAD_DATA,
        stderr: &[
            "\n  model.embed_tokens.weight is missing; expected [1056, 48]\n",
            "\n  and 22 more\n",
        ],
    },
    Case {
        input: "a multimodal model whose text is of another family than its type has",
        prepare: |w| {
            w.edit_json("rl/config.json", |c| {
                *c = serde_json::json!({"model_type": "gemma3", "text_config": {"model_type": "llama"}});
            });
        },
        command: SCORE,
        exit: BAD_DATA,
        stderr: &[
            "the text part is of model_type \"llama\"; in a gemma3 model it is \"gemma3_text\"\n",
        ],
    },
    Case {
        input: "a multimodal model whose text is of a family that is not supported",
        prepare: |w| {
            w.edit_json("rl/config.json", |c| {
                *c = serde_json::json!({"model_type": "llava", "text_config": {"model_type": "phi"}});
            });
        },
        command: SCORE,
        exit: BAD_DATA,
        stderr: &[
            "in the text part of the llava model: model_type \"phi\" is not supported; supported are gemma2, ",
        ],
    },
];

const FIELDS: &[Case] = &[
    Case {
        input: "a field to ignore that decides the output",
        prepare: nothing,
        command: "remit-score corpus -o out --rl-model rl --ignore-config-field rope_scaling",
        exit: BAD_DATA,
        stderr: &[
            "rope_scaling is read for this model_type, so --ignore-config-field can't have it ignored\n",
        ],
    },
    Case {
        input: "a field to ignore that no model has",
        prepare: nothing,
        command: "remit-score corpus -o out --rl-model rl --base-model base --ignore-config-field harmles",
        exit: USAGE,
        stderr: &["error: --ignore-config-field harmles: no config.json has a field of this name"],
    },
    Case {
        input: "two fields of which one is to be ignored",
        prepare: |w| {
            w.edit_json("rl/config.json", |c| {
                c["one_more"] = 1.into();
                c["another"] = 1.into();
            });
        },
        command: "remit-score corpus -o out --rl-model rl --ignore-config-field another",
        exit: BAD_DATA,
        stderr: &[
            "of influence on its output: one_more\nhint: ",
            "--ignore-config-field one_more accepts it\n",
        ],
    },
];

const SETS: &[Case] = &[
    Case {
        input: "a set as a model",
        prepare: nothing,
        command: "remit-score corpus -o out --rl-model set",
        exit: MISSING,
        stderr: &[
            "\nhint: it is a set that remit-score made, and no model; remit-inspect set describes it\n",
        ],
    },
    Case {
        input: "a model as a set",
        prepare: nothing,
        command: "remit-inspect rl",
        exit: MISSING,
        stderr: &[
            "error: rl has no _remit/manifest, so it is not a set of shards\nhint: it is a model: remit-inspect model rl describes it",
        ],
    },
    Case {
        input: "a model to train on",
        prepare: nothing,
        command: "remit-anneal --weights base -o out",
        exit: MISSING,
        stderr: &["\nhint: it is a model: remit-inspect model base describes it"],
    },
    Case {
        input: "the folder that a set lies in",
        prepare: |w| w.copy_folder(&w.path("set"), "sets/first"),
        command: "remit-inspect verify sets",
        exit: MISSING,
        stderr: &["\nhint: there is a set further down: sets/first\n"],
    },
    Case {
        input: "a run to go on with that has no checkpoints",
        prepare: nothing,
        command: "remit-anneal --weights set -o out --resume-from base --extend-steps 3",
        exit: USAGE,
        stderr: &["error: --resume-from base: there is no checkpoint in base/checkpoints\nhint: "],
    },
    Case {
        input: "a run to go on with in its own folder",
        prepare: nothing,
        command: "remit-anneal --weights set -o base/ --resume-from base --extend-steps 3",
        exit: USAGE,
        stderr: &["base"],
    },
    Case {
        input: "a number of steps to add to nothing",
        prepare: nothing,
        command: "remit-anneal --weights set -o out --extend-steps 3",
        exit: USAGE,
        stderr: &["--resume-from <DIR>"],
    },
];

#[test]
fn a_folder_that_is_no_model_is_told_by_what_it_is() {
    check(&unscored(), FOLDERS);
}

#[test]
fn tensors_under_other_names_are_one_line_with_the_way_out() {
    check(&unscored(), NAMES);
}

#[test]
fn a_field_is_ignored_by_name_only_and_never_one_that_is_read() {
    check(&unscored(), FIELDS);
}

#[test]
fn what_is_given_in_place_of_another_is_told_by_what_it_is() {
    check(&scored(), SETS);
}

#[test]
fn a_snapshot_without_the_files_that_it_links_to_is_told_so() {
    let workspace = unscored();
    workspace.remove("rl/config.json");
    symlink("../../blobs/abc", workspace.path("rl/config.json")).unwrap();
    let ended = workspace
        .command(crate::harness::SCORE)
        .args("corpus -o out --rl-model rl")
        .output();
    assert_eq!(ended.0, Some(MISSING));
    assert!(
        ended
            .1
            .contains("\nhint: config.json is a link to a file that is not there"),
        "{}",
        ended.1
    );
}
