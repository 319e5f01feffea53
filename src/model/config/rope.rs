//! RoPE parameters of config.json: base, scaling, and the frequencies they come to.
//!
//! Source: `transformers/modeling_rope_utils.py` and the rotary classes of the families' modelling
//! files. Frequencies are computed in f32, as there.

use serde_json::{Map, Value};

use super::fields::Fields;
use crate::model::architecture::{LongRopeConfig, MAX_HEAD_DIM, RopeConfig};

/// Settings of a model that its RoPE parameters fall back on.
pub(super) struct RopeDefaults {
    /// Base of the frequencies where none is given.
    pub theta: f64,
    /// Features of a head.
    pub head_dim: usize,
    /// Fraction of them that RoPE applies to where none is given; `None` for a family that rotates
    /// all, whatever a config says, which therefore may say nothing else.
    pub partial: Option<f64>,
    /// `max_position_embeddings`.
    pub max_positions: usize,
    /// `original_max_position_embeddings` at the top level.
    pub original_positions: Option<usize>,
}

/// RoPE parameters as read, and what their scaling does to attention scores.
pub(super) struct RopeParameters {
    pub config: RopeConfig,
    /// Factor on scores that DeepSeek-like models derive from `mscale_all_dim`.
    pub score_factor: f32,
    /// Positions that the scaling reaches, where it says so itself: its factor times the context of the first
    /// training.
    pub reach: Option<usize>,
}

/// Returns the RoPE object of a model that has one for all layers: `rope_parameters` (newer configs), or
/// `rope_scaling` (older ones, and before the other where both are).
pub(super) fn rope_object(fields: &mut Fields<'_>) -> Result<Map<String, Value>, String> {
    let newer = fields.get("rope_parameters");
    // An empty object counts as none, as it does in Python.
    let older = fields
        .get("rope_scaling")
        .filter(|value| value.as_object().is_none_or(|map| !map.is_empty()));
    match older.or(newer) {
        Some(Value::Object(map)) => Ok(map.clone()),
        Some(_) => Err("the RoPE parameters are not an object".to_owned()),
        None => Ok(Map::new()),
    }
}

/// Reads the RoPE parameters of a family whose layers all have the same.
pub(super) fn uniform(
    fields: &mut Fields<'_>,
    head_dim: usize,
    theta: f64,
) -> Result<RopeParameters, String> {
    fields.only("partial_rotary_factor", &Value::from(1.0))?;
    let defaults = RopeDefaults {
        theta: fields.float("rope_theta", theta)?,
        head_dim,
        partial: None,
        max_positions: fields.required_size("max_position_embeddings")?,
        original_positions: fields.size("original_max_position_embeddings")?,
    };
    parse(&rope_object(fields)?, &defaults)
}

/// Reads one object of RoPE parameters.
pub(super) fn parse(
    parameters: &Map<String, Value>,
    defaults: &RopeDefaults,
) -> Result<RopeParameters, String> {
    let mut rope = Fields::new(parameters);
    let parsed = parse_fields(&mut rope, defaults)?;
    rope.finish()
        .map_err(|problem| format!("in the RoPE parameters: {problem}"))?;
    Ok(parsed)
}

fn parse_fields(rope: &mut Fields<'_>, defaults: &RopeDefaults) -> Result<RopeParameters, String> {
    if defaults.head_dim > MAX_HEAD_DIM {
        return Err(format!(
            "head_dim {} is more than {MAX_HEAD_DIM}",
            defaults.head_dim
        ));
    }
    let theta = rope.float("rope_theta", defaults.theta)?;
    if !(theta.is_finite() && theta > 0.0) {
        return Err(format!("rope_theta {theta} is not a positive number"));
    }
    let partial = match defaults.partial {
        Some(default) => rope.float("partial_rotary_factor", default)?,
        None => {
            rope.only("partial_rotary_factor", &Value::from(1.0))?;
            1.0
        }
    };
    if !(partial > 0.0 && partial <= 1.0) {
        return Err(format!(
            "partial_rotary_factor {partial} is not above 0 and at most 1"
        ));
    }
    let named = rope.string("rope_type")?;
    let kind = match rope.string("type")? {
        older @ Some(_) if named.is_none() => older,
        _ => named,
    };
    let rotated = (defaults.head_dim as f64 * partial) as usize;
    let periods = periods(theta, rotated);
    let mut config = RopeConfig {
        frequencies: periods.iter().map(|period| 1.0 / period).collect(),
        long: None,
        scale: 1.0,
    };
    let (mut score_factor, mut reach) = (1.0, None);
    match kind.as_deref().unwrap_or("default") {
        "default" => {}
        "linear" => {
            let factor = positive(rope, "linear", "factor")?;
            for frequency in &mut config.frequencies {
                *frequency /= factor;
            }
        }
        "llama3" => llama3(rope, defaults, &mut config.frequencies)?,
        "yarn" => {
            let (on_scores, positions) = yarn(rope, defaults, theta, &periods, &mut config)?;
            (score_factor, reach) = (on_scores, Some(positions));
        }
        "longrope" => reach = Some(longrope(rope, defaults, &periods, &mut config)?),
        other => {
            return Err(format!(
                "rope_type {other:?} is not implemented; default, linear, llama3, longrope and yarn are"
            ));
        }
    }
    Ok(RopeParameters {
        config,
        score_factor,
        reach,
    })
}

/// Returns `theta ^ (2 i / features)` for every pair of features.
fn periods(theta: f64, features: usize) -> Vec<f32> {
    (0..features.div_ceil(2))
        .map(|i| {
            let exponent = (2 * i) as f32 / features as f32;
            theta.powf(f64::from(exponent)) as f32
        })
        .collect()
}

fn positive(rope: &mut Fields<'_>, kind: &str, name: &'static str) -> Result<f32, String> {
    optional_positive(rope, kind, name)?
        .map(|value| value as f32)
        .ok_or_else(|| format!("rope_type {kind} needs a positive {name}"))
}

fn optional_positive(
    rope: &mut Fields<'_>,
    kind: &str,
    name: &'static str,
) -> Result<Option<f64>, String> {
    if rope.get(name).is_none() {
        return Ok(None);
    }
    match rope.float(name, 0.0)? {
        value if value.is_finite() && value > 0.0 => Ok(Some(value)),
        _ => Err(format!("rope_type {kind} needs a positive {name}")),
    }
}

/// Returns the context of the first training: at the top level, else here, else the longest context.
fn original_positions(
    rope: &mut Fields<'_>,
    kind: &str,
    defaults: &RopeDefaults,
) -> Result<f64, String> {
    let here = optional_positive(rope, kind, "original_max_position_embeddings")?;
    Ok(match defaults.original_positions {
        Some(outer) => outer as f64,
        None => here.unwrap_or(defaults.max_positions as f64),
    })
}

/// Llama 3: by wavelength, long ones are divided by the factor, short ones kept, those between
/// interpolated.
fn llama3(
    rope: &mut Fields<'_>,
    defaults: &RopeDefaults,
    frequencies: &mut [f32],
) -> Result<(), String> {
    let factor = positive(rope, "llama3", "factor")?;
    let low = positive(rope, "llama3", "low_freq_factor")?;
    let high = positive(rope, "llama3", "high_freq_factor")?;
    let context = original_positions(rope, "llama3", defaults)? as f32;
    if high <= low {
        return Err(format!(
            "high_freq_factor {high} is not above low_freq_factor {low}"
        ));
    }
    for frequency in frequencies {
        let wavelength = 2.0 * std::f32::consts::PI / *frequency;
        if wavelength > context / low {
            *frequency /= factor;
        } else if wavelength >= context / high {
            let smooth = (context / wavelength - low) / (high - low);
            *frequency = (1.0 - smooth) * *frequency / factor + smooth * *frequency;
        }
    }
    Ok(())
}

/// Returns `0.1 m ln(scale) + 1`, which YaRN calls mscale.
fn magnitude(scale: f64, m: f64) -> f64 {
    if scale <= 1.0 {
        1.0
    } else {
        0.1 * m * scale.ln() + 1.0
    }
}

/// YaRN (arXiv 2309.00071): frequencies that turn often within the first context are kept, those
/// that turn seldom are divided by the factor, and a ramp lies between. Returns the factor on scores, and the
/// positions that the scaling reaches.
fn yarn(
    rope: &mut Fields<'_>,
    defaults: &RopeDefaults,
    theta: f64,
    periods: &[f32],
    config: &mut RopeConfig,
) -> Result<(f32, usize), String> {
    let context = original_positions(rope, "yarn", defaults)?;
    let factor = optional_positive(rope, "yarn", "factor")?
        .unwrap_or(defaults.max_positions as f64 / context);
    // Zero counts as absent, as it does in Python.
    let m = rope.float("mscale", 0.0)?;
    let m_all = rope.float("mscale_all_dim", 0.0)?;
    config.scale = match optional_positive(rope, "yarn", "attention_factor")? {
        Some(given) => given as f32,
        None if m != 0.0 && m_all != 0.0 => {
            (magnitude(factor, m) / magnitude(factor, m_all)) as f32
        }
        None => magnitude(factor, 1.0) as f32,
    };
    let mut turns = |name: &'static str, default: f64| -> Result<f64, String> {
        match rope.float(name, default)? {
            0.0 => Ok(default),
            turns => Ok(turns),
        }
    };
    let fast = turns("beta_fast", 32.0)?;
    let slow = turns("beta_slow", 1.0)?;
    let truncate = rope.boolean("truncate", true)?;
    let features = 2 * periods.len();
    // The pair of features that turns this often within the context.
    let pair_at = |turns: f64| {
        features as f64 * (context / (turns * 2.0 * std::f64::consts::PI)).ln() / (2.0 * theta.ln())
    };
    let (low, high) = (pair_at(fast), pair_at(slow));
    let (low, high) = match truncate {
        true => (low.floor(), high.ceil()),
        false => (low, high),
    };
    let (low, mut high) = (low.max(0.0), high.min(features as f64 - 1.0));
    if !(low.is_finite() && high.is_finite()) {
        return Err("the yarn parameters give no finite range".to_owned());
    }
    if low == high {
        high += 0.001;
    }
    for (i, (frequency, period)) in config.frequencies.iter_mut().zip(periods).enumerate() {
        let ramp = ((i as f32 - low as f32) / (high - low) as f32).clamp(0.0, 1.0);
        let kept = 1.0 - ramp;
        *frequency = 1.0 / (factor as f32 * period) * (1.0 - kept) + 1.0 / period * kept;
    }
    let on_scores = if m_all == 0.0 {
        1.0
    } else {
        magnitude(factor, m_all).powi(2) as f32
    };
    Ok((on_scores, reached(context, factor)))
}

/// Returns the positions that a scaling by `factor` reaches, of a model that was first trained on rows of `context`
/// tokens.
fn reached(context: f64, factor: f64) -> usize {
    (context * factor).round() as usize
}

/// LongRoPE (arXiv 2402.13753): a factor of its own for every pair of features, of which there are
/// two lists; which one counts depends on the length of the row. Returns the positions that it reaches.
fn longrope(
    rope: &mut Fields<'_>,
    defaults: &RopeDefaults,
    periods: &[f32],
    config: &mut RopeConfig,
) -> Result<usize, String> {
    let context = original_positions(rope, "longrope", defaults)?;
    let factor = optional_positive(rope, "longrope", "factor")?
        .unwrap_or(defaults.max_positions as f64 / context);
    config.scale = match optional_positive(rope, "longrope", "attention_factor")? {
        Some(given) => given as f32,
        None if factor <= 1.0 => 1.0,
        None => (1.0 + factor.ln() / context.ln()).sqrt() as f32,
    };
    let mut frequencies = |name: &'static str| -> Result<Vec<f32>, String> {
        let list = rope
            .get(name)
            .and_then(Value::as_array)
            .ok_or_else(|| format!("rope_type longrope needs a list {name}"))?;
        if list.len() != periods.len() {
            return Err(format!(
                "{name} has {} entries for {} pairs of rotated features",
                list.len(),
                periods.len()
            ));
        }
        list.iter()
            .zip(periods)
            .map(|(factor, period)| match factor.as_f64() {
                Some(factor) if factor > 0.0 => Ok(1.0 / (factor as f32 * period)),
                _ => Err(format!("{name} holds {factor}, not a positive number")),
            })
            .collect()
    };
    config.frequencies = frequencies("short_factor")?;
    config.long = Some(LongRopeConfig {
        above_tokens: context as usize,
        frequencies: frequencies("long_factor")?,
    });
    Ok(reached(context, factor))
}
