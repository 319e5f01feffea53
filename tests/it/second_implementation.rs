//! Log-probs against candle-transformers, a second implementation of the same families. It shares
//! candle's tensors with remit, but no line of a model: attention, rotation, norms, masks and the
//! reading of config.json are its own. Unlike the golden values it runs live, so rows and configs can
//! be varied here without Python.
//!
//! A fixture is loaded twice from one folder, in f32 on the CPU. candle's models return logits of the
//! last position alone, so they are given every prefix of a row, each with an empty cache: the window
//! is in the mask of a whole prefix, and for most nowhere when tokens are fed one by one.
//!
//! Not here, since candle lacks them: Olmo 3; odd-gemma2 (an untied head), odd-llama (biases, a
//! head_dim that does not follow from the hidden size, linear scaling), odd-qwen2 (such a head_dim) and
//! odd-phi3-long (LongRoPE: candle multiplies frequencies by what transformers divides them by).

use std::collections::HashMap;
use std::path::Path;

use candle_core::{DType, Device, Result, Tensor, safetensors};
use candle_nn::VarBuilder;
use candle_transformers::models::{
    deepseek2, gemma2, gemma3, llama, mistral, olmo2, phi3, qwen2, qwen3, smol::smollm3,
};
use remit::model::{Decoder, ModelSource};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::harness::{self, Workspace};

/// Both compute in f32, in different orders: at most 1.5e-5 nats apart. What a model can get wrong is
/// far above: an epsilon of 2e-5 in the norms is 1e-3 and more, a theta off by 1 percent 9e-3, a window
/// that is one key wider 1.
const TOLERANCE_NATS: f64 = 1e-4;

/// The second is longer than every window of `cases`.
const ROW_LENGTHS: [usize; 2] = [40, 90];

/// Fixtures, each with fields that replace some of its config's for both implementations: where candle
/// has less than the fixture asks for.
fn cases() -> Vec<(&'static str, Value)> {
    vec![
        ("demo-rl", json!({})),
        // One mask for all layers, and scores scaled by the head alone.
        (
            "tiny-gemma2",
            json!({"layer_types": vec!["sliding_attention"; 3], "query_pre_attn_scalar": 12}),
        ),
        // Scores scaled by the head alone, and no scaled rotation.
        (
            "tiny-gemma3",
            json!({"query_pre_attn_scalar": 12, "rope_scaling": null}),
        ),
        // The same, and layers by a pattern.
        (
            "odd-gemma3",
            json!({"query_pre_attn_scalar": 10, "layer_types": null, "sliding_window_pattern": 2}),
        ),
        ("tiny-llama", json!({})),
        ("tiny-mistral", json!({})),
        ("odd-mistral", json!({})),
        ("tiny-olmo2", json!({})),
        ("odd-olmo2", json!({})),
        // No LongRoPE that agrees with transformers.
        ("tiny-phi3", json!({"rope_scaling": null})),
        // No windows.
        ("odd-phi3", json!({"sliding_window": null})),
        // One mask for all layers, whatever layer_types says.
        (
            "tiny-qwen2",
            json!({"layer_types": null, "max_window_layers": 0, "sliding_window": 20}),
        ),
        ("tiny-qwen3", json!({})),
        // No windows, and of the rotations only the default.
        (
            "odd-qwen3",
            json!({
                "use_sliding_window": false,
                "rope_parameters": {"rope_type": "default", "rope_theta": 1000.0}
            }),
        ),
        ("tiny-smollm3", json!({})),
        // No windows.
        ("odd-smollm3", json!({"use_sliding_window": false})),
        // Norms inside the projections have the epsilon of the others.
        ("tiny-youtu", json!({"rms_norm_eps": 1e-6})),
        // The same, with scaling of the rotation and of the scores.
        (
            "tiny-youtu",
            json!({
                "rms_norm_eps": 1e-6,
                "rope_parameters": {
                    "rope_type": "yarn", "rope_theta": 10000.0, "factor": 8.0,
                    "beta_fast": 4.0, "beta_slow": 1.0, "mscale": 1.5, "mscale_all_dim": 0.7,
                    "original_max_position_embeddings": 64
                }
            }),
        ),
        // The same, and neighbours are rotated together, nothing else.
        (
            "odd-youtu",
            json!({"rms_norm_eps": 1e-6, "rope_interleave": true}),
        ),
    ]
}

/// Token ids to logits of the last one; called with the prefixes of a row, shortest first.
type Forward = Box<dyn FnMut(&Tensor) -> Result<Tensor>>;

fn candle(config: &Value, weights: VarBuilder<'static>) -> Result<Forward> {
    let family = match config["model_type"].as_str().unwrap() {
        "gemma2" => gemma2,
        "gemma3_text" => gemma3,
        "llama" => llama,
        "mistral" => mistral,
        "olmo2" => olmo2,
        "phi3" => phi3,
        "qwen2" => qwen2,
        "qwen3" => qwen3,
        "smollm3" => smollm3,
        "youtu" => youtu,
        other => panic!("{other} is not in the table of candle's models"),
    };
    family(as_candle_has_it(config), weights)
}

/// A config in candle's terms.
fn as_candle_has_it(config: &Value) -> Value {
    let mut config = config.clone();
    // candle reads the names from before transformers 5.
    if let Some(rope) = config.get("rope_parameters").cloned() {
        config["rope_theta"] = rope["rope_theta"].clone();
        if rope["rope_type"] != "default" {
            config["rope_scaling"] = rope;
        }
    }
    if config["num_key_value_heads"].is_null() {
        config["num_key_value_heads"] = config["num_attention_heads"].clone();
    }
    config
}

/// The masks count the keys before the query's own, transformers its own as well.
fn without_own_key(mut config: Value) -> Value {
    if let Some(window) = config["sliding_window"].as_u64() {
        config["sliding_window"] = json!(window - 1);
    }
    config
}

fn parse<T: DeserializeOwned>(config: Value) -> T {
    serde_json::from_value(config).unwrap()
}

/// The forward of a model that is given every prefix whole, with an empty cache. A macro, since candle's
/// models share their methods, but no trait.
macro_rules! on_whole_prefixes {
    ($model:expr) => {{
        let mut model = $model;
        Ok(Box::new(move |ids| {
            model.clear_kv_cache();
            model.forward(ids, 0)
        }))
    }};
}

fn gemma2(config: Value, weights: VarBuilder<'static>) -> Result<Forward> {
    on_whole_prefixes!(gemma2::Model::new(
        false,
        &parse(without_own_key(config)),
        weights
    )?)
}

fn gemma3(mut config: Value, weights: VarBuilder<'static>) -> Result<Forward> {
    // Newer configs have an object for each kind of layer.
    if let Some(ropes) = config.get("rope_parameters").cloned() {
        config["rope_theta"] = ropes["full_attention"]["rope_theta"].clone();
        config["rope_local_base_freq"] = ropes["sliding_attention"]["rope_theta"].clone();
    }
    let mut model = gemma3::Model::new(false, &parse(config), weights)?;
    // More than one token at a time is an error with more than one key head: the values in its cache
    // have to be contiguous. The cache of a layer with a window holds as many keys as that, so tokens
    // one by one do well.
    Ok(Box::new(move |ids| {
        let last = ids.dim(1)? - 1;
        if last == 0 {
            model.clear_kv_cache();
        }
        model.forward(&ids.narrow(1, last, 1)?, last)
    }))
}

fn llama(config: Value, weights: VarBuilder<'static>) -> Result<Forward> {
    // It has no head_dim of its own.
    assert_eq!(
        config["head_dim"].as_u64().unwrap() * config["num_attention_heads"].as_u64().unwrap(),
        config["hidden_size"].as_u64().unwrap()
    );
    let config = parse::<llama::LlamaConfig>(config).into_config(false);
    let model = llama::Llama::load(weights, &config)?;
    let mut cache = llama::Cache::new(false, DType::F32, &config, &Device::Cpu)?;
    Ok(Box::new(move |ids| model.forward(ids, 0, &mut cache)))
}

fn mistral(config: Value, weights: VarBuilder<'static>) -> Result<Forward> {
    // It has no tied head, so the embedding is given to it under both names.
    let is_tied = config["tie_word_embeddings"] == true;
    let weights = weights.rename_f(move |name| match name {
        "lm_head.weight" if is_tied => "model.embed_tokens.weight".to_owned(),
        other => other.to_owned(),
    });
    on_whole_prefixes!(mistral::Model::new(
        &parse(without_own_key(config)),
        weights
    )?)
}

fn olmo2(config: Value, weights: VarBuilder<'static>) -> Result<Forward> {
    on_whole_prefixes!(olmo2::Model::new(&parse(config), weights)?)
}

fn phi3(mut config: Value, weights: VarBuilder<'static>) -> Result<Forward> {
    if let Some(rope) = config.get("rope_parameters").cloned() {
        config["partial_rotary_factor"] = rope["partial_rotary_factor"].clone();
    }
    on_whole_prefixes!(phi3::Model::new(&parse(config), weights)?)
}

fn qwen2(config: Value, weights: VarBuilder<'static>) -> Result<Forward> {
    on_whole_prefixes!(qwen2::ModelForCausalLM::new(
        &parse(without_own_key(config)),
        weights
    )?)
}

fn qwen3(config: Value, weights: VarBuilder<'static>) -> Result<Forward> {
    on_whole_prefixes!(qwen3::ModelForCausalLM::new(&parse(config), weights)?)
}

fn smollm3(config: Value, weights: VarBuilder<'static>) -> Result<Forward> {
    on_whole_prefixes!(smollm3::ModelForCausalLM::new(&parse(config), weights)?)
}

/// DeepSeek-V2 has the same latent attention; with no experts it is the same model.
fn youtu(mut config: Value, weights: VarBuilder<'static>) -> Result<Forward> {
    for unused in ["moe_intermediate_size", "n_group", "topk_group"] {
        config[unused] = json!(1);
    }
    if let Some(kind) = config["rope_scaling"].get("rope_type").cloned() {
        config["rope_scaling"]["type"] = kind;
    }
    let config: deepseek2::DeepSeekV2Config = parse(config);
    on_whole_prefixes!(deepseek2::DeepSeekV2::new(&config, weights)?)
}

fn weights(folder: &Path) -> VarBuilder<'static> {
    let mut tensors = HashMap::new();
    harness::visit(folder, &mut |path| {
        if path.extension() == Some("safetensors".as_ref()) {
            tensors.extend(safetensors::load(path, &Device::Cpu).unwrap());
        }
    });
    VarBuilder::from_tensors(tensors, DType::F32, &Device::Cpu)
}

/// log p of every target of a row by candle.
fn target_log_probs(model: &mut Forward, row: &[u32]) -> Result<Vec<f64>> {
    (1..row.len())
        .map(|end| {
            let prefix = Tensor::new(&row[..end], &Device::Cpu)?.unsqueeze(0)?;
            let logits: Vec<f32> = model(&prefix)?.flatten_all()?.to_vec1()?;
            let largest = f64::from(logits.iter().copied().fold(f32::MIN, f32::max));
            let sum: f64 = logits.iter().map(|z| (f64::from(*z) - largest).exp()).sum();
            Ok(f64::from(logits[row[end] as usize]) - largest - sum.ln())
        })
        .collect()
}

/// Ids without a pattern that two implementations could hide a difference behind.
fn row(length: usize, vocab_size: u64) -> Vec<u32> {
    let mut state = length as u64;
    let mut next = || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        (state >> 33) % vocab_size
    };
    (0..length).map(|_| next() as u32).collect()
}

#[test]
fn log_probs_are_within_1e_4_nats_of_candle_transformers() {
    for (name, replacement) in cases() {
        let workspace = Workspace::new();
        workspace.copy_model(name, "model");
        workspace.edit_json("model/config.json", |config| {
            for (field, value) in replacement.as_object().unwrap() {
                config[field] = value.clone();
            }
        });
        let config: Value = serde_json::from_slice(&workspace.read("model/config.json")).unwrap();
        let ours = Decoder::load(&ModelSource::Directory(workspace.path("model"))).unwrap();
        let mut theirs = candle(&config, weights(&workspace.path("model"))).unwrap();

        let mut worst = 0.0_f64;
        for length in ROW_LENGTHS {
            let row = row(length, config["vocab_size"].as_u64().unwrap());
            let got = ours.target_log_probs(&[&row]).unwrap().remove(0);
            let want = target_log_probs(&mut theirs, &row).unwrap();
            assert_eq!(got.len(), want.len());
            for (got, want) in got.iter().zip(&want) {
                worst = worst.max((f64::from(*got) - want).abs());
            }
        }
        eprintln!("{name}: largest difference {worst:.2e} nats");
        assert!(worst < TOLERANCE_NATS, "{name}: {worst} nats");
    }
}
