//! Sizes of batches: what a device has memory for, and what to do if that was too much.

use std::cell::Cell;

use anyhow::{Error, Result};

use super::super::{Progress, Usage};
use super::options::ComputeOptions;
use crate::model::{self, ComputeDevice, GpuScoringMemory, OpenModel};
use crate::types::TokenId;

/// Most tokens of a batch whose size is chosen here: with more, a GPU is no faster.
const MOST_CHOSEN_TOKENS: usize = 32_768;

/// The part of free memory that is planned with, in percent: memory comes in pieces, and the driver takes some.
const PLANNED_PERCENT: u64 = 90;

/// The memory of a device that has its own, and what scoring needs of it.
pub(super) struct BatchMemory {
    device: String,
    free_bytes: u64,
    /// Of all models together.
    weights_bytes: u64,
    /// Of the model that needs most; they run one after the other.
    needs: GpuScoringMemory,
    /// Longest row, tokens.
    longest_row: usize,
    stream_weights: bool,
}

impl BatchMemory {
    /// Asks a device for its free memory; `None` if it has none of its own.
    pub fn of(
        models: &[&OpenModel],
        longest_row: u32,
        options: &ComputeOptions,
        device: &ComputeDevice,
    ) -> Result<Option<Self>> {
        let Some(free_bytes) = device.free_bytes()? else {
            return Ok(None);
        };
        let all = models
            .iter()
            .map(|model| model.architecture().gpu_scoring_memory(options.dtype));
        let weights_bytes = all.clone().map(|needs| needs.weights_bytes).sum();
        let needs = all
            .max_by_key(|needs| needs.bytes_per_token)
            .ok_or(model::Error::Internal("scoring without a model"))?;
        Ok(Some(Self {
            device: device.to_string(),
            free_bytes,
            weights_bytes,
            needs,
            longest_row: longest_row as usize,
            stream_weights: options.stream_weights,
        }))
    }

    /// Refuses models that the device has no room for, before they are loaded.
    pub fn expect_room_for_weights(&self) -> Result<()> {
        if self.stream_weights || self.weights_bytes <= self.free_bytes {
            return Ok(());
        }
        Err(Usage(format!(
            "the models take about {}, and {} has {} free\nhint: --dtype bf16 takes half of what f32 does; --stream-weights \
             leaves them on disk",
            size(self.weights_bytes),
            self.device,
            size(self.free_bytes)
        ))
        .into())
    }

    /// Returns the most tokens of a batch, as `given` or from what is free after the models were loaded, and notes the
    /// plan.
    pub fn batch_tokens(
        mut self,
        given: Option<usize>,
        device: &ComputeDevice,
        progress: &dyn Progress,
    ) -> Result<usize> {
        self.free_bytes = device.free_bytes()?.unwrap_or(self.free_bytes);
        let tokens = match given {
            Some(tokens) => tokens,
            None => self.chosen()?,
        };
        let models = match self.stream_weights {
            true => "models on disk".to_owned(),
            false => format!("models {}", size(self.weights_bytes)),
        };
        progress.note(&format!(
            "memory of {}: {models}, then {} free; a batch of {tokens} tokens takes about {}",
            self.device,
            size(self.free_bytes),
            size(self.needs.batch_bytes(tokens.max(self.longest_row)))
        ));
        Ok(tokens)
    }

    /// Returns the largest batch that fits with a margin.
    fn chosen(&self) -> Result<usize> {
        let mut planned = self.free_bytes / 100 * PLANNED_PERCENT;
        if self.stream_weights {
            // The rest is for a block or two, and for what all rows of a batch are between blocks.
            planned /= 2;
        }
        let fits = self.needs.tokens_within(planned).min(MOST_CHOSEN_TOKENS);
        if fits >= self.longest_row.max(1) {
            return Ok(fits);
        }
        Err(Usage(format!(
            "a row of {} tokens takes about {} besides the models, and {} has {} free\nhint: --dtype bf16 takes half of \
             what f32 does; shorter rows take less (--seq-len); --batch-tokens overrules this estimate",
            self.longest_row,
            size(self.needs.batch_bytes(self.longest_row)),
            self.device,
            size(self.free_bytes)
        ))
        .into())
    }
}

fn size(bytes: u64) -> String {
    match bytes {
        0..1_000_000 => format!("{:.0} kB", bytes as f64 / 1e3),
        1_000_000..1_000_000_000 => format!("{:.0} MB", bytes as f64 / 1e6),
        _ => format!("{:.2} GB", bytes as f64 / 1e9),
    }
}

/// The size of batches, which is halved once if memory turns out to be short.
pub(super) struct Batches<'a> {
    tokens: Cell<usize>,
    /// The size of the batch that was too large.
    too_many: Cell<Option<usize>>,
    device: String,
    progress: &'a dyn Progress,
}

impl<'a> Batches<'a> {
    pub fn new(tokens: usize, device: String, progress: &'a dyn Progress) -> Self {
        Self {
            tokens: Cell::new(tokens),
            too_many: Cell::new(None),
            device,
            progress,
        }
    }

    /// Returns the most tokens of a batch.
    pub fn tokens(&self) -> usize {
        self.tokens.get()
    }

    /// Computes something for each row of a batch; in two halves, and smaller batches from then on, if memory is too
    /// short for it. What is computed for a row may not depend on the others.
    ///
    /// # Errors
    ///
    /// The computation's, also if memory is short a second time.
    pub fn run<T>(
        &self,
        rows: &[&[TokenId]],
        compute: impl Fn(&[&[TokenId]]) -> Result<Vec<T>, model::Error>,
    ) -> Result<Vec<T>> {
        let short = match compute(rows) {
            Err(error) if error.is_out_of_memory() => error,
            outcome => return Ok(outcome?),
        };
        let tokens: usize = rows.iter().map(|row| row.len()).sum();
        let middle = middle(rows);
        if middle == 0 || self.too_many.get().is_some() {
            return Err(self.failure(short, rows.len(), tokens));
        }
        let half = (tokens / 2).max(1);
        self.too_many.set(Some(tokens));
        self.tokens.set(half.min(self.tokens.get()));
        self.progress.warn(&format!(
            "out of memory on {} in a batch of {tokens} tokens: from now on batches have up to {half} (results do not depend \
             on it; --batch-tokens {half} begins with that)",
            self.device
        ));
        let (first, second) = rows.split_at(middle);
        let mut all = Vec::with_capacity(rows.len());
        for half in [first, second] {
            all.extend(
                compute(half).map_err(|error| match error.is_out_of_memory() {
                    true => self.failure(error, half.len(), half.iter().map(|row| row.len()).sum()),
                    false => error.into(),
                })?,
            );
        }
        Ok(all)
    }

    fn failure(&self, error: model::Error, rows: usize, tokens: usize) -> Error {
        let what = match rows {
            1 => format!("a row of {tokens} tokens alone"),
            _ => format!("a batch of {tokens} tokens"),
        };
        let before = match self.too_many.get() {
            Some(before) => format!(", after one of {before} did not fit either"),
            None => String::new(),
        };
        let hint = match rows {
            1 => "shorter rows take less memory (--seq-len), as does --dtype bf16".to_owned(),
            _ => format!("give --batch-tokens {} or less", (tokens / 2).max(1)),
        };
        let device = &self.device;
        Error::new(error).context(format!(
            "{what} did not fit on {device}{before}\nhint: {hint}"
        ))
    }
}

/// Returns where to divide rows so that the halves have about as many tokens; 0 if that can't be.
fn middle(rows: &[&[TokenId]]) -> usize {
    let all: usize = rows.iter().map(|row| row.len()).sum();
    let mut before = 0;
    let reaches_half = |row: &&[TokenId]| {
        before += row.len();
        2 * before >= all
    };
    let at = rows.iter().position(reaches_half).map_or(0, |at| at + 1);
    at.min(rows.len().saturating_sub(1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;

    #[derive(Default)]
    struct Warnings(Mutex<Vec<String>>);

    impl Progress for Warnings {
        fn begin(&self, _: &'static str, _: u64) {}
        fn advance(&self, _: u64, _: u64, _: &str) {}
        fn finish(&self) {}
        fn note(&self, _: &str) {}
        fn warn(&self, line: &str) {
            self.0.lock().unwrap().push(line.to_owned());
        }
    }

    fn memory(free_bytes: u64, longest_row: usize) -> BatchMemory {
        BatchMemory {
            device: "cuda:0".to_owned(),
            free_bytes,
            weights_bytes: 1_000_000,
            needs: GpuScoringMemory {
                weights_bytes: 1_000_000,
                bytes_per_token: 1000,
                fixed_bytes: 100_000,
            },
            longest_row,
            stream_weights: false,
        }
    }

    #[test]
    fn a_batch_is_what_fits_with_a_margin_and_is_of_use() {
        // 900,000 are planned with, 800,000 are left, in pieces of 256 tokens.
        assert_eq!(memory(1_000_000, 512).chosen().unwrap(), 768);
        assert_eq!(memory(1 << 40, 512).chosen().unwrap(), MOST_CHOSEN_TOKENS);
        let error = memory(1_000_000, 1024).chosen().unwrap_err().to_string();
        assert!(
            error.starts_with(
                "a row of 1024 tokens takes about 1 MB besides the models, and cuda:0 has 1 MB free\nhint: "
            ),
            "{error}"
        );
        let error = memory(999_999, 1).expect_room_for_weights().unwrap_err();
        assert!(
            error
                .to_string()
                .starts_with("the models take about 1 MB, and cuda:0 has 1000 kB free\nhint: "),
            "{error}"
        );
        assert!(memory(1_000_000, 1).expect_room_for_weights().is_ok());
    }

    /// Computes the lengths of rows, with memory for some tokens.
    fn lengths(most: usize) -> impl Fn(&[&[TokenId]]) -> Result<Vec<usize>, model::Error> {
        move |rows| match rows.iter().map(|row| row.len()).sum::<usize>() {
            tokens if tokens <= most => Ok(rows.iter().map(|row| row.len()).collect()),
            tokens => Err(model::Error::OutOfMemory {
                wanted_bytes: tokens as u64 * 1000,
                free_bytes: most as u64 * 1000,
            }),
        }
    }

    #[test]
    fn short_memory_halves_batches_once_and_is_an_error_the_second_time() {
        let rows: Vec<&[TokenId]> = vec![&[1; 10], &[2; 30], &[3; 40], &[4; 20]];
        let warnings = Warnings::default();
        let batches = Batches::new(128, "cuda:0".to_owned(), &warnings);
        assert_eq!(batches.run(&rows, lengths(100)).unwrap(), [10, 30, 40, 20]);
        assert_eq!(batches.tokens(), 128);
        // Halves of 80 and 20 tokens.
        assert_eq!(batches.run(&rows, lengths(80)).unwrap(), [10, 30, 40, 20]);
        assert_eq!(batches.tokens(), 50);
        let said = warnings.0.lock().unwrap().join("\n");
        assert!(
            said.starts_with("out of memory on cuda:0 in a batch of 100 tokens: from now on batches have up to 50"),
            "{said}"
        );
        let error = batches.run(&rows[..2], lengths(39)).unwrap_err();
        assert_eq!(
            format!("{error:#}"),
            "a batch of 40 tokens did not fit on cuda:0, after one of 100 did not fit either\nhint: give --batch-tokens 20 \
             or less: out of memory: 40 kB more were asked for, and 39 kB are free"
        );
        assert_eq!(warnings.0.lock().unwrap().len(), 1);
        let batches = Batches::new(128, "cuda:0".to_owned(), &warnings);
        let error = batches.run(&rows[2..3], lengths(39)).unwrap_err();
        assert!(
            error
                .to_string()
                .starts_with("a row of 40 tokens alone did not fit on cuda:0\nhint: shorter rows"),
            "{error}"
        );
    }

    #[test]
    fn other_errors_are_not_tried_again() {
        let progress = Warnings::default();
        let batches = Batches::new(8, "cuda:0".to_owned(), &progress);
        let failed = batches.run::<()>(&[&[1], &[2]], |_| Err(model::Error::Internal("other")));
        assert_eq!(failed.unwrap_err().to_string(), "internal error: other");
        assert_eq!(batches.tokens(), 8);
    }

    #[test]
    fn rows_are_divided_in_the_middle_of_their_tokens() {
        let rows: Vec<&[TokenId]> = vec![&[1; 90], &[2; 5], &[3; 5]];
        assert_eq!(middle(&rows), 1);
        assert_eq!(middle(&rows[1..]), 1);
        assert_eq!(middle(&rows[..1]), 0);
        let last: Vec<&[TokenId]> = vec![&[1; 5], &[2; 90]];
        assert_eq!(middle(&last), 1);
        assert_eq!(middle(&[]), 0);
    }
}
