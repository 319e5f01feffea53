//! Reads config.json into an [`Architecture`].
//!
//! A field that is neither understood nor known to have no influence on a forward pass is an error
//! that names it, since an ignored field is a wrong log-prob.

mod families;
mod fields;
mod ignored;
mod layers;
mod multimodal;
mod rope;

use serde_json::Value;

pub use families::supported_model_types;
use fields::Fields;
use multimodal::TextPart;

use super::Error;
use super::architecture::Architecture;

impl Architecture {
    /// Reads a description from the text of config.json; `model` names it in errors.
    pub fn from_json(text: &[u8], model: &str) -> Result<Self, Error> {
        Self::from_json_ignoring(text, model, &[]).map(|(architecture, _)| architecture)
    }

    /// Reads a description as [`Architecture::from_json`] does, and accepts fields that it does not know if they
    /// are among `ignored`. Returns which of these there are as well.
    ///
    /// # Errors
    ///
    /// Those of [`Architecture::from_json`], and when a field that is read is to be ignored.
    pub fn from_json_ignoring(
        text: &[u8],
        model: &str,
        ignored: &[String],
    ) -> Result<(Self, Vec<String>), Error> {
        let value: Value = serde_json::from_slice(text).map_err(|source| Error::Json {
            model: model.to_owned(),
            file: "config.json".to_owned(),
            source,
        })?;
        Self::from_value_ignoring(&value, ignored).map_err(|problem| Error::Config {
            model: model.to_owned(),
            problem,
        })
    }

    #[cfg(test)]
    fn from_value(value: &Value) -> Result<Self, String> {
        Self::from_value_ignoring(value, &[]).map(|(architecture, _)| architecture)
    }

    fn from_value_ignoring(
        value: &Value,
        ignored: &[String],
    ) -> Result<(Self, Vec<String>), String> {
        let map = value.as_object().ok_or("the top level is not an object")?;
        if let Some(quantized) = map.get("quantization_config").filter(|v| !v.is_null()) {
            let method = quantized.get("quant_method").and_then(Value::as_str);
            return Err(format!(
                "the weights are quantized ({}), which is not implemented\nhint: give the model before quantization",
                method.unwrap_or("quantization_config is set")
            ));
        }
        let mut fields = Fields::new(map);
        let model_type = fields.string("model_type")?.ok_or("it has no model_type")?;
        let (architecture, ignored) = match TextPart::of(&model_type, map)? {
            None => {
                let architecture = families::architecture(&model_type, &mut fields)?;
                (architecture, fields.finish_ignoring(ignored)?)
            }
            Some(part) => {
                let in_text =
                    |problem| format!("in the text part of the {model_type} model: {problem}");
                let mut fields = Fields::new(&part.fields);
                let text = families::architecture(&part.family, &mut fields).map_err(in_text)?;
                let ignored = fields.finish_ignoring(ignored).map_err(in_text)?;
                let architecture = Self {
                    tied_head: part.tied_head(text.tied_head),
                    multimodal: Some(part.wrapper.to_owned()),
                    ..text
                };
                (architecture, ignored)
            }
        };
        architecture.validate()?;
        Ok((architecture, ignored))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Map, json};

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
                json!({"rope_type": "dynamic", "factor": 4.0}),
            );
        });
        assert_eq!(
            message,
            "rope_type \"dynamic\" is not implemented; default, linear, llama3, longrope and yarn are"
        );
        let message = problem(|map| {
            map.insert("attention_dropout".into(), json!(0.1));
        });
        assert_eq!(message, "attention_dropout is 0.1; only 0.0 is implemented");
    }

    /// fixtures/configs has, written down by hand, the fields and sizes of published checkpoints; the counts
    /// are those of transformers 5.23, from `AutoModelForCausalLM.from_config` on the meta device.
    #[test]
    fn configs_of_published_checkpoints_are_read_in_full() {
        for (name, num_parameters) in [
            ("gemma2-2b", 2_614_341_888),
            ("gemma3-1b", 999_885_952),
            ("llama3.2-1b", 1_235_814_400),
            ("mistral-7b-v0.3", 7_248_023_552),
            ("olmo2-1b", 1_484_916_736),
            ("olmo3-7b", 7_298_011_136),
            ("phi3-mini-4k", 3_821_079_552),
            ("phi4-mini", 3_836_021_760),
            ("qwen2.5-0.5b", 494_032_768),
            ("qwen3-0.6b", 596_049_920),
            ("smollm3", 3_075_098_624),
            ("youtu-2b", 1_961_560_064_u64),
        ] {
            let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/configs");
            let text = crate::fs::read(&folder.join(format!("{name}.json"))).unwrap();
            let architecture = Architecture::from_json(&text, name).unwrap();
            assert_eq!(architecture.num_parameters(), num_parameters, "{name}");
        }
    }

    #[test]
    fn fields_that_transformers_reads_otherwise_are_not_followed() {
        let message = problem(|map| {
            map.insert("partial_rotary_factor".into(), json!(0.5));
        });
        assert_eq!(
            message,
            "partial_rotary_factor is 0.5; only 1.0 is implemented"
        );
        let linear = json!({"rope_type": "linear", "factor": 4.0, "rope_theta": 777.0});
        let mut value = config();
        value["rope_parameters"] = linear;
        let alone = Architecture::from_value(&value).unwrap();
        value["rope_scaling"] = json!({});
        assert_eq!(Architecture::from_value(&value).unwrap(), alone);
    }

    #[test]
    fn a_switch_that_a_family_does_not_have_may_be_off_but_not_on() {
        let mut value = config();
        value["lm_head_bias"] = json!(false);
        Architecture::from_value(&value).unwrap();
        let message = problem(|map| {
            map.insert("lm_head_bias".into(), json!(true));
        });
        assert!(message.contains("lm_head_bias"), "{message}");
    }

    #[test]
    fn an_unknown_architecture_lists_the_known_ones() {
        let message = problem(|map| {
            map.insert("model_type".into(), json!("gpt2"));
        });
        assert_eq!(
            message,
            "model_type \"gpt2\" is not supported; supported are gemma2, gemma3_text, llama, mistral, olmo2, olmo3, phi3, qwen2, qwen3, smollm3, youtu, and the text of gemma3, idefics3, internvl, llava, llava_next, llava_next_video, llava_onevision, mistral3, qwen2_audio, qwen2_vl, qwen2_5_vl, qwen3_vl, smolvlm, video_llava, vipllava"
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
            old.ropes,
            Architecture::from_value(&config()).unwrap().ropes
        );
    }
}
