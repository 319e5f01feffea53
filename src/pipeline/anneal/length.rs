//! Counts the steps of a run.

use anyhow::Result;

use super::super::{StopFlag, Usage};
use super::options::{Length, OptimizationOptions};
use super::state::RESUMES;
use crate::batch::Order;

/// Most times over a set that are walked through to count the steps of a run.
const MAX_EPOCHS: u64 = 10_000;

/// Returns the number of optimizer steps.
///
/// # Errors
///
/// [`Usage`] when it is beyond any purpose, and when the warm-up leaves nothing of it.
pub(super) fn num_steps(
    options: &OptimizationOptions,
    order: &Order<'_>,
    stop: &StopFlag,
) -> Result<u64> {
    let epoch = |epoch: u64| -> Result<Vec<u64>> {
        stop.check(RESUMES)?;
        Ok(order.step_tokens(epoch, options.batch_tokens))
    };
    let too_long = |flag: &str, epochs: u64| {
        Usage(format!(
            "{flag} comes to {epochs} times over the set, which has {} tokens to train on; more than {MAX_EPOCHS} can't be \
             meant\nhint: --steps takes any number",
            order.num_tokens()
        ))
    };
    let num_steps = match options.length {
        Length::Steps(steps) => steps,
        Length::Epochs(epochs) if epochs > MAX_EPOCHS => {
            return Err(too_long(&format!("--epochs {epochs}"), epochs).into());
        }
        Length::Tokens(tokens) if tokens / order.num_tokens().max(1) > MAX_EPOCHS => {
            let epochs = tokens / order.num_tokens().max(1);
            return Err(too_long(&format!("--tokens {tokens}"), epochs).into());
        }
        Length::Epochs(epochs) => {
            let mut steps = 0_u64;
            for number in 0..epochs {
                steps = steps.saturating_add(epoch(number)?.len() as u64);
            }
            steps
        }
        Length::Tokens(tokens) => {
            let (mut steps, mut left) = (0_u64, tokens);
            for number in 0.. {
                for step in epoch(number)? {
                    if left == 0 {
                        break;
                    }
                    steps += 1;
                    left = left.saturating_sub(step);
                }
                if left == 0 {
                    break;
                }
            }
            steps
        }
    };
    if options.warmup_steps >= num_steps {
        return Err(Usage(format!(
            "--warmup-steps {} leaves nothing of the {num_steps} steps\nhint: give fewer of them, or a longer run",
            options.warmup_steps
        ))
        .into());
    }
    Ok(num_steps)
}
