//! Cases of what handles each token by itself: norms, projections, gates, the embedding.

use super::case::{Case, Shapes, Subject, dot, named, taken, wide};
use crate::model::architecture::Activation;
use crate::model::kernels::RmsNorm;
use crate::model::kernels::tensor::zeros_f32;
use crate::model::row_layout::RowLayout;

/// RMS norm by its definition.
pub fn normed(x: &[f64], w: &[f64], eps: f32, offset: f32) -> Vec<f64> {
    let groups = x.chunks(w.len()).flat_map(|group| {
        let mean = group.iter().map(|x| x * x).sum::<f64>() / w.len() as f64;
        let r = (mean + f64::from(eps)).sqrt().recip();
        let pairs = group.iter().zip(w);
        pairs.map(move |(x, w)| x * r * (f64::from(offset) + w))
    });
    groups.collect()
}

pub(crate) fn norm_case(kernels: &Subject<'_>, seed: u64) -> Case {
    let mut shapes = Shapes::new(seed, kernels.drawn_as);
    let lengths = shapes.row_lengths();
    let (tokens, groups, width) = (lengths.iter().sum(), shapes.pick(1, 3), shapes.width());
    let x = shapes.array("x", &[tokens, groups * width]);
    let w = shapes.array("w", &[width]);
    let dy = shapes.array("dy", &[tokens, groups * width]);
    let (eps, offset) = (
        [1e-6, 1e-2][shapes.pick(0, 1)],
        [0.0, 1.0][shapes.pick(0, 1)],
    );
    let layout = RowLayout::new(lengths);
    let (tx, tw) = (taken(&x, kernels), taken(&w, kernels));
    let norm = RmsNorm {
        weight: &tw,
        eps,
        offset,
    };
    let y = kernels.rms_norm(&tx, norm).unwrap();
    let dw = zeros_f32(&tw).unwrap();
    let dx = kernels
        .rms_norm_backward(&taken(&dy, kernels), &tx, norm, &layout, &dw, None)
        .unwrap();
    let upstream = wide(&dy);
    Case {
        op: "norm",
        settings: vec![("eps", eps.to_string()), ("offset", offset.to_string())],
        gradients: vec![named("dx", &dx), named("dw", &dw)],
        found_loss: dot(wide(&named("y", &y)), &wide(&dy)),
        outputs: vec![named("y", &y)],
        constants: vec![dy],
        inputs: vec![x, w],
        ids: None,
        loss: Box::new(move |inputs| {
            let (x, w) = (&inputs[0], &inputs[1]);
            dot(normed(x, w, eps, offset), &upstream)
        }),
    }
}

pub(crate) fn linear_case(kernels: &Subject<'_>, seed: u64) -> Case {
    let mut shapes = Shapes::new(seed, kernels.drawn_as);
    let lengths = shapes.row_lengths();
    let (tokens, inner, out) = (lengths.iter().sum(), shapes.pick(1, 70), shapes.pick(1, 70));
    let x = shapes.array("x", &[tokens, inner]);
    let w = shapes.array("w", &[out, inner]);
    let b = shapes.coin().then(|| shapes.array("b", &[out]));
    let dy = shapes.array("dy", &[tokens, out]);
    // What is in the gradient of x already.
    let added = shapes
        .coin()
        .then(|| shapes.array("added", &[tokens, inner]));
    let layout = RowLayout::new(lengths);
    let (tx, tw, tdy) = (taken(&x, kernels), taken(&w, kernels), taken(&dy, kernels));
    let tb = b.as_ref().map(|b| taken(b, kernels));
    let y = kernels.linear(&tx, &tw, tb.as_ref()).unwrap();
    let dx = kernels
        .linear_backward_input(&tdy, &tw, added.as_ref().map(|added| taken(added, kernels)))
        .unwrap();
    let dw = zeros_f32(&tw).unwrap();
    kernels
        .linear_backward_weight(&dw, &tdy, &tx, &layout)
        .unwrap();
    let mut gradients = vec![named("dx", &dx), named("dw", &dw)];
    if let Some(tb) = &tb {
        let db = zeros_f32(tb).unwrap();
        kernels.linear_backward_bias(&db, &tdy).unwrap();
        gradients.push(named("db", &db));
    }
    let upstream = wide(&dy);
    let added_wide = match &added {
        Some(added) => wide(added),
        None => vec![0.0; tokens * inner],
    };
    Case {
        op: "linear",
        settings: Vec::new(),
        gradients,
        found_loss: dot(wide(&named("y", &y)), &wide(&dy)) + dot(wide(&x), &added_wide),
        outputs: vec![named("y", &y)],
        constants: [dy].into_iter().chain(added).collect(),
        inputs: [x, w].into_iter().chain(b).collect(),
        ids: None,
        loss: Box::new(move |inputs| {
            let (x, w) = (&inputs[0], &inputs[1]);
            let y = x.chunks(inner).flat_map(|x| {
                w.chunks(inner).enumerate().map(|(o, w)| {
                    let bias = inputs.get(2).map_or(0.0, |b| b[o]);
                    dot(x.iter().copied(), w) + bias
                })
            });
            // What is there already counts as the gradient of x alone.
            dot(y, &upstream) + dot(x.iter().copied(), &added_wide)
        }),
    }
}

pub(crate) fn glu_case(kernels: &Subject<'_>, seed: u64) -> Case {
    let mut shapes = Shapes::new(seed, kernels.drawn_as);
    let shape = [shapes.pick(1, 30), shapes.width()];
    let (gate, up) = (shapes.array("gate", &shape), shapes.array("up", &shape));
    let dy = shapes.array("dy", &shape);
    let activation = [Activation::Silu, Activation::GeluTanh][shapes.pick(0, 1)];
    let (tg, tu) = (taken(&gate, kernels), taken(&up, kernels));
    let y = kernels.glu(&tg, &tu, activation).unwrap();
    let (dgate, dup) = kernels
        .glu_backward(&taken(&dy, kernels), tg, tu, activation)
        .unwrap();
    let upstream = wide(&dy);
    let name = match activation {
        Activation::Silu => "silu",
        Activation::GeluTanh => "gelu_tanh",
    };
    Case {
        op: "glu",
        settings: vec![("activation", name.to_owned())],
        gradients: vec![named("dgate", &dgate), named("dup", &dup)],
        found_loss: dot(wide(&named("y", &y)), &wide(&dy)),
        outputs: vec![named("y", &y)],
        constants: vec![dy],
        inputs: vec![gate, up],
        ids: None,
        loss: Box::new(move |inputs| {
            let value = |x: f64| match activation {
                Activation::Silu => x / (1.0 + (-x).exp()),
                Activation::GeluTanh => {
                    let u = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044_715 * x.powi(3));
                    0.5 * x * (1.0 + u.tanh())
                }
            };
            let y = inputs[0].iter().zip(&inputs[1]).map(|(g, u)| value(*g) * u);
            dot(y, &upstream)
        }),
    }
}

/// A residual stream that something is added to, and its norm: the gradient arrives at the sum from both.
pub(crate) fn add_norm_case(kernels: &Subject<'_>, seed: u64) -> Case {
    let mut shapes = Shapes::new(seed, kernels.drawn_as);
    let lengths = shapes.row_lengths();
    let (tokens, width) = (lengths.iter().sum(), shapes.width());
    let x = shapes.array("x", &[tokens, width]);
    let addend = shapes.array("addend", &[tokens, width]);
    let w = shapes.array("w", &[width]);
    let dy = shapes.array("dy", &[tokens, width]);
    let d_sum = shapes.array("d_sum", &[tokens, width]);
    let (eps, offset) = (1e-3, [0.0, 1.0][shapes.pick(0, 1)]);
    let layout = RowLayout::new(lengths);
    let (sum, tw) = (taken(&x, kernels), taken(&w, kernels));
    let norm = RmsNorm {
        weight: &tw,
        eps,
        offset,
    };
    let y = kernels
        .add_rms_norm(&sum, &taken(&addend, kernels), norm)
        .unwrap();
    let dw = zeros_f32(&tw).unwrap();
    let into = Some(taken(&d_sum, kernels));
    let dx = kernels
        .rms_norm_backward(&taken(&dy, kernels), &sum, norm, &layout, &dw, into)
        .unwrap();
    let (upstream, upstream_sum) = (wide(&dy), wide(&d_sum));
    let found_loss =
        dot(wide(&named("y", &y)), &upstream) + dot(wide(&named("sum", &sum)), &upstream_sum);
    Case {
        op: "add_norm",
        settings: vec![("eps", eps.to_string()), ("offset", offset.to_string())],
        gradients: vec![named("dx", &dx), named("daddend", &dx), named("dw", &dw)],
        found_loss,
        outputs: vec![named("y", &y), named("sum", &sum)],
        constants: vec![dy, d_sum],
        inputs: vec![x, addend, w],
        ids: None,
        loss: Box::new(move |inputs| {
            let sum: Vec<f64> = inputs[0]
                .iter()
                .zip(&inputs[1])
                .map(|(a, b)| a + b)
                .collect();
            dot(normed(&sum, &inputs[2], eps, offset), &upstream) + dot(sum, &upstream_sum)
        }),
    }
}

pub(crate) fn embedding_case(kernels: &Subject<'_>, seed: u64) -> Case {
    let mut shapes = Shapes::new(seed, kernels.drawn_as);
    let (tokens, vocab, width) = (shapes.pick(1, 40), shapes.pick(1, 20), shapes.width());
    let table = shapes.array("table", &[vocab, width]);
    let dy = shapes.array("dy", &[tokens, width]);
    let scale = [1.0, 2.5][shapes.pick(0, 1)];
    // Few entries for many tokens, so that ids repeat.
    let ids: Vec<u32> = (0..tokens)
        .map(|_| shapes.pick(0, vocab - 1) as u32)
        .collect();
    let t_table = taken(&table, kernels);
    let y = kernels.embedding(&t_table, &ids, scale).unwrap();
    let d_table = zeros_f32(&t_table).unwrap();
    kernels
        .embedding_backward(&d_table, &ids, &taken(&dy, kernels), scale)
        .unwrap();
    let (upstream, looked_up) = (wide(&dy), ids.clone());
    Case {
        op: "embedding",
        settings: vec![("scale", scale.to_string())],
        gradients: vec![named("dtable", &d_table)],
        found_loss: dot(wide(&named("y", &y)), &upstream),
        outputs: vec![named("y", &y)],
        constants: vec![dy],
        inputs: vec![table],
        ids: Some(ids),
        loss: Box::new(move |inputs| {
            let rows = looked_up
                .iter()
                .flat_map(|&id| &inputs[0][id as usize * width..][..width]);
            dot(rows.map(|x| x * f64::from(scale)), &upstream)
        }),
    }
}
