//! Exports a finished run: a Hugging Face directory with its provenance and a card.

use std::path::Path;

use anyhow::Result;
use serde::Serialize;
use serde_json::json;

use super::files::{
    CARD_FILE, COMPLETION_MARKER, METRICS_FILE, PROVENANCE_FILE, RUN_FILE, is_exported,
};
use super::loss_change::LossChange;
use super::plan::Plan;
use super::settings::Extended;
use super::train::Trained;
use crate::fs;
use crate::loss::Objective;
use crate::model;
use crate::optim::DecayOn;
use crate::schedule::Decay;
use crate::shard::plan::ModelIdentity;

/// Provenance of an annealed model, as remit.json has it.
#[derive(Serialize)]
pub(super) struct Provenance<'a> {
    tool_version: &'static str,
    model: String,
    model_fingerprint: &'a str,
    weights: String,
    manifest_blake3: &'a str,
    rl: &'a ModelIdentity,
    #[serde(flatten)]
    objective: &'a Objective,
    lr: f64,
    min_lr: f64,
    schedule: Decay,
    warmup_steps: u64,
    steps: u64,
    skipped_steps: u64,
    batch_tokens: usize,
    weight_decay: f64,
    decay_on: DecayOn,
    clip: Option<f64>,
    betas: (f64, f64),
    adam_eps: f64,
    seed: u64,
    holdout: Option<f64>,
    device: &'a str,
    dtype: &'a str,
    tokens: u64,
    /// The run that this one went on from, and after which step.
    #[serde(skip_serializing_if = "Option::is_none")]
    extends: Option<Extends<'a>>,
}

/// The run that another went on from, as remit.json has it.
#[derive(Serialize)]
struct Extends<'a> {
    run: String,
    #[serde(flatten)]
    checkpoint: &'a Extended,
}

impl<'a> Provenance<'a> {
    fn new(plan: &'a Plan<'_>, trained: &Trained) -> Self {
        let settings = &plan.settings;
        let (schedule, optimizer) = (&settings.schedule, &settings.optimizer);
        Self {
            tool_version: env!("CARGO_PKG_VERSION"),
            model: plan.initial.name(),
            model_fingerprint: &settings.model_fingerprint,
            weights: plan.weights.display().to_string(),
            manifest_blake3: &settings.manifest_blake3,
            rl: &plan.manifest.plan.rl,
            objective: &settings.objective,
            lr: schedule.lr,
            min_lr: schedule.min_lr,
            schedule: schedule.decay,
            warmup_steps: schedule.warmup_steps,
            steps: schedule.num_steps,
            skipped_steps: trained.skipped_steps,
            batch_tokens: settings.batch_tokens,
            weight_decay: optimizer.weight_decay,
            decay_on: optimizer.decay_on,
            clip: optimizer.clip,
            betas: optimizer.betas,
            adam_eps: optimizer.eps,
            seed: settings.seed,
            holdout: settings.holdout,
            device: &settings.device,
            dtype: &settings.dtype,
            tokens: trained.tokens,
            extends: plan
                .extended_run
                .as_ref()
                .zip(settings.extends.as_ref())
                .map(|(run, checkpoint)| Extends {
                    run: run.run.display().to_string(),
                    checkpoint,
                }),
        }
    }

    /// Returns the text of a model card for the folder of a model.
    fn card(&self, dir: &Path, licence: &str, losses: Option<&LossChange>) -> String {
        let name = dir.file_name().map_or_else(
            || "Annealed model".to_owned(),
            |name| name.to_string_lossy().into_owned(),
        );
        format!(
            "---\nbase_model: {base}\n{licence}tags:\n  - remit\n  - mid-training\n---\n\n# {name}\n\n\
             `{model}`, annealed with [ReMiT](https://arxiv.org/abs/2602.03075) by remit {version}: {weighting} weighting \
             of the next-token loss by `{rl}`, {steps} steps, {tokens} tokens, learning rate {lr:e} ({schedule}).\n\
             {losses}\n\
             - Corpus, tokens and log-probs: the set `{weights}`, manifest {digest}.\n\
             - Everything that decided the result: {PROVENANCE_FILE} and {RUN_FILE}; every step: {METRICS_FILE}.\n\n\
             ## Intended use, limits, evaluation\n\nTo be filled in.\n",
            // JSON strings are YAML strings.
            base = json!(self.model),
            model = self.model,
            version = self.tool_version,
            weighting = self.objective.weighting,
            rl = self.rl.path,
            steps = self.steps,
            tokens = self.tokens,
            lr = self.lr,
            schedule = self.schedule,
            losses = losses.map_or(String::new(), sentence),
            weights = self.weights,
            digest = self.manifest_blake3,
        )
    }
}

/// Tells the plain loss at the beginning and at the end of a run, as a line.
fn sentence(losses: &LossChange) -> String {
    match losses {
        LossChange::EvaluationRows { first, last } => format!(
            "The plain next-token loss on {} evaluation targets was {:.4} nats per target after step {} and {:.4} after \
             step {}.\n",
            last.targets, first.ntp_loss, first.step, last.ntp_loss, last.step
        ),
        LossChange::TrainingRows { first, last } => format!(
            "The plain next-token loss was {:.4} nats per target over steps {} to {} and {:.4} over steps {} to {}, each \
             on rows of its own.\n",
            first.ntp_loss,
            first.first_step,
            first.last_step,
            last.ntp_loss,
            last.first_step,
            last.last_step
        ),
        LossChange::AllTrainingRows { all } => format!(
            "The plain next-token loss was {:.4} nats per target over all steps.\n",
            all.ntp_loss
        ),
    }
}

/// Writes a Hugging Face directory. config.json comes last: without it no library takes the folder for a
/// model, and an interrupted run resumes.
///
/// # Errors
///
/// When a file of the initial model can't be read, and when writing fails.
pub(super) fn write(plan: &Plan<'_>, trained: &Trained, losses: Option<&LossChange>) -> Result<()> {
    let dir: &Path = &plan.output.dir;
    // Files of an interrupted export may be of another run, and libraries prefer them to shards.
    for name in fs::list(dir)? {
        if is_exported(&name.to_string_lossy()) {
            fs::remove_file(&dir.join(&name))?;
        }
    }
    model::write_weights(
        dir,
        plan.initial.weights(),
        trained.model.stored(),
        plan.output.max_shard_bytes,
    )?;
    for (name, content) in plan.carried.files() {
        if let Some((folder, _)) = name.split_once('/') {
            fs::create_dir_all(&dir.join(folder))?;
        }
        fs::write_atomic(&dir.join(name), content)?;
    }
    let provenance = Provenance::new(plan, trained);
    let card = provenance.card(dir, plan.carried.licence(), losses);
    fs::write_atomic(&dir.join(CARD_FILE), card.as_bytes())?;
    let mut text = serde_json::to_vec_pretty(&provenance)?;
    text.push(b'\n');
    fs::write_atomic(&dir.join(PROVENANCE_FILE), &text)?;
    for name in [
        "model",
        RUN_FILE,
        CARD_FILE,
        PROVENANCE_FILE,
        COMPLETION_MARKER,
    ] {
        fs::remove_stale_temps(dir, name)?;
    }
    for (name, _) in plan.carried.files() {
        fs::remove_stale_temps(dir, name)?;
    }
    fs::write_atomic(&dir.join(COMPLETION_MARKER), plan.carried.config())?;
    Ok(())
}
