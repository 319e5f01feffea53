//! Cases of attention, of the keys and values of latent attention, and of the output head.

use super::case::{Case, Shapes, Subject, dot, joined, named, taken, wide};
use crate::model::kernels::tensor::zeros_f32;
use crate::model::kernels::{AttentionShape, LmHead, LmLoss, MlaDims, Qkv, RowOutputs};
use crate::model::row_layout::RowLayout;
use crate::types::{NO_TARGET, is_of_target};

fn soft_capped(x: f64, cap: Option<f32>) -> f64 {
    cap.map_or(x, |cap| f64::from(cap) * (x / f64::from(cap)).tanh())
}

fn option_text(value: Option<impl ToString>) -> String {
    value.map_or("none".to_owned(), |value| value.to_string())
}

pub(crate) fn attention_case(kernels: &Subject<'_>, seed: u64) -> Case {
    let mut shapes = Shapes::new(seed, kernels.drawn_as);
    let lengths = shapes.row_lengths();
    let tokens: usize = lengths.iter().sum();
    let kv_heads = shapes.pick(1, 2);
    let shape = AttentionShape {
        num_heads: kv_heads * shapes.pick(1, 3),
        num_kv_heads: kv_heads,
        head_dim: shapes.head_dim(),
        v_head_dim: shapes.head_dim(),
        scale: 0.4,
        soft_cap: shapes.coin().then_some(1.5),
        window: shapes.coin().then(|| shapes.pick(1, 30)),
    };
    let q = shapes.array("q", &[tokens, shape.num_heads * shape.head_dim]);
    let k = shapes.array("k", &[tokens, kv_heads * shape.head_dim]);
    let v = shapes.array("v", &[tokens, kv_heads * shape.v_head_dim]);
    let dy = shapes.array("dy", &[tokens, shape.num_heads * shape.v_head_dim]);
    let layout = RowLayout::new(lengths.iter().copied());
    let (tq, tk, tv) = (taken(&q, kernels), taken(&k, kernels), taken(&v, kernels));
    let qkv = Qkv {
        q: &tq,
        k: &tk,
        v: &tv,
    };
    let attended = kernels.attention(qkv, &layout, shape).unwrap();
    let y = &attended.out;
    let (dq, dk, dv) = kernels
        .attention_backward(&taken(&dy, kernels), qkv, &attended, &layout, shape)
        .unwrap();
    let (upstream, row_lengths) = (wide(&dy), lengths.clone());
    Case {
        op: "attention",
        settings: vec![
            ("heads", shape.num_heads.to_string()),
            ("kv_heads", kv_heads.to_string()),
            ("scale", shape.scale.to_string()),
            ("soft_cap", option_text(shape.soft_cap)),
            ("window", option_text(shape.window)),
            ("row_lengths", joined(&lengths)),
        ],
        gradients: vec![named("dq", &dq), named("dk", &dk), named("dv", &dv)],
        found_loss: dot(wide(&named("y", y)), &wide(&dy)),
        outputs: vec![named("y", y)],
        constants: vec![dy],
        inputs: vec![q, k, v],
        ids: None,
        loss: Box::new(move |inputs| {
            let (q, k, v) = (&inputs[0], &inputs[1], &inputs[2]);
            let (dim, v_dim) = (shape.head_dim, shape.v_head_dim);
            let part = |x: &[f64], token: usize, heads: usize, head: usize, dim: usize| {
                x[(token * heads + head) * dim..][..dim].to_vec()
            };
            let (mut total, mut start) = (0.0, 0);
            for &len in &row_lengths {
                for query in 0..len {
                    let first = shape
                        .window
                        .map_or(0, |window| (query + 1).saturating_sub(window));
                    for h in 0..shape.num_heads {
                        let kv = h / (shape.num_heads / kv_heads);
                        let one = part(q, start + query, shape.num_heads, h, dim);
                        let scores: Vec<f64> = (first..=query)
                            .map(|key| {
                                let key = part(k, start + key, kv_heads, kv, dim);
                                soft_capped(
                                    dot(one.clone(), &key) * f64::from(shape.scale),
                                    shape.soft_cap,
                                )
                            })
                            .collect();
                        let sum: f64 = scores.iter().map(|s| s.exp()).sum();
                        let d = part(&upstream, start + query, shape.num_heads, h, v_dim);
                        for (key, score) in (first..=query).zip(scores) {
                            let value = part(v, start + key, kv_heads, kv, v_dim);
                            total += score.exp() / sum * dot(value, &d);
                        }
                    }
                }
                start += len;
            }
            total
        }),
    }
}

pub(crate) fn mla_case(kernels: &Subject<'_>, seed: u64) -> Case {
    let mut shapes = Shapes::new(seed, kernels.drawn_as);
    let (tokens, heads) = (shapes.pick(1, 30), shapes.pick(1, 4));
    let dims = MlaDims {
        nope: shapes.pick(1, 8),
        rope: shapes.pick(1, 8),
        value: shapes.pick(1, 8),
    };
    let (key, own) = (dims.key(), dims.kv_width());
    let kv = shapes.array("kv", &[tokens, heads * own]);
    let k_rope = shapes.array("k_rope", &[tokens, dims.rope]);
    let dy_keys = shapes.array("dy_keys", &[tokens, heads * key]);
    let dy_values = shapes.array("dy_values", &[tokens, heads * dims.value]);
    let (keys, values) = kernels
        .mla(&taken(&kv, kernels), &taken(&k_rope, kernels), dims)
        .unwrap();
    let (dkv, dk_rope) = kernels
        .mla_backward(&taken(&dy_keys, kernels), &taken(&dy_values, kernels), dims)
        .unwrap();
    let upstream = (wide(&dy_keys), wide(&dy_values));
    Case {
        op: "mla",
        settings: vec![
            ("nope", dims.nope.to_string()),
            ("value", dims.value.to_string()),
        ],
        gradients: vec![named("dkv", &dkv), named("dk_rope", &dk_rope)],
        found_loss: dot(wide(&named("keys", &keys)), &upstream.0)
            + dot(wide(&named("values", &values)), &upstream.1),
        outputs: vec![named("keys", &keys), named("values", &values)],
        constants: vec![dy_keys, dy_values],
        inputs: vec![kv, k_rope],
        ids: None,
        loss: Box::new(move |inputs| {
            let mut total = 0.0;
            for (i, one) in inputs[0].chunks(own).enumerate() {
                let k_rope = &inputs[1][i / heads * dims.rope..][..dims.rope];
                let whole = one[..dims.nope].iter().chain(k_rope).copied();
                total += dot(whole, &upstream.0[i * key..][..key]);
                let value = one[dims.nope..].iter().copied();
                total += dot(value, &upstream.1[i * dims.value..][..dims.value]);
            }
            total
        }),
    }
}

pub(crate) fn lm_head_case(kernels: &Subject<'_>, seed: u64) -> Case {
    let mut shapes = Shapes::new(seed, kernels.drawn_as);
    let lengths = shapes.row_lengths();
    let tokens: usize = lengths.iter().sum();
    let (width, vocab) = (shapes.pick(1, 20), shapes.pick(2, 90));
    let x = shapes.array("x", &[tokens, width]);
    let w = shapes.array("w", &[vocab, width]);
    let soft_cap = shapes.coin().then_some(2.0);
    let z_loss = shapes.coin().then_some(0.25);
    let ids: Vec<u32> = (0..tokens)
        .map(|_| shapes.pick(0, vocab - 1) as u32)
        .collect();
    let layout = RowLayout::new(lengths.iter().copied());
    let mut weights = shapes.array("weights", &[tokens - lengths.len()]);
    for weight in weights.2.iter_mut().skip(1).step_by(3) {
        *weight = NO_TARGET;
    }
    let (tx, tw) = (taken(&x, kernels), taken(&w, kernels));
    let head = LmHead {
        weight: &tw,
        soft_cap,
    };
    let log_probs = kernels.lm_head_log_probs(&tx, head, &ids, &layout).unwrap();
    let dhead = zeros_f32(&tw).unwrap();
    let mut rest = weights.2.as_slice();
    let mut normalizers = Vec::new();
    let mut token_weights = |outputs: RowOutputs<'_>, into: &mut [f32]| {
        let (mine, after) = rest.split_at(outputs.log_probs.len());
        into.copy_from_slice(mine);
        normalizers.extend_from_slice(outputs.log_normalizers);
        rest = after;
        Ok(())
    };
    let loss = LmLoss {
        z_loss,
        token_weights: &mut token_weights,
        soft: None,
    };
    let dx = kernels
        .lm_head_backward(&tx, head, &dhead, &ids, &layout, loss)
        .unwrap();
    let mut found_loss = 0.0;
    for ((log_prob, weight), s) in log_probs.iter().zip(&weights.2).zip(normalizers) {
        found_loss -= f64::from(*weight) * f64::from(*log_prob);
        if is_of_target(*weight) {
            found_loss += f64::from(z_loss.unwrap_or(0.0)) * s * s;
        }
    }
    let (factors, row_lengths, targets) = (wide(&weights), lengths.clone(), ids.clone());
    Case {
        op: "lm_head",
        settings: vec![
            ("soft_cap", option_text(soft_cap)),
            ("z_loss", z_loss.unwrap_or(0.0).to_string()),
            ("row_lengths", joined(&lengths)),
        ],
        gradients: vec![named("dx", &dx), named("dhead", &dhead)],
        found_loss,
        outputs: vec![("log_probs", vec![log_probs.len()], log_probs)],
        constants: vec![weights],
        inputs: vec![x, w],
        ids: Some(ids),
        loss: Box::new(move |inputs| {
            let (x, w) = (&inputs[0], &inputs[1]);
            let mut factors = factors.iter();
            let (mut total, mut start) = (0.0, 0);
            for &len in &row_lengths {
                for token in start..start + len - 1 {
                    let logits: Vec<f64> = w
                        .chunks(width)
                        .map(|w| {
                            soft_capped(
                                dot(x[token * width..][..width].iter().copied(), w),
                                soft_cap,
                            )
                        })
                        .collect();
                    let normalizer = logits.iter().map(|l| l.exp()).sum::<f64>().ln();
                    let target = logits[targets[token + 1] as usize];
                    let factor = factors.next().unwrap();
                    total -= factor * (target - normalizer);
                    if *factor != 0.0 {
                        total += f64::from(z_loss.unwrap_or(0.0)) * normalizer * normalizer;
                    }
                }
                start += len;
            }
            total
        }),
    }
}
