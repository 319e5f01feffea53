//! config.json to a description of the decoder.
//!
//! The description is plain data: which norms a block has, how its heads are shaped, how positions
//! are encoded. One forward and one backward serve every family. A field that is neither understood
//! nor known to have no influence on a forward pass is an error that names it, since an ignored
//! field is a wrong log-prob.

use std::collections::BTreeSet;

use serde_json::{Map, Value};

use super::{Error, families};

/// Largest number that a size may be, so that products of two can't overflow.
const MAX_SIZE: usize = i32::MAX as usize;
/// Largest number of features of a head; half as many frequencies are computed for it.
pub(super) const MAX_HEAD_DIM: usize = 1 << 16;

/// Everything about a decoder but its weights.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Architecture {
    /// `model_type` of config.json.
    pub model_type: String,
    /// Rows of the embedding; may exceed the tokenizer's vocabulary.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Longest context the model was made for, in tokens.
    pub max_position_embeddings: usize,
    /// Whether the output head is the embedding.
    pub tied_head: bool,
    /// Added to the mean square in every norm.
    pub norm_eps: f32,
    /// Rotary frequencies of one head, radians a position.
    pub rope_frequencies: Vec<f32>,
    /// The blocks, first to last.
    pub blocks: Vec<Block>,
}

/// Where the norms of a block stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum NormPlacement {
    /// `x += attention(norm(x)); x += mlp(norm(x))`
    Before,
    /// `x += norm(attention(x)); x += norm(mlp(x))`
    After,
}

/// What the norm of queries and keys, before rotation, spans.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum QkNorm {
    /// Each head by itself; one weight for all heads.
    Head,
    /// All heads together.
    Projection,
}

/// One decoder block: attention, then a gated feed-forward layer, each added to the residual stream.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Block {
    /// Query heads.
    pub num_heads: usize,
    /// Key and value heads.
    pub num_kv_heads: usize,
    /// Features of a head.
    pub head_dim: usize,
    /// Whether the query, key and value projections have biases.
    pub qkv_bias: bool,
    /// Whether the attention's output projection has a bias.
    pub output_bias: bool,
    /// Whether and how queries and keys are normalized, before rotation.
    pub qk_norm: Option<QkNorm>,
    /// Whether queries and keys are rotated by their position.
    pub rope: bool,
    /// Number of positions that a token sees, itself included; `None` for all before it.
    pub window: Option<usize>,
    /// Where the norms stand.
    pub norms: NormPlacement,
    /// Width of the feed-forward layer.
    pub intermediate_size: usize,
    /// Whether its three projections have biases.
    pub mlp_bias: bool,
}

impl NormPlacement {
    /// Names of the attention's and of the feed-forward layer's norm.
    pub(crate) fn tensor_names(self) -> [&'static str; 2] {
        match self {
            Self::Before => ["input_layernorm.weight", "post_attention_layernorm.weight"],
            Self::After => [
                "post_attention_layernorm.weight",
                "post_feedforward_layernorm.weight",
            ],
        }
    }
}

impl Architecture {
    /// Reads a description from the text of config.json; `model` names it in errors.
    pub fn from_json(text: &[u8], model: &str) -> Result<Self, Error> {
        let value: Value = serde_json::from_slice(text).map_err(|source| Error::Json {
            model: model.to_owned(),
            file: "config.json".to_owned(),
            source,
        })?;
        Self::from_value(&value).map_err(|problem| Error::Config {
            model: model.to_owned(),
            problem,
        })
    }

    fn from_value(value: &Value) -> Result<Self, String> {
        let map = value.as_object().ok_or("the top level is not an object")?;
        let mut fields = Fields::new(map);
        let model_type = fields.string("model_type")?.ok_or("it has no model_type")?;
        let architecture = families::architecture(&model_type, &mut fields)?;
        fields.finish()?;
        architecture.validate()?;
        Ok(architecture)
    }

    fn validate(&self) -> Result<(), String> {
        for (name, size) in [
            ("vocab_size", self.vocab_size),
            ("hidden_size", self.hidden_size),
            ("num_hidden_layers", self.blocks.len()),
            ("max_position_embeddings", self.max_position_embeddings),
        ] {
            if size == 0 {
                return Err(format!("{name} is 0"));
            }
        }
        for block in &self.blocks {
            if block.num_heads == 0 || block.num_kv_heads == 0 || block.intermediate_size == 0 {
                return Err("a block has no heads or an intermediate_size of 0".to_owned());
            }
            if !block.num_heads.is_multiple_of(block.num_kv_heads) {
                return Err(format!(
                    "num_attention_heads {} is not a multiple of num_key_value_heads {}",
                    block.num_heads, block.num_kv_heads
                ));
            }
            if block.head_dim < 2 || !block.head_dim.is_multiple_of(2) {
                return Err(format!(
                    "head_dim {} is not even, as RoPE needs",
                    block.head_dim
                ));
            }
        }
        if !(self.norm_eps.is_finite() && self.norm_eps >= 0.0) {
            return Err(format!("rms_norm_eps {} makes no sense", self.norm_eps));
        }
        if !self.rope_frequencies.iter().all(|f| f.is_finite()) {
            return Err("the RoPE parameters give frequencies that are not finite".to_owned());
        }
        Ok(())
    }

    /// Name and shape of every tensor that a checkpoint of this architecture holds, in the order
    /// of the forward pass.
    pub fn tensors(&self) -> Vec<(String, Vec<usize>)> {
        let hidden = self.hidden_size;
        let mut tensors = vec![(EMBEDDING.to_owned(), vec![self.vocab_size, hidden])];
        for (i, block) in self.blocks.iter().enumerate() {
            let mut add = |name: &str, shape: &[usize]| {
                tensors.push((block_tensor(i, name), shape.to_vec()));
            };
            let (q, kv) = (
                block.num_heads * block.head_dim,
                block.num_kv_heads * block.head_dim,
            );
            let [attention_norm, mlp_norm] = block.norms.tensor_names();
            add(attention_norm, &[hidden]);
            for (name, out) in [("q_proj", q), ("k_proj", kv), ("v_proj", kv)] {
                add(&format!("self_attn.{name}.weight"), &[out, hidden]);
                if block.qkv_bias {
                    add(&format!("self_attn.{name}.bias"), &[out]);
                }
            }
            if let Some(kind) = block.qk_norm {
                let (q_width, k_width) = match kind {
                    QkNorm::Head => (block.head_dim, block.head_dim),
                    QkNorm::Projection => (q, kv),
                };
                add("self_attn.q_norm.weight", &[q_width]);
                add("self_attn.k_norm.weight", &[k_width]);
            }
            add("self_attn.o_proj.weight", &[hidden, q]);
            if block.output_bias {
                add("self_attn.o_proj.bias", &[hidden]);
            }
            add(mlp_norm, &[hidden]);
            let wide = block.intermediate_size;
            for (name, out, inner) in [
                ("gate_proj", wide, hidden),
                ("up_proj", wide, hidden),
                ("down_proj", hidden, wide),
            ] {
                add(&format!("mlp.{name}.weight"), &[out, inner]);
                if block.mlp_bias {
                    add(&format!("mlp.{name}.bias"), &[out]);
                }
            }
        }
        tensors.push((FINAL_NORM.to_owned(), vec![hidden]));
        if !self.tied_head {
            tensors.push((HEAD.to_owned(), vec![self.vocab_size, hidden]));
        }
        tensors
    }

    /// Number of parameters.
    pub fn num_parameters(&self) -> u64 {
        self.tensors()
            .iter()
            .map(|(_, shape)| shape.iter().map(|&n| n as u64).product::<u64>())
            .sum()
    }
}

/// Name of the embedding.
pub(crate) const EMBEDDING: &str = "model.embed_tokens.weight";
/// Name of the last norm.
pub(crate) const FINAL_NORM: &str = "model.norm.weight";
/// Name of an untied output head.
pub(crate) const HEAD: &str = "lm_head.weight";

/// Name of a tensor of block `i`.
pub(crate) fn block_tensor(i: usize, name: &str) -> String {
    format!("model.layers.{i}.{name}")
}

/// Fields without influence on the forward pass of a decoder.
const WITHOUT_INFLUENCE: [&str; 17] = [
    "architectures",
    "auto_map",
    "bos_token_id",
    "chunk_size_feed_forward",
    "dtype",
    "eos_token_id",
    "id2label",
    "initializer_range",
    "is_encoder_decoder",
    "label2id",
    "output_attentions",
    "output_hidden_states",
    "pad_token_id",
    "return_dict",
    "torch_dtype",
    "transformers_version",
    "use_cache",
];

/// The object of config.json, with a record of what was read.
pub(super) struct Fields<'a> {
    map: &'a Map<String, Value>,
    read: BTreeSet<&'static str>,
}

impl<'a> Fields<'a> {
    pub(super) fn new(map: &'a Map<String, Value>) -> Self {
        Self {
            map,
            read: BTreeSet::new(),
        }
    }

    pub(super) fn get(&mut self, name: &'static str) -> Option<&'a Value> {
        self.read.insert(name);
        self.map.get(name).filter(|value| !value.is_null())
    }

    /// Whether the field is there, be it null or not.
    pub(super) fn contains(&self, name: &str) -> bool {
        self.map.contains_key(name)
    }

    pub(super) fn size(&mut self, name: &'static str) -> Result<Option<usize>, String> {
        self.get(name)
            .map(|value| {
                value
                    .as_u64()
                    .and_then(|n| usize::try_from(n).ok())
                    .filter(|&n| n <= MAX_SIZE)
                    .ok_or_else(|| {
                        format!("{name} is {value}, not a whole number of at most {MAX_SIZE}")
                    })
            })
            .transpose()
    }

    pub(super) fn required_size(&mut self, name: &'static str) -> Result<usize, String> {
        self.size(name)?.ok_or_else(|| format!("it has no {name}"))
    }

    pub(super) fn float(&mut self, name: &'static str, default: f64) -> Result<f64, String> {
        self.get(name).map_or(Ok(default), |value| {
            value
                .as_f64()
                .ok_or_else(|| format!("{name} is {value}, not a number"))
        })
    }

    pub(super) fn boolean(&mut self, name: &'static str, default: bool) -> Result<bool, String> {
        self.get(name).map_or(Ok(default), |value| {
            value
                .as_bool()
                .ok_or_else(|| format!("{name} is {value}, not true or false"))
        })
    }

    pub(super) fn string(&mut self, name: &'static str) -> Result<Option<String>, String> {
        self.get(name)
            .map(|value| match value {
                Value::String(text) => Ok(text.clone()),
                other => Err(format!("{name} is {other}, not a string")),
            })
            .transpose()
    }

    /// Accepts a field only with the one value that is implemented; absent is fine.
    pub(super) fn only(&mut self, name: &'static str, implemented: &Value) -> Result<(), String> {
        let same = |value: &Value| match (value.as_f64(), implemented.as_f64()) {
            // 0 and 0.0 are two values to the parser.
            (Some(value), Some(implemented)) => value == implemented,
            _ => value == implemented,
        };
        match self.get(name) {
            Some(value) if !same(value) => Err(format!(
                "{name} is {value}; only {implemented} is implemented"
            )),
            _ => Ok(()),
        }
    }

    pub(super) fn finish(self) -> Result<(), String> {
        let unknown: Vec<&str> = self
            .map
            .iter()
            .filter(|(name, value)| {
                !value.is_null()
                    && !name.starts_with('_')
                    && !self.read.contains(name.as_str())
                    && !WITHOUT_INFLUENCE.contains(&name.as_str())
            })
            .map(|(name, _)| name.as_str())
            .collect();
        if unknown.is_empty() {
            return Ok(());
        }
        Err(format!(
            "not implemented for this model_type, and possibly of influence on its output: {}",
            unknown.join(", ")
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn config() -> Value {
        json!({
            "model_type": "llama", "vocab_size": 100, "hidden_size": 64, "num_hidden_layers": 2,
            "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 96,
            "max_position_embeddings": 512, "hidden_act": "silu", "attention_dropout": 0.0,
            "torch_dtype": "bfloat16", "architectures": ["LlamaForCausalLM"]
        })
    }

    fn problem(change: impl FnOnce(&mut Map<String, Value>)) -> String {
        let mut value = config();
        change(value.as_object_mut().unwrap());
        Architecture::from_value(&value).unwrap_err()
    }

    #[test]
    fn a_field_that_is_not_implemented_is_named() {
        let message = problem(|map| {
            map.insert("attn_logit_softcapping".into(), json!(50.0));
        });
        assert!(message.contains("attn_logit_softcapping"), "{message}");
        let message = problem(|map| {
            map.insert("hidden_act".into(), json!("gelu"));
        });
        assert_eq!(
            message,
            "hidden_act is \"gelu\"; only \"silu\" is implemented"
        );
        let message = problem(|map| {
            map.insert(
                "rope_scaling".into(),
                json!({"rope_type": "yarn", "factor": 4.0}),
            );
        });
        assert_eq!(
            message,
            "rope_type \"yarn\" is not implemented; default and llama3 are"
        );
        let message = problem(|map| {
            map.insert("attention_dropout".into(), json!(0.1));
        });
        assert_eq!(message, "attention_dropout is 0.1; only 0.0 is implemented");
    }

    #[test]
    fn an_unknown_architecture_lists_the_known_ones() {
        let message = problem(|map| {
            map.insert("model_type".into(), json!("gpt2"));
        });
        assert_eq!(
            message,
            "model_type \"gpt2\" is not supported; supported are llama, mistral, olmo2, qwen2, qwen3, smollm3"
        );
    }

    #[test]
    fn a_missing_field_is_named() {
        let message = problem(|map| {
            map.remove("vocab_size");
        });
        assert_eq!(message, "it has no vocab_size");
    }

    #[test]
    fn heads_that_do_not_divide_are_refused() {
        let message = problem(|map| {
            map.insert("num_key_value_heads".into(), json!(3));
        });
        assert_eq!(
            message,
            "num_attention_heads 4 is not a multiple of num_key_value_heads 3"
        );
    }

    #[test]
    fn an_integer_spelling_of_zero_is_zero() {
        let mut value = config();
        value["attention_dropout"] = json!(0);
        Architecture::from_value(&value).unwrap();
    }

    #[test]
    fn old_and_new_rope_fields_say_the_same() {
        let scaling = json!({
            "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64
        });
        let mut old = config();
        old["rope_theta"] = json!(500_000.0);
        old["rope_scaling"] = scaling.clone();
        let mut new = config();
        new["rope_parameters"] = scaling;
        new["rope_parameters"]["rope_theta"] = json!(500_000.0);
        let old = Architecture::from_value(&old).unwrap();
        assert_eq!(old, Architecture::from_value(&new).unwrap());
        assert_ne!(
            old.rope_frequencies,
            Architecture::from_value(&config())
                .unwrap()
                .rope_frequencies
        );
    }
}
