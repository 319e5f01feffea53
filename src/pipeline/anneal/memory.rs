//! Checks that a run fits into memory: what it will need, what there is, and what to change.

use std::path::Path;

use anyhow::Result;

use super::super::{Progress, Usage};
use super::options::ComputeOptions;
use crate::batch::TOKEN_BYTES;
use crate::fs;
use crate::model::{AnnealingMemory, AnnealingShape, Architecture};
use crate::types::DistributionPlan;

/// Code, stacks, allocator, tokenizer, what the libraries keep.
const OTHER_BYTES: u64 = 64 << 20;

/// Everything that decides how much memory a run needs.
pub(super) struct Needs<'a> {
    pub architecture: &'a Architecture,
    pub compute: &'a ComputeOptions,
    /// Tokens of an optimizer step.
    pub batch_tokens: usize,
    /// Tokens of the longest row that is trained on.
    pub longest_trained_row: usize,
    /// Tokens that no row to measure losses on exceeds; 0 if there is none.
    pub longest_scored_row: usize,
    /// Tokens of the longest shuffle window.
    pub window_tokens: u64,
    /// What the set stores of distributions.
    pub distributions: Option<DistributionPlan>,
}

/// Memory that a run needs.
struct MemoryPlan {
    training: AnnealingMemory,
    data_bytes: u64,
}

impl MemoryPlan {
    fn total(&self) -> u64 {
        self.training.total_bytes() + self.data_bytes + OTHER_BYTES
    }
}

impl Needs<'_> {
    fn plan(&self, micro_batch_tokens: usize, activation_checkpointing: bool) -> MemoryPlan {
        MemoryPlan {
            training: self.architecture.annealing_memory(&AnnealingShape {
                batch_tokens: self.batch_tokens,
                micro_batch_tokens: micro_batch_tokens
                    .min(self.batch_tokens)
                    .max(self.longest_trained_row),
                longest_scored_row: self.longest_scored_row,
                dtype: self.compute.dtype,
                activation_checkpointing,
            }),
            // Decoded rows, and the encoded row groups that they come from.
            data_bytes: 2 * self.window_tokens * (TOKEN_BYTES + self.distribution_bytes()),
        }
    }

    /// Returns the bytes that a token's entropy and most likely tokens take.
    fn distribution_bytes(&self) -> u64 {
        let Some(stored) = self.distributions else {
            return 0;
        };
        let of_top = stored.top_k.map_or(0.0, |top| {
            f64::from(8 * top.k + 8) * top.lowest_entropy.unwrap_or(1.0)
        });
        of_top.ceil() as u64 + 4
    }

    /// Prints what the run will need, and refuses one that can't fit. Unless the device `uses_host_memory`, only
    /// `--max-memory-bytes` is a limit, since nothing is known of what it has.
    ///
    /// # Errors
    ///
    /// [`Usage`] when it needs more than `--max-memory-bytes`, or than there is.
    pub fn check(&self, uses_host_memory: bool, progress: &dyn Progress) -> Result<()> {
        let ComputeOptions {
            micro_batch_tokens,
            activation_checkpointing,
            max_memory_bytes,
            ..
        } = *self.compute;
        let plan = self.plan(micro_batch_tokens, activation_checkpointing);
        let AnnealingMemory {
            weights_bytes,
            gradients_bytes,
            moments_bytes,
            activations_bytes,
            logits_bytes,
        } = plan.training;
        progress.note(&format!(
            "memory: about {} = weights {}, gradients {}, moments {}, activations {}, logits {}, rows {}, other {}",
            size(plan.total()),
            size(weights_bytes),
            size(gradients_bytes),
            size(moments_bytes),
            size(activations_bytes),
            size(logits_bytes),
            size(plan.data_bytes),
            size(OTHER_BYTES)
        ));
        let (limit, whose) = match max_memory_bytes {
            Some(limit) => (limit, "--max-memory-bytes allows"),
            None if !uses_host_memory => return Ok(()),
            None => match available_bytes()? {
                Some(available) => (available, "this machine has free"),
                None => return Ok(()),
            },
        };
        if plan.total() <= limit {
            return Ok(());
        }
        Err(Usage(format!(
            "the run needs about {} of memory, and {whose} {}\nhint: {}",
            size(plan.total()),
            size(limit),
            self.remedy(limit)
        ))
        .into())
    }

    /// Returns what makes the run fit, or why nothing does.
    fn remedy(&self, limit: u64) -> String {
        let smallest = self.longest_trained_row.max(1);
        let remedies = [
            (
                self.compute.micro_batch_tokens,
                true,
                "--activation-checkpointing".to_owned(),
            ),
            (smallest, false, format!("--micro-batch-tokens {smallest}")),
            (
                smallest,
                true,
                format!("--micro-batch-tokens {smallest} --activation-checkpointing"),
            ),
        ];
        let remedy = remedies
            .into_iter()
            .filter(|(_, checkpointing, _)| {
                *checkpointing || !self.compute.activation_checkpointing
            })
            .map(|(tokens, checkpointing, flags)| (self.plan(tokens, checkpointing).total(), flags))
            .find(|(total, _)| *total <= limit);
        match remedy {
            Some((total, flags)) => format!("with {flags} it needs about {}", size(total)),
            None => format!(
                "no option makes it fit: with rows of {} tokens and --activation-checkpointing it still needs about \
                 {}; a smaller model, shorter rows, or a machine with more memory would (--max-memory-bytes overrules \
                 what there is)",
                self.longest_trained_row,
                size(self.plan(smallest, true).total())
            ),
        }
    }
}

fn size(bytes: u64) -> String {
    match bytes {
        0..1_000_000 => format!("{:.0} kB", bytes as f64 / 1e3),
        1_000_000..1_000_000_000 => format!("{:.0} MB", bytes as f64 / 1e6),
        _ => format!("{:.2} GB", bytes as f64 / 1e9),
    }
}

/// Returns the memory that this process may still take: what the machine has free, or what is left of its
/// control group's limit if that is less. `None` where the operating system doesn't say.
fn available_bytes() -> Result<Option<u64>> {
    let Some(meminfo) = text(Path::new("/proc/meminfo"))? else {
        return Ok(None);
    };
    let free = meminfo
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"))
        .and_then(|rest| rest.trim().strip_suffix("kB")?.trim().parse::<u64>().ok())
        .map(|kilobytes| kilobytes << 10);
    // Versions 2 and 1 of control groups, as seen from inside a container.
    let mut least = free;
    for (limit, used) in [
        ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
        (
            "/sys/fs/cgroup/memory/memory.limit_in_bytes",
            "/sys/fs/cgroup/memory/memory.usage_in_bytes",
        ),
    ] {
        let number = |path: &str| -> Result<Option<u64>> {
            Ok(text(Path::new(path))?.and_then(|text| text.trim().parse().ok()))
        };
        if let (Some(limit), Some(used)) = (number(limit)?, number(used)?) {
            // Cached files count as used, but make way.
            let left = limit.saturating_sub(used.saturating_sub(cache_bytes()?));
            least = Some(least.map_or(left, |least| least.min(left)));
        }
    }
    Ok(least)
}

/// Returns the bytes of cached files in this process's control group.
fn cache_bytes() -> Result<u64> {
    for path in [
        "/sys/fs/cgroup/memory.stat",
        "/sys/fs/cgroup/memory/memory.stat",
    ] {
        if let Some(text) = text(Path::new(path))? {
            let bytes = |name: &str| {
                let mut lines = text.lines();
                lines.find_map(|line| line.strip_prefix(name)?.trim().parse::<u64>().ok())
            };
            return Ok(bytes("inactive_file ").unwrap_or(0) + bytes("active_file ").unwrap_or(0));
        }
    }
    Ok(0)
}

/// Reads a file of the operating system, if there is one.
fn text(path: &Path) -> Result<Option<String>> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(String::from_utf8_lossy(&bytes).into_owned())),
        Err(error) if error.is_missing() => Ok(None),
        Err(error) => Err(error.into()),
    }
}
