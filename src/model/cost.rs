//! Costs of a model: floating-point operations and memory, from its description alone.

use super::ComputeDtype;
use super::architecture::{Architecture, BlockConfig, EMBEDDING, NormPlacement, Projections};
use super::kernels::cpu::SCORING_ACTIVATION_BYTES;
use super::kernels::cpu::lm_head::logits_rows;

const F32_BYTES: u64 = size_of::<f32>() as u64;

/// Tokens and vocabulary entries whose logits a GPU holds at a time.
const GPU_LOGITS_TILE: [usize; 2] = [1024, 8192];

/// Tokens whose multiple a GPU allocates.
const GPU_ROW_TILE: usize = 256;

/// Returns how many keys a token attends to, its own included, averaged over a row of `seq_len` tokens.
fn mean_seen(seq_len: usize, window: Option<usize>) -> f64 {
    let n = seq_len as f64;
    let w = window.unwrap_or(seq_len).min(seq_len) as f64;
    (w * (w + 1.0) / 2.0 + (n - w) * w) / n.max(1.0)
}

impl Architecture {
    /// Returns the floating-point operations of one token's forward pass, averaged over a row of `seq_len`
    /// tokens: two per multiply-add, of all matrices, the output head included, and of attention scores
    /// and values over the keys that a token attends to. Norms, RoPE and activations are left out, as is
    /// usual. A training step costs three times as much.
    ///
    /// # Examples
    ///
    /// ```
    /// use remit::model::Architecture;
    ///
    /// let config = br#"{"model_type": "llama", "vocab_size": 10, "hidden_size": 4, "num_hidden_layers": 1,
    ///     "num_attention_heads": 2, "intermediate_size": 8, "max_position_embeddings": 16}"#;
    /// let architecture = Architecture::from_json(config, "example")?;
    /// // q, k, v, o: 4 x 4 each; gate, up, down: 4 x 8 each; head: 4 x 10.
    /// let matrices = 4 * 16 + 3 * 32 + 40;
    /// // Two heads of 2 features, scores and values; in a row of 3 tokens, 2 keys on average.
    /// let attention = 2 * (2 + 2) * 2;
    /// assert_eq!(architecture.forward_flops_per_token(3), f64::from(2 * (matrices + attention)));
    /// # Ok::<(), remit::model::Error>(())
    /// ```
    pub fn forward_flops_per_token(&self, seq_len: usize) -> f64 {
        let matrices: f64 = self
            .tensors()
            .iter()
            .filter(|(name, shape)| shape.len() == 2 && (self.tied_head || name != EMBEDDING))
            .map(|(_, shape)| shape.iter().map(|&n| n as f64).product::<f64>())
            .sum();
        let attention: f64 = self
            .blocks
            .iter()
            .map(|block| {
                let features = block.num_heads * (block.head_dim + block.v_head_dim);
                features as f64 * mean_seen(seq_len, block.window)
            })
            .sum();
        2.0 * (matrices + attention)
    }

    /// Returns the bytes of activations per token that scoring holds at its peak.
    pub fn scoring_bytes_per_token(&self) -> usize {
        let widest = self
            .blocks
            .iter()
            .map(|b| {
                2 * b.query_width() + b.attention_width() + 2 * (b.key_width() + b.value_width())
            })
            .max()
            .unwrap_or(0);
        (widest + 4 * self.hidden_size) * size_of::<f32>()
    }

    /// Estimates the bytes that scoring needs for this model on the CPU: weights of `bytes_per_weight`, and
    /// the activations of a batch of `batch_tokens`, or of a single row of `seq_len` tokens.
    pub fn scoring_bytes(
        &self,
        bytes_per_weight: usize,
        batch_tokens: usize,
        seq_len: usize,
    ) -> u64 {
        let per_token = self.scoring_bytes_per_token();
        let row = per_token.saturating_mul(seq_len);
        let batch = per_token.saturating_mul(batch_tokens);
        let activations = batch.min(SCORING_ACTIVATION_BYTES).max(row);
        (self.num_parameters() * bytes_per_weight as u64).saturating_add(activations as u64)
    }

    /// Estimates the bytes that scoring needs on a GPU, where all tokens of a batch go through a layer at once.
    pub fn gpu_scoring_memory(&self, dtype: ComputeDtype) -> GpuScoringMemory {
        let element = match dtype {
            ComputeDtype::F32 => F32_BYTES,
            ComputeDtype::Bf16 | ComputeDtype::Bf16Split => 2,
        };
        let widest = |block: &BlockConfig| {
            let latent = match block.projections {
                Projections::Mla(mla) => 2 * (mla.q_lora_rank.unwrap_or(0) + mla.kv_lora_rank),
                _ => 0,
            };
            let attention = 2 * block.query_width()
                + block.attention_width()
                + 2 * (block.key_width() + block.value_width())
                + latent;
            attention.max(3 * block.intermediate_size)
        };
        let of_widest =
            |of: fn(&BlockConfig) -> usize| self.blocks.iter().map(of).max().unwrap_or(0);
        let widest = self.blocks.iter().map(widest).max().unwrap_or(0);
        let heads = of_widest(|block| block.num_heads);
        // The residual stream, the input and output of a layer, and the norm of that.
        let features = (widest + 4 * self.hidden_size) as u64;
        let [tokens, entries] = GPU_LOGITS_TILE;
        GpuScoringMemory {
            weights_bytes: self.num_parameters() * element,
            // A sum of attention for each head; of the head a few numbers.
            bytes_per_token: features * element + (heads + 8) as u64 * F32_BYTES,
            fixed_bytes: (tokens * self.vocab_size.min(entries)) as u64 * F32_BYTES,
        }
    }

    /// Estimates the bytes that training needs on the CPU, by their use.
    pub fn annealing_memory(&self, run: &AnnealingShape) -> AnnealingMemory {
        let matrices: u64 = self
            .tensors()
            .iter()
            .filter(|(_, shape)| shape.len() > 1)
            .map(|(_, shape)| shape.iter().map(|&n| n as u64).product::<u64>())
            .sum();
        let parameters = self.num_parameters() * F32_BYTES;
        let logits_rows =
            logits_rows(self.vocab_size, self.hidden_size).min(run.micro_batch_tokens);
        let (narrow, beside_logits) = match run.dtype {
            ComputeDtype::F32 => (0, 0),
            // The whole head is widened for the logits, and their gradient is rounded.
            ComputeDtype::Bf16 | ComputeDtype::Bf16Split => (
                2 * matrices,
                (self.vocab_size * self.hidden_size) as u64 * F32_BYTES
                    + (logits_rows * self.vocab_size) as u64 * 2,
            ),
        };
        let kept = self
            .blocks
            .iter()
            .map(|b| b.kept_features(self.hidden_size));
        let kept = match run.activation_checkpointing {
            false => kept.sum(),
            true => kept.max().unwrap_or(0) + self.blocks.len() * self.hidden_size,
        };
        // The gradients of one block, beside the activations.
        let widest = self
            .blocks
            .iter()
            .map(|block| 3 * block.intermediate_size + 4 * block.query_width())
            .max()
            .unwrap_or(0);
        let per_token = (kept + widest + 4 * self.hidden_size) as u64 * F32_BYTES;
        AnnealingMemory {
            weights_bytes: parameters + narrow,
            // Rows of a tied embedding that are looked up are summed apart from the head's part.
            gradients_bytes: parameters
                + match self.tied_head {
                    true => {
                        (self.vocab_size.min(run.batch_tokens) * self.hidden_size) as u64
                            * F32_BYTES
                    }
                    false => 0,
                },
            moments_bytes: 2 * parameters,
            activations_bytes: per_token.saturating_mul(run.micro_batch_tokens as u64).max(
                (self.scoring_bytes_per_token() as u64)
                    .saturating_mul(run.longest_scored_row as u64),
            ),
            logits_bytes: (logits_rows * self.vocab_size) as u64 * F32_BYTES + beside_logits,
        }
    }
}

/// Bytes that scoring needs on a GPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GpuScoringMemory {
    /// Parameters.
    pub weights_bytes: u64,
    /// Activations at their peak, per token of a batch.
    pub bytes_per_token: u64,
    /// What does not depend on the batch.
    pub fixed_bytes: u64,
}

impl GpuScoringMemory {
    /// Returns the bytes that a batch needs besides the weights.
    pub fn batch_bytes(&self, tokens: usize) -> u64 {
        let tokens = tokens.next_multiple_of(GPU_ROW_TILE) as u64;
        self.bytes_per_token
            .saturating_mul(tokens)
            .saturating_add(self.fixed_bytes)
    }

    /// Returns the largest batch whose activations fit into so many bytes, tokens.
    pub fn tokens_within(&self, bytes: u64) -> usize {
        let tokens = bytes.saturating_sub(self.fixed_bytes) / self.bytes_per_token.max(1);
        let tokens = usize::try_from(tokens).unwrap_or(usize::MAX);
        tokens / GPU_ROW_TILE * GPU_ROW_TILE
    }
}

/// Settings besides the model that decide how much memory training needs.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AnnealingShape {
    /// Tokens of an optimizer step.
    pub batch_tokens: usize,
    /// Tokens of a micro-batch.
    pub micro_batch_tokens: usize,
    /// Tokens of the longest row that losses are measured on; 0 if they are not.
    pub longest_scored_row: usize,
    /// Dtype that the model computes in.
    pub dtype: ComputeDtype,
    /// Whether only the inputs of blocks are kept.
    pub activation_checkpointing: bool,
}

/// Bytes that training needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AnnealingMemory {
    /// Parameters in f32, and in the dtype that the model computes in if that is another.
    pub weights_bytes: u64,
    /// Sums of their gradients.
    pub gradients_bytes: u64,
    /// Both moments of AdamW.
    pub moments_bytes: u64,
    /// Activations of a micro-batch that the backward pass needs.
    pub activations_bytes: u64,
    /// Logits of a tile of targets.
    pub logits_bytes: u64,
}

impl AnnealingMemory {
    /// Returns the sum.
    pub fn total_bytes(&self) -> u64 {
        [
            self.gradients_bytes,
            self.moments_bytes,
            self.activations_bytes,
            self.logits_bytes,
        ]
        .into_iter()
        .fold(self.weights_bytes, u64::saturating_add)
    }
}

impl BlockConfig {
    /// Returns how many features per token the backward pass needs of the forward pass.
    fn kept_features(&self, hidden: usize) -> usize {
        let residual = match self.norms {
            NormPlacement::Pre | NormPlacement::Post => 4,
            NormPlacement::PreAndPost => 6,
        };
        let qk = self.query_width() + self.key_width();
        let normed = match (self.qk_norm, self.projections) {
            (Some(_), _) => qk,
            (None, Projections::Mla(mla)) => 2 * (mla.q_lora_rank.unwrap_or(0) + mla.kv_lora_rank),
            (None, _) => 0,
        };
        residual * hidden
            + qk
            + normed
            + self.value_width()
            + self.attention_width()
            + 3 * self.intermediate_size
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_bounds_what_a_token_sees() {
        assert_eq!(mean_seen(4, None), (1.0 + 2.0 + 3.0 + 4.0) / 4.0);
        assert_eq!(mean_seen(4, Some(2)), (1.0 + 2.0 + 2.0 + 2.0) / 4.0);
        assert_eq!(mean_seen(4, Some(9)), mean_seen(4, None));
        assert_eq!(mean_seen(0, Some(9)), 0.0);
    }
}
