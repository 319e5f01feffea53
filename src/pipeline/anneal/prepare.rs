//! Everything that touches the world before training and can refuse a run, gathered into one plan.

use anyhow::Result;

use super::super::{BadInput, Progress, StopFlag, Usage};
use super::compat::{check_positions, longest_row, objective, unused};
use super::extend::Extension;
use super::inputs::Inputs;
use super::length::num_steps;
use super::options::{AnnealOptions, EvalOptions, EvalRows};
use super::plan::{Plan, Start};
use super::report::{self, AnnealReport};
use super::settings::Settings;
use super::state::State;
use super::{logs, memory, resume, run_file};
use crate::batch::Order;
use crate::escape::Show as _;
use crate::model::Compute;
use crate::schedule::Schedule;

/// Evaluations of a run, besides the one before it, where their interval is left open.
const DEFAULT_NUM_EVALUATIONS: u64 = 10;

/// Outcome of preparing a run.
pub(super) enum Prepared<'a> {
    /// The output folder holds the model of this very run.
    Finished(Box<AnnealReport>),
    /// There is something to train.
    Ready(Box<Plan<'a>>, Box<Start>),
}

/// Plans a run.
///
/// # Errors
///
/// When the inputs and options don't fit together, when the run does not fit into memory, and when the output
/// folder holds another run.
pub(super) fn prepare<'a>(
    options: &'a AnnealOptions,
    inputs: &'a Inputs,
    stop: &StopFlag,
    progress: &dyn Progress,
) -> Result<Prepared<'a>> {
    let AnnealOptions {
        optimization,
        compute,
        checkpoints,
        output,
        ..
    } = options;
    let Inputs {
        device,
        set,
        rl_columns,
        eval_set,
        initial,
        carried,
    } = inputs;
    let holdout = match &options.eval {
        Some(EvalOptions {
            rows: EvalRows::Holdout(fraction),
            ..
        }) => Some(*fraction),
        _ => None,
    };
    let order = Order::new(set, optimization.seed, holdout)?;
    check_rows(options, &order, holdout)?;
    let positions = initial.architecture().max_position_embeddings;
    let longest_trained_row = order.longest_row() as usize;
    check_positions(initial, longest_trained_row)?;
    let longest_scored_row = match eval_set {
        // Up to the length of a micro-batch it makes no difference to the memory that a run needs.
        Some(set) => {
            let micro_batch = compute.micro_batch_tokens.min(optimization.batch_tokens);
            longest_row(set, micro_batch.max(longest_trained_row).min(positions))?
        }
        None => order.longest_held_out_row() as usize,
    };
    check_positions(initial, longest_scored_row)?;
    let extension = options
        .extend
        .as_ref()
        .map(|extend| Extension::open(extend, &output.dir, progress))
        .transpose()?;
    let first_step = extension
        .as_ref()
        .map_or(0, |extension| extension.extended.after_step);
    let num_steps = first_step.saturating_add(num_steps(optimization, &order, stop)?);
    for option in unused(&options.loss) {
        progress.warn(&format!(
            "{option} changes nothing: --weighting {} does not use it",
            options.loss.weighting
        ));
    }
    let settings = Settings {
        manifest_blake3: set.manifest().content_blake3.to_string(),
        rl_columns: rl_columns.clone(),
        eval_manifest_blake3: eval_set
            .as_ref()
            .map(|set| set.manifest().content_blake3.to_string()),
        model_fingerprint: initial.fingerprint().to_string(),
        objective: objective(&options.loss, set.manifest())?,
        schedule: Schedule {
            decay: optimization.decay,
            lr: optimization.lr,
            min_lr: optimization.min_lr,
            warmup_steps: optimization.warmup_steps,
            num_steps,
            first_step,
        },
        optimizer: optimization.adamw,
        batch_tokens: optimization.batch_tokens,
        seed: optimization.seed,
        holdout,
        on_nonfinite: optimization.on_nonfinite,
        dtype: compute.dtype.to_string(),
        device: device.kind().to_owned(),
        extends: extension
            .as_ref()
            .map(|extension| extension.extended.clone()),
    };
    let needs = memory::Needs {
        architecture: initial.architecture(),
        compute,
        batch_tokens: optimization.batch_tokens,
        longest_trained_row,
        longest_scored_row,
        window_tokens: order.largest_window_tokens(),
        distributions: set.manifest().plan.distributions,
    };
    needs.check(device.uses_host_memory(), progress)?;
    // From here on no other run changes the folder, or what is read of it.
    let metrics_log = logs::lock(&output.dir)?;
    if run_file::is_finished(&output.dir, &settings)? {
        progress.note(&format!(
            "{} holds the finished model of this very run; nothing is left to do",
            output.dir.shown()
        ));
        let report = report::finished(&output.dir, initial.source(), &settings)?;
        return Ok(Prepared::Finished(Box::new(report)));
    }
    let resumed = resume::find(&output.dir, checkpoints.resume, &settings, progress)?;
    let begun = match (extension, &options.extend) {
        (Some(extension), Some(extend)) => Some(extension.begin(&extend.run, &settings)?),
        _ => None,
    };
    let (checkpoint, state, extended_run) = match (resumed, begun) {
        (Some((point, state)), begun) => (Some(point), state, begun.map(|(_, _, run)| run)),
        (None, Some((point, state, run))) => (Some(point), state, Some(run)),
        (None, None) => (None, State::initial(settings.clone()), None),
    };
    let eval_every = options.eval.as_ref().and_then(|eval| eval.every);
    let plan = Plan {
        initial,
        carried,
        manifest: set.manifest(),
        order,
        eval_set: eval_set.as_ref(),
        eval_every: eval_every
            .unwrap_or((num_steps - first_step).div_ceil(DEFAULT_NUM_EVALUATIONS)),
        settings,
        extended_run,
        compute: Compute {
            device: device.clone(),
            dtype: compute.dtype,
            trained: true,
        },
        micro_batch_tokens: compute.micro_batch_tokens,
        activation_checkpointing: compute.activation_checkpointing,
        checkpoints: *checkpoints,
        output,
        invocation: &options.invocation,
        weights: &options.weights,
        strict: options.strict,
    };
    let start = Start {
        metrics_log,
        state,
        checkpoint,
    };
    Ok(Prepared::Ready(Box::new(plan), Box::new(start)))
}

/// Checks that there are rows to train on, and, if some are to be held out, to measure losses on.
fn check_rows(options: &AnnealOptions, order: &Order<'_>, holdout: Option<f64>) -> Result<()> {
    let dir = options.weights.shown();
    let held_out = order.num_held_out();
    if order.longest_row() == 0 {
        let which = if held_out > 0 {
            "no rows besides those that are held out"
        } else {
            "no rows"
        };
        return Err(BadInput(format!("the set in {dir} has {which}")).into());
    }
    if let Some(fraction) = holdout
        && held_out == 0
    {
        return Err(Usage(format!(
            "--holdout {fraction} holds out none of the documents of {dir}\nhint: give a larger fraction"
        ))
        .into());
    }
    Ok(())
}
