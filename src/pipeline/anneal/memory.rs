//! Whether a run fits: what it will need, what there is, and what to change.

use std::fmt::Write as _;
use std::path::Path;

use anyhow::Result;

use super::super::{Progress, Usage};
use super::AnnealOptions;
use crate::batch::{Order, TOKEN_BYTES};
use crate::fs;
use crate::model::{AnnealingMemory, AnnealingShape, Architecture};

/// Code, stacks, allocator, tokenizer, what the libraries keep.
const OTHER_BYTES: u64 = 64 << 20;

/// What a run needs in memory.
struct MemoryPlan {
    training: AnnealingMemory,
    data_bytes: u64,
}

impl MemoryPlan {
    fn total(&self) -> u64 {
        self.training.total_bytes() + self.data_bytes + OTHER_BYTES
    }
}

/// Prints what a run will need, and refuses one that can't fit. `longest_scored_row` is the length of the longest
/// row that is evaluated on, 0 if there is none.
///
/// # Errors
///
/// [`Usage`] when it needs more than `--max-memory-bytes`, or than there is.
pub(super) fn plan(
    options: &AnnealOptions,
    architecture: &Architecture,
    order: &Order<'_>,
    longest_scored_row: usize,
    on_cpu: bool,
    progress: &dyn Progress,
) -> Result<()> {
    let longest_row = order.longest_row() as usize;
    // Decoded rows, and the encoded row groups that they come from.
    let data_bytes = 2 * order.largest_window_tokens() * TOKEN_BYTES;
    let of = |micro_batch_tokens: usize, activation_checkpointing| MemoryPlan {
        training: architecture.annealing_memory(&AnnealingShape {
            batch_tokens: options.batch_tokens,
            micro_batch_tokens: micro_batch_tokens
                .min(options.batch_tokens)
                .max(longest_row),
            longest_scored_row,
            dtype: options.dtype,
            activation_checkpointing,
        }),
        data_bytes,
    };
    let plan = of(options.micro_batch_tokens, options.activation_checkpointing);
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
        size(data_bytes),
        size(OTHER_BYTES)
    ));
    let (limit, whose) = match options.max_memory_bytes {
        Some(limit) => (limit, "--max-memory-bytes allows"),
        // Of a GPU's memory nothing is known here.
        None if !on_cpu => return Ok(()),
        None => match available_bytes()? {
            Some(available) => (available, "this machine has free"),
            None => return Ok(()),
        },
    };
    if plan.total() <= limit {
        return Ok(());
    }
    let mut message = format!(
        "the run needs about {} of memory, and {whose} {}\nhint: ",
        size(plan.total()),
        size(limit)
    );
    let smaller = longest_row.max(1);
    let remedies = [
        (
            options.micro_batch_tokens,
            true,
            "--activation-checkpointing".to_owned(),
        ),
        (smaller, false, format!("--micro-batch-tokens {smaller}")),
        (
            smaller,
            true,
            format!("--micro-batch-tokens {smaller} --activation-checkpointing"),
        ),
    ];
    let remedy = remedies
        .into_iter()
        .filter(|(_, checkpointing, _)| *checkpointing || !options.activation_checkpointing)
        .map(|(tokens, checkpointing, flags)| (of(tokens, checkpointing).total(), flags))
        .find(|(total, _)| *total <= limit);
    match remedy {
        Some((total, flags)) => {
            let _ = write!(message, "with {flags} it needs about {}", size(total));
        }
        None => {
            let least = of(smaller, true).total();
            let _ = write!(
                message,
                "no option makes it fit: with rows of {longest_row} tokens and --activation-checkpointing it still \
                 needs about {}; a smaller model, shorter rows, or a machine with more memory would (--max-memory-bytes \
                 overrules what there is)",
                size(least)
            );
        }
    }
    Err(Usage(message).into())
}

fn size(bytes: u64) -> String {
    match bytes {
        0..1_000_000 => format!("{:.0} kB", bytes as f64 / 1e3),
        1_000_000..1_000_000_000 => format!("{:.0} MB", bytes as f64 / 1e6),
        _ => format!("{:.2} GB", bytes as f64 / 1e9),
    }
}

/// Memory that this process may still take: what the machine has free, or what is left of its control
/// group's limit if that is less. `None` where the operating system doesn't say.
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
            // What files are cached in counts as used, but makes way.
            let left = limit.saturating_sub(used.saturating_sub(cache_bytes()?));
            least = Some(least.map_or(left, |least| least.min(left)));
        }
    }
    Ok(least)
}

/// Bytes that this process's control group has of cached files.
fn cache_bytes() -> Result<u64> {
    for path in [
        "/sys/fs/cgroup/memory.stat",
        "/sys/fs/cgroup/memory/memory.stat",
    ] {
        if let Some(text) = text(Path::new(path))? {
            let of = |name: &str| {
                let mut lines = text.lines();
                lines.find_map(|line| line.strip_prefix(name)?.trim().parse::<u64>().ok())
            };
            return Ok(of("inactive_file ").unwrap_or(0) + of("active_file ").unwrap_or(0));
        }
    }
    Ok(0)
}

/// A file of the operating system, if there is one.
fn text(path: &Path) -> Result<Option<String>> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(String::from_utf8_lossy(&bytes).into_owned())),
        Err(error) if error.is_missing() => Ok(None),
        Err(error) => Err(error.into()),
    }
}
