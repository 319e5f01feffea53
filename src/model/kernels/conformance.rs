//! Every backward that is written by hand, over random shapes, against finite differences of the operation
//! written out in f64. The same cases are written to files for PyTorch: tests/oracle/test_ops.py.

use std::collections::BTreeMap;

use candle_core::Tensor;
use proptest::prelude::*;
use safetensors::Dtype;

use super::architecture::{Activation, RopeConfig};
use super::head::{self, Head, RowOutputs};
use super::ops::norm::Rms;
use super::ops::rope::{Rotation, Turned};
use super::ops::{RowLayout, attention, latent, linear, mlp, norm, tensor, to_host, zeros_f32};
use super::simd::Noise;

/// A named array: shape and elements, row-major.
type Array = (&'static str, Vec<usize>, Vec<f32>);

/// What is summed to one number, of inputs in f64.
type Loss = Box<dyn Fn(&[Vec<f64>]) -> f64>;

/// One operation on one set of inputs.
struct Case {
    op: &'static str,
    settings: Vec<(&'static str, String)>,
    /// What gradients are taken of.
    inputs: Vec<Array>,
    /// The analytic gradient of each input, and the name of it.
    gradients: Vec<Array>,
    /// Other arrays: upstream gradients, outputs, constants.
    others: Vec<Array>,
    /// Token ids, where there are any.
    ids: Option<Vec<u32>>,
    loss: Loss,
}

/// Numbers for the shape of a case.
struct Shapes(Noise);

impl Shapes {
    fn new(seed: u64) -> Self {
        Self(Noise::new(seed))
    }

    /// One of `low..=high`.
    fn pick(&mut self, low: usize, high: usize) -> usize {
        let draw = self.0.normal().to_bits() as usize >> 3;
        low + draw % (high - low + 1)
    }

    fn coin(&mut self) -> bool {
        self.pick(0, 1) == 1
    }

    fn array(&mut self, name: &'static str, shape: &[usize]) -> Array {
        let values = self.0.vector(shape.iter().product());
        (name, shape.to_vec(), values)
    }

    /// Lengths of 1 to 4 rows, short ones and now and then one of more than a tile.
    fn row_lengths(&mut self) -> Vec<usize> {
        (0..self.pick(1, 4))
            .map(|_| match self.pick(0, 7) {
                0 => self.pick(65, 140),
                _ => self.pick(2, 20),
            })
            .collect()
    }
}

fn joined(lengths: &[usize]) -> String {
    let words: Vec<String> = lengths.iter().map(usize::to_string).collect();
    words.join(",")
}

fn taken(array: &Array) -> Tensor {
    tensor(array.2.clone(), array.1.clone()).unwrap()
}

fn named(name: &'static str, tensor: &Tensor) -> Array {
    (name, tensor.dims().to_vec(), to_host(tensor).unwrap())
}

fn wide(array: &Array) -> Vec<f64> {
    array.2.iter().map(|v| f64::from(*v)).collect()
}

fn dot(a: impl IntoIterator<Item = f64>, b: &[f64]) -> f64 {
    a.into_iter().zip(b).map(|(a, b)| a * b).sum()
}

fn norm_case(seed: u64) -> Case {
    let mut shapes = Shapes::new(seed);
    let lengths = shapes.row_lengths();
    let (tokens, groups, width) = (lengths.iter().sum(), shapes.pick(1, 3), shapes.pick(1, 40));
    let x = shapes.array("x", &[tokens, groups * width]);
    let w = shapes.array("w", &[width]);
    let dy = shapes.array("dy", &[tokens, groups * width]);
    let rms = Rms {
        eps: [1e-6, 1e-2][shapes.pick(0, 1)],
        offset: [0.0, 1.0][shapes.pick(0, 1)],
    };
    let layout = RowLayout::new(lengths);
    let (tx, tw) = (taken(&x), taken(&w));
    let y = norm::forward(&tx, &tw, rms).unwrap();
    let dw = zeros_f32(&tw).unwrap();
    let dx = norm::backward(&taken(&dy), &tx, &tw, rms, &layout, &dw, None).unwrap();
    let upstream = wide(&dy);
    Case {
        op: "norm",
        settings: vec![
            ("eps", rms.eps.to_string()),
            ("offset", rms.offset.to_string()),
        ],
        gradients: vec![named("dx", &dx), named("dw", &dw)],
        others: vec![named("y", &y), dy],
        inputs: vec![x, w],
        ids: None,
        loss: Box::new(move |inputs| {
            let (x, w) = (&inputs[0], &inputs[1]);
            let y = x.chunks(width).flat_map(|group| {
                let mean = group.iter().map(|x| x * x).sum::<f64>() / width as f64;
                let r = (mean + f64::from(rms.eps)).sqrt().recip();
                group
                    .iter()
                    .zip(w)
                    .map(move |(x, w)| x * r * (f64::from(rms.offset) + w))
            });
            dot(y, &upstream)
        }),
    }
}

fn linear_case(seed: u64) -> Case {
    let mut shapes = Shapes::new(seed);
    let lengths = shapes.row_lengths();
    let (tokens, inner, out) = (lengths.iter().sum(), shapes.pick(1, 70), shapes.pick(1, 70));
    let x = shapes.array("x", &[tokens, inner]);
    let w = shapes.array("w", &[out, inner]);
    let b = shapes.coin().then(|| shapes.array("b", &[out]));
    let dy = shapes.array("dy", &[tokens, out]);
    let onto = shapes.array("onto", &[tokens, inner]);
    let layout = RowLayout::new(lengths);
    let (tx, tw, tdy) = (taken(&x), taken(&w), taken(&dy));
    let tb = b.as_ref().map(taken);
    let y = linear::forward(&tx, &tw, tb.as_ref()).unwrap();
    let dx = linear::backward_input(&tdy, &tw, Some(taken(&onto))).unwrap();
    let dw = zeros_f32(&tw).unwrap();
    linear::accumulate_weight(&dw, &tdy, &tx, &layout).unwrap();
    let mut gradients = vec![named("dx", &dx), named("dw", &dw)];
    if let Some(tb) = &tb {
        let db = zeros_f32(tb).unwrap();
        linear::accumulate_bias(&db, &tdy).unwrap();
        gradients.push(named("db", &db));
    }
    let (upstream, added) = (wide(&dy), wide(&onto));
    Case {
        op: "linear",
        settings: Vec::new(),
        gradients,
        others: vec![named("y", &y), dy, onto],
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
            dot(y, &upstream) + dot(x.iter().copied(), &added)
        }),
    }
}

fn mlp_case(seed: u64) -> Case {
    let mut shapes = Shapes::new(seed);
    let shape = [shapes.pick(1, 30), shapes.pick(1, 40)];
    let (gate, up) = (shapes.array("gate", &shape), shapes.array("up", &shape));
    let dy = shapes.array("dy", &shape);
    let activation = [Activation::Silu, Activation::GeluTanh][shapes.pick(0, 1)];
    let (tg, tu) = (taken(&gate), taken(&up));
    let y = mlp::forward(&tg, &tu, activation).unwrap();
    let (dgate, dup) = mlp::backward(&taken(&dy), tg, tu, activation).unwrap();
    let upstream = wide(&dy);
    let name = match activation {
        Activation::Silu => "silu",
        Activation::GeluTanh => "gelu_tanh",
    };
    Case {
        op: "mlp",
        settings: vec![("activation", name.to_owned())],
        gradients: vec![named("dgate", &dgate), named("dup", &dup)],
        others: vec![named("y", &y), dy],
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

fn rope_case(seed: u64) -> Case {
    let mut shapes = Shapes::new(seed);
    let lengths = shapes.row_lengths();
    let tokens = lengths.iter().sum();
    let (half, first, after) = (shapes.pick(1, 8), shapes.pick(0, 3), shapes.pick(0, 3));
    let turned = Turned {
        head_dim: first + 2 * half + after,
        first,
        interleaved: shapes.coin(),
    };
    let width = shapes.pick(1, 3) * turned.head_dim;
    let frequencies: Vec<f32> = (0..half).map(|i| 0.7_f32.powi(i as i32)).collect();
    let rotary = RopeConfig {
        frequencies: frequencies.clone(),
        long: None,
        scale: [1.0, 1.3][shapes.pick(0, 1)],
    };
    let x = shapes.array("x", &[tokens, width]);
    let dy = shapes.array("dy", &[tokens, width]);
    let rotation = Rotation::new(&RowLayout::new(lengths.iter().copied()), &rotary);
    let y = rotation.forward(&taken(&x), turned).unwrap();
    let dx = rotation.backward(&taken(&dy), turned).unwrap();
    let upstream = wide(&dy);
    let (scale, row_lengths, table) = (
        f64::from(rotary.scale),
        lengths.clone(),
        frequencies.clone(),
    );
    Case {
        op: "rope",
        settings: vec![
            ("head_dim", turned.head_dim.to_string()),
            ("first", first.to_string()),
            ("interleaved", turned.interleaved.to_string()),
            ("rotary_scale", rotary.scale.to_string()),
            ("row_lengths", joined(&lengths)),
        ],
        gradients: vec![named("dx", &dx)],
        others: vec![named("y", &y), dy, ("frequencies", vec![half], frequencies)],
        inputs: vec![x],
        ids: None,
        loss: Box::new(move |inputs| {
            let mut y = inputs[0].clone();
            let positions = row_lengths.iter().flat_map(|&len| 0..len);
            for (token, position) in y.chunks_mut(width).zip(positions) {
                for head in token.chunks_mut(turned.head_dim) {
                    for (i, frequency) in table.iter().enumerate() {
                        let angle = f64::from(position as f32 * frequency);
                        let (sin, cos) = (angle.sin() * scale, angle.cos() * scale);
                        let (i, j) = match turned.interleaved {
                            true => (first + 2 * i, first + 2 * i + 1),
                            false => (first + i, first + half + i),
                        };
                        let (a, b) = (head[i], head[j]);
                        head[i] = a * cos - b * sin;
                        head[j] = b * cos + a * sin;
                    }
                }
            }
            dot(y, &upstream)
        }),
    }
}

fn soft_capped(x: f64, cap: Option<f32>) -> f64 {
    cap.map_or(x, |cap| f64::from(cap) * (x / f64::from(cap)).tanh())
}

fn option_text(value: Option<impl ToString>) -> String {
    value.map_or("none".to_owned(), |value| value.to_string())
}

fn attention_case(seed: u64) -> Case {
    let mut shapes = Shapes::new(seed);
    let lengths = shapes.row_lengths();
    let tokens: usize = lengths.iter().sum();
    let kv_heads = shapes.pick(1, 2);
    let shape = attention::Shape {
        heads: kv_heads * shapes.pick(1, 3),
        kv_heads,
        head_dim: shapes.pick(1, 20),
        value_dim: shapes.pick(1, 20),
        scale: 0.4,
        soft_cap: shapes.coin().then_some(1.5),
        window: shapes.coin().then(|| shapes.pick(1, 30)),
    };
    let q = shapes.array("q", &[tokens, shape.heads * shape.head_dim]);
    let k = shapes.array("k", &[tokens, kv_heads * shape.head_dim]);
    let v = shapes.array("v", &[tokens, kv_heads * shape.value_dim]);
    let dy = shapes.array("dy", &[tokens, shape.heads * shape.value_dim]);
    let layout = RowLayout::new(lengths.iter().copied());
    let (tq, tk, tv) = (taken(&q), taken(&k), taken(&v));
    let y = attention::forward(&tq, &tk, &tv, &layout, shape).unwrap();
    let (dq, dk, dv) = attention::backward(&taken(&dy), &tq, &tk, &tv, &y, &layout, shape).unwrap();
    let (upstream, row_lengths) = (wide(&dy), lengths.clone());
    Case {
        op: "attention",
        settings: vec![
            ("heads", shape.heads.to_string()),
            ("kv_heads", kv_heads.to_string()),
            ("scale", shape.scale.to_string()),
            ("soft_cap", option_text(shape.soft_cap)),
            ("window", option_text(shape.window)),
            ("row_lengths", joined(&lengths)),
        ],
        gradients: vec![named("dq", &dq), named("dk", &dk), named("dv", &dv)],
        others: vec![named("y", &y), dy],
        inputs: vec![q, k, v],
        ids: None,
        loss: Box::new(move |inputs| {
            let (q, k, v) = (&inputs[0], &inputs[1], &inputs[2]);
            let (dim, v_dim) = (shape.head_dim, shape.value_dim);
            let part = |x: &[f64], token: usize, heads: usize, head: usize, dim: usize| {
                x[(token * heads + head) * dim..][..dim].to_vec()
            };
            let (mut total, mut start) = (0.0, 0);
            for &len in &row_lengths {
                for query in 0..len {
                    let first = shape
                        .window
                        .map_or(0, |window| (query + 1).saturating_sub(window));
                    for h in 0..shape.heads {
                        let kv = h / (shape.heads / kv_heads);
                        let one = part(q, start + query, shape.heads, h, dim);
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
                        let d = part(&upstream, start + query, shape.heads, h, v_dim);
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

fn latent_case(seed: u64) -> Case {
    let mut shapes = Shapes::new(seed);
    let (tokens, heads) = (shapes.pick(1, 30), shapes.pick(1, 4));
    let parts = latent::Parts {
        plain: shapes.pick(1, 8),
        rotated: shapes.pick(1, 8),
        value: shapes.pick(1, 8),
    };
    let (key, pair) = (parts.plain + parts.rotated, parts.plain + parts.value);
    let kv = shapes.array("kv", &[tokens, heads * pair]);
    let shared = shapes.array("shared", &[tokens, parts.rotated]);
    let dy_keys = shapes.array("dy_keys", &[tokens, heads * key]);
    let dy_values = shapes.array("dy_values", &[tokens, heads * parts.value]);
    let (keys, values) = latent::forward(&taken(&kv), &taken(&shared), parts).unwrap();
    let (dkv, dshared) = latent::backward(&taken(&dy_keys), &taken(&dy_values), parts).unwrap();
    let upstream = (wide(&dy_keys), wide(&dy_values));
    Case {
        op: "latent",
        settings: vec![
            ("plain", parts.plain.to_string()),
            ("value", parts.value.to_string()),
        ],
        gradients: vec![named("dkv", &dkv), named("dshared", &dshared)],
        others: vec![
            named("keys", &keys),
            named("values", &values),
            dy_keys,
            dy_values,
        ],
        inputs: vec![kv, shared],
        ids: None,
        loss: Box::new(move |inputs| {
            let mut total = 0.0;
            for (i, one) in inputs[0].chunks(pair).enumerate() {
                let shared = &inputs[1][i / heads * parts.rotated..][..parts.rotated];
                let whole = one[..parts.plain].iter().chain(shared).copied();
                total += dot(whole, &upstream.0[i * key..][..key]);
                let value = one[parts.plain..].iter().copied();
                total += dot(value, &upstream.1[i * parts.value..][..parts.value]);
            }
            total
        }),
    }
}

fn head_case(seed: u64) -> Case {
    let mut shapes = Shapes::new(seed);
    let lengths = shapes.row_lengths();
    let tokens: usize = lengths.iter().sum();
    let (width, vocab) = (shapes.pick(1, 20), shapes.pick(2, 90));
    let x = shapes.array("x", &[tokens, width]);
    let w = shapes.array("w", &[vocab, width]);
    let soft_cap = shapes.coin().then_some(2.0);
    let z_loss = [0.0, 0.25][shapes.pick(0, 1)];
    let ids: Vec<u32> = (0..tokens)
        .map(|_| shapes.pick(0, vocab - 1) as u32)
        .collect();
    let layout = RowLayout::new(lengths.iter().copied());
    let weights = shapes.array("weights", &[tokens - lengths.len()]);
    let (tx, tw) = (taken(&x), taken(&w));
    let matrix = Head {
        weight: &tw,
        soft_cap,
    };
    let log_probs = head::log_probs(&tx, matrix, &ids, &layout).unwrap();
    let dhead = zeros_f32(&tw).unwrap();
    let mut rest = weights.2.as_slice();
    let mut weigh = |outputs: RowOutputs<'_>, into: &mut [f32]| {
        let (mine, after) = rest.split_at(outputs.log_probs.len());
        into.copy_from_slice(mine);
        rest = after;
        Ok(())
    };
    let dx = head::gradients(&tx, matrix, &dhead, &ids, &layout, z_loss, &mut weigh).unwrap();
    let (factors, row_lengths, targets) = (wide(&weights), lengths.clone(), ids.clone());
    Case {
        op: "head",
        settings: vec![
            ("soft_cap", option_text(soft_cap)),
            ("z_loss", z_loss.to_string()),
            ("row_lengths", joined(&lengths)),
        ],
        gradients: vec![named("dx", &dx), named("dhead", &dhead)],
        others: vec![("log_probs", vec![log_probs.len()], log_probs), weights],
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
                    total -= factors.next().unwrap() * (target - normalizer);
                    total += f64::from(z_loss) * normalizer * normalizer;
                }
                start += len;
            }
            total
        }),
    }
}

const CASES: [fn(u64) -> Case; 7] = [
    norm_case,
    linear_case,
    mlp_case,
    rope_case,
    attention_case,
    latent_case,
    head_case,
];

/// Compares the gradient of every input with a central difference along a random direction, and along
/// single elements.
fn check(case: &Case, seed: u64) -> Result<(), TestCaseError> {
    const STEP: f64 = 1e-4;
    let inputs: Vec<Vec<f64>> = case.inputs.iter().map(wide).collect();
    let mut noise = Noise::new(seed ^ 0x5eed);
    for (i, gradient) in case.gradients.iter().enumerate() {
        let gradient_values = wide(gradient);
        let size = gradient_values.iter().map(|g| g * g).sum::<f64>().sqrt();
        let mut directions = vec![noise.vector(inputs[i].len())];
        for element in [0, inputs[i].len() / 2, inputs[i].len() - 1] {
            let mut one = vec![0.0; inputs[i].len()];
            one[element] = 1.0;
            directions.push(one);
        }
        for direction in directions {
            let direction: Vec<f64> = direction.into_iter().map(f64::from).collect();
            let at = |step: f64| {
                let mut moved = inputs.clone();
                for (x, d) in moved[i].iter_mut().zip(&direction) {
                    *x += step * d;
                }
                (case.loss)(&moved)
            };
            let slope = (at(STEP) - at(-STEP)) / (2.0 * STEP);
            let found = dot(gradient_values.iter().copied(), &direction);
            let length = direction.iter().map(|d| d * d).sum::<f64>().sqrt();
            prop_assert!(
                (found - slope).abs() < 1e-4 * (size * length).max(1e-1),
                "{} {} {:?}: {found} instead of {slope}",
                case.op,
                gradient.0,
                case.settings
            );
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn gradients_are_the_slopes_of_what_the_operations_are_by_definition(seed in any::<u64>()) {
        for make in CASES {
            check(&make(seed), seed)?;
        }
    }
}

/// Writes cases to the folder that REMIT_OPS_CASES names.
#[test]
#[ignore = "writes files for tests/oracle/test_ops.py, which runs it"]
fn ops_cases() {
    let folder = std::env::var_os("REMIT_OPS_CASES").expect("REMIT_OPS_CASES names a folder");
    let mut number = 0;
    for seed in 0..24_u64 {
        for make in CASES {
            let case = make(seed);
            let bytes = |values: &[f32]| values.iter().flat_map(|v| v.to_le_bytes()).collect();
            let mut arrays: Vec<(&str, Dtype, Vec<usize>, Vec<u8>)> = Vec::new();
            for (name, shape, values) in case
                .inputs
                .iter()
                .chain(&case.gradients)
                .chain(&case.others)
            {
                arrays.push((name, Dtype::F32, shape.clone(), bytes(values)));
            }
            if let Some(ids) = &case.ids {
                let ids_bytes = ids
                    .iter()
                    .flat_map(|id| i64::from(*id).to_le_bytes())
                    .collect();
                arrays.push(("ids", Dtype::I64, vec![ids.len()], ids_bytes));
            }
            let views: BTreeMap<&str, safetensors::tensor::TensorView<'_>> = arrays
                .iter()
                .map(|(name, dtype, shape, bytes)| {
                    let view = safetensors::tensor::TensorView::new(*dtype, shape.clone(), bytes);
                    (*name, view.unwrap())
                })
                .collect();
            let op = [("op", case.op.to_owned())];
            let settings = op.into_iter().chain(case.settings);
            let metadata = settings
                .map(|(key, value)| (key.to_owned(), value))
                .collect();
            let file = safetensors::serialize(views, Some(metadata)).unwrap();
            let name = format!("case-{number:03}.safetensors");
            crate::fs::write_atomic(&std::path::Path::new(&folder).join(name), &file).unwrap();
            number += 1;
        }
    }
}
