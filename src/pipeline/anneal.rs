//! remit-anneal: shards to an annealed model.

use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::Serialize;
use serde_json::json;

use super::{BadInput, Progress, StopFlag, Usage, open_device, tokenizer_of};
use crate::batch::{Order, micro_batches};
use crate::demo;
use crate::fs::{self, AtomicFile};
use crate::loss::{LossSums, Weighting};
use crate::model::{
    self, Checkpoint, Compute, ComputeDtype, Decoder, DeviceChoice, Gradients, ModelSource,
};
use crate::optim::{AdamW, AdamWOptions, LinearSchedule};
use crate::shard::manifest::{MANIFEST_FILE, Manifest};
use crate::shard::read::ShardSet;
use crate::types::ScoredRow;
use crate::weight::{DEFAULT_EPSILON, DEFAULT_TEMPERATURE, WeightFormula};

/// Default for the tokens of an optimizer step.
pub const DEFAULT_BATCH_TOKENS: usize = 16_384;
/// Default for the tokens that are in memory at a time.
pub const DEFAULT_MICRO_BATCH_TOKENS: usize = 4096;
/// Name of the log in the output folder: one JSON object a step.
pub const METRICS_FILE: &str = "metrics.jsonl";
/// Name of the file in the output folder that says where the model comes from.
pub const PROVENANCE_FILE: &str = "remit.json";

/// What the same command does after an interruption.
const START_OVER: &str = "it starts over and comes to the same model";

const WEIGHTS_FILE: &str = "model.safetensors";

/// Files of a Hugging Face directory that are carried over, where the model has them.
const CARRIED_OVER: [&str; 11] = [
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    "chat_template.jinja",
    "LICENSE",
];

/// How long a run is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Length {
    /// This many optimizer steps, over as many epochs as they need.
    Steps(u64),
    /// This many times over the set.
    Epochs(u64),
}

/// Everything that a run is asked for.
#[derive(Debug, Clone)]
pub struct AnnealOptions {
    /// Folder of the set.
    pub weights: PathBuf,
    /// The model to begin with; `None` for the base of the manifest.
    pub model: Option<ModelSource>,
    /// Folder for the annealed model.
    pub output: PathBuf,
    /// What targets count for.
    pub weighting: Weighting,
    /// Half-width of the interval of weights; `None` for the set's, or the default.
    pub epsilon: Option<f32>,
    /// Temperature of the weights; `None` for the set's, or the default.
    pub temperature: Option<f32>,
    /// Peak learning rate.
    pub learning_rate: f64,
    /// Steps of linear warm-up.
    pub warmup_steps: u64,
    /// How long to train.
    pub length: Length,
    /// Tokens of an optimizer step.
    pub batch_tokens: usize,
    /// Tokens in memory at a time.
    pub micro_batch_tokens: usize,
    /// Weight decay and clipping.
    pub optimizer: AdamWOptions,
    /// Device that the learner computes on.
    pub device: DeviceChoice,
    /// Seed of the order of the rows.
    pub seed: u64,
}

/// One line of metrics.jsonl.
#[derive(Debug, Clone, Serialize)]
pub struct StepMetrics {
    /// Number of the step, from 1.
    pub step: u64,
    /// Epoch that its rows are from, from 0.
    pub epoch: u64,
    /// The weighted loss that is minimised, nats a target.
    pub loss: f64,
    /// The plain next-token loss, nats a target.
    pub ntp_loss: f64,
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
    /// Tokens of the step over its duration.
    pub tokens_per_second: f64,
}

/// What a run did.
#[derive(Debug)]
pub struct AnnealReport {
    /// The annealed model's folder.
    pub output: PathBuf,
    /// The first and the last step.
    pub ends: Option<(StepMetrics, StepMetrics)>,
    /// Tokens trained on.
    pub tokens: u64,
    /// Duration of all steps, seconds.
    pub seconds: f64,
    /// What the run began with.
    pub model: String,
    /// How targets were weighted.
    pub weighting: Weighting,
}

/// Trains and writes the annealed model.
///
/// # Errors
///
/// When the set or the model is missing or damaged, when they don't belong together, when the loss
/// is not finite, and when writing fails.
pub fn run(
    options: &AnnealOptions,
    stop: &StopFlag,
    progress: &dyn Progress,
) -> Result<AnnealReport> {
    if fs::exists(&options.output.join("config.json"))? {
        return Err(Usage(format!(
            "{} holds a model already, and remit never writes over one\nhint: give another -o, or remove it",
            options.output.display()
        ))
        .into());
    }
    let set = ShardSet::open(&options.weights)?;
    let manifest = set.manifest();
    let source = learner(options, manifest)?;
    check_pair(&source, options, manifest)?;
    let formula = formula(options, manifest)?;
    let order = Order::new(&set, options.seed)?;
    if order.longest_row() == 0 {
        return Err(BadInput(format!(
            "the set in {} has no rows",
            options.weights.display()
        ))
        .into());
    }
    let architecture = source.architecture()?;
    if order.longest_row() as usize > architecture.max_position_embeddings {
        return Err(BadInput(format!(
            "the set has rows of {} tokens, but {source} was made for {} positions",
            order.longest_row(),
            architecture.max_position_embeddings
        ))
        .into());
    }
    let (num_steps, num_epochs) = length(options, &order, stop)?;
    let schedule = LinearSchedule {
        peak: options.learning_rate,
        warmup_steps: options.warmup_steps,
        num_steps,
    };
    if options.warmup_steps >= num_steps {
        return Err(Usage(format!(
            "--warmup-steps {} leaves nothing of the {num_steps} steps",
            options.warmup_steps
        ))
        .into());
    }

    let compute = Compute {
        device: open_device(options.device, progress)?,
        dtype: ComputeDtype::F32,
    };
    progress.note(&format!("loading {source}"));
    let model = Decoder::load_on(&source, &compute)?;
    let fingerprint = Checkpoint::open(&source)?.fingerprint()?;
    fs::create_dir_all(&options.output)?;
    let metrics_path = options.output.join(METRICS_FILE);
    let mut log = fs::create_log(&metrics_path)?;
    progress.note(&format!(
        "{num_steps} steps over {} rows, {} targets; {} weights",
        manifest.totals.rows, manifest.totals.targets, options.weighting
    ));
    progress.begin("annealing", num_steps);
    let mut trainer = Trainer {
        options,
        formula,
        gradients: Gradients::new(model.parameters().len()),
        optimizer: AdamW::new(&model, options.optimizer)?,
        schedule,
        model,
    };
    let mut ends: Option<(StepMetrics, StepMetrics)> = None;
    let started = std::time::Instant::now();
    let mut tokens = 0;
    let steps = (0..num_epochs).flat_map(|epoch| order.steps(epoch, options.batch_tokens));
    for step in steps.take(usize::try_from(num_steps).unwrap_or(usize::MAX)) {
        stop.check(START_OVER)?;
        let step = step?;
        let metrics = trainer.step(step.epoch, &step.rows)?;
        let line = serde_json::to_string(&metrics)?;
        writeln!(log, "{line}")
            .and_then(|()| log.flush())
            .map_err(|error| fs::write_error(&metrics_path, error))?;
        let step_tokens: u64 = step
            .rows
            .iter()
            .map(|row| row.row.input_ids.len() as u64)
            .sum();
        tokens += step_tokens;
        progress.advance(
            metrics.step,
            step_tokens,
            &format!(
                "step {} loss {:.4} (plain {:.4}) weight {:.3}, {:.0} % at bounds, lr {:.2e}, |g| {:.2}",
                metrics.step,
                metrics.loss,
                metrics.ntp_loss,
                metrics.weight_mean,
                100.0 * metrics.weight_at_bounds,
                metrics.lr,
                metrics.grad_norm
            ),
        );
        ends = Some((
            ends.map_or_else(|| metrics.clone(), |(first, _)| first),
            metrics,
        ));
    }
    progress.finish();
    let seconds = started.elapsed().as_secs_f64();
    let provenance = json!({
        "tool_version": env!("CARGO_PKG_VERSION"),
        "model": source.to_string(),
        "model_fingerprint": fingerprint,
        "weights": options.weights.display().to_string(),
        "manifest_blake3": manifest.content_blake3,
        "reference": manifest.plan.reference,
        "weighting": options.weighting,
        "formula": formula,
        "learning_rate": options.learning_rate,
        "schedule": "linear",
        "warmup_steps": options.warmup_steps,
        "steps": num_steps,
        "batch_tokens": options.batch_tokens,
        "weight_decay": options.optimizer.weight_decay,
        "clip": options.optimizer.clip,
        "betas": options.optimizer.betas,
        "adam_eps": options.optimizer.eps,
        "seed": options.seed,
        "device": compute.device.to_string(),
        "dtype": compute.dtype.to_string(),
        "tokens": tokens,
    });
    export(&trainer.model, &source, &options.output, &provenance)?;
    Ok(AnnealReport {
        output: options.output.clone(),
        ends,
        tokens,
        seconds,
        model: source.to_string(),
        weighting: options.weighting,
    })
}

/// The model to begin with.
fn learner(options: &AnnealOptions, manifest: &Manifest) -> Result<ModelSource> {
    if let Some(model) = &options.model {
        return Ok(model.clone());
    }
    let Some(base) = &manifest.plan.base else {
        return Err(Usage(format!(
            "the set in {} was scored without a base model, so there is none to begin with\nhint: give --model DIR",
            options.weights.display()
        ))
        .into());
    };
    let source = demo::by_name(&base.path)
        .unwrap_or_else(|| ModelSource::Directory(PathBuf::from(&base.path)));
    let found = Checkpoint::open(&source)
        .with_context(|| {
            format!(
                "cannot open the base model {} of {}; give --model DIR if it has moved",
                base.path, MANIFEST_FILE
            )
        })?
        .fingerprint()?;
    if found != base.fingerprint {
        return Err(BadInput(format!(
            "the base model {} has changed since the set was scored: its fingerprint is {found}, the manifest says {}\nhint: give --model DIR to train another model on purpose",
            base.path, base.fingerprint
        ))
        .into());
    }
    Ok(source)
}

/// Whether set, learner and weighting belong together.
fn check_pair(source: &ModelSource, options: &AnnealOptions, manifest: &Manifest) -> Result<()> {
    let tokenizer = tokenizer_of(source)?;
    let wanted = &manifest.plan.tokenizer;
    if tokenizer.fingerprint() != wanted.fingerprint {
        return Err(BadInput(format!(
            "the set in {} was tokenized with the tokenizer of {} (fingerprint {}), but that of {source} is another (fingerprint {}); their ids do not mean the same\nhint: score the corpus again with an RL model that shares the tokenizer of {source}",
            options.weights.display(),
            wanted.path,
            wanted.fingerprint,
            tokenizer.fingerprint()
        ))
        .into());
    }
    if options.weighting == Weighting::Static && manifest.plan.base.is_none() {
        return Err(Usage(format!(
            "--weighting static needs stored weights, but the set in {} was scored without --base-model\nhint: --weighting dynamic needs none",
            options.weights.display()
        ))
        .into());
    }
    Ok(())
}

fn formula(options: &AnnealOptions, manifest: &Manifest) -> Result<WeightFormula> {
    let stored = manifest.plan.formula;
    if options.weighting == Weighting::Static
        && let Some(stored) = stored
        && (options
            .epsilon
            .is_some_and(|epsilon| epsilon != stored.epsilon())
            || options
                .temperature
                .is_some_and(|temperature| temperature != stored.temperature()))
    {
        return Err(Usage(format!(
            "static weights were made with epsilon {} and temperature {}, and can't be changed here\nhint: --weighting dynamic computes them anew, or score again with other values",
            stored.epsilon(),
            stored.temperature()
        ))
        .into());
    }
    let epsilon = stored.map_or(DEFAULT_EPSILON, |stored| stored.epsilon());
    let temperature = stored.map_or(DEFAULT_TEMPERATURE, |stored| stored.temperature());
    WeightFormula::new(
        options.epsilon.unwrap_or(epsilon),
        options.temperature.unwrap_or(temperature),
    )
    .map_err(|error| Usage(error.to_string()).into())
}

/// Number of steps, and a bound on the number of epochs that hold them.
fn length(options: &AnnealOptions, order: &Order<'_>, stop: &StopFlag) -> Result<(u64, u64)> {
    match options.length {
        // Every epoch has a step, since the set has a row.
        Length::Steps(wanted) => Ok((wanted, wanted)),
        Length::Epochs(wanted) => {
            let mut steps = 0_u64;
            for epoch in 0..wanted {
                stop.check(START_OVER)?;
                steps = steps.saturating_add(order.num_steps(epoch, options.batch_tokens));
            }
            Ok((steps, wanted))
        }
    }
}

struct Trainer<'a> {
    options: &'a AnnealOptions,
    formula: WeightFormula,
    model: Decoder,
    gradients: Gradients,
    optimizer: AdamW,
    schedule: LinearSchedule,
}

impl Trainer<'_> {
    /// One optimizer step: gradients of all micro-batches are summed and divided once.
    fn step(&mut self, epoch: u64, rows: &[ScoredRow]) -> Result<StepMetrics> {
        let started = std::time::Instant::now();
        let number = self.optimizer.num_steps() + 1;
        let mut sums = LossSums::default();
        let (weighting, formula) = (self.options.weighting, self.formula);
        let length = |row: &ScoredRow| row.row.input_ids.len();
        for rows in micro_batches(rows, self.options.micro_batch_tokens, length) {
            let ids: Vec<&[u32]> = rows
                .iter()
                .map(|row| row.row.input_ids.as_slice())
                .collect();
            self.model
                .accumulate_gradients(&ids, &mut self.gradients, &mut |i, log_probs, weights| {
                    weighting
                        .weigh(&formula, &rows[i], log_probs, weights)
                        .map_err(|_| model::Error::Internal("a row without static weights"))?;
                    sums.add(log_probs, weights, &formula);
                    Ok(())
                })
                .map_err(|error| match error {
                    // The model was fine when it was loaded, or the first step had failed.
                    model::Error::NotFiniteLogProb { .. } if number > 1 => {
                        model::Error::Diverged { norm: f64::NAN }
                    }
                    other => other,
                })
                .with_context(|| format!("step {number} failed"))?;
        }
        let lr = self.schedule.rate(number - 1);
        let grad_norm = self
            .optimizer
            .step(&self.model, &mut self.gradients, sums.normalizer(), lr)
            .with_context(|| format!("step {number} failed"))?;
        let tokens: usize = rows.iter().map(length).sum();
        Ok(StepMetrics {
            step: number,
            epoch,
            loss: sums.loss(),
            ntp_loss: sums.ntp_loss(),
            lr,
            grad_norm,
            weight_mean: sums.weight_mean(),
            weight_at_bounds: sums.weight_at_bounds(),
            targets: sums.targets,
            tokens_per_second: tokens as f64 / started.elapsed().as_secs_f64().max(1e-9),
        })
    }
}

/// Writes a Hugging Face directory. config.json comes last but for the provenance: without it no
/// library takes the folder for a model.
fn export(
    model: &Decoder,
    source: &ModelSource,
    dir: &Path,
    provenance: &serde_json::Value,
) -> Result<()> {
    model.check_exportable()?;
    let path = dir.join(WEIGHTS_FILE);
    let file = AtomicFile::create(&path)?;
    model
        .write_safetensors(file.path()?)
        .with_context(|| format!("cannot write {}", path.display()))?;
    file.publish()?;
    for name in CARRIED_OVER.iter().rev() {
        if let Some(content) = source.read(name)? {
            fs::write_atomic(&dir.join(name), &content)?;
        }
    }
    let mut text = serde_json::to_vec_pretty(provenance)?;
    text.push(b'\n');
    fs::write_atomic(&dir.join(PROVENANCE_FILE), &text)?;
    Ok(())
}
