//! Random cases of every differentiable operation, each with its definition in f64.

use candle_core::Tensor;

use crate::model::architecture::{Activation, RopeConfig};
use crate::model::kernels::cpu::simd::Noise;
use crate::model::kernels::tensor::{tensor, to_host, zeros_f32};
use crate::model::kernels::{
    AttentionShape, Kernels, LmHead, LmLoss, MlaDims, Qkv, RmsNorm, Rope, RopeDirection,
    RopeLayout, RopeTable, RowOutputs,
};
use crate::model::row_layout::RowLayout;

/// A named array: shape and elements, row-major.
pub type Array = (&'static str, Vec<usize>, Vec<f32>);

/// What is summed to one number, of inputs in f64.
pub type Loss = Box<dyn Fn(&[Vec<f64>]) -> f64>;

/// One operation on one set of inputs, computed by one backend.
pub struct Case {
    pub op: &'static str,
    pub settings: Vec<(&'static str, String)>,
    /// Inputs that gradients are taken of.
    pub inputs: Vec<Array>,
    /// The backend's gradient of each input, and the name of it.
    pub gradients: Vec<Array>,
    /// The backend's outputs.
    pub outputs: Vec<Array>,
    /// Upstream gradients and constants.
    pub constants: Vec<Array>,
    /// Token ids, where there are any.
    pub ids: Option<Vec<u32>>,
    /// The outputs, each times its upstream gradient, summed: by definition, in f64.
    pub loss: Loss,
    /// The same of the backend's outputs.
    pub found_loss: f64,
}

/// All of them.
pub const CASES: [fn(&dyn Kernels, u64) -> Case; 10] = [
    norm_case,
    add_norm_case,
    linear_case,
    glu_case,
    rope_case,
    norm_rope_case,
    attention_case,
    mla_case,
    embedding_case,
    lm_head_case,
];

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

fn taken(array: &Array, kernels: &dyn Kernels) -> Tensor {
    let values = tensor(array.2.clone(), array.1.clone()).unwrap();
    values.to_device(kernels.device()).unwrap()
}

fn named(name: &'static str, tensor: &Tensor) -> Array {
    (name, tensor.dims().to_vec(), to_host(tensor).unwrap())
}

pub fn wide(array: &Array) -> Vec<f64> {
    array.2.iter().map(|v| f64::from(*v)).collect()
}

pub fn dot(a: impl IntoIterator<Item = f64>, b: &[f64]) -> f64 {
    a.into_iter().zip(b).map(|(a, b)| a * b).sum()
}

/// RMS norm by its definition.
fn normed(x: &[f64], w: &[f64], eps: f32, offset: f32) -> Vec<f64> {
    let groups = x.chunks(w.len()).flat_map(|group| {
        let mean = group.iter().map(|x| x * x).sum::<f64>() / w.len() as f64;
        let r = (mean + f64::from(eps)).sqrt().recip();
        let pairs = group.iter().zip(w);
        pairs.map(move |(x, w)| x * r * (f64::from(offset) + w))
    });
    groups.collect()
}

fn norm_case(kernels: &dyn Kernels, seed: u64) -> Case {
    let mut shapes = Shapes::new(seed);
    let lengths = shapes.row_lengths();
    let (tokens, groups, width) = (lengths.iter().sum(), shapes.pick(1, 3), shapes.pick(1, 40));
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

fn linear_case(kernels: &dyn Kernels, seed: u64) -> Case {
    let mut shapes = Shapes::new(seed);
    let lengths = shapes.row_lengths();
    let (tokens, inner, out) = (lengths.iter().sum(), shapes.pick(1, 70), shapes.pick(1, 70));
    let x = shapes.array("x", &[tokens, inner]);
    let w = shapes.array("w", &[out, inner]);
    let b = shapes.coin().then(|| shapes.array("b", &[out]));
    let dy = shapes.array("dy", &[tokens, out]);
    let added = shapes.array("added", &[tokens, inner]);
    let layout = RowLayout::new(lengths);
    let (tx, tw, tdy) = (taken(&x, kernels), taken(&w, kernels), taken(&dy, kernels));
    let tb = b.as_ref().map(|b| taken(b, kernels));
    let y = kernels.linear(&tx, &tw, tb.as_ref()).unwrap();
    let dx = kernels
        .linear_backward_input(&tdy, &tw, Some(taken(&added, kernels)))
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
    let (upstream, added_wide) = (wide(&dy), wide(&added));
    Case {
        op: "linear",
        settings: Vec::new(),
        gradients,
        found_loss: dot(wide(&named("y", &y)), &wide(&dy)) + dot(wide(&x), &wide(&added)),
        outputs: vec![named("y", &y)],
        constants: vec![dy, added],
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

fn glu_case(kernels: &dyn Kernels, seed: u64) -> Case {
    let mut shapes = Shapes::new(seed);
    let shape = [shapes.pick(1, 30), shapes.pick(1, 40)];
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

fn rope_case(kernels: &dyn Kernels, seed: u64) -> Case {
    let mut shapes = Shapes::new(seed);
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
    let table = RopeTable::new(&layout, &config, kernels.device()).unwrap();
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

/// Norms of heads, then RoPE.
fn norm_rope_case(kernels: &dyn Kernels, seed: u64) -> Case {
    let mut shapes = Shapes::new(seed);
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
    let w = shapes.array("w", &[features.head_dim]);
    let dy = shapes.array("dy", &[tokens, width]);
    let layout = RowLayout::new(lengths.iter().copied());
    let table = RopeTable::new(&layout, &config, kernels.device()).unwrap();
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

/// A residual stream that something is added to, and its norm: the gradient arrives at the sum from both.
fn add_norm_case(kernels: &dyn Kernels, seed: u64) -> Case {
    let mut shapes = Shapes::new(seed);
    let lengths = shapes.row_lengths();
    let (tokens, width) = (lengths.iter().sum(), shapes.pick(1, 40));
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

fn embedding_case(kernels: &dyn Kernels, seed: u64) -> Case {
    let mut shapes = Shapes::new(seed);
    let (tokens, vocab, width) = (shapes.pick(1, 40), shapes.pick(1, 20), shapes.pick(1, 20));
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

fn soft_capped(x: f64, cap: Option<f32>) -> f64 {
    cap.map_or(x, |cap| f64::from(cap) * (x / f64::from(cap)).tanh())
}

fn option_text(value: Option<impl ToString>) -> String {
    value.map_or("none".to_owned(), |value| value.to_string())
}

fn attention_case(kernels: &dyn Kernels, seed: u64) -> Case {
    let mut shapes = Shapes::new(seed);
    let lengths = shapes.row_lengths();
    let tokens: usize = lengths.iter().sum();
    let kv_heads = shapes.pick(1, 2);
    let shape = AttentionShape {
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
    let (tq, tk, tv) = (taken(&q, kernels), taken(&k, kernels), taken(&v, kernels));
    let qkv = Qkv {
        q: &tq,
        k: &tk,
        v: &tv,
    };
    let y = kernels.attention(qkv, &layout, shape).unwrap();
    let (dq, dk, dv) = kernels
        .attention_backward(&taken(&dy, kernels), qkv, &y, &layout, shape)
        .unwrap();
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
        found_loss: dot(wide(&named("y", &y)), &wide(&dy)),
        outputs: vec![named("y", &y)],
        constants: vec![dy],
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

fn mla_case(kernels: &dyn Kernels, seed: u64) -> Case {
    let mut shapes = Shapes::new(seed);
    let (tokens, heads) = (shapes.pick(1, 30), shapes.pick(1, 4));
    let dims = MlaDims {
        nope: shapes.pick(1, 8),
        rope: shapes.pick(1, 8),
        value: shapes.pick(1, 8),
    };
    let (key, own) = (dims.key(), dims.own());
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

fn lm_head_case(kernels: &dyn Kernels, seed: u64) -> Case {
    let mut shapes = Shapes::new(seed);
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
    let weights = shapes.array("weights", &[tokens - lengths.len()]);
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
    };
    let dx = kernels
        .lm_head_backward(&tx, head, &dhead, &ids, &layout, loss)
        .unwrap();
    let mut found_loss = 0.0;
    for ((log_prob, weight), s) in log_probs.iter().zip(&weights.2).zip(normalizers) {
        found_loss -= f64::from(*weight) * f64::from(*log_prob);
        found_loss += f64::from(z_loss.unwrap_or(0.0)) * s * s;
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
                    total -= factors.next().unwrap() * (target - normalizer);
                    total += f64::from(z_loss.unwrap_or(0.0)) * normalizer * normalizer;
                }
                start += len;
            }
            total
        }),
    }
}
