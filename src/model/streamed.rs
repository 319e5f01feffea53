//! A model that scores without being in memory: its blocks come from disk one after the other, and all rows of a large
//! batch go through each before the next.
//!
//! Memory holds the hidden states of the batch, the activations of a part of it, and at most two blocks or the output
//! head. Every row goes through the same operations as in [`Decoder`](super::Decoder), so the log-probs are the same.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, sync_channel};
use std::thread;

use candle_core::Tensor;

use super::Error;
use super::architecture::Architecture;
use super::batch::Batch;
use super::block_params::Layers;
use super::decoder::{by_row, distributions_by_row};
use super::device::Compute;
use super::files::{ModelWeights, OpenModel};
use super::kernels::{Kernels, LmHead};
use super::parameters::{ParamId, Parameter, Parameters};
use super::pass::Pass;
use crate::types::{DistributionPlan, Distributions, TokenId};

/// A language model whose weights stay on disk.
#[derive(Debug)]
pub struct StreamedDecoder {
    name: String,
    architecture: Architecture,
    layers: Layers,
    tensors: Vec<(String, Vec<usize>)>,
    weights: ModelWeights,
    compute: Compute,
    kernels: Arc<dyn Kernels>,
}

/// A part of the rows: what a device has room for the activations of.
struct Piece<'a> {
    /// Number of its first row.
    first: usize,
    rows: &'a [&'a [TokenId]],
    batch: Batch,
    /// The residual stream, `[T, H]`.
    x: Tensor,
}

impl StreamedDecoder {
    /// Takes a model that is open. No tensor is read yet.
    pub fn from_open(model: &OpenModel, compute: &Compute) -> Self {
        let architecture = model.architecture().clone();
        let (layers, tensors) = Layers::declare(&architecture);
        Self {
            name: model.source().to_string(),
            architecture,
            layers,
            tensors,
            weights: model.weights().clone(),
            compute: compute.clone(),
            kernels: compute.kernels(),
        }
    }

    /// Returns `log p(x_t | x_<t)` of every target of every row, as
    /// [`Decoder::target_log_probs`](super::Decoder::target_log_probs) does. Reads all weights once, however many rows
    /// there are.
    ///
    /// # Errors
    ///
    /// Those of [`Decoder::target_log_probs`](super::Decoder::target_log_probs), and [`Error::NotFinite`] when a weight
    /// is NaN or infinite.
    pub fn target_log_probs(&self, rows: &[&[TokenId]]) -> Result<Vec<Vec<f32>>, Error> {
        self.through_head(rows, |piece, head| {
            let Batch { ids, layout, .. } = &piece.batch;
            let log_probs = self
                .kernels
                .lm_head_log_probs(&piece.x, head, ids, layout)?;
            by_row(&self.name, piece.first, piece.rows, &log_probs)
        })
    }

    /// Returns what [`Decoder::target_distributions`](super::Decoder::target_distributions) does.
    ///
    /// # Errors
    ///
    /// As [`StreamedDecoder::target_log_probs`].
    pub fn target_distributions(
        &self,
        rows: &[&[TokenId]],
        plan: &DistributionPlan,
    ) -> Result<Vec<(Vec<f32>, Distributions)>, Error> {
        self.through_head(rows, |piece, head| {
            let Batch { ids, layout, .. } = &piece.batch;
            let outputs = self
                .kernels
                .lm_head_distributions(&piece.x, head, ids, layout, plan)?;
            distributions_by_row(&self.name, piece.first, piece.rows, outputs, plan)
        })
    }

    /// Runs all rows through the model, and the head's part of it, for one piece after the other, as `of_head` does.
    fn through_head<'a, T>(
        &self,
        rows: &'a [&'a [TokenId]],
        of_head: impl Fn(&Piece<'a>, LmHead<'_>) -> Result<Vec<T>, Error>,
    ) -> Result<Vec<T>, Error> {
        let mut pieces = self.embedded(rows)?;
        self.run_blocks(&mut pieces)?;
        let norm = self.layers.final_norm;
        let weight = norm.weight;
        let parameters = self.on_device(weight, vec![self.load(weight)?])?;
        for piece in &mut pieces {
            piece.x = self.pass(&parameters, &piece.batch).norm(&piece.x, norm)?;
        }
        let head = self.layers.lm_head;
        let parameters = self.on_device(head, vec![self.load(head)?])?;
        let mut all = Vec::with_capacity(rows.len());
        for piece in pieces {
            let head = LmHead {
                weight: parameters.tensor(head),
                soft_cap: self.architecture.logit_soft_cap,
            };
            all.extend(of_head(&piece, head)?);
        }
        Ok(all)
    }

    /// Divides the rows, and looks their embeddings up.
    fn embedded<'a>(&self, rows: &'a [&'a [TokenId]]) -> Result<Vec<Piece<'a>>, Error> {
        let most = self.kernels.scoring_budget_bytes()
            / self.architecture.scoring_bytes_per_token().max(1);
        let id = self.layers.embedding;
        let parameters = self.on_device(id, vec![self.load(id)?])?;
        let table = parameters.tensor(id);
        let mut pieces = Vec::new();
        let mut first = 0;
        while first < rows.len() {
            let mut tokens = 0;
            let mut last = first;
            while last < rows.len() && (last == first || tokens + rows[last].len() <= most) {
                tokens += rows[last].len();
                last += 1;
            }
            let batch = Batch::new(&rows[first..last], &self.architecture, &*self.kernels)?;
            let scale = self.architecture.embedding_scale;
            let x = self.kernels.embedding(table, &batch.ids, scale)?;
            pieces.push(Piece {
                first,
                rows: &rows[first..last],
                batch,
                x,
            });
            first = last;
        }
        Ok(pieces)
    }

    /// Runs all pieces through each block, while a thread reads the next.
    fn run_blocks(&self, pieces: &mut [Piece<'_>]) -> Result<(), Error> {
        let (send, receive) = sync_channel(0);
        thread::scope(|scope| {
            scope.spawn(move || {
                for block in &self.layers.blocks {
                    let (first, count) = block.params;
                    let loaded: Result<Vec<_>, _> =
                        (first..first + count).map(|id| self.load(id)).collect();
                    // Nobody waits for more after an error.
                    if send.send(loaded).is_err() {
                        break;
                    }
                }
            });
            self.run_loaded(pieces, &receive)
        })
    }

    fn run_loaded(
        &self,
        pieces: &mut [Piece<'_>],
        loaded: &Receiver<Result<Vec<Parameter>, Error>>,
    ) -> Result<(), Error> {
        const NO_READER: Error = Error::Internal("the thread that reads weights has ended");
        for block in &self.layers.blocks {
            let loaded = loaded.recv().map_err(|_| NO_READER)??;
            let parameters = self.on_device(block.params.0, loaded)?;
            for piece in &mut *pieces {
                let pass = self.pass(&parameters, &piece.batch);
                piece.x = block.forward(piece.x.clone(), pass)?;
            }
        }
        Ok(())
    }

    fn pass<'a>(&'a self, parameters: &'a Parameters, batch: &'a Batch) -> Pass<'a> {
        Pass {
            kernels: &*self.kernels,
            parameters,
            batch,
        }
    }

    fn load(&self, id: ParamId) -> Result<Parameter, Error> {
        let (name, shape) = &self.tensors[id];
        Parameter::load(name, shape, &self.weights, &self.compute)
    }

    fn on_device(&self, first: ParamId, loaded: Vec<Parameter>) -> Result<Parameters, Error> {
        Parameters::some(Arc::clone(&self.kernels), first, loaded)
    }
}
