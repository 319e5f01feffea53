//! The decoder: one forward and one backward, driven by an [`Architecture`].
//!
//! Scorer and trainer share this code, so that a learner at step 0 computes the very log-probs that
//! were stored for it. Shapes: `T` tokens of a batch (all rows, side by side), `H` hidden size.

use candle_core::Tensor;
use safetensors::Dtype;

use super::Error;
use super::architecture::{Architecture, EMBEDDING, FINAL_NORM, HEAD};
use super::block::BlockTape;
use super::block_params::{BlockParams, Norm};
use super::device::{Compute, ComputeDtype};
use super::files::{ModelSource, OpenModel};
use super::head::Head;
use super::memory;
use super::ops::adamw::{self, Moments};
use super::ops::rope::Rotation;
use super::ops::{RowLayout, assign, is_ours, lookup, lookup_backward, narrowed, tensor};
use super::parameters::{BatchGradients, Gradients, ParamId, Parameter};

/// What [`Decoder::backward`] needs of [`Decoder::forward`].
pub(crate) struct Tape {
    blocks: Kept,
    last: Tensor,
}

/// What is kept of the blocks.
enum Kept {
    /// Everything that their backward needs.
    Tapes(Vec<BlockTape>),
    /// What they were given.
    Inputs(Vec<Tensor>),
}

/// One batch: the tokens of its rows, side by side.
pub(crate) struct Batch {
    /// Token ids, `[T]`.
    pub ids: Vec<u32>,
    /// Which tokens belong to which row.
    pub layout: RowLayout,
    /// One for each of the architecture's.
    rotations: Vec<Rotation>,
}

impl Batch {
    /// The rotation that a block asks for.
    pub(super) fn rotation(&self, index: Option<usize>) -> Result<Option<&Rotation>, Error> {
        index
            .map(|index| {
                self.rotations.get(index).ok_or(Error::Internal(
                    "a block names a rotation that the architecture lacks",
                ))
            })
            .transpose()
    }
}

/// A language model in memory.
#[derive(Debug)]
pub struct Decoder {
    name: String,
    architecture: Architecture,
    parameters: Vec<Parameter>,
    blocks: Vec<BlockParams>,
    embedding: ParamId,
    final_norm: Norm,
    head: ParamId,
    /// Dtype of the copy of a tied head that the checkpoint stores beside the embedding.
    second_head: Option<Dtype>,
}

impl Decoder {
    /// Reads config.json and the weights to compute in f32 on the CPU. Everything is checked before a
    /// tensor is read.
    pub fn load(source: &ModelSource) -> Result<Self, Error> {
        Self::load_on(source, &Compute::default())
    }

    /// [`Decoder::load`] for another device or dtype.
    ///
    /// # Errors
    ///
    /// As [`Decoder::load`], and when the device has not enough memory.
    pub fn load_on(source: &ModelSource, compute: &Compute) -> Result<Self, Error> {
        Self::from_open(&OpenModel::open(source)?, compute)
    }

    /// Loads the weights of a model that is open.
    ///
    /// # Errors
    ///
    /// [`Error::NotFinite`] when a weight is NaN or infinite, and when the device has not enough memory.
    pub fn from_open(model: &OpenModel, compute: &Compute) -> Result<Self, Error> {
        let (architecture, weights) = (model.architecture().clone(), model.weights());
        if compute.trained {
            memory::keep_freed();
        }
        let mut parameters = Vec::new();
        for (name, shape) in architecture.tensors() {
            let values = weights.load(&name)?;
            // Vectors stay f32: they are small, and enter where the computation is f32 anyway.
            let (tensor, master) = match compute.dtype {
                ComputeDtype::Bf16 if shape.len() > 1 => {
                    let narrow = narrowed(&values, shape.clone())?;
                    let master = compute.trained.then(|| tensor(values, shape)).transpose()?;
                    (narrow, master)
                }
                _ => (tensor(values, shape)?, None),
            };
            parameters.push(Parameter {
                stored_dtype: weights.dtype(&name).unwrap_or(Dtype::F32),
                tensor: compute.device.take(tensor)?,
                master: master.map(|t| compute.device.take(t)).transpose()?,
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
        let blocks = (0..architecture.blocks.len())
            .map(|i| BlockParams::find(i, &architecture, &find))
            .collect::<Result<_, _>>()?;
        let embedding = find(EMBEDDING)?;
        Ok(Self {
            name: model.source().to_string(),
            second_head: weights.dtype(HEAD).filter(|_| architecture.tied_head),
            embedding,
            final_norm: Norm::new(find(FINAL_NORM)?, architecture.norm_eps, &architecture),
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

    /// Changes the parameter at `index` by one step of AdamW, given the sum of its gradients.
    pub(crate) fn adamw_step(
        &self,
        index: ParamId,
        gradients: &Gradients,
        moments: &mut Moments,
        step: adamw::Step,
    ) -> Result<(), Error> {
        let gradient = gradients.sum_of(index, self)?;
        adamw::step(self.parameters[index].value(), gradient, moments, step)?;
        self.round(index)
    }

    /// Takes what a parameter computes with from its f32 original, if it has one.
    fn round(&self, index: ParamId) -> Result<(), Error> {
        let Parameter { tensor, master, .. } = &self.parameters[index];
        match master {
            Some(master) => assign(tensor, master),
            None => Ok(()),
        }
    }

    /// Sets the elements of the parameter at `index`, row-major.
    pub(crate) fn set_parameter(&self, index: ParamId, values: Vec<f32>) -> Result<(), Error> {
        let value = self.parameters[index].value();
        assign(
            value,
            &tensor(values, value.shape())?.to_device(value.device())?,
        )?;
        self.round(index)
    }

    /// Zero moments of the parameter at `index`.
    pub(crate) fn zero_moments(&self, index: ParamId) -> Result<Moments, Error> {
        Moments::of(self.parameters[index].value())
    }

    pub(super) fn weight(&self, id: ParamId) -> &Tensor {
        &self.parameters[id].tensor
    }

    /// What a file has to hold: every parameter, and a tied head's copy if it was stored.
    pub(crate) fn stored(&self) -> impl Iterator<Item = (&str, &Tensor, Dtype)> {
        let embedding = &self.parameters[self.embedding];
        let copy = self
            .second_head
            .map(|dtype| (HEAD, embedding.value(), dtype));
        self.parameters
            .iter()
            .map(|p| (p.name.as_str(), p.value(), p.stored_dtype))
            .chain(copy)
    }

    /// The output head, `[vocab, H]`.
    pub(crate) fn head(&self) -> (ParamId, Head<'_>) {
        let head = Head {
            weight: self.weight(self.head),
            soft_cap: self.architecture.logit_soft_cap,
        };
        (self.head, head)
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
        let ropes = self.architecture.ropes.iter();
        let rotations = ropes.map(|rope| Rotation::new(&layout, rope)).collect();
        Ok(Batch {
            ids: rows.concat(),
            layout,
            rotations,
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
                    x = match &mut tape.blocks {
                        Kept::Tapes(tapes) => self.block_forward(block, x, batch, Some(tapes))?,
                        Kept::Inputs(inputs) => {
                            // A copy, since a block without a tape overwrites its input.
                            inputs.push(x.copy()?);
                            self.block_forward(block, x, batch, None)?
                        }
                    };
                }
                tape.last = x;
                self.norm(&tape.last, self.final_norm)
            }
        }
    }

    /// An empty tape for [`Decoder::forward`]; with checkpointing it keeps the blocks' inputs only.
    pub(crate) fn tape(&self, checkpointing: bool) -> Result<Tape, Error> {
        let num_blocks = self.blocks.len();
        Ok(Tape {
            blocks: match checkpointing {
                false => Kept::Tapes(Vec::with_capacity(num_blocks)),
                true => Kept::Inputs(Vec::with_capacity(num_blocks)),
            },
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
        let grads = &mut BatchGradients {
            sums: grads,
            layout: &batch.layout,
        };
        let Tape { mut blocks, last } = tape;
        let mut dx = self.norm_backward(d_hidden, &last, self.final_norm, grads, None)?;
        drop(last);
        const TOO_SHORT: Error = Error::Internal("a tape is too short");
        for block in self.blocks.iter().rev() {
            let tape = match &mut blocks {
                Kept::Tapes(tapes) => tapes.pop().ok_or(TOO_SHORT)?,
                Kept::Inputs(inputs) => {
                    let x = inputs.pop().ok_or(TOO_SHORT)?;
                    let mut tape = Vec::with_capacity(1);
                    self.block_forward(block, x, batch, Some(&mut tape))?;
                    tape.pop().ok_or(TOO_SHORT)?
                }
            };
            dx = self.block_backward(block, dx, tape, batch, grads)?;
        }
        self.embed_backward(&batch.ids, &dx, grads.sums)
    }

    fn embed(&self, ids: &[u32]) -> Result<Tensor, Error> {
        let scale = self.architecture.embedding_scale;
        lookup(self.weight(self.embedding), ids, scale)
    }

    fn embed_backward(&self, ids: &[u32], dx: &Tensor, grads: &mut Gradients) -> Result<(), Error> {
        let (embedding, scale) = (self.embedding, self.architecture.embedding_scale);
        if self.head == embedding && is_ours(dx) {
            return grads.add_lookups(embedding, ids, dx, scale);
        }
        let sum = grads.sum(embedding, self.weight(embedding))?;
        lookup_backward(&sum, ids, dx, scale)
    }
}
