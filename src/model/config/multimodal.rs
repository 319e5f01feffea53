//! The text part of multimodal checkpoints: which `model_type` wraps which decoder, and what the wrapper's own
//! fields mean for it.
//!
//! Without an image or a sound these models compute what their text part alone does. The sources are
//! `transformers/models/NAME/configuration_NAME.py`; tests/oracle/test_wild_models.py asks transformers for each.

use serde_json::{Map, Value, json};

/// How a wrapper decides whether the output head is the embedding.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Tie {
    /// By its own `tie_word_embeddings`, with this default.
    Outer(bool),
    /// By its own, or else that of the text part.
    OuterOrText,
    /// It never is.
    Never,
}

/// A multimodal `model_type`.
struct Wrapper {
    model_type: &'static str,
    /// `model_type` of a text part that names none.
    text_type: &'static str,
    /// Whether the text part may be of any type.
    any_text: bool,
    tie: Tie,
}

const fn wrapper(model_type: &'static str, text_type: &'static str, tie: Tie) -> Wrapper {
    Wrapper {
        model_type,
        text_type,
        any_text: true,
        tie,
    }
}

const fn fixed(model_type: &'static str, text_type: &'static str, tie: Tie) -> Wrapper {
    Wrapper {
        any_text: false,
        ..wrapper(model_type, text_type, tie)
    }
}

const WRAPPERS: [Wrapper; 15] = [
    fixed("gemma3", "gemma3_text", Tie::Outer(true)),
    wrapper("idefics3", "llama", Tie::Outer(false)),
    wrapper("internvl", "qwen2", Tie::Outer(true)),
    wrapper("llava", "llama", Tie::OuterOrText),
    wrapper("llava_next", "llama", Tie::Outer(false)),
    wrapper("llava_next_video", "llama", Tie::OuterOrText),
    wrapper("llava_onevision", "qwen2", Tie::OuterOrText),
    wrapper("mistral3", "mistral", Tie::Outer(true)),
    wrapper("qwen2_audio", "qwen2", Tie::Never),
    fixed("qwen2_vl", "qwen2_vl_text", Tie::OuterOrText),
    fixed("qwen2_5_vl", "qwen2_5_vl_text", Tie::OuterOrText),
    fixed("qwen3_vl", "qwen3_vl_text", Tie::Outer(false)),
    wrapper("smolvlm", "llama", Tie::Outer(false)),
    wrapper("video_llava", "llama", Tie::Outer(false)),
    wrapper("vipllava", "llama", Tie::Outer(false)),
];

/// Fields of a wrapper that keeps those of its text part beside its own (qwen2_vl, qwen2_5_vl).
const BESIDE_TEXT: [&str; 8] = [
    "vision_config",
    "image_token_id",
    "video_token_id",
    "vision_start_token_id",
    "vision_end_token_id",
    "vision_token_id",
    "vocab_file",
    "model_type",
];

/// The text part of a multimodal model.
pub(super) struct TextPart {
    /// `model_type` of the wrapper.
    pub wrapper: &'static str,
    /// The family that reads the text part.
    pub family: String,
    /// Its fields, with the defaults that transformers gives to those that are absent.
    pub fields: Map<String, Value>,
    tie: Tie,
    outer_tie: Option<bool>,
}

impl TextPart {
    /// Finds the text part of a model; `None` if its `model_type` is no known wrapper.
    pub fn of(model_type: &str, outer: &Map<String, Value>) -> Result<Option<Self>, String> {
        let Some(wrapper) = WRAPPERS.iter().find(|w| w.model_type == model_type) else {
            return Ok(None);
        };
        let is_flat = matches!(model_type, "qwen2_vl" | "qwen2_5_vl");
        let given = outer.get("text_config").filter(|value| !value.is_null());
        let mut fields = match given {
            Some(Value::Object(fields)) => fields.clone(),
            None if is_flat => {
                let mut fields = outer.clone();
                fields.retain(|name, _| !BESIDE_TEXT.contains(&name.as_str()));
                fields
            }
            None => Map::new(),
            Some(_) => return Err("text_config is not an object".to_owned()),
        };
        let text_type = match fields.remove("model_type") {
            None | Some(Value::Null) => wrapper.text_type.to_owned(),
            Some(Value::String(text_type)) => text_type,
            Some(other) => {
                return Err(format!(
                    "model_type in text_config is {other}, not a string"
                ));
            }
        };
        // Older saves name the wrapper there.
        let is_own = text_type == wrapper.text_type || text_type == wrapper.model_type;
        if !(wrapper.any_text || is_own) {
            return Err(format!(
                "the text part is of model_type {text_type:?}; in a {model_type} model it is {:?}",
                wrapper.text_type
            ));
        }
        let family = match wrapper.text_type {
            _ if wrapper.any_text => text_type,
            "qwen2_vl_text" | "qwen2_5_vl_text" => "qwen2".to_owned(),
            "qwen3_vl_text" => "qwen3".to_owned(),
            own => own.to_owned(),
        };
        if !wrapper.any_text && family.starts_with("qwen") {
            without_mrope(&mut fields);
        }
        let own = if wrapper.any_text {
            Value::Null
        } else {
            defaults_of_class(wrapper.text_type)
        };
        // The wrapper's own defaults are for an absent text_config only.
        let of_wrapper = match given {
            None if !is_flat => of_wrapper(model_type),
            _ => Value::Null,
        };
        for defaults in [of_wrapper, own, defaults_of_class(&family)] {
            for (name, value) in defaults.as_object().into_iter().flatten() {
                // The base of RoPE may stand in an object of its own.
                fields.entry(name.clone()).or_insert_with(|| value.clone());
            }
        }
        Ok(Some(Self {
            wrapper: wrapper.model_type,
            family,
            fields,
            tie: wrapper.tie,
            outer_tie: outer.get("tie_word_embeddings").and_then(Value::as_bool),
        }))
    }

    /// Returns whether the head is the embedding, given what the text part says alone.
    pub fn tied_head(&self, text: bool) -> bool {
        match self.tie {
            Tie::Outer(default) => self.outer_tie.unwrap_or(default),
            Tie::OuterOrText => self.outer_tie == Some(true) || text,
            Tie::Never => false,
        }
    }
}

/// Takes out what splits RoPE between time, height and width (M-RoPE): in text all three are the position.
fn without_mrope(fields: &mut Map<String, Value>) {
    for name in ["rope_parameters", "rope_scaling"] {
        let Some(rope) = fields.get_mut(name).and_then(Value::as_object_mut) else {
            continue;
        };
        rope.remove("mrope_section");
        rope.remove("mrope_interleaved");
        for kind in ["rope_type", "type"] {
            if rope.get(kind).is_some_and(|kind| kind == "mrope") {
                rope.insert(kind.to_owned(), Value::from("default"));
            }
        }
    }
}

/// Returns what a wrapper sets of a text part that its config does not have at all.
fn of_wrapper(model_type: &str) -> Value {
    match model_type {
        "mistral3" => json!({
            "head_dim": 128, "hidden_size": 5120, "intermediate_size": 32768,
            "max_position_embeddings": 131_072, "num_attention_heads": 32, "num_hidden_layers": 40,
            "num_key_value_heads": 8, "rms_norm_eps": 1e-5, "rope_theta": 1e9, "sliding_window": null,
            "vocab_size": 131_072
        }),
        "idefics3" | "smolvlm" => json!({"rms_norm_eps": 1e-5}),
        _ => Value::Null,
    }
}

/// Returns the sizes that a configuration class of transformers has where a config.json does not name them.
fn defaults_of_class(model_type: &str) -> Value {
    let sizes =
        |vocab: u32, hidden: u32, layers: u32, heads: u32, kv: u32, inner: u32, positions: u32| {
            json!({
                "vocab_size": vocab, "hidden_size": hidden, "num_hidden_layers": layers,
                "num_attention_heads": heads, "num_key_value_heads": kv, "intermediate_size": inner,
                "max_position_embeddings": positions
            })
        };
    let with_base = |mut sizes: Value, theta: f64, eps: f64| {
        sizes["rope_theta"] = theta.into();
        sizes["rms_norm_eps"] = eps.into();
        sizes
    };
    match model_type {
        "llama" => {
            let mut sizes = sizes(32_000, 4096, 32, 32, 0, 11_008, 2048);
            // As many as there are heads.
            sizes["num_key_value_heads"] = Value::Null;
            sizes
        }
        "mistral" => sizes(32_000, 4096, 32, 32, 8, 14_336, 131_072),
        "qwen2" | "qwen3" => sizes(151_936, 4096, 32, 32, 32, 22_016, 32_768),
        "gemma3_text" => sizes(262_208, 2304, 26, 8, 4, 9216, 131_072),
        "qwen2_vl_text" | "qwen2_5_vl_text" => {
            with_base(sizes(152_064, 8192, 80, 64, 8, 29_568, 32_768), 1e6, 1e-5)
        }
        "qwen3_vl_text" => with_base(sizes(151_936, 4096, 32, 32, 32, 22_016, 128_000), 5e5, 1e-6),
        _ => Value::Null,
    }
}

/// Returns the wrappers that are known, for a message.
pub(super) fn known() -> String {
    WRAPPERS.map(|wrapper| wrapper.model_type).join(", ")
}
