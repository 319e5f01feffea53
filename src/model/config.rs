//! config.json to a description of the decoder.
//!
//! The description is plain data: which norms a block has, how its heads are shaped, how positions
//! are encoded. One forward and one backward serve every family. A field that is neither understood
//! nor known to have no influence on a forward pass is an error that names it, since an ignored
//! field is a wrong log-prob.

use std::collections::BTreeSet;

use serde_json::{Map, Value};

use super::Error;

/// Largest number that a size may be, so that products of two can't overflow.
const MAX_SIZE: usize = i32::MAX as usize;
/// Largest number of features of a head; half as many frequencies are computed for it.
const MAX_HEAD_DIM: usize = 1 << 16;

/// The families that can be scored and trained, by `model_type`.
pub const SUPPORTED_MODEL_TYPES: [&str; 2] = ["llama", "qwen3"];

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

/// One decoder block: `x += attention(norm(x)); x += mlp(norm(x))`.
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
    /// Whether queries and keys are normalized per head, before rotation.
    pub qk_norm: bool,
    /// Width of the feed-forward layer.
    pub intermediate_size: usize,
    /// Whether its three projections have biases.
    pub mlp_bias: bool,
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
        let architecture = match model_type.as_str() {
            "llama" => llama(&mut fields)?,
            "qwen3" => qwen3(&mut fields)?,
            other => {
                return Err(format!(
                    "model_type {other:?} is not supported; supported are {}",
                    SUPPORTED_MODEL_TYPES.join(", ")
                ));
            }
        };
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
            add("input_layernorm.weight", &[hidden]);
            for (name, out) in [("q_proj", q), ("k_proj", kv), ("v_proj", kv)] {
                add(&format!("self_attn.{name}.weight"), &[out, hidden]);
                if block.qkv_bias {
                    add(&format!("self_attn.{name}.bias"), &[out]);
                }
            }
            if block.qk_norm {
                add("self_attn.q_norm.weight", &[block.head_dim]);
                add("self_attn.k_norm.weight", &[block.head_dim]);
            }
            add("self_attn.o_proj.weight", &[hidden, q]);
            if block.output_bias {
                add("self_attn.o_proj.bias", &[hidden]);
            }
            add("post_attention_layernorm.weight", &[hidden]);
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
struct Fields<'a> {
    map: &'a Map<String, Value>,
    read: BTreeSet<&'static str>,
}

impl<'a> Fields<'a> {
    fn new(map: &'a Map<String, Value>) -> Self {
        Self {
            map,
            read: BTreeSet::new(),
        }
    }

    fn get(&mut self, name: &'static str) -> Option<&'a Value> {
        self.read.insert(name);
        self.map.get(name).filter(|value| !value.is_null())
    }

    fn size(&mut self, name: &'static str) -> Result<Option<usize>, String> {
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

    fn required_size(&mut self, name: &'static str) -> Result<usize, String> {
        self.size(name)?.ok_or_else(|| format!("it has no {name}"))
    }

    fn float(&mut self, name: &'static str, default: f64) -> Result<f64, String> {
        self.get(name).map_or(Ok(default), |value| {
            value
                .as_f64()
                .ok_or_else(|| format!("{name} is {value}, not a number"))
        })
    }

    fn boolean(&mut self, name: &'static str, default: bool) -> Result<bool, String> {
        self.get(name).map_or(Ok(default), |value| {
            value
                .as_bool()
                .ok_or_else(|| format!("{name} is {value}, not true or false"))
        })
    }

    fn string(&mut self, name: &'static str) -> Result<Option<String>, String> {
        self.get(name)
            .map(|value| match value {
                Value::String(text) => Ok(text.clone()),
                other => Err(format!("{name} is {other}, not a string")),
            })
            .transpose()
    }

    /// Accepts a field only with the one value that is implemented; absent is fine.
    fn only(&mut self, name: &'static str, implemented: &Value) -> Result<(), String> {
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

    fn finish(self) -> Result<(), String> {
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

/// `transformers/models/llama/configuration_llama.py`
fn llama(fields: &mut Fields<'_>) -> Result<Architecture, String> {
    let heads = fields.required_size("num_attention_heads")?;
    let hidden = fields.required_size("hidden_size")?;
    if heads == 0 {
        return Err("num_attention_heads is 0".to_owned());
    }
    let bias = fields.boolean("attention_bias", false)?;
    let block = Block {
        num_heads: heads,
        num_kv_heads: fields.size("num_key_value_heads")?.unwrap_or(heads),
        head_dim: fields.size("head_dim")?.unwrap_or(hidden / heads),
        qkv_bias: bias,
        output_bias: bias,
        qk_norm: false,
        intermediate_size: fields.required_size("intermediate_size")?,
        mlp_bias: fields.boolean("mlp_bias", false)?,
    };
    // Tensor parallelism of the pre-training run; 1 in every checkpoint that transformers runs as is.
    fields.only("pretraining_tp", &Value::from(1))?;
    uniform_decoder("llama", block, fields)
}

/// `transformers/models/qwen3/configuration_qwen3.py`
fn qwen3(fields: &mut Fields<'_>) -> Result<Architecture, String> {
    let bias = fields.boolean("attention_bias", false)?;
    let block = Block {
        num_heads: fields.required_size("num_attention_heads")?,
        num_kv_heads: fields.required_size("num_key_value_heads")?,
        head_dim: fields.size("head_dim")?.unwrap_or(128),
        qkv_bias: bias,
        output_bias: bias,
        qk_norm: true,
        intermediate_size: fields.required_size("intermediate_size")?,
        mlp_bias: false,
    };
    if fields.boolean("use_sliding_window", false)? {
        return Err("use_sliding_window is true; sliding windows are not implemented".to_owned());
    }
    // Both have a meaning only with use_sliding_window.
    fields.get("sliding_window");
    fields.get("max_window_layers");
    uniform_decoder("qwen3", block, fields)
}

/// The fields that all families share, for a decoder whose blocks are all alike.
fn uniform_decoder(
    model_type: &str,
    block: Block,
    fields: &mut Fields<'_>,
) -> Result<Architecture, String> {
    fields.only("hidden_act", &Value::from("silu"))?;
    fields.only("attention_dropout", &Value::from(0.0))?;
    let num_layers = fields.required_size("num_hidden_layers")?;
    if let Some(kinds) = fields.get("layer_types") {
        let kinds = kinds.as_array().ok_or("layer_types is not a list")?;
        if let Some(other) = kinds.iter().find(|kind| **kind != "full_attention") {
            return Err(format!(
                "layer_types holds {other}; only \"full_attention\" is implemented"
            ));
        }
    }
    if num_layers > 10_000 {
        return Err(format!("num_hidden_layers is {num_layers}"));
    }
    let max_position_embeddings = fields.required_size("max_position_embeddings")?;
    Ok(Architecture {
        model_type: model_type.to_owned(),
        vocab_size: fields.required_size("vocab_size")?,
        hidden_size: fields.required_size("hidden_size")?,
        max_position_embeddings,
        tied_head: fields.boolean("tie_word_embeddings", false)?,
        norm_eps: fields.float("rms_norm_eps", 1e-6)? as f32,
        rope_frequencies: rope_frequencies(block.head_dim, fields)?,
        blocks: vec![block; num_layers],
    })
}

/// Frequencies from `rope_theta` and `rope_scaling` (older configs) or `rope_parameters` (newer
/// ones), as in `transformers/modeling_rope_utils.py`, in f32 as there.
fn rope_frequencies(head_dim: usize, fields: &mut Fields<'_>) -> Result<Vec<f32>, String> {
    if head_dim > MAX_HEAD_DIM {
        return Err(format!("head_dim {head_dim} is more than {MAX_HEAD_DIM}"));
    }
    let outer_theta = fields.float("rope_theta", 10_000.0)?;
    fields.only("partial_rotary_factor", &Value::from(1.0))?;
    let empty = Map::new();
    let parameters = match (fields.get("rope_parameters"), fields.get("rope_scaling")) {
        (Some(value), _) | (None, Some(value)) => value
            .as_object()
            .ok_or("the RoPE parameters are not an object")?,
        (None, None) => &empty,
    };
    let mut rope = Fields::new(parameters);
    let theta = rope.float("rope_theta", outer_theta)?;
    rope.only("partial_rotary_factor", &Value::from(1.0))?;
    let named = rope.string("rope_type")?;
    let kind = match rope.string("type")? {
        older @ Some(_) if named.is_none() => older,
        _ => named,
    };
    // Number of frequencies: one for each pair of features.
    let mut frequencies: Vec<f32> = (0..head_dim / 2)
        .map(|i| {
            let exponent = (2 * i) as f32 / head_dim as f32;
            1.0 / theta.powf(f64::from(exponent)) as f32
        })
        .collect();
    match kind.as_deref().unwrap_or("default") {
        "default" => {}
        "llama3" => {
            let mut required = |name: &'static str| -> Result<f32, String> {
                let value = rope.float(name, f64::NAN)?;
                if value.is_finite() && value > 0.0 {
                    Ok(value as f32)
                } else {
                    Err(format!("rope_type llama3 needs a positive {name}"))
                }
            };
            let factor = required("factor")?;
            let low = required("low_freq_factor")?;
            let high = required("high_freq_factor")?;
            let context = required("original_max_position_embeddings")?;
            if high <= low {
                return Err(format!(
                    "high_freq_factor {high} is not above low_freq_factor {low}"
                ));
            }
            for frequency in &mut frequencies {
                let wavelength = 2.0 * std::f32::consts::PI / *frequency;
                if wavelength > context / low {
                    *frequency /= factor;
                } else if wavelength >= context / high {
                    let smooth = (context / wavelength - low) / (high - low);
                    *frequency = (1.0 - smooth) * *frequency / factor + smooth * *frequency;
                }
            }
        }
        other => {
            return Err(format!(
                "rope_type {other:?} is not implemented; default and llama3 are"
            ));
        }
    }
    rope.finish()
        .map_err(|problem| format!("in the RoPE parameters: {problem}"))?;
    Ok(frequencies)
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
            "model_type \"gpt2\" is not supported; supported are llama, qwen3"
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
