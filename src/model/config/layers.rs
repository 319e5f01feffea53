//! Settings that differ from layer to layer: windows, and RoPE parameters for layers with and
//! without one.

use serde_json::{Map, Value};

use super::fields::Fields;
use super::rope::{self, RopeDefaults, RopeParameters};

/// The kind of a layer whose tokens see all before them, in `layer_types`.
pub(super) const FULL: &str = "full_attention";
/// The kind of a layer with a window.
pub(super) const SLIDING: &str = "sliding_attention";

/// Most layers that a config.json may ask for.
const MAX_BLOCKS: usize = 10_000;

/// Reads `num_hidden_layers`.
pub(super) fn num_blocks(fields: &mut Fields<'_>) -> Result<usize, String> {
    match fields.required_size("num_hidden_layers")? {
        n if n > MAX_BLOCKS => Err(format!("num_hidden_layers is {n}, more than {MAX_BLOCKS}")),
        n => Ok(n),
    }
}

/// Reads `sliding_window`, where `use_sliding_window` says that it counts.
pub(super) fn window_if_used(fields: &mut Fields<'_>) -> Result<Option<usize>, String> {
    let is_used = fields.boolean("use_sliding_window", false)?;
    Ok(fields.size("sliding_window")?.filter(|_| is_used))
}

/// Reads the windows of the Qwen models: on the layers from `max_window_layers` on, unless `layer_types` says
/// otherwise.
pub(super) fn qwen_windows(fields: &mut Fields<'_>) -> Result<Vec<Option<usize>>, String> {
    let window = window_if_used(fields)?;
    let first = fields.size("max_window_layers")?.unwrap_or(28);
    windows_of(fields, window, &|i| i >= first)
}

/// Reads the window of each layer: by `layer_types`, or by `is_local` where that is absent.
pub(super) fn windows_of(
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
            Some(FULL) => Ok(None),
            Some(SLIDING) => window.map(Some).ok_or_else(|| {
                "layer_types holds \"sliding_attention\", but there is no sliding_window in use".to_owned()
            }),
            _ => Err(format!(
                "layer_types holds {kind}; only \"full_attention\" and \"sliding_attention\" are implemented"
            )),
        })
        .collect()
}

/// Reads the windows of a family whose layers are all alike; `layer_types`, where it stands, has to
/// say the same.
pub(super) fn same_windows(
    fields: &mut Fields<'_>,
    window: Option<usize>,
) -> Result<Vec<Option<usize>>, String> {
    let windows = windows_of(fields, window, &|_| true)?;
    if windows.iter().all(|found| *found == window) {
        return Ok(windows);
    }
    Err("layer_types differs from what this model_type does in every layer".to_owned())
}

/// Reads the RoPE parameters of layers that see everything and of layers with a window:
/// `rope_parameters` with an object for each (newer configs), or `rope_scaling` for the former alone
/// (older ones).
pub(super) fn by_layer_type(
    fields: &mut Fields<'_>,
    head_dim: usize,
    thetas: [f64; 2],
) -> Result<[RopeParameters; 2], String> {
    let max_positions = fields.required_size("max_position_embeddings")?;
    fields.only("partial_rotary_factor", &Value::from(1.0))?;
    let empty = Map::new();
    let newer = object(fields, "rope_parameters")?.unwrap_or(&empty);
    let older = object(fields, "rope_scaling")?;
    if let Some(other) = newer.keys().find(|key| *key != FULL && *key != SLIDING) {
        return Err(format!(
            "rope_parameters holds {other}; for this model_type it has an object for {FULL} and one for {SLIDING}"
        ));
    }
    let rope = |kind: &str, theta: f64, scaling: Option<&Map<String, Value>>| {
        let mut parameters = match newer.get(kind) {
            // transformers begins with these where it finds none, so an older `type` does not count.
            None | Some(Value::Null) => [("rope_type".to_owned(), Value::from("default"))]
                .into_iter()
                .collect(),
            Some(Value::Object(map)) => map.clone(),
            Some(_) => return Err(format!("rope_parameters.{kind} is not an object")),
        };
        for (key, value) in scaling.into_iter().flatten() {
            parameters.insert(key.clone(), value.clone());
        }
        // transformers reads it at the level above, where it never is.
        if parameters
            .get("truncate")
            .is_some_and(|value| value != true)
        {
            return Err("truncate is not true; only true is implemented here".to_owned());
        }
        rope::parse(
            &parameters,
            &RopeDefaults {
                theta,
                head_dim,
                partial: None,
                max_positions,
                original_positions: None,
            },
        )
    };
    Ok([
        rope(FULL, thetas[0], older)?,
        rope(SLIDING, thetas[1], None)?,
    ])
}

fn object<'a>(
    fields: &mut Fields<'a>,
    name: &'static str,
) -> Result<Option<&'a Map<String, Value>>, String> {
    fields
        .get(name)
        .map(|value| {
            value
                .as_object()
                .ok_or_else(|| format!("{name} is not an object"))
        })
        .transpose()
}
