//! The families: how each `model_type` reads config.json.
//!
//! The source of each is `transformers/models/NAME/configuration_NAME.py` and `modeling_NAME.py`; a
//! field that is absent gets the default of the configuration class.

use serde_json::Value;

use super::fields::{Fields, MAX_SIZE};
use super::layers::{
    by_layer_type, num_blocks, qwen_windows, same_windows, window_if_used, windows_of,
};
use super::rope::{self, RopeDefaults, RopeParameters};
use crate::model::architecture::{
    Activation, Architecture, BlockConfig, MlaConfig, NormPlacement, Projections, QkNorm,
};

/// Turns the fields of config.json into a description.
type Family = fn(&mut Fields<'_>) -> Result<Architecture, String>;

/// The families that can be scored and trained.
const FAMILIES: [(&str, Family); 11] = [
    ("gemma2", gemma2),
    ("gemma3_text", gemma3_text),
    ("llama", llama),
    ("mistral", mistral),
    ("olmo2", olmo2),
    ("olmo3", olmo3),
    ("phi3", phi3),
    ("qwen2", qwen2),
    ("qwen3", qwen3),
    ("smollm3", smollm3),
    ("youtu", youtu),
];

/// Returns the `model_type`s of the families that can be scored and trained.
pub fn supported_model_types() -> impl Iterator<Item = &'static str> {
    FAMILIES.iter().map(|(name, _)| *name)
}

/// Describes a decoder of a family.
pub(super) fn architecture(
    model_type: &str,
    fields: &mut Fields<'_>,
) -> Result<Architecture, String> {
    match FAMILIES.iter().find(|(name, _)| *name == model_type) {
        Some((_, family)) => family(fields),
        None => {
            let supported: Vec<&str> = supported_model_types().collect();
            Err(format!(
                "model_type {model_type:?} is not supported; supported are {}, and the text of {}",
                supported.join(", "),
                super::multimodal::known()
            ))
        }
    }
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

/// Reads a block with what most families have; the fields that differ are set by the family.
fn usual_block(fields: &mut Fields<'_>) -> Result<BlockConfig, String> {
    let hidden = fields.required_size("hidden_size")?;
    let heads = fields.required_size("num_attention_heads")?;
    // Without heads the block is refused, whatever their size.
    block_with(fields, hidden.checked_div(heads).unwrap_or(0))
}

/// Reads a usual block of a family whose head_dim has a default of its own.
fn block_with(fields: &mut Fields<'_>, default_head_dim: usize) -> Result<BlockConfig, String> {
    let heads = fields.required_size("num_attention_heads")?;
    if heads == 0 {
        return Err("num_attention_heads is 0".to_owned());
    }
    let head_dim = fields.size("head_dim")?.unwrap_or(default_head_dim);
    Ok(BlockConfig {
        num_heads: heads,
        num_kv_heads: fields.size("num_key_value_heads")?.unwrap_or(heads),
        ..block_of(head_dim, fields.required_size("intermediate_size")?)
    })
}

/// Gives the block biases in all of its attention, if `attention_bias` says so.
fn with_attention_bias(fields: &mut Fields<'_>, block: BlockConfig) -> Result<BlockConfig, String> {
    let bias = fields.boolean("attention_bias", false)?;
    Ok(BlockConfig {
        projections: Projections::Separate { bias },
        output_bias: bias,
        ..block
    })
}

fn block_of(head_dim: usize, intermediate_size: usize) -> BlockConfig {
    BlockConfig {
        num_heads: 1,
        num_kv_heads: 1,
        head_dim,
        v_head_dim: head_dim,
        projections: Projections::Separate { bias: false },
        output_bias: false,
        qk_norm: None,
        rope: Some(0),
        window: None,
        score_scale: (head_dim as f64).powf(-0.5) as f32,
        score_soft_cap: None,
        norms: NormPlacement::Pre,
        intermediate_size,
        activation: Activation::Silu,
        fused_mlp: false,
        mlp_bias: false,
    }
}

fn llama(fields: &mut Fields<'_>) -> Result<Architecture, String> {
    let usual = usual_block(fields)?;
    let block = BlockConfig {
        mlp_bias: fields.boolean("mlp_bias", false)?,
        ..with_attention_bias(fields, usual)?
    };
    let windows = same_windows(fields, None)?;
    decoder("llama", block, &windows, USUAL, fields)
}

fn mistral(fields: &mut Fields<'_>) -> Result<Architecture, String> {
    fields.required_size("num_key_value_heads")?;
    let block = usual_block(fields)?;
    let window = fields.nullable_size("sliding_window", 4096)?;
    let windows = same_windows(fields, window)?;
    decoder("mistral", block, &windows, USUAL, fields)
}

fn olmo2(fields: &mut Fields<'_>) -> Result<Architecture, String> {
    let block = olmo_block(fields)?;
    let windows = same_windows(fields, None)?;
    let defaults = Defaults {
        norm_eps: 1e-5,
        ..USUAL
    };
    decoder("olmo2", block, &windows, defaults, fields)
}

fn olmo_block(fields: &mut Fields<'_>) -> Result<BlockConfig, String> {
    let usual = usual_block(fields)?;
    Ok(BlockConfig {
        qk_norm: Some(QkNorm::Projection),
        norms: NormPlacement::Post,
        ..with_attention_bias(fields, usual)?
    })
}

/// Olmo 3: windows on three layers of four, and RoPE parameters for each kind of layer.
fn olmo3(fields: &mut Fields<'_>) -> Result<Architecture, String> {
    let block = olmo_block(fields)?;
    let window = fields.nullable_size("sliding_window", 4096)?;
    let windows = windows_of(fields, window, &|i| (i + 1) % 4 != 0)?;
    // As in transformers 5, a rope_theta outside rope_parameters is for the full layers alone.
    let default = 500_000.0;
    let thetas = [fields.float("rope_theta", default)?, default];
    let ropes = by_layer_type(fields, block.head_dim, thetas)?;
    let defaults = Defaults {
        norm_eps: 1e-5,
        ..USUAL
    };
    two_ropes("olmo3", block, &windows, ropes, defaults, fields)
}

fn qwen2(fields: &mut Fields<'_>) -> Result<Architecture, String> {
    fields.required_size("num_key_value_heads")?;
    let block = BlockConfig {
        projections: Projections::Separate { bias: true },
        ..usual_block(fields)?
    };
    let windows = qwen_windows(fields)?;
    decoder("qwen2", block, &windows, USUAL, fields)
}

fn qwen3(fields: &mut Fields<'_>) -> Result<Architecture, String> {
    fields.required_size("num_key_value_heads")?;
    let usual = block_with(fields, 128)?;
    let block = BlockConfig {
        qk_norm: Some(QkNorm::Head),
        ..with_attention_bias(fields, usual)?
    };
    let windows = qwen_windows(fields)?;
    decoder("qwen3", block, &windows, USUAL, fields)
}

fn smollm3(fields: &mut Fields<'_>) -> Result<Architecture, String> {
    fields.required_size("num_key_value_heads")?;
    let usual = usual_block(fields)?;
    let block = BlockConfig {
        mlp_bias: fields.boolean("mlp_bias", false)?,
        ..with_attention_bias(fields, usual)?
    };
    // Published configs have it; SmolLM3's modelling file does not read it.
    fields.get("max_window_layers");
    let num_blocks = num_blocks(fields)?;
    let interval = fields.size("no_rope_layer_interval")?.unwrap_or(4);
    // The name is inverted: 1 means that the layer has RoPE.
    let rope: Vec<bool> = match fields.get("no_rope_layers") {
        Some(list) => list
            .as_array()
            .ok_or("no_rope_layers is not a list")?
            .iter()
            .map(|flag| match flag.as_i64() {
                Some(flag) => Ok(flag != 0),
                None => Err(format!("no_rope_layers holds {flag}, not a whole number")),
            })
            .collect::<Result<_, _>>()?,
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
        block.rope = block.rope.filter(|_| rope);
    }
    Ok(architecture)
}

/// What the Gemma families share: norms on both sides, counted from 1; a scaled embedding; a factor
/// on scores that does not follow from the head.
fn gemma_block(fields: &mut Fields<'_>) -> Result<BlockConfig, String> {
    fields.only("use_bidirectional_attention", &Value::from(false))?;
    fields.only("hidden_activation", &Value::from("gelu_pytorch_tanh"))?;
    // The published configs carry an older field beside it; transformers reads hidden_activation.
    fields.string("hidden_act")?;
    // In older configs, of a kind of cache.
    fields.get("cache_implementation");
    let scalar = fields.float("query_pre_attn_scalar", 256.0)?;
    let usual = block_with(fields, 256)?;
    Ok(BlockConfig {
        num_kv_heads: fields.size("num_key_value_heads")?.unwrap_or(4),
        score_scale: scalar.powf(-0.5) as f32,
        norms: NormPlacement::PreAndPost,
        activation: Activation::GeluTanh,
        ..with_attention_bias(fields, usual)?
    })
}

const GEMMA: Defaults = Defaults {
    tied_head: true,
    ..USUAL
};

/// Sets what a Gemma model has outside its blocks.
fn as_gemma(architecture: Architecture, logit_soft_cap: Option<f32>) -> Architecture {
    Architecture {
        norm_offset: 1.0,
        embedding_scale: (architecture.hidden_size as f64).sqrt() as f32,
        logit_soft_cap,
        ..architecture
    }
}

/// Reads a soft cap: `default` where the field is absent, none where it is null.
fn soft_cap(
    fields: &mut Fields<'_>,
    name: &'static str,
    default: Option<f64>,
) -> Result<Option<f32>, String> {
    let is_given = fields.contains(name);
    match fields.get(name) {
        None if is_given => Ok(None),
        None => Ok(default.map(|cap| cap as f32)),
        Some(_) => match fields.float(name, 0.0)? as f32 {
            cap if cap.is_normal() && cap > 0.0 => Ok(Some(cap)),
            cap => Err(format!("{name} is {cap} in f32, not a positive number")),
        },
    }
}

fn gemma2(fields: &mut Fields<'_>) -> Result<Architecture, String> {
    let block = BlockConfig {
        score_soft_cap: soft_cap(fields, "attn_logit_softcapping", Some(50.0))?,
        ..gemma_block(fields)?
    };
    let logit_soft_cap = soft_cap(fields, "final_logit_softcapping", Some(30.0))?;
    let window = fields.nullable_size("sliding_window", 4096)?;
    let windows = windows_of(fields, window, &|i| i % 2 == 0)?;
    let architecture = decoder("gemma2", block, &windows, GEMMA, fields)?;
    Ok(as_gemma(architecture, logit_soft_cap))
}

/// Gemma 3: norms of queries and keys, windows on all but every sixth layer, and RoPE parameters
/// for each kind of layer. `attn_logit_softcapping` has no influence: the attention is not given it.
fn gemma3_text(fields: &mut Fields<'_>) -> Result<Architecture, String> {
    soft_cap(fields, "attn_logit_softcapping", None)?;
    let block = BlockConfig {
        qk_norm: Some(QkNorm::Head),
        ..gemma_block(fields)?
    };
    let logit_soft_cap = soft_cap(fields, "final_logit_softcapping", None)?;
    let window = fields.nullable_size("sliding_window", 4096)?;
    let pattern = fields.size("sliding_window_pattern")?.unwrap_or(6);
    if pattern == 0 {
        return Err("sliding_window_pattern is 0".to_owned());
    }
    let windows = windows_of(fields, window, &|i| !(i + 1).is_multiple_of(pattern))?;
    let thetas = [
        fields.float("rope_theta", 1_000_000.0)?,
        fields.float("rope_local_base_freq", 10_000.0)?,
    ];
    let ropes = by_layer_type(fields, block.head_dim, thetas)?;
    let architecture = two_ropes("gemma3_text", block, &windows, ropes, GEMMA, fields)?;
    Ok(as_gemma(architecture, logit_soft_cap))
}

/// Phi-3: one matrix for queries, keys and values, one for gate and up; part of a head rotated.
fn phi3(fields: &mut Fields<'_>) -> Result<Architecture, String> {
    let block = BlockConfig {
        projections: Projections::Fused,
        fused_mlp: true,
        ..usual_block(fields)?
    };
    for dropout in ["resid_pdrop", "embd_pdrop"] {
        fields.only(dropout, &Value::from(0.0))?;
    }
    // Of the larger Phi models; 1 where they have no influence.
    for factor in ["full_attn_mod", "interpolate_factor"] {
        fields.only(factor, &Value::from(1))?;
    }
    let window = fields.size("sliding_window")?;
    let windows = same_windows(fields, window)?;
    let original = fields
        .size("original_max_position_embeddings")?
        .unwrap_or(4096);
    // Older configs say su or yarn, and mean LongRoPE.
    let mut parameters = rope::rope_object(fields)?;
    for key in ["rope_type", "type"] {
        if let Some(kind) = parameters.get_mut(key)
            && (kind == "su" || kind == "yarn")
        {
            *kind = Value::from("longrope");
        }
    }
    let rope = rope::parse(
        &parameters,
        &RopeDefaults {
            theta: fields.float("rope_theta", 10_000.0)?,
            head_dim: block.head_dim,
            partial: Some(fields.float("partial_rotary_factor", 1.0)?),
            max_positions: fields.required_size("max_position_embeddings")?,
            original_positions: Some(original),
        },
    )?;
    let defaults = Defaults {
        norm_eps: 1e-5,
        ..USUAL
    };
    with_rope("phi3", block, &windows, rope, defaults, fields)
}

/// Youtu-LLM: multi-head latent attention in an otherwise usual block.
fn youtu(fields: &mut Fields<'_>) -> Result<Architecture, String> {
    let heads = fields.size("num_attention_heads")?.unwrap_or(16);
    if fields.size("num_key_value_heads")?.unwrap_or(heads) != heads {
        return Err(format!(
            "num_key_value_heads is not the number of heads, {heads}; latent attention makes keys and values for each"
        ));
    }
    let qk_rope_head_dim = fields.size("qk_rope_head_dim")?.unwrap_or(64);
    let qk_nope_head_dim = fields.size("qk_nope_head_dim")?.unwrap_or(128);
    let qk_head_dim = qk_nope_head_dim + qk_rope_head_dim;
    let bias = fields.boolean("attention_bias", false)?;
    let mla = MlaConfig {
        // Null: queries have a single projection.
        q_lora_rank: fields.nullable_size("q_lora_rank", 1536)?,
        kv_lora_rank: fields.size("kv_lora_rank")?.unwrap_or(512),
        qk_rope_head_dim,
        // Null is false, absent is true.
        rope_interleave: fields.boolean("rope_interleave", !fields.contains("rope_interleave"))?,
        attention_bias: bias,
    };
    // Follow from the others; a config that says something else would be misread.
    for (name, size) in [("head_dim", qk_rope_head_dim), ("qk_head_dim", qk_head_dim)] {
        if fields.size(name)?.is_some_and(|given| given != size) {
            return Err(format!("{name} is not {size}, as the other sizes have it"));
        }
    }
    fields.get("embedding_initializer_range");
    let rope = rope::uniform(fields, qk_rope_head_dim, 10_000.0)?;
    let block = BlockConfig {
        num_heads: heads,
        num_kv_heads: heads,
        v_head_dim: fields.size("v_head_dim")?.unwrap_or(128),
        projections: Projections::Mla(mla),
        output_bias: bias,
        ..block_of(qk_head_dim, fields.required_size("intermediate_size")?)
    };
    let windows = same_windows(fields, None)?;
    let defaults = Defaults {
        tied_head: true,
        ..USUAL
    };
    with_rope("youtu", block, &windows, rope, defaults, fields)
}

/// Describes a decoder whose layers share the RoPE parameters of config.json.
fn decoder(
    model_type: &str,
    block: BlockConfig,
    windows: &[Option<usize>],
    defaults: Defaults,
    fields: &mut Fields<'_>,
) -> Result<Architecture, String> {
    let rope = rope::uniform(fields, block.head_dim, defaults.rope_theta)?;
    with_rope(model_type, block, windows, rope, defaults, fields)
}

/// Describes a decoder whose layers share these RoPE parameters.
fn with_rope(
    model_type: &str,
    block: BlockConfig,
    windows: &[Option<usize>],
    rope: RopeParameters,
    defaults: Defaults,
    fields: &mut Fields<'_>,
) -> Result<Architecture, String> {
    if block.activation == Activation::Silu {
        fields.only("hidden_act", &Value::from("silu"))?;
    }
    fields.only("attention_dropout", &Value::from(0.0))?;
    let block = BlockConfig {
        score_scale: match block.projections {
            // Only DeepSeek-like models have it.
            Projections::Mla(_) => block.score_scale * rope.score_factor,
            _ => block.score_scale,
        },
        ..block
    };
    // A config that was given a scaling often keeps the positions from before.
    let positions = fields.required_size("max_position_embeddings")?;
    let positions = positions.max(rope.reach.unwrap_or(0).min(MAX_SIZE));
    Ok(Architecture {
        model_type: model_type.to_owned(),
        vocab_size: fields.required_size("vocab_size")?,
        hidden_size: fields.required_size("hidden_size")?,
        max_position_embeddings: positions,
        tied_head: fields.boolean("tie_word_embeddings", defaults.tied_head)?,
        embedding_scale: 1.0,
        norm_eps: fields.float("rms_norm_eps", defaults.norm_eps)? as f32,
        norm_offset: 0.0,
        logit_soft_cap: None,
        multimodal: None,
        ropes: vec![rope.config],
        blocks: windows
            .iter()
            .map(|&window| BlockConfig {
                window,
                ..block.clone()
            })
            .collect(),
    })
}

/// Describes a decoder with RoPE parameters for layers that see everything and others for those
/// with a window.
fn two_ropes(
    model_type: &str,
    block: BlockConfig,
    windows: &[Option<usize>],
    [full, sliding]: [RopeParameters; 2],
    defaults: Defaults,
    fields: &mut Fields<'_>,
) -> Result<Architecture, String> {
    let mut architecture = with_rope(model_type, block, windows, full, defaults, fields)?;
    architecture.ropes.push(sliding.config);
    for block in &mut architecture.blocks {
        block.rope = Some(usize::from(block.window.is_some()));
    }
    Ok(architecture)
}
