//! remit-anneal: shards to an annealed model.

mod evaluate;
mod export;
mod logs;
mod memory;
mod options;
mod pair;
mod run_file;
mod settings;
mod steps;
mod trainer;

use std::path::PathBuf;
use std::time::Instant;

use anyhow::Result;
use serde::{Deserialize, Serialize};

use super::{BadInput, Progress, StopFlag, Usage, open_device, tokenizer_of};
use crate::batch::{Cursor, Order};
use crate::checkpoint::{self, CHECKPOINTS_DIR, TrainingCheckpoint};
use crate::fs::{self, Digest};
use crate::loss::Weighting;
use crate::model::{Compute, Decoder, Gradients, ModelSource, OpenModel};
use crate::optim::AdamW;
use crate::schedule::Schedule;
use crate::shard::manifest::Manifest;
use crate::shard::read::ShardSet;

pub use evaluate::{Evaluation, SourceLosses};
pub(super) use evaluate::{Rows, evaluation, losses};
pub use export::PROVENANCE_FILE;
use logs::Logs;
pub use logs::{EVAL_FILE, LogSizes, METRICS_FILE};
pub use options::*;
pub(super) use pair::{check, check_positions};
pub use run_file::RUN_FILE;
pub use settings::{Settings, State};
use steps::Run;
pub use trainer::NonFinite;
use trainer::Trainer;

/// Most times over a set that are walked through to count the steps of a run.
const MAX_EPOCHS: u64 = 10_000;

/// What the same command does after an interruption.
const RESUMES: &str = "it goes on from the newest checkpoint and comes to the same model";

/// One line of metrics.jsonl. A loss, norm or mean of a step that was skipped is NaN, in JSON null.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StepMetrics {
    /// Number of the step, from 1.
    pub step: u64,
    /// Epoch that its rows are from, from 0.
    pub epoch: u64,
    /// The weighted loss: nats a target, or a unit of weight. With the z-loss it is what is minimised.
    pub loss: f64,
    /// The plain next-token loss, nats a target.
    pub ntp_loss: f64,
    /// What the z-loss adds.
    pub z_loss: f64,
    /// Learning rate.
    pub lr: f64,
    /// Norm of the gradient before clipping.
    pub grad_norm: f64,
    /// Mean weight of a target.
    pub weight_mean: f64,
    /// Share of the targets whose weight is at a bound.
    pub weight_at_bounds: f64,
    /// Targets of the step.
    pub targets: u64,
    /// Tokens trained on so far, those of this step included.
    pub tokens: u64,
    /// Whether the step was left out, since a loss or gradient was not finite.
    pub skipped: bool,
    /// Tokens of the step over its duration.
    pub tokens_per_second: f64,
}

/// What a run did.
#[derive(Debug)]
pub struct AnnealReport {
    /// The annealed model's folder.
    pub output: PathBuf,
    /// Whether the model was there already, made by the very same run.
    pub was_finished: bool,
    /// The first and the last step that were not skipped.
    pub ends: Option<(StepMetrics, StepMetrics)>,
    /// The step that an earlier run had come to; 0 if there was none.
    pub resumed_after: u64,
    /// Steps in all.
    pub steps: u64,
    /// Steps that were skipped, by this run.
    pub skipped_steps: u64,
    /// How many of the last steps were skipped, one after another.
    pub skipped_at_end: u64,
    /// Tokens trained on, in all.
    pub tokens: u64,
    /// Tokens trained on by this run.
    pub own_tokens: u64,
    /// Duration of all steps of this run, seconds.
    pub seconds: f64,
    /// The last evaluation of this run.
    pub evaluation: Option<Evaluation>,
    /// What the run began with.
    pub model: String,
    /// How targets were weighted.
    pub weighting: Weighting,
}

/// Trains and writes the annealed model.
///
/// # Errors
///
/// When the set or the model is missing or damaged, when they don't belong together, when the run does not
/// fit into memory, when the folder holds another run, when a loss is not finite, and when writing fails.
pub fn run(
    options: &AnnealOptions,
    stop: &StopFlag,
    progress: &dyn Progress,
) -> Result<AnnealReport> {
    run_file::refuse_foreign_files(&options.output)?;
    let set = ShardSet::open(&options.weights)?;
    let initial = pair::learner(options, set.manifest())?;
    let source = initial.source();
    let tokenizer = tokenizer_of(&initial)?.fingerprint();
    let (weights, weighting) = (&options.weights, options.weighting);
    check(&initial, tokenizer, weighting, weights, set.manifest())?;
    let holdout = match options.eval {
        Some(EvalRows::Holdout(fraction)) => Some(fraction),
        _ => None,
    };
    let order = Order::new(&set, options.seed, holdout)?;
    check_rows(options, &initial, &order)?;
    let eval_set = match &options.eval {
        Some(EvalRows::Set(dir)) => Some(open_eval_set(options, dir, &initial, tokenizer)?),
        _ => None,
    };
    let eval_manifest = eval_set.as_ref().map(|set| set.manifest().content_blake3);
    let longest_scored_row = match &eval_set {
        Some(set) => Order::new(set, 0, None)?.longest_row(),
        None => order.longest_held_out_row(),
    };
    check_positions(&initial, longest_scored_row as usize)?;
    let num_steps = num_steps(options, &order, stop)?;
    let device = open_device(options.device, progress)?;
    let settings = Settings {
        eval_manifest_blake3: eval_manifest.map(|digest| digest.to_string()),
        ..settings(options, set.manifest(), &initial, num_steps, device.kind())?
    };
    let on_cpu = device.kind() == "cpu";
    memory::plan(
        options,
        initial.architecture(),
        &order,
        longest_scored_row as usize,
        on_cpu,
        progress,
    )?;
    // From here on no other run changes the folder, or what is read of it.
    let metrics_log = logs::lock(&options.output)?;
    if run_file::is_finished(&options.output, &settings)? {
        progress.note(&format!(
            "{} holds the finished model of this very run; nothing is left to do",
            options.output.display()
        ));
        return finished_report(options, source, num_steps);
    }

    progress.note(&format!("loading {source}"));
    let compute = Compute {
        device,
        dtype: options.dtype,
        trained: true,
    };
    let model = Decoder::from_open(&initial, &compute)?;
    let mut trainer = Trainer {
        options,
        objective: settings.objective,
        gradients: Gradients::new(model.parameters().len()),
        optimizer: AdamW::new(model.parameters(), options.optimizer)?,
        schedule: settings.schedule,
        model,
        tokens: 0,
    };
    let resumed = resume(options, &settings, &mut trainer, progress)?;
    let eval_rows = eval_set
        .as_ref()
        .map(Rows::Set)
        .or(holdout.map(|_| Rows::HeldOut(&order)));
    let state = resumed.unwrap_or_else(|| State {
        tool_version: env!("CARGO_PKG_VERSION").to_owned(),
        settings: settings.clone(),
        step: 0,
        optimizer_steps: 0,
        skipped_in_a_row: 0,
        tokens: 0,
        cursor: Cursor::default(),
        logs: LogSizes::default(),
        evaluated_step: None,
        first: None,
        last: None,
    });
    run_file::write(options, &settings, source, state.step)?;
    let evaluates = eval_rows.is_some();
    let mut logs = Logs::open(&options.output, metrics_log, state.logs, evaluates)?;
    // An interruption may have come between writing a checkpoint and removing older ones.
    checkpoint::prune(&options.output.join(CHECKPOINTS_DIR), options.keep)?;
    progress.note(&format!(
        "{num_steps} steps of about {} tokens, {} rows in the set, {} held out; {} weights",
        options.batch_tokens,
        set.manifest().totals.rows,
        order.num_held_out(),
        options.weighting
    ));
    if order.num_left_out() > 0 {
        progress.note(&format!(
            "{} rows are left out, since they hold a part of a document of which another part is on the other side of \
             the holdout",
            order.num_left_out()
        ));
    }

    let mut run = Run {
        options,
        num_steps,
        saved_step: state.step,
        state,
        skipped_steps: 0,
        evaluation: None,
        eval_rows,
        stop,
        progress,
    };
    let resumed_after = run.state.step;
    let own_tokens = run.state.tokens;
    let started = Instant::now();
    progress.begin("annealing", num_steps);
    progress.advance(run.state.step, 0, "");
    run.steps(&order, &mut trainer, &mut logs)?;
    progress.finish();
    let seconds = started.elapsed().as_secs_f64();
    logs.sync()?;
    let outcome = export::Outcome {
        initial: &initial,
        manifest: set.manifest(),
        settings: &settings,
        tokens: trainer.tokens,
        steps: num_steps,
        skipped_steps: num_steps - trainer.optimizer.num_steps(),
        ends: run.state.first.as_ref().zip(run.state.last.as_ref()),
    };
    progress.note(&format!("writing {}", options.output.display()));
    export::write(&trainer.model, options, &outcome)?;
    Ok(AnnealReport {
        output: options.output.clone(),
        was_finished: false,
        ends: run.state.first.zip(run.state.last),
        resumed_after,
        steps: num_steps,
        skipped_steps: run.skipped_steps,
        skipped_at_end: run.state.skipped_in_a_row,
        tokens: trainer.tokens,
        own_tokens: trainer.tokens - own_tokens,
        seconds,
        evaluation: run.evaluation,
        model: source.to_string(),
        weighting: options.weighting,
    })
}

/// Goes on from the newest checkpoint that is whole, if there is one.
fn resume(
    options: &AnnealOptions,
    settings: &Settings,
    trainer: &mut Trainer<'_>,
    progress: &dyn Progress,
) -> Result<Option<State>> {
    let dir = options.output.join(CHECKPOINTS_DIR);
    if options.resume == Resume::Never {
        let Some(step) = checkpoint::steps(&dir)?.pop() else {
            return Ok(None);
        };
        return Err(Usage(format!(
            "{} has checkpoints, up to step {step}\nhint: leave out --resume=never to go on from there, give another -o, or remove the folder",
            dir.display()
        ))
        .into());
    }
    let checkpoint::Newest { intact, damaged } = TrainingCheckpoint::newest(&dir)?;
    for (_, problem) in &damaged {
        let cause = std::error::Error::source(problem).map(|cause| format!(": {cause}"));
        let cause = cause.unwrap_or_default();
        progress.note(&format!("{problem}{cause}; the one before it is tried"));
    }
    let Some(newest) = intact else {
        return match damaged.into_iter().next() {
            None => Ok(None),
            Some((_, problem)) => Err(anyhow::Error::new(problem).context(format!(
                "no checkpoint in {} is whole, the newest for this reason\nhint: remove the folder to begin anew",
                dir.display()
            ))),
        };
    };
    let state: State = newest.state()?;
    let differences = state.settings.differences(settings);
    if !differences.is_empty() {
        return Err(Usage(format!(
            "the run in {} was begun with other settings:\n  {}\nhint: give the settings it was begun with to go on, or another -o",
            options.output.display(),
            differences.join("\n  ")
        ))
        .into());
    }
    newest.restore(
        trainer.model.parameters_mut(),
        &mut trainer.optimizer,
        state.optimizer_steps,
    )?;
    trainer.tokens = state.tokens;
    // Newer ones are damaged, and would be taken for newer than those that are yet to come.
    for (step, _) in damaged {
        checkpoint::remove(&dir, step)?;
    }
    progress.note(&format!("going on after step {}", newest.step()));
    Ok(Some(state))
}

/// Whether there are rows to train and evaluate on, and the model has positions for them.
fn check_rows(options: &AnnealOptions, initial: &OpenModel, order: &Order<'_>) -> Result<()> {
    let held_out = order.num_held_out();
    if order.longest_row() == 0 {
        let which = if held_out > 0 {
            "no rows besides those that are held out"
        } else {
            "no rows"
        };
        return Err(BadInput(format!(
            "the set in {} has {which}",
            options.weights.display()
        ))
        .into());
    }
    if let Some(EvalRows::Holdout(fraction)) = options.eval
        && held_out == 0
    {
        return Err(Usage(format!(
            "--holdout {fraction} holds out none of the documents of {}\nhint: give a larger fraction",
            options.weights.display()
        ))
        .into());
    }
    check_positions(initial, order.longest_row() as usize)
}

fn open_eval_set(
    options: &AnnealOptions,
    dir: &std::path::Path,
    initial: &OpenModel,
    tokenizer: Digest,
) -> Result<ShardSet> {
    let set = ShardSet::open(dir)?;
    check(initial, tokenizer, options.weighting, dir, set.manifest())?;
    if set.manifest().totals.rows == 0 {
        return Err(BadInput(format!("the set in {} has no rows", dir.display())).into());
    }
    Ok(set)
}

/// Number of optimizer steps, and whether it fits the schedule.
fn num_steps(options: &AnnealOptions, order: &Order<'_>, stop: &StopFlag) -> Result<u64> {
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

fn settings(
    options: &AnnealOptions,
    manifest: &Manifest,
    initial: &OpenModel,
    num_steps: u64,
    device: &str,
) -> Result<Settings> {
    Ok(Settings {
        manifest_blake3: manifest.content_blake3.to_string(),
        eval_manifest_blake3: None,
        model_fingerprint: initial.fingerprint().to_string(),
        objective: pair::objective(options, manifest)?,
        schedule: Schedule {
            decay: options.decay,
            peak: options.learning_rate,
            floor: options.min_learning_rate,
            warmup_steps: options.warmup_steps,
            num_steps,
        },
        optimizer: options.optimizer,
        batch_tokens: options.batch_tokens,
        seed: options.seed,
        holdout: match options.eval {
            Some(EvalRows::Holdout(fraction)) => Some(fraction),
            _ => None,
        },
        on_nonfinite: options.on_nonfinite,
        dtype: options.dtype.to_string(),
        device: device.to_owned(),
    })
}

/// The report of a run that was finished before.
fn finished_report(
    options: &AnnealOptions,
    source: &ModelSource,
    steps: u64,
) -> Result<AnnealReport> {
    let provenance = fs::read(&options.output.join(PROVENANCE_FILE))?;
    let provenance: serde_json::Value = serde_json::from_slice(&provenance)?;
    Ok(AnnealReport {
        output: options.output.clone(),
        was_finished: true,
        ends: None,
        resumed_after: steps,
        steps,
        skipped_steps: 0,
        skipped_at_end: 0,
        tokens: provenance["tokens"].as_u64().unwrap_or(0),
        own_tokens: 0,
        seconds: 0.0,
        evaluation: None,
        model: source.to_string(),
        weighting: options.weighting,
    })
}
