//! The decoder: one forward and one backward, driven by an [`Architecture`].
//!
//! Scorer and trainer share this code, so that a learner at step 0 computes the very log-probs that
//! were stored for it. Shapes: `T` tokens of a batch (all rows, side by side), `H` hidden size.

use candle_core::Tensor;
use safetensors::Dtype;

use super::Error;
use super::config::{
    Architecture, Block, EMBEDDING, FINAL_NORM, HEAD, NormPlacement, block_tensor,
};
use super::ops::attention::{self, Shape};
use super::ops::rope::Rotation;
use super::ops::{RowLayout, add_assign, linear, mlp, norm, tensor, update, view};
use super::parameters::{Gradients, ParamId, Parameter};
use super::weights::{Checkpoint, ModelSource};

/// Tokens that go through the feed-forward part of a block at a time when no gradient is needed.
const MLP_TILE_TOKENS: usize = 1024;

#[derive(Debug, Clone, Copy)]
struct Projection {
    weight: ParamId,
    bias: Option<ParamId>,
}

/// Where the parameters of one block are.
#[derive(Debug, Clone, Copy)]
struct BlockParams {
    norms: NormPlacement,
    attn_norm: ParamId,
    q: Projection,
    k: Projection,
    v: Projection,
    qk_norm: Option<(ParamId, ParamId)>,
    o: Projection,
    mlp_norm: ParamId,
    gate: Projection,
    up: Projection,
    down: Projection,
    rope: bool,
    shape: Shape,
}

/// What a block's backward needs of its forward.
struct BlockTape {
    x: Tensor,
    attn_in: Tensor,
    /// Queries and keys before their norm, when there is one.
    raw_qk: Option<(Tensor, Tensor)>,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    attn_out: Tensor,
    /// What the norm after the attention was given, when there is one.
    raw_attn: Option<Tensor>,
    middle: Tensor,
    mlp_in: Tensor,
    gate: Tensor,
    up: Tensor,
    activated: Tensor,
    /// What the norm after the feed-forward layer was given, when there is one.
    raw_mlp: Option<Tensor>,
}

/// What [`Decoder::backward`] needs of [`Decoder::forward`].
pub(crate) struct Tape {
    blocks: Vec<BlockTape>,
    last: Tensor,
}

/// One batch: the tokens of its rows, side by side.
pub(crate) struct Batch {
    /// Token ids, `[T]`.
    pub ids: Vec<u32>,
    /// Which tokens belong to which row.
    pub layout: RowLayout,
    rotation: Rotation,
}

/// A language model in memory.
#[derive(Debug)]
pub struct Decoder {
    name: String,
    architecture: Architecture,
    parameters: Vec<Parameter>,
    blocks: Vec<BlockParams>,
    embedding: ParamId,
    final_norm: ParamId,
    head: ParamId,
}

impl Decoder {
    /// Reads config.json and the weights, as f32. Everything is checked before a tensor is read.
    pub fn load(source: &ModelSource) -> Result<Self, Error> {
        let architecture = source.architecture()?;
        let checkpoint = Checkpoint::open(source)?;
        checkpoint.verify(&architecture)?;
        Self::from_checkpoint(source, architecture, &checkpoint)
    }

    fn from_checkpoint(
        source: &ModelSource,
        architecture: Architecture,
        checkpoint: &Checkpoint,
    ) -> Result<Self, Error> {
        let mut parameters = Vec::new();
        for (name, shape) in architecture.tensors() {
            let values = checkpoint.load(&name)?;
            parameters.push(Parameter {
                stored_dtype: checkpoint.dtype(&name).unwrap_or(Dtype::F32),
                tensor: tensor(values, shape)?,
                name,
            });
        }
        let find = |name: &str| {
            parameters
                .iter()
                .position(|parameter| parameter.name == name)
                .ok_or(Error::Internal(
                    "a block names a tensor that the architecture lacks",
                ))
        };
        let blocks = architecture
            .blocks
            .iter()
            .enumerate()
            .map(|(i, block)| BlockParams::find(i, block, &find))
            .collect::<Result<_, _>>()?;
        let embedding = find(EMBEDDING)?;
        Ok(Self {
            name: source.to_string(),
            embedding,
            final_norm: find(FINAL_NORM)?,
            head: if architecture.tied_head {
                embedding
            } else {
                find(HEAD)?
            },
            blocks,
            architecture,
            parameters,
        })
    }

    /// The description that the model was built from.
    pub fn architecture(&self) -> &Architecture {
        &self.architecture
    }

    /// The model's path, or its name if it is built in.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Every parameter, in the order of the forward pass.
    pub fn parameters(&self) -> &[Parameter] {
        &self.parameters
    }

    /// Bytes of activations that scoring holds for a token, at the peak.
    pub fn scoring_bytes_per_token(&self) -> usize {
        let widest = self
            .architecture
            .blocks
            .iter()
            .map(|b| 3 * b.num_heads * b.head_dim + 4 * b.num_kv_heads * b.head_dim)
            .max()
            .unwrap_or(0);
        (widest + 4 * self.architecture.hidden_size) * size_of::<f32>()
    }

    /// Lets `f` change the parameter at `index`, given the sum of its gradients.
    pub(crate) fn update_parameter(
        &self,
        index: ParamId,
        gradients: &Gradients,
        mut f: impl FnMut(&mut [f32], &[f32]),
    ) -> Result<(), Error> {
        let gradient: &[f32] = &view(gradients.sum_of(index, self)?)?;
        update(self.weight(index), |parameter| f(parameter, gradient))
    }

    fn weight(&self, id: ParamId) -> &Tensor {
        &self.parameters[id].tensor
    }

    /// The output head, `[vocab, H]`.
    pub(crate) fn head(&self) -> (ParamId, &Tensor) {
        (self.head, self.weight(self.head))
    }

    /// Puts rows side by side, after checking that every id has an embedding.
    pub(crate) fn batch(&self, rows: &[&[u32]]) -> Result<Batch, Error> {
        let vocab_size = self.architecture.vocab_size;
        for row in rows {
            if let Some(position) = row.iter().position(|&id| id as usize >= vocab_size) {
                return Err(Error::TokenOutOfRange {
                    id: row[position],
                    position,
                    vocab_size,
                });
            }
        }
        let layout = RowLayout::new(rows.iter().map(|row| row.len()));
        let rotation = Rotation::new(&layout.positions(), &self.architecture.rope_frequencies);
        Ok(Batch {
            ids: rows.concat(),
            layout,
            rotation,
        })
    }

    /// Final hidden states, normalized: `[T, H]`; with a tape, what the backward needs is kept.
    pub(crate) fn forward(&self, batch: &Batch, tape: Option<&mut Tape>) -> Result<Tensor, Error> {
        let mut x = self.embed(&batch.ids)?;
        match tape {
            None => {
                for block in &self.blocks {
                    x = self.block_forward(block, x, batch, None)?;
                }
                self.norm(&x, self.final_norm)
            }
            Some(tape) => {
                for block in &self.blocks {
                    x = self.block_forward(block, x, batch, Some(&mut tape.blocks))?;
                }
                tape.last = x;
                self.norm(&tape.last, self.final_norm)
            }
        }
    }

    /// An empty tape for [`Decoder::forward`].
    pub(crate) fn tape(&self) -> Result<Tape, Error> {
        Ok(Tape {
            blocks: Vec::with_capacity(self.blocks.len()),
            last: tensor(Vec::new(), (0, self.architecture.hidden_size))?,
        })
    }

    /// Adds the gradients of all parameters but the head, given the gradient of what
    /// [`Decoder::forward`] returned.
    pub(crate) fn backward(
        &self,
        batch: &Batch,
        tape: Tape,
        d_hidden: &Tensor,
        grads: &mut Gradients,
    ) -> Result<(), Error> {
        let mut dx = self.norm_backward(d_hidden, &tape.last, self.final_norm, grads, None)?;
        let mut tapes = tape.blocks;
        for block in self.blocks.iter().rev() {
            let tape = tapes.pop().ok_or(Error::Internal("a tape is too short"))?;
            dx = self.block_backward(block, dx, tape, batch, grads)?;
        }
        self.embed_backward(&batch.ids, &dx, grads)
    }

    fn embed(&self, ids: &[u32]) -> Result<Tensor, Error> {
        let hidden = self.architecture.hidden_size;
        let table: &[f32] = &view(self.weight(self.embedding))?;
        let mut x = Vec::with_capacity(ids.len() * hidden);
        for &id in ids {
            let at = id as usize * hidden;
            x.extend_from_slice(&table[at..at + hidden]);
        }
        tensor(x, (ids.len(), hidden))
    }

    fn embed_backward(&self, ids: &[u32], dx: &Tensor, grads: &mut Gradients) -> Result<(), Error> {
        let hidden = self.architecture.hidden_size;
        let sum = grads.sum(self.embedding, self.weight(self.embedding))?;
        let dx: &[f32] = &view(dx)?;
        update(&sum, |sum| {
            for (&id, dx) in ids.iter().zip(dx.chunks_exact(hidden)) {
                let at = id as usize * hidden;
                for (sum, dx) in sum[at..at + hidden].iter_mut().zip(dx) {
                    *sum += dx;
                }
            }
        })
    }

    fn norm(&self, x: &Tensor, weight: ParamId) -> Result<Tensor, Error> {
        norm::forward(x, self.weight(weight), self.architecture.norm_eps)
    }

    fn norm_backward(
        &self,
        dy: &Tensor,
        x: &Tensor,
        weight: ParamId,
        grads: &mut Gradients,
        onto: Option<Tensor>,
    ) -> Result<Tensor, Error> {
        let w = self.weight(weight);
        let sum = grads.sum(weight, w)?;
        norm::backward(dy, x, w, self.architecture.norm_eps, &sum, onto)
    }

    fn project(&self, x: &Tensor, p: Projection) -> Result<Tensor, Error> {
        linear::forward(x, self.weight(p.weight), p.bias.map(|b| self.weight(b)))
    }

    /// Adds the gradients of a projection's parameters and returns that of its input.
    fn project_backward(
        &self,
        dy: &Tensor,
        x: &Tensor,
        p: Projection,
        grads: &mut Gradients,
        onto: Option<Tensor>,
    ) -> Result<Tensor, Error> {
        let w = self.weight(p.weight);
        linear::accumulate_weight(&grads.sum(p.weight, w)?, dy, x)?;
        if let Some(bias) = p.bias {
            linear::accumulate_bias(&grads.sum(bias, self.weight(bias))?, dy)?;
        }
        linear::backward_input(dy, w, onto)
    }

    /// What a sublayer is given: `x`, normalized if the norm stands before it.
    fn enter(&self, x: &Tensor, norm: ParamId, norms: NormPlacement) -> Result<Tensor, Error> {
        match norms {
            NormPlacement::Before => self.norm(x, norm),
            NormPlacement::After => Ok(x.clone()),
        }
    }

    /// What a sublayer adds to the residual stream, given what it computed; and that itself, if a
    /// norm stands in between.
    fn leave(
        &self,
        y: Tensor,
        norm: ParamId,
        norms: NormPlacement,
    ) -> Result<(Tensor, Option<Tensor>), Error> {
        match norms {
            NormPlacement::Before => Ok((y, None)),
            NormPlacement::After => Ok((self.norm(&y, norm)?, Some(y))),
        }
    }

    /// The gradient of what [`Decoder::leave`] was given.
    fn leave_backward(
        &self,
        dy: &Tensor,
        raw: Option<&Tensor>,
        norm: ParamId,
        grads: &mut Gradients,
    ) -> Result<Tensor, Error> {
        match raw {
            None => Ok(dy.clone()),
            Some(raw) => self.norm_backward(dy, raw, norm, grads, None),
        }
    }

    /// The gradient of `x` in `x + sublayer(enter(x))`: `dy` of the sum, with what came through
    /// the sublayer, `d_in`, added.
    fn enter_backward(
        &self,
        d_in: &Tensor,
        x: &Tensor,
        norm: ParamId,
        norms: NormPlacement,
        grads: &mut Gradients,
        dy: Tensor,
    ) -> Result<Tensor, Error> {
        match norms {
            NormPlacement::Before => self.norm_backward(d_in, x, norm, grads, Some(dy)),
            NormPlacement::After => {
                add_assign(&dy, d_in)?;
                Ok(dy)
            }
        }
    }

    fn block_forward(
        &self,
        p: &BlockParams,
        x: Tensor,
        batch: &Batch,
        tapes: Option<&mut Vec<BlockTape>>,
    ) -> Result<Tensor, Error> {
        let attn_in = self.enter(&x, p.attn_norm, p.norms)?;
        let mut q = self.project(&attn_in, p.q)?;
        let mut k = self.project(&attn_in, p.k)?;
        let v = self.project(&attn_in, p.v)?;
        let mut raw_qk = None;
        if let Some((q_norm, k_norm)) = p.qk_norm {
            let normed = (self.norm(&q, q_norm)?, self.norm(&k, k_norm)?);
            raw_qk = tapes.is_some().then_some((q, k));
            (q, k) = normed;
        }
        if p.rope {
            q = batch.rotation.forward(&q, p.shape.head_dim)?;
            k = batch.rotation.forward(&k, p.shape.head_dim)?;
        }
        let attn_out = attention::forward(&q, &k, &v, &batch.layout, p.shape)?;

        let Some(tapes) = tapes else {
            drop((attn_in, q, k, v));
            let (y, _) = self.leave(self.project(&attn_out, p.o)?, p.attn_norm, p.norms)?;
            drop(attn_out);
            add_assign(&x, &y)?;
            drop(y);
            // A token's result does not depend on the tile it is in, so tiles only bound memory.
            let tokens = batch.layout.num_tokens();
            for start in (0..tokens).step_by(MLP_TILE_TOKENS) {
                let part = x.narrow(0, start, MLP_TILE_TOKENS.min(tokens - start))?;
                let mlp_in = self.enter(&part, p.mlp_norm, p.norms)?;
                let gate = self.project(&mlp_in, p.gate)?;
                let up = self.project(&mlp_in, p.up)?;
                let activated = mlp::forward(&gate, &up)?;
                let (y, _) = self.leave(self.project(&activated, p.down)?, p.mlp_norm, p.norms)?;
                add_assign(&part, &y)?;
            }
            return Ok(x);
        };

        let (middle, raw_attn) = self.leave(self.project(&attn_out, p.o)?, p.attn_norm, p.norms)?;
        add_assign(&middle, &x)?;
        let mlp_in = self.enter(&middle, p.mlp_norm, p.norms)?;
        let gate = self.project(&mlp_in, p.gate)?;
        let up = self.project(&mlp_in, p.up)?;
        let activated = mlp::forward(&gate, &up)?;
        let (y, raw_mlp) = self.leave(self.project(&activated, p.down)?, p.mlp_norm, p.norms)?;
        add_assign(&y, &middle)?;
        tapes.push(BlockTape {
            x,
            attn_in,
            raw_qk,
            q,
            k,
            v,
            attn_out,
            raw_attn,
            middle,
            mlp_in,
            gate,
            up,
            activated,
            raw_mlp,
        });
        Ok(y)
    }

    fn block_backward(
        &self,
        p: &BlockParams,
        dy: Tensor,
        tape: BlockTape,
        batch: &Batch,
        grads: &mut Gradients,
    ) -> Result<Tensor, Error> {
        // y = middle + leave(down(silu(gate) * up))
        let d_mlp = self.leave_backward(&dy, tape.raw_mlp.as_ref(), p.mlp_norm, grads)?;
        let d_activated = self.project_backward(&d_mlp, &tape.activated, p.down, grads, None)?;
        drop(d_mlp);
        let (d_gate, d_up) = mlp::backward(&d_activated, &tape.gate, &tape.up)?;
        drop(d_activated);
        let d_in = self.project_backward(&d_gate, &tape.mlp_in, p.gate, grads, None)?;
        let d_in = self.project_backward(&d_up, &tape.mlp_in, p.up, grads, Some(d_in))?;
        drop((d_gate, d_up));
        let d_middle = self.enter_backward(&d_in, &tape.middle, p.mlp_norm, p.norms, grads, dy)?;

        // middle = x + leave(o(attention(q, k, v)))
        let d_o = self.leave_backward(&d_middle, tape.raw_attn.as_ref(), p.attn_norm, grads)?;
        let d_attn = self.project_backward(&d_o, &tape.attn_out, p.o, grads, None)?;
        drop(d_o);
        let (mut dq, mut dk, dv) = attention::backward(
            &d_attn,
            &tape.q,
            &tape.k,
            &tape.v,
            &tape.attn_out,
            &batch.layout,
            p.shape,
        )?;
        drop(d_attn);
        if p.rope {
            dq = batch.rotation.backward(&dq, p.shape.head_dim)?;
            dk = batch.rotation.backward(&dk, p.shape.head_dim)?;
        }
        if let (Some((q_norm, k_norm)), Some((raw_q, raw_k))) = (p.qk_norm, &tape.raw_qk) {
            dq = self.norm_backward(&dq, raw_q, q_norm, grads, None)?;
            dk = self.norm_backward(&dk, raw_k, k_norm, grads, None)?;
        }
        let d_in = self.project_backward(&dq, &tape.attn_in, p.q, grads, None)?;
        let d_in = self.project_backward(&dk, &tape.attn_in, p.k, grads, Some(d_in))?;
        let d_in = self.project_backward(&dv, &tape.attn_in, p.v, grads, Some(d_in))?;
        self.enter_backward(&d_in, &tape.x, p.attn_norm, p.norms, grads, d_middle)
    }
}

impl BlockParams {
    fn find(
        i: usize,
        block: &Block,
        find: &impl Fn(&str) -> Result<ParamId, Error>,
    ) -> Result<Self, Error> {
        let id = |name: &str| find(&block_tensor(i, name));
        let projection = |name: &str, has_bias: bool| -> Result<Projection, Error> {
            Ok(Projection {
                weight: id(&format!("{name}.weight"))?,
                bias: has_bias.then(|| id(&format!("{name}.bias"))).transpose()?,
            })
        };
        let [attn_norm, mlp_norm] = block.norms.tensor_names();
        Ok(Self {
            norms: block.norms,
            attn_norm: id(attn_norm)?,
            q: projection("self_attn.q_proj", block.qkv_bias)?,
            k: projection("self_attn.k_proj", block.qkv_bias)?,
            v: projection("self_attn.v_proj", block.qkv_bias)?,
            qk_norm: if block.qk_norm.is_some() {
                Some((
                    id("self_attn.q_norm.weight")?,
                    id("self_attn.k_norm.weight")?,
                ))
            } else {
                None
            },
            o: projection("self_attn.o_proj", block.output_bias)?,
            mlp_norm: id(mlp_norm)?,
            gate: projection("mlp.gate_proj", block.mlp_bias)?,
            up: projection("mlp.up_proj", block.mlp_bias)?,
            down: projection("mlp.down_proj", block.mlp_bias)?,
            rope: block.rope,
            shape: Shape {
                heads: block.num_heads,
                kv_heads: block.num_kv_heads,
                head_dim: block.head_dim,
                scale: (block.head_dim as f32).sqrt().recip(),
                window: block.window,
            },
        })
    }
}
