//! The decoder: one forward and one backward, driven by an [`Architecture`].
//!
//! Scorer and trainer share this code, so that a learner at step 0 computes the very log-probs that
//! were stored for it. Shapes are written as in [`super::kernels`]'s trait.

use candle_core::Tensor;
use safetensors::Dtype;

use super::Error;
use super::architecture::{Architecture, LM_HEAD};
use super::batch::Batch;
use super::block::BlockTape;
use super::block_params::Layers;
use super::device::Compute;
use super::files::{ModelSource, OpenModel};
use super::gradients::Gradients;
use super::kernels::{HeadOutputs, Kernels, LmHead, LmLoss, SoftLoss, WeightFn};
use super::parameters::Parameters;
use super::pass::{OTHER_TAPE, Pass};
use crate::types::{DistributionPlan, Distributions, TokenId, TopTokens};

/// Options of [`Decoder::accumulate_gradients`].
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Backward {
    /// Coefficient of the squared log-sum-exp of the logits; `None` for no such term.
    pub z_loss: Option<f32>,
    /// Keeps only the inputs of blocks, and computes each block a second time when its gradients are.
    /// Changes no bit of the result on the CPU; costs about a third more time.
    pub activation_checkpointing: bool,
}

/// Everything that the backward reads of the forward.
struct Tape {
    blocks: BlocksTape,
    /// The residual stream after the last block.
    last: Tensor,
}

/// The blocks' part of a [`Tape`].
enum BlocksTape {
    /// Everything that their backward reads.
    Tapes(Vec<BlockTape>),
    /// Their inputs.
    Inputs(Vec<Tensor>),
}

/// A language model in memory.
#[derive(Debug)]
pub struct Decoder {
    name: String,
    architecture: Architecture,
    parameters: Parameters,
    layers: Layers,
    /// Dtype of the copy of a tied head that the checkpoint stores beside the embedding.
    second_head: Option<Dtype>,
}

impl Decoder {
    /// Reads config.json and the weights to compute in f32 on the CPU. Everything is checked before a
    /// tensor is read.
    ///
    /// # Errors
    ///
    /// When a file can't be read, or the model is not one that is implemented.
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
        let (layers, tensors) = Layers::declare(&architecture);
        Ok(Self {
            name: model.source().to_string(),
            parameters: Parameters::load(&tensors, weights, compute)?,
            second_head: weights.dtype(LM_HEAD).filter(|_| architecture.tied_head),
            layers,
            architecture,
        })
    }

    /// Returns the description that the model was built from.
    pub fn architecture(&self) -> &Architecture {
        &self.architecture
    }

    /// Returns the model's path, or its name if it is built in.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns every parameter, in the order of the forward pass.
    pub fn parameters(&self) -> &Parameters {
        &self.parameters
    }

    /// Returns every parameter, for an optimizer to change.
    pub fn parameters_mut(&mut self) -> &mut Parameters {
        &mut self.parameters
    }

    /// Returns the most tokens of a scored batch: what fits the device's budget for activations.
    pub fn max_batch_tokens(&self) -> usize {
        let per_token = self.architecture.scoring_bytes_per_token().max(1);
        (self.kernels().scoring_budget_bytes() / per_token).max(1)
    }

    /// Returns what a file has to hold: every parameter, and a tied head's copy if it was stored.
    pub(crate) fn stored(&self) -> impl Iterator<Item = (&str, &Tensor, Dtype)> {
        let embedding = &self.parameters[self.layers.embedding];
        let copy = self
            .second_head
            .map(|dtype| (LM_HEAD, embedding.value(), dtype));
        self.parameters
            .iter()
            .map(|p| (p.name.as_str(), p.value(), p.stored_dtype))
            .chain(copy)
    }

    /// Returns `log p(x_t | x_<t)` of every target of every row: one vector per row, with one value less than
    /// the row has tokens. Natural logarithms, f32.
    ///
    /// # Errors
    ///
    /// [`Error::TokenOutOfRange`] when an id has no embedding, [`Error::NotFiniteLogProb`] when a
    /// log-prob is NaN or infinite.
    ///
    /// # Examples
    ///
    /// ```
    /// use remit::{demo, model::Decoder};
    ///
    /// let model = Decoder::load(&demo::rl_model())?;
    /// let log_probs = model.target_log_probs(&[&[5, 6, 7], &[8, 9]])?;
    /// assert_eq!([log_probs[0].len(), log_probs[1].len()], [2, 1]);
    /// # Ok::<(), remit::model::Error>(())
    /// ```
    pub fn target_log_probs(&self, rows: &[&[TokenId]]) -> Result<Vec<Vec<f32>>, Error> {
        let batch = self.batch(rows)?;
        let hidden = self.forward(&batch)?;
        let all =
            self.kernels()
                .lm_head_log_probs(&hidden, self.lm_head(), &batch.ids, &batch.layout)?;
        by_row(&self.name, 0, rows, &all)
    }

    /// Returns what [`Decoder::target_log_probs`] does, and what `plan` asks for of the distributions, for every row.
    ///
    /// # Errors
    ///
    /// As [`Decoder::target_log_probs`]; entropies and the most likely tokens are finite where log-probs are.
    pub fn target_distributions(
        &self,
        rows: &[&[TokenId]],
        plan: &DistributionPlan,
    ) -> Result<Vec<(Vec<f32>, Distributions)>, Error> {
        let batch = self.batch(rows)?;
        let hidden = self.forward(&batch)?;
        let outputs = self.kernels().lm_head_distributions(
            &hidden,
            self.lm_head(),
            &batch.ids,
            &batch.layout,
            plan,
        )?;
        distributions_by_row(&self.name, 0, rows, outputs, plan)
    }

    /// Adds to `gradients` those of `sum over targets of weight * -log p + z_loss * (log-sum-exp)²`, not
    /// divided by anything, for all rows of a micro-batch.
    ///
    /// `token_weights` is called once per row, in order, with what the learner says about its targets and a
    /// slice to fill with one weight per target. The weights are constants to the gradient.
    ///
    /// On the CPU the sums are the same, bit for bit, however rows are divided between calls, as long as
    /// every call begins where a [gradient chunk](super::RowLayout::grad_chunks) of all rows does.
    ///
    /// # Errors
    ///
    /// As [`Decoder::target_log_probs`], and what `token_weights` returns.
    pub fn accumulate_gradients(
        &self,
        rows: &[&[TokenId]],
        gradients: &mut Gradients,
        how: &Backward,
        token_weights: &mut WeightFn<'_>,
    ) -> Result<(), Error> {
        self.accumulate_soft_gradients(rows, gradients, how, None, token_weights)
    }

    /// Does the same as [`Decoder::accumulate_gradients`], and adds the gradients of divergences from distributions.
    ///
    /// # Errors
    ///
    /// As [`Decoder::accumulate_gradients`], and when a distribution has an id that this model has no embedding for.
    pub fn accumulate_soft_gradients(
        &self,
        rows: &[&[TokenId]],
        gradients: &mut Gradients,
        how: &Backward,
        soft: Option<SoftLoss<'_>>,
        token_weights: &mut WeightFn<'_>,
    ) -> Result<(), Error> {
        if let Some(soft) = &soft {
            soft.targets.check(self.architecture.vocab_size)?;
        }
        let batch = self.batch(rows)?;
        let (hidden, tape) = self.forward_with_tape(&batch, how.activation_checkpointing)?;
        let head = self.lm_head();
        let d_head = gradients.sum(self.layers.lm_head, head.weight)?;
        let loss = LmLoss {
            z_loss: how.z_loss,
            token_weights: &mut |outputs, weights| {
                check_finite(&self.name, outputs.row, outputs.log_probs)?;
                token_weights(outputs, weights)
            },
            soft,
        };
        let d_hidden = self.kernels().lm_head_backward(
            &hidden,
            head,
            &d_head,
            &batch.ids,
            &batch.layout,
            loss,
        )?;
        drop(hidden);
        self.backward(&batch, tape, &d_hidden, gradients)
    }

    fn kernels(&self) -> &dyn Kernels {
        self.parameters.kernels()
    }

    fn batch(&self, rows: &[&[TokenId]]) -> Result<Batch, Error> {
        Batch::new(rows, &self.architecture, self.kernels())
    }

    fn pass<'a>(&'a self, batch: &'a Batch) -> Pass<'a> {
        Pass {
            kernels: self.kernels(),
            parameters: &self.parameters,
            batch,
        }
    }

    /// Returns the output head, `[V, H]`.
    fn lm_head(&self) -> LmHead<'_> {
        LmHead {
            weight: self.parameters.tensor(self.layers.lm_head),
            soft_cap: self.architecture.logit_soft_cap,
        }
    }

    fn embed(&self, ids: &[u32]) -> Result<Tensor, Error> {
        let table = self.parameters.tensor(self.layers.embedding);
        self.kernels()
            .embedding(table, ids, self.architecture.embedding_scale)
    }

    /// Returns the final hidden states, normalized: `[T, H]`.
    fn forward(&self, batch: &Batch) -> Result<Tensor, Error> {
        let pass = self.pass(batch);
        let mut x = self.embed(&batch.ids)?;
        for block in &self.layers.blocks {
            x = block.forward(x, pass)?;
        }
        pass.norm(&x, self.layers.final_norm)
    }

    /// Returns the final hidden states, normalized: `[T, H]`; and what the backward reads. With checkpointing
    /// that is the blocks' inputs only.
    fn forward_with_tape(
        &self,
        batch: &Batch,
        checkpointing: bool,
    ) -> Result<(Tensor, Tape), Error> {
        let pass = self.pass(batch);
        let blocks = &self.layers.blocks;
        let mut x = self.embed(&batch.ids)?;
        let tape = if checkpointing {
            let mut inputs = Vec::with_capacity(blocks.len());
            for block in blocks {
                // A copy, since a block without a tape overwrites its input.
                inputs.push(x.copy()?);
                x = block.forward(x, pass)?;
            }
            BlocksTape::Inputs(inputs)
        } else {
            let mut tapes = Vec::with_capacity(blocks.len());
            for block in blocks {
                let (y, tape) = block.forward_with_tape(x, pass)?;
                tapes.push(tape);
                x = y;
            }
            BlocksTape::Tapes(tapes)
        };
        let hidden = pass.norm(&x, self.layers.final_norm)?;
        let tape = Tape {
            blocks: tape,
            last: x,
        };
        Ok((hidden, tape))
    }

    /// Adds the gradients of all parameters but the head, given that of the final hidden states.
    fn backward(
        &self,
        batch: &Batch,
        tape: Tape,
        d_hidden: &Tensor,
        grads: &mut Gradients,
    ) -> Result<(), Error> {
        let pass = self.pass(batch);
        let Tape { mut blocks, last } = tape;
        let mut dx = pass.norm_backward(d_hidden, &last, self.layers.final_norm, grads, None)?;
        drop(last);
        for block in self.layers.blocks.iter().rev() {
            let tape = match &mut blocks {
                BlocksTape::Tapes(tapes) => tapes.pop().ok_or(OTHER_TAPE)?,
                BlocksTape::Inputs(inputs) => {
                    let x = inputs.pop().ok_or(OTHER_TAPE)?;
                    block.forward_with_tape(x, pass)?.1
                }
            };
            dx = block.backward(dx, tape, pass, grads)?;
        }
        self.embed_backward(&batch.ids, &dx, grads)
    }

    fn embed_backward(&self, ids: &[u32], dx: &Tensor, grads: &mut Gradients) -> Result<(), Error> {
        let (embedding, scale) = (self.layers.embedding, self.architecture.embedding_scale);
        if self.layers.lm_head == embedding && self.kernels().adds_gradients_in_order() {
            return grads.add_lookups(embedding, ids, dx, scale);
        }
        let d_table = grads.sum(embedding, self.parameters.tensor(embedding))?;
        self.kernels().embedding_backward(&d_table, ids, dx, scale)
    }
}

/// Divides the log-probs of a batch among its rows, the first of which has the number `first` for messages.
///
/// # Errors
///
/// [`Error::NotFiniteLogProb`] when a log-prob is NaN or infinite.
pub(super) fn by_row(
    model: &str,
    first: usize,
    rows: &[&[TokenId]],
    all: &[f32],
) -> Result<Vec<Vec<f32>>, Error> {
    let mut rest = all;
    let mut out = Vec::with_capacity(rows.len());
    for (number, row) in rows.iter().enumerate() {
        let (mine, after) = rest.split_at(row.len().saturating_sub(1));
        rest = after;
        check_finite(model, first + number, mine)?;
        out.push(mine.to_vec());
    }
    Ok(out)
}

/// Divides what an output head computed among the rows of its batch, as [`by_row`].
pub(super) fn distributions_by_row(
    model: &str,
    first: usize,
    rows: &[&[TokenId]],
    outputs: HeadOutputs,
    plan: &DistributionPlan,
) -> Result<Vec<(Vec<f32>, Distributions)>, Error> {
    let log_probs = by_row(model, first, rows, &outputs.log_probs)?;
    let k = plan.top_k.map_or(0, |top| top.k as usize);
    let mut start = 0;
    let mut all = Vec::with_capacity(rows.len());
    for log_probs in log_probs {
        let end = start + log_probs.len();
        let top = plan.top_k.map(|_| TopTokens {
            k,
            targets: (0..log_probs.len() as u32).collect(),
            ids: outputs.top_ids[start * k..end * k].to_vec(),
            log_probs: outputs.top_log_probs[start * k..end * k].to_vec(),
            tail_log_probs: outputs.tail_log_probs[start..end].to_vec(),
        });
        let entropies = plan.entropy.then(|| outputs.entropies[start..end].to_vec());
        all.push((log_probs, Distributions { entropies, top }));
        start = end;
    }
    Ok(all)
}

fn check_finite(model: &str, row: usize, log_probs: &[f32]) -> Result<(), Error> {
    match log_probs.iter().position(|value| !value.is_finite()) {
        None => Ok(()),
        Some(i) => Err(Error::NotFiniteLogProb {
            model: model.to_owned(),
            row,
            position: i + 1,
            value: log_probs[i],
        }),
    }
}
