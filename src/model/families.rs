//! What each `model_type` makes of config.json.
//!
//! The source of each is `transformers/models/NAME/configuration_NAME.py` and `modeling_NAME.py`; a
//! field that is absent gets the default of the configuration class.

use serde_json::{Map, Value};

use super::config::{Architecture, Block, Fields, MAX_HEAD_DIM, NormPlacement, QkNorm};

/// The families that can be scored and trained, by `model_type`.
pub const SUPPORTED_MODEL_TYPES: [&str; 6] =
    ["llama", "mistral", "olmo2", "qwen2", "qwen3", "smollm3"];

/// Most blocks that are believed.
const MAX_BLOCKS: usize = 10_000;

/// Describes a decoder of a family.
pub(super) fn architecture(
    model_type: &str,
    fields: &mut Fields<'_>,
) -> Result<Architecture, String> {
    let family = match model_type {
        "llama" => llama,
        "mistral" => mistral,
        "olmo2" => olmo2,
        "qwen2" => qwen2,
        "qwen3" => qwen3,
        "smollm3" => smollm3,
        other => {
            return Err(format!(
                "model_type {other:?} is not supported; supported are {}",
                SUPPORTED_MODEL_TYPES.join(", ")
            ));
        }
    };
    family(fields)
}

/// Where the families' configuration classes have defaults of their own.
struct Defaults {
    tied_head: bool,
    norm_eps: f64,
    rope_theta: f64,
}

const USUAL: Defaults = Defaults {
    tied_head: false,
    norm_eps: 1e-6,
    rope_theta: 10_000.0,
};

/// A block with what most families have; the fields that differ are set by the family.
fn usual_block(fields: &mut Fields<'_>) -> Result<Block, String> {
    let heads = fields.required_size("num_attention_heads")?;
    let hidden = fields.required_size("hidden_size")?;
    if heads == 0 {
        return Err("num_attention_heads is 0".to_owned());
    }
    Ok(Block {
        num_heads: heads,
        num_kv_heads: fields.size("num_key_value_heads")?.unwrap_or(heads),
        head_dim: fields.size("head_dim")?.unwrap_or(hidden / heads),
        qkv_bias: false,
        output_bias: false,
        qk_norm: None,
        rope: true,
        window: None,
        norms: NormPlacement::Before,
        intermediate_size: fields.required_size("intermediate_size")?,
        mlp_bias: false,
    })
}

fn llama(fields: &mut Fields<'_>) -> Result<Architecture, String> {
    let bias = fields.boolean("attention_bias", false)?;
    let block = Block {
        qkv_bias: bias,
        output_bias: bias,
        mlp_bias: fields.boolean("mlp_bias", false)?,
        ..usual_block(fields)?
    };
    // Tensor parallelism of the pre-training run; 1 in every checkpoint that transformers runs as is.
    fields.only("pretraining_tp", &Value::from(1))?;
    let windows = vec![None; num_blocks(fields)?];
    check_layer_types(fields, &windows)?;
    decoder("llama", block, &windows, USUAL, fields)
}

fn mistral(fields: &mut Fields<'_>) -> Result<Architecture, String> {
    fields.required_size("num_key_value_heads")?;
    let block = usual_block(fields)?;
    let window = if fields.contains("sliding_window") {
        fields.size("sliding_window")?
    } else {
        Some(4096)
    };
    let windows = vec![window; num_blocks(fields)?];
    check_layer_types(fields, &windows)?;
    decoder("mistral", block, &windows, USUAL, fields)
}

fn olmo2(fields: &mut Fields<'_>) -> Result<Architecture, String> {
    let bias = fields.boolean("attention_bias", false)?;
    let block = Block {
        qkv_bias: bias,
        output_bias: bias,
        qk_norm: Some(QkNorm::Projection),
        norms: NormPlacement::After,
        ..usual_block(fields)?
    };
    let windows = vec![None; num_blocks(fields)?];
    check_layer_types(fields, &windows)?;
    let defaults = Defaults {
        norm_eps: 1e-5,
        ..USUAL
    };
    decoder("olmo2", block, &windows, defaults, fields)
}

fn qwen2(fields: &mut Fields<'_>) -> Result<Architecture, String> {
    fields.required_size("num_key_value_heads")?;
    let block = Block {
        qkv_bias: true,
        ..usual_block(fields)?
    };
    let windows = qwen_windows(fields)?;
    decoder("qwen2", block, &windows, USUAL, fields)
}

fn qwen3(fields: &mut Fields<'_>) -> Result<Architecture, String> {
    let bias = fields.boolean("attention_bias", false)?;
    fields.required_size("num_key_value_heads")?;
    let block = usual_block(fields)?;
    let block = Block {
        head_dim: fields.size("head_dim")?.unwrap_or(128),
        qkv_bias: bias,
        output_bias: bias,
        qk_norm: Some(QkNorm::Head),
        ..block
    };
    let windows = qwen_windows(fields)?;
    decoder("qwen3", block, &windows, USUAL, fields)
}

fn smollm3(fields: &mut Fields<'_>) -> Result<Architecture, String> {
    let bias = fields.boolean("attention_bias", false)?;
    fields.required_size("num_key_value_heads")?;
    let block = Block {
        qkv_bias: bias,
        output_bias: bias,
        mlp_bias: fields.boolean("mlp_bias", false)?,
        ..usual_block(fields)?
    };
    let num_blocks = num_blocks(fields)?;
    let interval = fields.size("no_rope_layer_interval")?.unwrap_or(4);
    // The name is inverted: 1 means that the layer has RoPE.
    let rope: Vec<bool> = match fields.get("no_rope_layers") {
        Some(list) => list
            .as_array()
            .map(|list| list.iter().map(|flag| flag.as_u64() != Some(0)).collect())
            .ok_or("no_rope_layers is not a list")?,
        None if interval == 0 => return Err("no_rope_layer_interval is 0".to_owned()),
        None => (1..=num_blocks)
            .map(|i| !i.is_multiple_of(interval))
            .collect(),
    };
    if rope.len() != num_blocks {
        return Err(format!(
            "no_rope_layers has {} entries for {num_blocks} layers",
            rope.len()
        ));
    }
    let window = window_if_used(fields)?;
    let windows = windows_of(fields, window, &|i| !rope[i])?;
    let defaults = Defaults {
        tied_head: true,
        rope_theta: 2_000_000.0,
        ..USUAL
    };
    let mut architecture = decoder("smollm3", block, &windows, defaults, fields)?;
    for (block, rope) in architecture.blocks.iter_mut().zip(rope) {
        block.rope = rope;
    }
    Ok(architecture)
}

fn num_blocks(fields: &mut Fields<'_>) -> Result<usize, String> {
    match fields.required_size("num_hidden_layers")? {
        n if n > MAX_BLOCKS => Err(format!("num_hidden_layers is {n}, more than {MAX_BLOCKS}")),
        n => Ok(n),
    }
}

/// `sliding_window`, where `use_sliding_window` says that it counts.
fn window_if_used(fields: &mut Fields<'_>) -> Result<Option<usize>, String> {
    let is_used = fields.boolean("use_sliding_window", false)?;
    Ok(fields.size("sliding_window")?.filter(|_| is_used))
}

/// Windows of the Qwen models: on the layers from `max_window_layers` on, unless `layer_types` says
/// otherwise.
fn qwen_windows(fields: &mut Fields<'_>) -> Result<Vec<Option<usize>>, String> {
    let window = window_if_used(fields)?;
    let first = fields.size("max_window_layers")?.unwrap_or(28);
    windows_of(fields, window, &|i| i >= first)
}

/// The window of each layer: by `layer_types`, or by `is_local` where that is absent.
fn windows_of(
    fields: &mut Fields<'_>,
    window: Option<usize>,
    is_local: &dyn Fn(usize) -> bool,
) -> Result<Vec<Option<usize>>, String> {
    let num_blocks = num_blocks(fields)?;
    let Some(kinds) = fields.get("layer_types") else {
        return Ok((0..num_blocks)
            .map(|i| window.filter(|_| is_local(i)))
            .collect());
    };
    let kinds = kinds.as_array().ok_or("layer_types is not a list")?;
    if kinds.len() != num_blocks {
        return Err(format!(
            "layer_types has {} entries for {num_blocks} layers",
            kinds.len()
        ));
    }
    kinds
        .iter()
        .map(|kind| match kind.as_str() {
            Some("full_attention") => Ok(None),
            Some("sliding_attention") => window.map(Some).ok_or_else(|| {
                "layer_types holds \"sliding_attention\", but there is no sliding_window in use".to_owned()
            }),
            _ => Err(format!(
                "layer_types holds {kind}; only \"full_attention\" and \"sliding_attention\" are implemented"
            )),
        })
        .collect()
}

/// For a family whose layers are all alike: `layer_types`, where it stands, has to say the same.
fn check_layer_types(fields: &mut Fields<'_>, windows: &[Option<usize>]) -> Result<(), String> {
    let window = windows.first().copied().flatten();
    if windows_of(fields, window, &|_| true)? == windows {
        return Ok(());
    }
    Err("layer_types differs from what this model_type does in every layer".to_owned())
}

/// The fields that all families share.
fn decoder(
    model_type: &str,
    block: Block,
    windows: &[Option<usize>],
    defaults: Defaults,
    fields: &mut Fields<'_>,
) -> Result<Architecture, String> {
    fields.only("hidden_act", &Value::from("silu"))?;
    fields.only("attention_dropout", &Value::from(0.0))?;
    if windows.contains(&Some(0)) {
        return Err("sliding_window is 0".to_owned());
    }
    Ok(Architecture {
        model_type: model_type.to_owned(),
        vocab_size: fields.required_size("vocab_size")?,
        hidden_size: fields.required_size("hidden_size")?,
        max_position_embeddings: fields.required_size("max_position_embeddings")?,
        tied_head: fields.boolean("tie_word_embeddings", defaults.tied_head)?,
        norm_eps: fields.float("rms_norm_eps", defaults.norm_eps)? as f32,
        rope_frequencies: rope_frequencies(block.head_dim, defaults.rope_theta, fields)?,
        blocks: windows
            .iter()
            .map(|&window| Block {
                window,
                ..block.clone()
            })
            .collect(),
    })
}

/// Frequencies from `rope_theta` and `rope_scaling` (older configs) or `rope_parameters` (newer
/// ones), as in `transformers/modeling_rope_utils.py`, in f32 as there.
fn rope_frequencies(
    head_dim: usize,
    default_theta: f64,
    fields: &mut Fields<'_>,
) -> Result<Vec<f32>, String> {
    if head_dim > MAX_HEAD_DIM {
        return Err(format!("head_dim {head_dim} is more than {MAX_HEAD_DIM}"));
    }
    let outer_theta = fields.float("rope_theta", default_theta)?;
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
