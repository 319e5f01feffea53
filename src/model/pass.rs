//! Norms and projections of a decoder's parameters, forward and backward.
//!
//! Shapes are written as in [`super::kernels`]'s trait.

use candle_core::Tensor;

use super::Error;
use super::batch::Batch;
use super::block_params::{LowRank, Norm, Projection, SublayerNorms};
use super::gradients::Gradients;
use super::kernels::{Kernels, RmsNorm};
use super::parameters::Parameters;

/// A tape that does not fit the block it is given to.
pub(super) const OTHER_TAPE: Error = Error::Internal("a tape of another kind of block");

/// One pass over a batch: the kernels that compute, the parameters, the batch.
#[derive(Clone, Copy)]
pub(super) struct Pass<'a> {
    pub kernels: &'a dyn Kernels,
    pub parameters: &'a Parameters,
    pub batch: &'a Batch,
}

/// Values inside a [`LowRank`]: before and after its norm.
pub(super) struct LowRankTape {
    raw: Tensor,    // [T, rank]
    normed: Tensor, // [T, rank]
}

impl<'a> Pass<'a> {
    /// Returns a norm with its weight.
    pub fn rms_norm(self, n: Norm) -> RmsNorm<'a> {
        RmsNorm {
            weight: self.parameters.tensor(n.weight),
            eps: n.eps,
            offset: n.offset,
        }
    }

    /// Normalizes `x` `[T, H]`.
    pub fn norm(self, x: &Tensor, n: Norm) -> Result<Tensor, Error> {
        self.kernels.rms_norm(x, self.rms_norm(n))
    }

    /// Adds the gradient of a norm's weight and returns that of its input.
    pub fn norm_backward(
        self,
        dy: &Tensor,
        x: &Tensor,
        n: Norm,
        grads: &mut Gradients,
        accumulate_into: Option<Tensor>,
    ) -> Result<Tensor, Error> {
        let norm = self.rms_norm(n);
        let d_w = grads.sum(n.weight, norm.weight)?;
        let layout = &self.batch.layout;
        self.kernels
            .rms_norm_backward(dy, x, norm, layout, &d_w, accumulate_into)
    }

    /// Projects `x` `[T, in]` to `[T, out]`.
    pub fn project(self, x: &Tensor, p: Projection) -> Result<Tensor, Error> {
        let w = p.of(self.parameters.tensor(p.weight))?;
        let b = p.bias.map(|bias| p.of(self.parameters.tensor(bias)));
        self.kernels.linear(x, &w, b.transpose()?.as_ref())
    }

    /// Adds the gradients of a projection's parameters and returns that of its input.
    pub fn project_backward(
        self,
        dy: &Tensor,
        x: &Tensor,
        p: Projection,
        grads: &mut Gradients,
        accumulate_into: Option<Tensor>,
    ) -> Result<Tensor, Error> {
        let w = self.parameters.tensor(p.weight);
        let d_w = p.of(&grads.sum(p.weight, w)?)?;
        self.kernels
            .linear_backward_weight(&d_w, dy, x, &self.batch.layout)?;
        if let Some(bias) = p.bias {
            let d_b = p.of(&grads.sum(bias, self.parameters.tensor(bias))?)?;
            self.kernels.linear_backward_bias(&d_b, dy)?;
        }
        self.kernels
            .linear_backward_input(dy, &p.of(w)?, accumulate_into)
    }

    /// Projects `x` `[T, in]` to `[T, rank]`, normalizes, and projects to `[T, out]`.
    pub fn low_rank(self, x: &Tensor, p: LowRank) -> Result<(Tensor, LowRankTape), Error> {
        let raw = self.project(x, p.down)?;
        let normed = self.norm(&raw, p.norm)?;
        let y = self.project(&normed, p.up)?;
        Ok((y, LowRankTape { raw, normed }))
    }

    /// Adds the gradients of both projections and the norm, and returns that of their input.
    pub fn low_rank_backward(
        self,
        dy: &Tensor,
        x: &Tensor,
        tape: &LowRankTape,
        p: LowRank,
        grads: &mut Gradients,
        accumulate_into: Option<Tensor>,
    ) -> Result<Tensor, Error> {
        let d_normed = self.project_backward(dy, &tape.normed, p.up, grads, None)?;
        let d_raw = self.norm_backward(&d_normed, &tape.raw, p.norm, grads, None)?;
        self.project_backward(&d_raw, x, p.down, grads, accumulate_into)
    }

    /// Returns the input of a sublayer: `x`, normalized if a norm stands before it.
    pub fn pre_norm(self, x: &Tensor, norms: SublayerNorms) -> Result<Tensor, Error> {
        match norms.pre {
            Some(norm) => self.norm(x, norm),
            None => Ok(x.clone()),
        }
    }

    /// Adds `y` to `x` in place, and returns the input of the next sublayer.
    pub fn add_pre_norm(
        self,
        x: &Tensor,
        y: &Tensor,
        norms: SublayerNorms,
    ) -> Result<Tensor, Error> {
        match norms.pre {
            Some(norm) => self.kernels.add_rms_norm(x, y, self.rms_norm(norm)),
            None => {
                self.kernels.add_assign(x, y)?;
                Ok(x.clone())
            }
        }
    }

    /// Returns the gradient of `x` in `x + sublayer(pre_norm(x))`: that of the sum, `accumulate_into`, with what
    /// came through the sublayer, `dy`, added.
    pub fn pre_norm_backward(
        self,
        dy: &Tensor,
        x: &Tensor,
        norms: SublayerNorms,
        grads: &mut Gradients,
        accumulate_into: Tensor,
    ) -> Result<Tensor, Error> {
        match norms.pre {
            Some(norm) => self.norm_backward(dy, x, norm, grads, Some(accumulate_into)),
            None => {
                self.kernels.add_assign(&accumulate_into, dy)?;
                Ok(accumulate_into)
            }
        }
    }

    /// Returns what a sublayer adds to the residual stream, given what it computed; and that itself, if a
    /// norm stands in between.
    pub fn post_norm(
        self,
        y: Tensor,
        norms: SublayerNorms,
    ) -> Result<(Tensor, Option<Tensor>), Error> {
        match norms.post {
            Some(norm) => Ok((self.norm(&y, norm)?, Some(y))),
            None => Ok((y, None)),
        }
    }

    /// Returns the gradient of what [`Pass::post_norm`] was given, which is `raw` if a norm stands in between.
    pub fn post_norm_backward(
        self,
        dy: &Tensor,
        raw: Option<&Tensor>,
        norms: SublayerNorms,
        grads: &mut Gradients,
    ) -> Result<Tensor, Error> {
        match (norms.post, raw) {
            (Some(norm), Some(raw)) => self.norm_backward(dy, raw, norm, grads, None),
            (None, None) => Ok(dy.clone()),
            _ => Err(OTHER_TAPE),
        }
    }
}
