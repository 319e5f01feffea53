//! Models that can't be read or do not belong together.

use safetensors::tensor::{Dtype, TensorView};
use safetensors::{SafeTensors, serialize};

use super::{BAD_DATA, Case, MISSING, check, nothing, unscored};
use crate::harness::Workspace;

const SCORE_WITH_RL: &str = "remit-score corpus -o out --rl-model rl";
const SCORE_WITH_BOTH: &str = "remit-score corpus -o out --rl-model rl --base-model base";
const WEIGHTS: &str = "rl/model.safetensors";

/// A tensor that is being rewritten.
struct Stored {
    name: String,
    dtype: Dtype,
    shape: Vec<usize>,
    data: Vec<u8>,
}

/// Rewrites the weights of the RL model.
fn edit_tensors(workspace: &Workspace, change: impl FnOnce(&mut Vec<Stored>)) {
    let bytes = workspace.read(WEIGHTS);
    let mut tensors: Vec<Stored> = SafeTensors::deserialize(&bytes)
        .unwrap()
        .iter()
        .map(|(name, view)| Stored {
            name: name.to_owned(),
            dtype: view.dtype(),
            shape: view.shape().to_vec(),
            data: view.data().to_vec(),
        })
        .collect();
    change(&mut tensors);
    let views = tensors.iter().map(|tensor| {
        let view = TensorView::new(tensor.dtype, tensor.shape.clone(), &tensor.data);
        (&tensor.name, view.unwrap())
    });
    workspace.write(WEIGHTS, serialize(views, None).unwrap());
}

fn find<'a>(tensors: &'a mut [Stored], name: &str) -> &'a mut Stored {
    tensors.iter_mut().find(|t| t.name == name).unwrap()
}

const FILES: &[Case] = &[
    Case {
        input: "a model that does not exist",
        prepare: nothing,
        command: "remit-score corpus -o out --rl-model nowhere",
        exit: MISSING,
        stderr: &[
            "error: nowhere is not a model folder; give a Hugging Face directory with config.json\n",
        ],
    },
    Case {
        input: "a base that does not exist",
        prepare: nothing,
        command: "remit-score corpus -o out --rl-model rl --base-model nowhere",
        exit: MISSING,
        stderr: &["error: nowhere is not a model folder; give"],
    },
    Case {
        input: "no config.json",
        prepare: |w| w.remove("rl/config.json"),
        command: SCORE_WITH_RL,
        exit: MISSING,
        stderr: &["error: the model rl has no config.json; a Hugging Face directory holds"],
    },
    Case {
        input: "no tokenizer.json",
        prepare: |w| w.remove("rl/tokenizer.json"),
        command: SCORE_WITH_RL,
        exit: MISSING,
        stderr: &["error: the model rl has no tokenizer.json; a Hugging Face directory holds"],
    },
    Case {
        input: "no weights",
        prepare: |w| w.remove(WEIGHTS),
        command: SCORE_WITH_RL,
        exit: MISSING,
        stderr: &["error: the model rl has no model.safetensors; a Hugging Face directory holds"],
    },
    Case {
        input: "weights as a pickle only",
        prepare: |w| {
            w.remove(WEIGHTS);
            w.write("rl/pytorch_model.bin", "a pickle");
        },
        command: SCORE_WITH_RL,
        exit: MISSING,
        stderr: &[
            "error: the model rl has no model.safetensors;",
            "\nhint: .bin and .pt files are Python pickles, which can run code; load the model with \
             transformers and save it again, which writes safetensors: ",
        ],
    },
    Case {
        input: "an index that names a missing shard",
        prepare: |w| {
            w.remove(WEIGHTS);
            w.write(
                "rl/model.safetensors.index.json",
                r#"{"weight_map": {"lm_head.weight": "model-00001-of-00002.safetensors"}}"#,
            );
        },
        command: SCORE_WITH_RL,
        exit: MISSING,
        stderr: &[
            "error: the model rl has no model-00001-of-00002.safetensors;",
            "\nhint: model.safetensors.index.json names it; is the download complete?\n",
        ],
    },
    Case {
        input: "an index that leads out of the folder",
        prepare: |w| {
            w.remove(WEIGHTS);
            w.write(
                "rl/model.safetensors.index.json",
                r#"{"weight_map": {"lm_head.weight": "../base/model.safetensors"}}"#,
            );
        },
        command: SCORE_WITH_RL,
        exit: MISSING,
        stderr: &["error: the model rl has no ../base/model.safetensors;"],
    },
];

const CONFIG: &[Case] = &[
    Case {
        input: "a config.json that is no JSON",
        prepare: |w| w.write("rl/config.json", "{\"model_type\": \"llama\","),
        command: SCORE_WITH_RL,
        exit: BAD_DATA,
        stderr: &["error: config.json of the model rl is not valid JSON: EOF while parsing"],
    },
    Case {
        input: "an unknown architecture",
        prepare: |w| w.edit_json("rl/config.json", |c| c["model_type"] = "gpt2".into()),
        command: SCORE_WITH_RL,
        exit: BAD_DATA,
        stderr: &[
            "error: config.json of the model rl: model_type \"gpt2\" is not supported; supported are gemma2, ",
        ],
    },
    Case {
        input: "a field that is not implemented",
        prepare: |w| {
            w.edit_json("rl/config.json", |c| {
                c["attn_logit_softcapping"] = 50.into()
            })
        },
        command: SCORE_WITH_RL,
        exit: BAD_DATA,
        stderr: &[
            "error: config.json of the model rl: not implemented for this model_type, and possibly \
             of influence on its output: attn_logit_softcapping\n",
        ],
    },
    Case {
        input: "a value that is not implemented",
        prepare: |w| w.edit_json("base/config.json", |c| c["hidden_act"] = "gelu".into()),
        command: SCORE_WITH_BOTH,
        exit: BAD_DATA,
        stderr: &[
            "error: config.json of the model base: hidden_act is \"gelu\"; only \"silu\" is implemented\n",
        ],
    },
    Case {
        input: "a needed field that is absent",
        prepare: |w| {
            w.edit_json("rl/config.json", |c| {
                c.as_object_mut().unwrap().remove("intermediate_size");
            })
        },
        command: SCORE_WITH_RL,
        exit: BAD_DATA,
        stderr: &["error: config.json of the model rl: it has no intermediate_size\n"],
    },
    Case {
        input: "a rotation that is not implemented",
        prepare: |w| {
            w.edit_json("rl/config.json", |c| {
                c["rope_scaling"]["rope_type"] = "dynamic".into()
            })
        },
        command: SCORE_WITH_RL,
        exit: BAD_DATA,
        stderr: &[
            "error: config.json of the model rl: rope_type \"dynamic\" is not implemented; default, linear, llama3, longrope and yarn are\n",
        ],
    },
    Case {
        input: "factors for another number of features",
        prepare: |w| {
            w.copy_model("tiny-phi3", "rl");
            w.edit_json("rl/config.json", |c| {
                c["rope_scaling"]["long_factor"]
                    .as_array_mut()
                    .unwrap()
                    .push(1.into());
            });
        },
        command: SCORE_WITH_RL,
        exit: BAD_DATA,
        stderr: &[
            "error: config.json of the model rl: long_factor has 4 entries for 3 pairs of rotated features\n",
        ],
    },
    Case {
        input: "layer types of another number of layers",
        prepare: |w| {
            w.copy_model("tiny-gemma2", "rl");
            w.edit_json("rl/config.json", |c| {
                c["layer_types"] = vec!["full_attention"].into();
            });
        },
        command: SCORE_WITH_RL,
        exit: BAD_DATA,
        stderr: &["error: config.json of the model rl: layer_types has 1 entries for "],
    },
    Case {
        input: "a size of 0",
        prepare: |w| w.edit_json("rl/config.json", |c| c["hidden_size"] = 0.into()),
        command: SCORE_WITH_RL,
        exit: BAD_DATA,
        stderr: &["error: config.json of the model rl: hidden_size is 0\n"],
    },
    Case {
        input: "a head that memory can't hold",
        prepare: |w| w.edit_json("rl/config.json", |c| c["head_dim"] = i32::MAX.into()),
        command: SCORE_WITH_RL,
        exit: BAD_DATA,
        stderr: &["error: config.json of the model rl: head_dim 2147483647 is more than 65536\n"],
    },
    Case {
        input: "a size whose products overflow",
        prepare: |w| {
            w.edit_json("rl/config.json", |c| {
                c["hidden_size"] = (1_u64 << 40).into()
            })
        },
        command: SCORE_WITH_RL,
        exit: BAD_DATA,
        stderr: &[
            "error: config.json of the model rl: hidden_size is 1099511627776, not a whole number of at most 2147483647\n",
        ],
    },
    Case {
        input: "more embeddings than there are",
        prepare: |w| w.edit_json("rl/config.json", |c| c["vocab_size"] = i32::MAX.into()),
        command: SCORE_WITH_RL,
        exit: BAD_DATA,
        stderr: &[
            "\n  model.embed_tokens.weight has the shape [1056, 48]; config.json asks for [2147483647, 48]\n",
            "\n  lm_head.weight has the shape [1056, 48]; config.json asks for [2147483647, 48]\n",
        ],
    },
];

const TENSORS: &[Case] = &[
    Case {
        input: "weights that were cut short",
        prepare: |w| w.damage(WEIGHTS, |bytes| bytes.truncate(bytes.len() - 1)),
        command: SCORE_WITH_RL,
        exit: BAD_DATA,
        stderr: &[
            "error: model.safetensors of the model rl is not a readable safetensors file; is it complete?: ",
        ],
    },
    Case {
        input: "one shard of several that was cut short",
        prepare: |w| {
            w.remove(WEIGHTS);
            w.copy_model("odd-youtu", "rl");
            w.edit_json("rl/config.json", |c| c["vocab_size"] = 1024.into());
            w.damage("rl/model-00002-of-00003.safetensors", |bytes| {
                bytes.truncate(bytes.len() / 2)
            });
        },
        command: SCORE_WITH_RL,
        exit: BAD_DATA,
        stderr: &[
            "error: model-00002-of-00003.safetensors of the model rl is not a readable safetensors file;",
        ],
    },
    Case {
        input: "a tied head whose stored copy differs",
        prepare: |w| {
            w.copy_model("tiny-youtu", "rl");
            edit_tensors(w, |all| {
                let head = find(all, "lm_head.weight");
                head.data[7] ^= 1;
            });
        },
        command: SCORE_WITH_RL,
        exit: BAD_DATA,
        stderr: &[
            "\n  lm_head.weight differs from model.embed_tokens.weight, though config.json ties them;",
        ],
    },
    Case {
        input: "a tied head whose stored copy is of another dtype",
        prepare: |w| {
            w.copy_model("tiny-youtu", "rl");
            edit_tensors(w, |all| find(all, "lm_head.weight").dtype = Dtype::I16);
        },
        command: SCORE_WITH_RL,
        exit: BAD_DATA,
        stderr: &["\n  lm_head.weight is I16; F32, F16 and BF16 can be read\n"],
    },
    Case {
        input: "an empty file of weights",
        prepare: |w| w.write(WEIGHTS, ""),
        command: SCORE_WITH_RL,
        exit: BAD_DATA,
        stderr: &["error: model.safetensors of the model rl is not a readable safetensors file;"],
    },
    Case {
        input: "a missing tensor",
        prepare: |w| edit_tensors(w, |all| all.retain(|t| t.name != "model.norm.weight")),
        command: SCORE_WITH_RL,
        exit: BAD_DATA,
        stderr: &[
            "error: the tensors of the model rl do not fit its config.json:\n  model.norm.weight is missing; expected [48]\n",
        ],
    },
    Case {
        input: "several problems at once",
        prepare: |w| {
            edit_tensors(w, |all| {
                all.retain(|t| t.name != "model.norm.weight");
                let head = find(all, "lm_head.weight");
                head.shape.reverse();
                let norm = find(all, "model.layers.1.input_layernorm.weight");
                norm.dtype = Dtype::I32;
                let wide = find(all, "model.layers.0.mlp.up_proj.weight");
                wide.name = "model.layers.0.mlp.up.weight".to_owned();
            });
        },
        command: SCORE_WITH_RL,
        exit: BAD_DATA,
        stderr: &[
            "\n  model.norm.weight is missing; expected [48]\n",
            "\n  lm_head.weight has the shape [48, 1056]; config.json asks for [1056, 48]\n",
            "\n  model.layers.1.input_layernorm.weight is I32; F32, F16 and BF16 can be read\n",
            "\n  model.layers.0.mlp.up_proj.weight is missing; expected [96, 48]\n",
            "\n  model.layers.0.mlp.up.weight has no place in a llama model as config.json describes it\n",
        ],
    },
    Case {
        input: "a weight that is not a number",
        prepare: |w| {
            edit_tensors(w, |all| {
                let norm = find(all, "model.norm.weight");
                norm.data[12..16].copy_from_slice(&f32::NAN.to_le_bytes());
            });
        },
        command: SCORE_WITH_RL,
        exit: BAD_DATA,
        stderr: &["error: the tensor model.norm.weight of the model rl holds NaN at element 3\n"],
    },
    Case {
        input: "weights that overflow",
        prepare: |w| {
            edit_tensors(w, |all| {
                let norm = find(all, "model.norm.weight");
                for value in norm.data.as_chunks_mut::<4>().0 {
                    *value = f32::MAX.to_le_bytes();
                }
            });
        },
        command: SCORE_WITH_RL,
        exit: BAD_DATA,
        stderr: &[
            "error: the model rl gives ",
            " as the log-probability of token 1 of a row; its weights are damaged or overflow in this dtype\n",
        ],
    },
];

const TOKENIZERS: &[Case] = &[
    Case {
        input: "a tokenizer.json that is no tokenizer",
        prepare: |w| w.write("rl/tokenizer.json", "{}"),
        command: SCORE_WITH_RL,
        exit: BAD_DATA,
        stderr: &["error: rl: tokenizer.json is not a tokenizer that can be used: "],
    },
    Case {
        input: "a base with another tokenizer",
        prepare: |w| {
            w.edit_json("base/tokenizer.json", |t| {
                t["added_tokens"][0]["content"] = "<|end|>".into();
            });
        },
        command: SCORE_WITH_BOTH,
        exit: BAD_DATA,
        stderr: &[
            "error: the ids of the tokenizer of base, which decides, do not mean the same to rl: id 1024 is \
             \"<|end|>\" in one, nothing in the other\nhint: --tokenizer DIR names another",
        ],
    },
    Case {
        input: "a document with an id that the model has no embedding for",
        prepare: |w| {
            w.write("corpus/new.txt", "an <|new-1090|> one");
            w.edit_json("rl/tokenizer.json", |t| {
                let mut token = t["added_tokens"][0].clone();
                token["content"] = "<|new|>".into();
                for id in 1024..1100 {
                    let mut token = token.clone();
                    token["id"] = id.into();
                    token["content"] = format!("<|new-{id}|>").into();
                    t["added_tokens"].as_array_mut().unwrap().push(token);
                }
            });
        },
        command: SCORE_WITH_RL,
        exit: BAD_DATA,
        stderr: &[
            "error: new.txt, record 0: the tokenizer of rl can't encode the text: it has the token \
             \"<|new-1090|>\", whose id 1090 has no row in the embedding of 1056 rows\nhint: --on-bad-record skip",
        ],
    },
    Case {
        input: "an EOS that was asked for and that no file names",
        prepare: |w| {
            w.remove("rl/tokenizer_config.json");
            w.edit_json("rl/config.json", |c| {
                c["eos_token_id"] = serde_json::Value::Null
            });
        },
        command: "remit-score corpus -o out --rl-model rl --eos always",
        exit: BAD_DATA,
        stderr: &[
            "error: rl names no eos_token in tokenizer_config.json or config.json, but --eos always was given\n",
        ],
    },
    Case {
        input: "an EOS that is no id of the model",
        prepare: |w| {
            w.remove("rl/tokenizer_config.json");
            w.edit_json("rl/config.json", |c| c["eos_token_id"] = 5000.into());
        },
        command: SCORE_WITH_RL,
        exit: BAD_DATA,
        stderr: &["5000", "1056"],
    },
];

#[test]
fn a_missing_file_of_a_model_exits_66_and_is_named() {
    check(&unscored(), FILES);
}

#[test]
fn a_config_that_can_not_be_followed_is_refused_by_field() {
    check(&unscored(), CONFIG);
}

#[test]
fn bad_tensors_are_listed_by_name() {
    check(&unscored(), TENSORS);
}

#[test]
fn tokenizers_that_do_not_fit_are_refused() {
    check(&unscored(), TOKENIZERS);
}
