//! Cases of RoPE, alone and after a norm.

use super::case::{Case, Shapes, Subject, dot, joined, named, taken, wide};
use super::token_cases::normed;
use crate::model::architecture::RopeConfig;
use crate::model::kernels::tensor::zeros_f32;
use crate::model::kernels::{RmsNorm, Rope, RopeDirection, RopeLayout};
use crate::model::row_layout::RowLayout;

pub(crate) fn rope_case(kernels: &Subject<'_>, seed: u64) -> Case {
    let mut shapes = Shapes::new(seed, kernels.drawn_as);
    let lengths = shapes.row_lengths();
    let tokens = lengths.iter().sum();
    let (half, first, after) = (shapes.pick(1, 8), shapes.pick(0, 3), shapes.pick(0, 3));
    let features = RopeLayout {
        head_dim: first + 2 * half + after,
        first,
        interleaved: shapes.coin(),
    };
    let width = shapes.pick(1, 3) * features.head_dim;
    let frequencies: Vec<f32> = (0..half).map(|i| 0.7_f32.powi(i as i32)).collect();
    let config = RopeConfig {
        frequencies: frequencies.clone(),
        long: None,
        scale: [1.0, 1.3][shapes.pick(0, 1)],
    };
    let x = shapes.array("x", &[tokens, width]);
    let dy = shapes.array("dy", &[tokens, width]);
    let layout = RowLayout::new(lengths.iter().copied());
    let table = kernels.rope_table(&layout, &config).unwrap();
    let rope = Rope {
        table: &table,
        layout: features,
    };
    let y = kernels
        .rope(taken(&x, kernels), rope, RopeDirection::Forward)
        .unwrap();
    let dx = kernels
        .rope(taken(&dy, kernels), rope, RopeDirection::Backward)
        .unwrap();
    let upstream = wide(&dy);
    let row_lengths = lengths.clone();
    Case {
        op: "rope",
        settings: vec![
            ("head_dim", features.head_dim.to_string()),
            ("first", first.to_string()),
            ("interleaved", features.interleaved.to_string()),
            ("rope_scale", config.scale.to_string()),
            ("row_lengths", joined(&lengths)),
        ],
        gradients: vec![named("dx", &dx)],
        found_loss: dot(wide(&named("y", &y)), &wide(&dy)),
        outputs: vec![named("y", &y)],
        constants: vec![dy, ("frequencies", vec![half], frequencies)],
        inputs: vec![x],
        ids: None,
        loss: Box::new(move |inputs| {
            let y = rotated(inputs[0].clone(), width, &row_lengths, features, &config);
            dot(y, &upstream)
        }),
    }
}

/// RoPE by its definition.
fn rotated(
    mut y: Vec<f64>,
    width: usize,
    row_lengths: &[usize],
    layout: RopeLayout,
    config: &RopeConfig,
) -> Vec<f64> {
    let (first, half, scale) = (
        layout.first,
        config.frequencies.len(),
        f64::from(config.scale),
    );
    let positions = row_lengths.iter().flat_map(|&len| 0..len);
    for (token, position) in y.chunks_mut(width).zip(positions) {
        for head in token.chunks_mut(layout.head_dim) {
            for (i, frequency) in config.frequencies.iter().enumerate() {
                let angle = f64::from(position as f32 * frequency);
                let (sin, cos) = (angle.sin() * scale, angle.cos() * scale);
                let (i, j) = match layout.interleaved {
                    true => (first + 2 * i, first + 2 * i + 1),
                    false => (first + i, first + half + i),
                };
                let (a, b) = (head[i], head[j]);
                head[i] = a * cos - b * sin;
                head[j] = b * cos + a * sin;
            }
        }
    }
    y
}

/// Norms of queries or keys, then RoPE.
pub(crate) fn norm_rope_case(kernels: &Subject<'_>, seed: u64) -> Case {
    let mut shapes = Shapes::new(seed, kernels.drawn_as);
    let lengths = shapes.row_lengths();
    let tokens = lengths.iter().sum();
    let half = shapes.pick(1, 8);
    let features = RopeLayout {
        head_dim: 2 * half + shapes.pick(0, 3),
        first: 0,
        interleaved: shapes.coin(),
    };
    let width = shapes.pick(1, 3) * features.head_dim;
    let config = RopeConfig {
        frequencies: (0..half).map(|i| 0.6_f32.powi(i as i32)).collect(),
        long: None,
        scale: 1.0,
    };
    let (eps, offset) = (1e-3, [0.0, 1.0][shapes.pick(0, 1)]);
    let x = shapes.array("x", &[tokens, width]);
    // Of each head, or of all heads at once.
    let normed_width = [features.head_dim, width][shapes.pick(0, 1)];
    let w = shapes.array("w", &[normed_width]);
    let dy = shapes.array("dy", &[tokens, width]);
    let layout = RowLayout::new(lengths.iter().copied());
    let table = kernels.rope_table(&layout, &config).unwrap();
    let rope = Rope {
        table: &table,
        layout: features,
    };
    let (tx, tw) = (taken(&x, kernels), taken(&w, kernels));
    let norm = RmsNorm {
        weight: &tw,
        eps,
        offset,
    };
    let y = kernels.norm_rope(&tx, norm, rope).unwrap();
    let dw = zeros_f32(&tw).unwrap();
    let dx = kernels
        .norm_rope_backward(taken(&dy, kernels), &tx, norm, rope, &layout, &dw)
        .unwrap();
    let upstream = wide(&dy);
    let frequencies = ("frequencies", vec![half], config.frequencies.clone());
    Case {
        op: "norm_rope",
        settings: vec![
            ("eps", eps.to_string()),
            ("offset", offset.to_string()),
            ("head_dim", features.head_dim.to_string()),
            ("interleaved", features.interleaved.to_string()),
            ("row_lengths", joined(&lengths)),
        ],
        gradients: vec![named("dx", &dx), named("dw", &dw)],
        found_loss: dot(wide(&named("y", &y)), &upstream),
        outputs: vec![named("y", &y)],
        constants: vec![dy, frequencies],
        inputs: vec![x, w],
        ids: None,
        loss: Box::new(move |inputs| {
            let y = normed(&inputs[0], &inputs[1], eps, offset);
            dot(rotated(y, width, &lengths, features, &config), &upstream)
        }),
    }
}
