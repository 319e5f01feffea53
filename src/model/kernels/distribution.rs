//! What the output head says besides the log-probs of the targets: entropies, the most likely tokens, and the rest.

use crate::types::{DistributionPlan, TokenId};

/// What an output head computed for the `N` targets of a batch.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct HeadOutputs {
    /// Log-probs of the targets at temperature 1, `[N]`.
    pub log_probs: Vec<f32>,
    /// Entropies, `[N]`; empty where none were asked for.
    pub entropies: Vec<f32>,
    /// Ids of the most likely tokens, `[N, k]`; empty where none were asked for.
    pub top_ids: Vec<TokenId>,
    /// Their log-probs, `[N, k]`.
    pub top_log_probs: Vec<f32>,
    /// Log of the probability of all other tokens together, `[N]`.
    pub tail_log_probs: Vec<f32>,
}

impl HeadOutputs {
    /// Adds the next target's: its log-prob, and its distribution.
    pub fn push(&mut self, log_prob: f32, of: &TargetDistribution, plan: &DistributionPlan) {
        self.log_probs.push(log_prob);
        if plan.entropy {
            self.entropies.push(of.all.entropy());
        }
        if plan.top_k.is_some() {
            let all = of.all.log_sum();
            for &(logit, id) in &of.top.tokens {
                self.top_ids.push(id);
                self.top_log_probs.push((of.all.scaled(logit) - all) as f32);
            }
            self.tail_log_probs.push((of.tail.log_sum() - all) as f32);
        }
    }
}

/// The distribution of a target, as far as blocks of logits were taken in.
#[derive(Debug, Clone)]
pub(crate) struct TargetDistribution {
    /// All tokens.
    pub all: Exponentials,
    /// The most likely.
    pub top: Top,
    /// All but these.
    pub tail: Exponentials,
}

impl TargetDistribution {
    pub fn new(plan: &DistributionPlan) -> Self {
        let k = plan.top_k.map_or(0, |top| top.k as usize);
        Self {
            all: Exponentials::new(plan.temperature),
            top: Top::new(k),
            tail: Exponentials::new(plan.temperature),
        }
    }

    /// Takes the most likely tokens of a block of logits, that of id `start` first, and writes negative infinity in
    /// their places. Those that were taken before, and are no longer among the most likely, are counted in the tail.
    ///
    /// `first_above` returns the index of the first logit that exceeds another.
    #[inline(always)]
    pub fn take_top(
        &mut self,
        block: &mut [f32],
        start: usize,
        first_above: impl Fn(&[f32], f32) -> Option<usize>,
    ) {
        let mut gone = Vec::new();
        let mut at = 0;
        let (first, end) = (start as TokenId, (start + block.len()) as TokenId);
        while let Some(next) = first_above(&block[at..], self.top.least()) {
            at += next;
            if let Some(token) = self.top.insert(block[at], start as TokenId + at as TokenId)
                && token.1 < first
            {
                gone.push(token);
            }
            at += 1;
        }
        for &(_, id) in self
            .top
            .tokens
            .iter()
            .filter(|(_, id)| (first..end).contains(id))
        {
            block[(id - first) as usize] = f32::NEG_INFINITY;
        }
        for (logit, _) in gone {
            self.tail.raise(logit);
            self.tail.add(self.tail.term(logit), 0.0);
        }
    }
}

/// A sum of exponentials of logits over a temperature, counted from the largest logit; and of the same times their
/// exponents, for the entropy.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Exponentials {
    inverse_temperature: f64,
    max: f32,
    /// Sum of `e^d`, with `d = (logit - max) / temperature`.
    sum: f64,
    /// Sum of `d e^d`.
    weighted: f64,
}

impl Exponentials {
    fn new(temperature: f64) -> Self {
        Self {
            inverse_temperature: temperature.recip(),
            max: f32::NEG_INFINITY,
            sum: 0.0,
            weighted: 0.0,
        }
    }

    /// Counts from the largest logit so far, that of a new block included, and returns that.
    #[inline(always)]
    pub fn raise(&mut self, block_max: f32) -> f32 {
        if block_max > self.max {
            if self.sum > 0.0 {
                let by = (f64::from(self.max) - f64::from(block_max)) * self.inverse_temperature;
                let factor = by.exp();
                // A factor that underflows leaves nothing, however far away it was.
                self.weighted = if factor > 0.0 {
                    (self.weighted + by * self.sum) * factor
                } else {
                    0.0
                };
                self.sum *= factor;
            }
            self.max = block_max;
        }
        self.max
    }

    /// Takes in a block's sums, counted from what [`Exponentials::raise`] returned.
    #[inline(always)]
    pub fn add(&mut self, sum: f64, weighted: f64) {
        self.sum += sum;
        self.weighted += weighted;
    }

    /// Returns what a single logit adds.
    pub fn term(&self, logit: f32) -> f64 {
        ((f64::from(logit) - f64::from(self.max)) * self.inverse_temperature).exp()
    }

    fn scaled(&self, logit: f32) -> f64 {
        f64::from(logit) * self.inverse_temperature
    }

    /// Returns the log-sum-exp of the logits over the temperature.
    fn log_sum(&self) -> f64 {
        self.scaled(self.max) + self.sum.ln()
    }

    /// Returns the entropy, nats. With `p = e^d / sum`, that is `-sum of p (d - ln sum)`.
    fn entropy(&self) -> f32 {
        (self.sum.ln() - self.weighted / self.sum).max(0.0) as f32
    }
}

/// The largest of the logits so far, and their ids; the largest first, among equals the smallest id.
#[derive(Debug, Clone)]
pub(crate) struct Top {
    k: usize,
    tokens: Vec<(f32, TokenId)>,
}

impl Top {
    fn new(k: usize) -> Self {
        Self {
            k,
            tokens: Vec::with_capacity(k),
        }
    }

    /// Returns the logit that one has to exceed to be taken, if its id is larger than all before.
    fn least(&self) -> f32 {
        match self.tokens.last() {
            Some((logit, _)) if self.tokens.len() == self.k => *logit,
            _ => f32::NEG_INFINITY,
        }
    }

    /// Takes a token with a larger id than all before; returns the one that had to go.
    fn insert(&mut self, logit: f32, id: TokenId) -> Option<(f32, TokenId)> {
        let gone = match self.tokens.len() == self.k {
            true => self.tokens.pop(),
            false => None,
        };
        let at = self.tokens.partition_point(|(other, _)| *other >= logit);
        self.tokens.insert(at, (logit, id));
        gone
    }
}
