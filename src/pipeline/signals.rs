//! Signals that mean nothing: models and log-probs that a run can compute with, but that can't be what was meant.
//!
//! Each is one line with the number that shows it and what to look at. They are warnings, or errors with `--strict`.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::Result;

use super::{BadInput, Progress, json_of};
use crate::escape::Show as _;
use crate::model::{self, OpenModel};
use crate::shard::manifest::Manifest;
use crate::shard::statistics::Statistics;
use crate::weight::WeightFormula;

/// Share of the weights at the bounds from which they tell hardly more than a sign.
const MOST_AT_BOUNDS: f64 = 2.0 / 3.0;

/// Difference of mean log-probs, in nats, from which the RL model is far from the text: a factor of 4.
const FAR_NATS: f64 = 1.386;

/// Difference of mean log-probs, in nats, from which the base may be the RL model.
const NEAR_NATS: f64 = 0.5;

/// Share of the tokens that counts as nearly all.
const NEARLY_ALL: f64 = 0.95;

/// Words in the names of base models, and in those of models after RL or instruction tuning.
const BASE_WORDS: [&str; 4] = ["base", "pt", "pretrain", "pretrained"];
const RL_WORDS: [&str; 14] = [
    "rl",
    "rlhf",
    "rlvr",
    "instruct",
    "it",
    "chat",
    "thinking",
    "think",
    "reasoning",
    "sft",
    "dpo",
    "ppo",
    "grpo",
    "zero",
];

/// Warns of each signal, or makes them an error if `strict`.
pub(super) fn report(signals: &[String], strict: bool, progress: &dyn Progress) -> Result<()> {
    if !strict {
        signals.iter().for_each(|signal| progress.warn(signal));
        return Ok(());
    }
    match signals {
        [] => Ok(()),
        signals => Err(BadInput(format!(
            "{}\nhint: without --strict this is a warning",
            signals.join("\n  and ")
        ))
        .into()),
    }
}

/// Tells what is odd about a pair of models, as far as their files show it.
pub(super) fn of_pair(rl: &OpenModel, base: &OpenModel) -> Result<Vec<String>, model::Error> {
    if rl.fingerprint() == base.fingerprint() {
        return Ok(vec![format!(
            "the RL model {rl} and the base {base} are one model (both have the fingerprint {}), so every weight is 1, as \
             in plain training: look at --rl-model and --base-model",
            short(&rl.fingerprint().to_string())
        )]);
    }
    let names = [rl, base].map(|model| words(&model.to_string()));
    let [rl_words, base_words] = &names;
    let has =
        |name: &[String], words: &[&str]| name.iter().any(|word| words.contains(&word.as_str()));
    let is_named_otherwise = (has(rl_words, &BASE_WORDS) && !has(base_words, &BASE_WORDS))
        || (has(base_words, &RL_WORDS) && !has(rl_words, &RL_WORDS));
    let [rl_chats, base_chats] = [has_chat_template(rl)?, has_chat_template(base)?];
    let reason = match (is_named_otherwise, base_chats && !rl_chats) {
        (true, _) => "by their names",
        (false, true) => "since only the base has a chat template",
        (false, false) => return Ok(Vec::new()),
    };
    Ok(vec![format!(
        "the RL model {rl} and the base {base} may be swapped, {reason}: look at --rl-model and --base-model"
    )])
}

/// Tells what is odd about a learner, given the set in `dir`.
pub(super) fn of_learner(learner: &OpenModel, dir: &Path, manifest: &Manifest) -> Vec<String> {
    let rl = &manifest.plan.rl;
    if learner.fingerprint() != rl.fingerprint {
        return Vec::new();
    }
    vec![format!(
        "the learner {learner} is the RL model that the set in {} was scored with, {} (fingerprint {}): at the first step \
         every dynamic weight is 1, and nothing is left to learn from it; look at --model",
        dir.shown(),
        rl.path.shown(),
        short(&rl.fingerprint.to_string())
    )]
}

/// Tells what is odd about log-probs and weights. Of one model in both places it is no news that they agree. `sources` are those of the rows, if they were told apart.
pub(super) fn of_statistics(
    all: &Statistics,
    sources: &BTreeMap<String, Statistics>,
    formula: Option<&WeightFormula>,
    vocab_size: usize,
    is_one_model: bool,
) -> Vec<String> {
    let mut signals = Vec::new();
    if let Some(perplexity) = all.rl_perplexity {
        let less_likely = all
            .base_logprob_mean
            .zip(all.rl_logprob_mean)
            .map_or(0.0, |(base, rl)| base - rl);
        let of_base = all.base_perplexity.map_or(String::new(), |base| {
            format!(", and that of the base {base:.3}")
        });
        if perplexity >= vocab_size as f64 / 2.0 {
            signals.push(format!(
                "the text is noise to the RL model: its perplexity is {perplexity:.3}{of_base}, where guessing among its \
                 {vocab_size} tokens gives {vocab_size}: look at whether the weights are trained and the tokenizer is \
                 theirs (remit-inspect show prints a row), and whether the corpus is text"
            ));
        } else if less_likely >= FAR_NATS {
            signals.push(format!(
                "the text is far from the RL model: its perplexity is {perplexity:.3}{of_base}, {less_likely:.2} nats per \
                 token apart: look at whether its weights are intact, and whether the models are swapped"
            ));
        } else if less_likely >= NEAR_NATS && base_is_likelier(sources) >= NEARLY_ALL {
            signals.push(format!(
                "the base finds nearly all sources likelier than the RL model does, by {less_likely:.2} nats per token \
                 (perplexity {perplexity:.3}{of_base}): look at whether the models are swapped"
            ));
        }
    }
    if let (Some(weight), Some(formula)) = (&all.weight, formula)
        && formula.epsilon() > 0.0
        && all.targets > 0
    {
        // With bounds that are nearly one, a weight is at both.
        let at_bounds = (weight.share_at_lower + weight.share_at_upper).min(1.0);
        let (lower, upper) = formula.bounds();
        if !is_one_model && weight.p95 - weight.p05 < 0.01 * f64::from(formula.epsilon()) {
            signals.push(format!(
                "nine of ten weights lie between {:.4} and {:.4}: the RL model and the base hardly differ on this text; \
                 look at whether they are two models",
                weight.p05, weight.p95
            ));
        }
        if at_bounds >= MOST_AT_BOUNDS {
            signals.push(at_the_bounds(at_bounds, lower, upper));
        }
    }
    signals
}

/// Tells that most weights of the first step are at the bounds, if they are.
pub(super) fn of_first_step(at_bounds: f64, formula: &WeightFormula) -> Option<String> {
    let (lower, upper) = formula.bounds();
    (formula.epsilon() > 0.0 && at_bounds >= MOST_AT_BOUNDS)
        .then(|| at_the_bounds(at_bounds, lower, upper))
}

fn at_the_bounds(share: f64, lower: f32, upper: f32) -> String {
    format!(
        "{:.0} % of the weights are at their bounds, {lower} and {upper}, so most tokens differ by a sign only: look at \
         --epsilon and --temperature, and whether the RL model comes from this base",
        100.0 * share
    )
}

/// Returns the share of the tokens that lie in sources which the base finds likelier.
fn base_is_likelier(sources: &BTreeMap<String, Statistics>) -> f64 {
    let (mut likelier, mut all) = (0, 0);
    for source in sources.values() {
        if let (Some(rl), Some(base)) = (source.rl_logprob_mean, source.base_logprob_mean) {
            all += source.tokens;
            likelier += if base > rl { source.tokens } else { 0 };
        }
    }
    likelier as f64 / all.max(1) as f64
}

fn has_chat_template(model: &OpenModel) -> Result<bool, model::Error> {
    let config = json_of(model, "tokenizer_config.json")?;
    let in_config = config.is_some_and(|config| config.get("chat_template").is_some());
    Ok(in_config || model.file("chat_template.jinja")?.is_some())
}

/// Returns the words of a model's own name, in lower case: the last part of its path, or, in the hub's cache, the one
/// that names it.
fn words(path: &str) -> Vec<String> {
    let mut parts = path.split(['/', '\\']).filter(|part| !part.is_empty());
    let of_hub = parts.clone().find(|part| part.starts_with("models--"));
    let name = of_hub.or_else(|| parts.next_back()).unwrap_or_default();
    name.split(|c: char| !c.is_ascii_alphanumeric())
        .map(str::to_ascii_lowercase)
        .filter(|word| !word.is_empty())
        .collect()
}

/// Returns the beginning of a digest, which is enough to recognize it.
fn short(digest: &str) -> &str {
    digest.get(..12).unwrap_or(digest)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn statistics(rl: f64, base: Option<f64>) -> Statistics {
        Statistics {
            rows: 1,
            tokens: 11,
            targets: 10,
            rl_logprob_mean: Some(rl),
            rl_perplexity: Some((-rl).exp()),
            base_logprob_mean: base,
            base_perplexity: base.map(|base| (-base).exp()),
            weight: None,
        }
    }

    fn first(all: &Statistics) -> String {
        let sources = BTreeMap::from([("a".to_owned(), all.clone())]);
        let signals = of_statistics(all, &sources, None, 1000, false);
        assert!(signals.len() <= 1, "{signals:?}");
        signals.into_iter().next().unwrap_or_default()
    }

    #[test]
    fn a_text_is_noise_near_the_size_of_the_vocabulary_and_far_where_the_base_knows_it() {
        assert!(first(&statistics(-6.3, None)).starts_with("the text is noise to the RL model"));
        assert_eq!(first(&statistics(-6.1, None)), "");
        assert!(
            first(&statistics(-4.0, Some(-2.5))).starts_with("the text is far from the RL model")
        );
        assert!(
            first(&statistics(-4.0, Some(-3.4))).starts_with("the base finds nearly all sources")
        );
        assert_eq!(first(&statistics(-4.0, Some(-3.6))), "");
        assert_eq!(first(&statistics(-2.0, Some(-4.0))), "");
    }

    #[test]
    fn the_words_of_a_name_are_those_of_the_model_and_not_of_its_folders() {
        assert_eq!(words("base/Qwen3-0.6B/"), ["qwen3", "0", "6b"]);
        let cached = "hub/models--Qwen--Qwen3-0.6B-Base/snapshots/ab12";
        assert_eq!(words(cached).last().unwrap(), "base");
        assert_eq!(words("builtin:demo-rl").last().unwrap(), "rl");
    }
}
